"""`Merge`: what patches become: layout, dtype, weights and reduction of the array that they are put into."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._checks import one_of, scalar
from tilework.engine.spec import Spec
from tilework.errors import ContractError, GridError, TilingError
from tilework.function.calling import as_array
from tilework.function.output import UNWEIGHTED, BoundOutput
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.grid.weights import BLENDS, Blend, accumulation_dtype, kind_of
from tilework.loops.common import Cut, check_scale, request_of
from tilework.plan.request import weighed
from tilework.plan.tile_plan import OutputPlan, TilePlan

__all__ = ["Merge", "addable", "gaussian"]

Array = np.ndarray[Any, Any]
Index = tuple[int, ...]


def gaussian(length: int) -> Array:
    """Return Patchly's gaussian weights of a patch of ``length`` samples, as a window for ``blend=``.

    For odd lengths the gaussian of `tiled_map`; for even ones a little narrower, because Patchly spreads
    ``length`` samples from ``-length / 2`` to ``length / 2``.

    Parameters
    ----------
    length : int, samples

    Returns
    -------
    numpy.ndarray, shape (length,), float64

    Examples
    --------
    >>> gaussian(8).round(4).tolist()
    [0.0003, 0.0169, 0.2301, 0.8494, 0.8494, 0.2301, 0.0169, 0.0003]
    """
    half = length // 2
    return np.asarray(np.exp(-((np.linspace(-half, half, length) / (length / 8)) ** 2) / 2))


def blend_of(weights: Any) -> Blend:
    """Return Patchly's word for weights, or any of this package's, as a blend."""
    if isinstance(weights, str):
        words: dict[str, Blend] = {"avg": "average", "gaussian": gaussian}
        return words.get(weights) or one_of("weights", weights, (*words, *BLENDS))
    if callable(weights):
        return weights  # type: ignore[no-any-return]
    if isinstance(weights, list | tuple):
        return [as_array(w) for w in weights]
    array = as_array(weights)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"weights must be a word, a callable or arrays of numbers; got {weights!r}.")
    return array


def addable(values: Array, kind: str) -> Array:
    """Return ``values`` in a dtype that blend ``kind`` can add up: flags and 64-bit integers as floats."""
    if kind in UNWEIGHTED:
        return values
    if values.dtype.kind == "b":
        return values.astype(np.float32)
    return values.astype(np.float64) if values.dtype.kind in "iu" and values.dtype.itemsize == 8 else values


def _not_called(*crops: Array) -> Array:
    raise TilingError(f"patches are appended, not computed; got a call with {len(crops)} crops.")


@dataclass(slots=True)
class Merge:
    """How patches are merged; the shape and dtype of the first one say the rest."""

    grids: tuple[AxisGrid, ...]
    """Where patches stand along each tiled axis."""
    padded: Index
    """Extents of the padded image, which an output may have as well, samples."""
    weights: Any
    scale: tuple[Fraction, ...]
    """Result samples per image sample and tiled axis."""
    spatial_first: bool
    size: Index
    """Shape of the output, with or without the axis that is reduced."""
    dtype: np.dtype[Any] | None
    """Of the result; None: it follows from the patches."""
    softmax: int | None
    """Axis of the argmax in a patch."""
    post: Callable[[Array], Array] | None
    """What is applied to finished blocks instead."""
    fill_value: Any
    given: bool = False
    """Whether the output exists: then one with the axis of the argmax holds the sums."""
    blend: Blend = field(init=False, default="average")
    last_argmax: int | None = field(init=False, default=None)
    """Axis of an argmax that is still to be taken of the output."""

    def __post_init__(self) -> None:
        self.blend = blend_of(self.weights)
        n = len(self.grids)
        check_scale(self.grids, tuple(map(str, range(n))), self.scale)
        if len(self.size) < n:
            raise GridError(f"the output needs the {n} tiled axes; its shape is {self.size}.")
        found = self.size[:n] if self.spatial_first else self.size[len(self.size) - n :]
        expected, padded = (
            self.extents,
            [math.ceil(p * s) for p, s in zip(self.padded, self.scale, strict=True)],
        )
        for axis, (a, b, c) in enumerate(zip(found, expected, padded, strict=True)):
            if a not in ((b,) if self.given else (b, c)):
                raise GridError(
                    f"the output must have the image's extent; axis {axis} has {b} samples and the output of "
                    f"shape {self.size} {a} (spatial_first={self.spatial_first})."
                )

    @property
    def extents(self) -> Index:
        """Lengths of the result along the tiled axes."""
        return tuple(math.ceil(g.extent * s) for g, s in zip(self.grids, self.scale, strict=True))

    @property
    def untiled(self) -> Index:
        """Lengths of the output along the other axes."""
        n = len(self.grids)
        return self.size[n:] if self.spatial_first else self.size[: len(self.size) - n]

    def _around(self, untiled: Sequence[int], tiled: Sequence[int]) -> Index:
        return (*tiled, *untiled) if self.spatial_first else (*untiled, *tiled)

    def _axes(self, ndim: int) -> Index:
        n = len(self.grids)
        return tuple(range(n)) if self.spatial_first else tuple(range(ndim - n, ndim))

    def patch_shape(self) -> Index:
        """Return the shape of a patch whose untiled axes are the output's."""
        crops = [math.ceil(g.crop * s) for g, s in zip(self.grids, self.scale, strict=True)]
        return self._around(self.untiled, crops)

    def spec(self, first: Array, chunk: Index | None, unit: Index | None) -> Spec:
        """Return the specification for patches like ``first``.

        Parameters
        ----------
        first : numpy.ndarray
            A patch; only its untiled axes and dtype count.
        chunk : tuple of int, image samples, optional
            Finished at once; None: all, or what ``unit`` asks for.
        unit : tuple of int, samples, optional
            What the output stores at once, per axis.
        """
        ndim = first.ndim
        axes = self._axes(ndim)
        untiled = tuple(n for a, n in enumerate(first.shape) if a not in axes)
        reduce, channel, left = self._reduction(ndim, untiled)
        crops = [math.ceil(g.crop * s) for g, s in zip(self.grids, self.scale, strict=True)]
        blend = self.blend
        if kind_of(blend) not in UNWEIGHTED and self._copied(first.dtype):
            blend = "trim"
        kind = kind_of(blend)
        values = addable(first[(slice(0),) * ndim], kind).dtype
        dtype = self._default(values, kind, reduce) if self.dtype is None else self.dtype
        bound = BoundOutput(
            key=None,
            dtype=dtype,
            values=values,
            shape=self._around(untiled, crops),
            axes=axes,
            scale=self.scale,
            blend=blend,
            kind=kind,
            reduce=reduce,
            channel_axis=channel,
            fill_value=scalar("fill_value", self.fill_value, dtype),
            reduced_shape=self._around(left, self.extents),
            reduced_axes=self._axes(len(left) + len(self.grids)),
        )
        cut = Cut(axes, self.grids, tuple(map(str, range(len(self.grids)))), (0,) * len(self.grids))
        output = weighed(bound, cut.layout, request_of(blend, "auto"))
        rim = None if kind == "trim" else cut.rim
        size = math.prod(untiled)
        outputs = (OutputPlan(rim, self.scale, size * values.itemsize, size * dtype.itemsize),)
        block = chunk or self._block(unit, bound)
        plan = TilePlan(self.grids, cut.names, 0, block, outputs, ())
        return Spec(plan=plan, sources=(), source_axes=(), fn=_not_called, outputs=(output,))

    def _reduction(self, ndim: int, untiled: Index) -> tuple[Any, int | None, Index]:
        """Return the reduction, the axis of an argmax, and the untiled axes that it leaves."""
        if ndim < len(self.grids):
            raise ContractError(f"a patch needs the {len(self.grids)} tiled axes; it has {ndim}.")
        if self.post is not None:
            return self.post, None, self.untiled
        if self.softmax is None:
            self._expect(untiled, untiled)
            return None, None, untiled
        axes, channel = self._axes(ndim), self.softmax % ndim
        if not -ndim <= self.softmax < ndim or channel in axes:
            raise TilingError(
                f"softmax_dim must be an axis of a patch that is not tiled; got {self.softmax} for {ndim} "
                f"axes of which {axes} are tiled."
            )
        kept = [a for a in range(ndim) if a not in axes]
        left = tuple(n for a, n in zip(kept, untiled, strict=True) if a != channel)
        self._expect(untiled, left)
        if self.given and self.untiled == untiled:
            self.last_argmax = channel
            return None, None, untiled
        return "argmax", channel, left

    def _expect(self, untiled: Index, left: Index) -> None:
        if self.untiled not in (untiled, left):
            raise ContractError(
                f"patches have untiled axes {untiled}; the output of shape {self.size} has {self.untiled}."
            )

    def _copied(self, dtype: np.dtype[Any]) -> bool:
        """Return whether values of ``dtype`` are copied: sums would change them, and nothing overlaps."""
        if dtype.kind in "fc" or (dtype.kind in "iu" and dtype.itemsize < 8):
            return False
        spans = (grid.supports(0) for grid in self.grids)
        return all(bool((stops[:-1] <= starts[1:]).all()) for starts, stops in spans)

    def _default(self, values: np.dtype[Any], kind: str, reduce: Any) -> np.dtype[Any]:
        """Return the dtype of a result that nobody asked for another one of."""
        if reduce == "argmax":
            return np.dtype(np.int64)
        if reduce is not None:
            return np.dtype(np.float32)
        if kind == "trim" and self.blend != "trim" and values.kind in "biu":
            # As if the copied values had been averaged, so that a change of the step changes no dtype.
            values, kind = addable(np.empty(0, values), "average").dtype, "average"
        return accumulation_dtype(values, kind)

    def _block(self, unit: Index | None, bound: BoundOutput) -> Index:
        """Return the samples that are finished at once: whole storage units that hold a patch, or all."""
        extents = tuple(g.extent for g in self.grids)
        if unit is None or any(s != 1 for s in self.scale):
            return extents
        own = [unit[a] for a in bound.reduced_axes]
        sizes = [ceil_div(g.crop, u) * u for g, u in zip(self.grids, own, strict=True)]
        return tuple(min(n, s) for n, s in zip(extents, sizes, strict=True))
