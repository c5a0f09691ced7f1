"""Outputs bound to the crops of one call: everything that blocks need, including weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._checks import as_dtype, positive, scalar
from tilework._derived import Holder, derived
from tilework._types import Array, Floats, Index
from tilework.errors import ContractError, GridError, TilingError
from tilework.function.guard import Guard
from tilework.function.output import Output, Reduce, scales
from tilework.function.placement import find_axes, normal_axes
from tilework.grid.axis import AxisGrid
from tilework.grid.importance import importance_map
from tilework.grid.tiles import Box
from tilework.grid.weights import (
    PLAIN,
    AxisWeights,
    Blend,
    accumulation_dtype,
    kind_of,
    per_axis,
    profile,
)
from tilework.labels.doubts import doubts
from tilework.labels.hints import may_be_labels
from tilework.labels.painting import NO_CLAIM, Counts
from tilework.labels.runs import check_ids

__all__ = ["BoundOutput", "bind", "refuse_on_device", "spread", "with_weights"]

UNWEIGHTED = ("trim", "max", "min", "sum", "own")
"""Blends that do not multiply by weights; "own" is that of labels, whose objects their owners paint."""
# Ratio of smallest to largest weight below which a corner without neighbours would vanish in float32.
STEEP = 1e-30


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BoundOutput(Holder):
    """One output of one `tiled_map`: everything that its blocks need, including its weights."""

    key: int | str | None
    """Its key in the tuple or dict that the function returns; None when it returns one array."""
    dtype: np.dtype[Any]
    """Dtype of the returned array."""
    values: np.dtype[Any] | None
    """Dtype of the function's result, if the function was called on zeros."""
    shape: Index
    """Shape of the function's result for a full crop, batch excluded, samples."""
    axes: Index
    """Positions of the tiled axes in ``shape``."""
    scale: tuple[Fraction, ...]
    """Result samples per image sample, per tiled axis."""
    blend: Blend
    """The blend as given."""
    kind: str
    """The word of the blend, or "window"."""
    reduce: Reduce | None
    """Applied to each normalised block."""
    channel_axis: int | None
    """Axis of ``shape`` that an argmax removes."""
    fill_value: Any
    """Value where no crop ran, of ``dtype``."""
    reduced_shape: Index
    """``shape`` after reducing."""
    reduced_axes: Index
    """``axes`` after reducing."""
    steep: bool = False
    """Whether the weights exceed the range of float32, so that sums need float64."""
    compensated: bool = False
    """Whether so many crops lie on a sample that sums keep what rounding takes from them."""
    sigma_scale: float = 0.125
    """Standard deviation of a gaussian window, as a fraction of the crop."""
    weights: tuple[AxisWeights, ...] = ()
    """Places of results, and windows where these are separable; per grid axis, ``each`` axes first."""
    importance: Floats | None = None
    """N-D weights over the tiled axes of a full crop's result; None if they are separable."""
    factor: float = 1.0
    """Factor of ``importance``, so that the weights of all crops on a sample sum to less than 1."""
    n_each: int = 0
    """How many grid axes are ``each`` axes."""
    stored: np.dtype[Any] | None = None
    """Dtype in which labels are written, numbered; None for all other outputs."""
    connectivity: int = 0
    """Of labels that are joined: along how many axes samples that touch may differ; 0 for all others."""

    @property
    def weighted(self) -> bool:
        """Whether results are multiplied by weights."""
        return self.kind not in UNWEIGHTED

    @property
    def grid_axes(self) -> list[int]:
        """The axis of the returned array for every grid axis."""
        return [*range(self.n_each), *(self.n_each + a for a in self.reduced_axes)]

    def places(self, names: Sequence[str], *, batched: bool) -> dict[str, int]:
        """Return the position of each tiled axis in a result of the function, by the names of grid axes."""
        columns = zip(names[self.n_each :], self.axes, strict=True)
        return {name: axis + batched for name, axis in columns}

    def accumulator(self, values: np.dtype[Any] | None = None) -> np.dtype[Any]:
        """Return the dtype in which results of dtype ``values`` are combined."""
        values = values or self.values or (self.dtype if self.reduce is None else np.dtype(np.float32))
        dtype = accumulation_dtype(values, self.kind)
        dtype = np.result_type(dtype, np.float64) if self.steep else dtype
        # The neutral value of a maximum is the end of its type: results of a wider one may lie beyond it.
        extreme = self.kind in ("max", "min") and self.dtype.kind in "iu"
        wider = self.reduce is None and self.kind != "trim" and (extreme or self.dtype.kind in "fc")
        return np.result_type(dtype, accumulation_dtype(self.dtype, self.kind)) if wider else dtype

    @property
    def sum_bytes(self) -> int:
        """Bytes of one value while it is combined."""
        return self.accumulator().itemsize * (2 if self.compensated else 1)

    def region(self, box: Box) -> Box:
        """Return an image box in result samples."""
        return Box(
            tuple(w.scaled(a) for w, a in zip(self.weights, box.start, strict=True)),
            tuple(w.scaled(b) for w, b in zip(self.weights, box.stop, strict=True)),
        )

    def index(self, spans: Sequence[slice]) -> tuple[slice, ...]:
        """Return slices per grid axis as an index into an array of the function's layout."""
        if not self.n_each and self.axes == tuple(range(len(self.shape))):
            return tuple(spans)  # every tile asks, several times
        index = [*spans[: self.n_each], *[slice(None)] * len(self.shape)]
        for axis, span in zip(self.axes, spans[self.n_each :], strict=True):
            index[self.n_each + axis] = span
        return tuple(index)

    def place(self, box: Box) -> tuple[slice, ...]:
        """Return result samples per grid axis as an index into the returned array."""
        spans = [slice(None)] * (self.n_each + len(self.reduced_shape))
        for axis, span in zip(self.grid_axes, box.slices, strict=True):
            spans[axis] = span
        return tuple(spans)

    def chunk(self, block: Index) -> Index:
        """Return the number of the chunk of the returned array that is block ``block`` of the grid axes."""
        numbers = [0] * (self.n_each + len(self.reduced_shape))
        for axis, number in zip(self.grid_axes, block, strict=True):
            numbers[axis] = number
        return tuple(numbers)

    def layout(self, lengths: Sequence[int], *, reduced: bool = False) -> tuple[int, ...]:
        """Return the shape of an array of this output with ``lengths`` per grid axis."""
        shape = list(self.reduced_shape if reduced else self.shape)
        for axis, n in zip(self.reduced_axes if reduced else self.axes, lengths[self.n_each :], strict=True):
            shape[axis] = n
        return (*lengths[: self.n_each], *shape)

    @derived
    def _uniform(self) -> bool:
        """Whether it is certain that the results of all crops have one shape."""
        return all(w.scale == 1 and w.grid.edge != "clip" for w in self.weights)

    def shape_at(self, position: Index) -> Index:
        """Return the shape of the function's result for the crop at ``position``, batch excluded."""
        if self._uniform:
            return self.shape
        spans = [w.result(i) for w, i in zip(self.weights, position, strict=True)]
        return self.layout([b - a for a, b in spans])[self.n_each :]

    def spread(self, flat: Array, *, reduced: bool = False) -> Array:
        """Return an array over the grid axes with axes added, so that it broadcasts over the output."""
        axes, shape = (self.reduced_axes, self.reduced_shape) if reduced else (self.axes, self.shape)
        return spread(flat, axes, len(shape), self.n_each)

    def doubts(self, names: Sequence[str], counts: Counts, *, dropped: int = 0, where: str = "") -> str:
        """Return what to tell of doubtful objects; ``names`` are those of the grid axes."""
        n = self.n_each
        overlaps = [w.scaled(w.grid.overlap - max(w.grid.margin)) for w in self.weights[n:]]
        return doubts(counts, names[n:], overlaps, dropped=dropped, where=where)

    def fill(self, lengths: Sequence[int]) -> Array:
        """Return an array of the fill value, ``lengths`` per grid axis, for a part in which nothing ran."""
        shape, value = self.layout(lengths, reduced=True), np.asarray(self.fill_value, self.dtype)
        # The system has pages of zeros, and gives those that are touched.
        return np.full(shape, value) if any(value.tobytes()) else np.zeros(shape, self.dtype)


def spread(flat: Array, axes: Sequence[int], ndim: int, n_each: int = 0) -> Array:
    """Return ``flat`` (``each`` axes, tiled axes) with its tiled axes at ``axes`` of ``ndim`` axes."""
    if tuple(axes) == tuple(range(ndim)):
        return flat
    order = sorted(range(len(axes)), key=lambda t: axes[t])
    flat = flat.transpose([*range(n_each), *(n_each + t for t in order)])
    return np.expand_dims(flat, [n_each + a for a in range(ndim) if a not in axes])


def bind(
    key: int | str | None,
    output: Output,
    *,
    crop_shape: Index,
    crop_axes: Index,
    crop: Index,
    margin: tuple[tuple[int, int], ...],
    blend: Blend,
    fill_value: Any,
    result: Array | None,
) -> BoundOutput:
    """Return ``output`` bound to the crops of one call.

    Parameters
    ----------
    result : numpy.ndarray or None
        Result of the function for a crop of zeros, if it was called.
    """
    scale = scales(output.scale, len(crop))
    lengths = tuple(math.ceil((c - sum(m)) * s) for c, m, s in zip(crop, margin, scale, strict=True))
    if result is not None and output.channels is None and output.shape is None:
        # Nothing was said about the untiled axes: they are those of the result.
        shape = result.shape
        axes = _axes_of(key, output, shape, crop_shape, crop_axes, lengths)
    else:
        shape, axes = place(output, crop_shape, crop_axes, lengths)
        if result is not None and result.shape != shape:
            raise ContractError(f"the function returned shape {result.shape}; the declared one is {shape}.")
    blend = blend if output.blend is None else output.blend
    kind = kind_of(blend) if output.labels is None else {"own": "own", "join": "trim"}[output.labels]
    stored = None
    values = None if result is None else result.dtype
    channel = _channel(output, shape, axes) if output.reduce == "argmax" else None
    dtype = _dtype(output, values, shape, channel)
    reduced_shape, reduced_axes = _reduced(output.reduce, shape, axes, channel)
    _check_names(output.channel_names, reduced_shape, reduced_axes)
    if output.labels is not None:
        stored, dtype = dtype, np.dtype(np.int64)
        fill_value, blend = 0, "trim"
        if output.labels == "join" and output.connectivity > len(shape):
            raise TilingError(
                f"connectivity must be 1 to {len(shape)}, the number of axes of the labels; got "
                f"{output.connectivity}."
            )
    fill = fill_value if output.fill_value is None else output.fill_value
    bound = BoundOutput(
        key=key, dtype=dtype, values=values, shape=shape, axes=axes, scale=scale, blend=blend, kind=kind,
        reduce=output.reduce, channel_axis=channel, fill_value=scalar("fill_value", fill, dtype),
        reduced_shape=reduced_shape, reduced_axes=reduced_axes, stored=stored,
        connectivity=output.connectivity if output.labels == "join" else 0,
    )  # fmt: skip
    _check_blend(output, bound)
    return bound


def with_weights(
    output: BoundOutput,
    grids: Sequence[AxisGrid],
    *,
    names: Sequence[str],
    rim: Index,
    n_each: int,
    sigma_scale: float,
) -> BoundOutput:
    """Return ``output`` with its weights on ``grids``, ``each`` axes first.

    Parameters
    ----------
    names : sequence of str
        Names of the grid axes, for messages.
    rim : tuple of int, image samples per side and grid axis
    sigma_scale : float
        Standard deviation of a gaussian window, as a fraction of the crop.

    Raises
    ------
    GridError
        If a window leaves a sample without weight, or does not have the shape of a result.
    TilingError
        If ``sigma_scale`` is not positive.
    """
    if output.weighted and not positive("sigma_scale", sigma_scale):
        raise TilingError(f"sigma_scale must be positive; got {sigma_scale}.")
    scale = (Fraction(1),) * n_each + output.scale
    windows = per_axis(output.blend, len(grids) - n_each) if output.weighted else None
    weights: list[AxisWeights] = []
    for d, grid in enumerate(grids):
        given = windows[d - n_each] if windows is not None and d >= n_each else None
        # Equal axes share their weights, and all that is derived from them.
        same = (e for e in range(n_each, d) if windows is not None and windows[e - n_each] is given)
        twin = next((e for e in same if (grids[e], rim[e], scale[e]) == (grid, rim[d], scale[d])), None)
        if twin is not None:
            weights.append(weights[twin])
            continue
        # Objects are painted wherever the crop reaches.
        support = {"trim": None, "own": 0}.get(output.kind, rim[d])
        axis = AxisWeights(grid, None, support, scale[d])
        if given is not None:
            zeros = axis.scaled(rim[d])
            window = profile(given, axis.length, zeros, sigma_scale)
            axis = AxisWeights(grid, window, axis.rim, axis.scale)
            if not (isinstance(given, str) or window[zeros : len(window) - zeros].all()):
                axis = axis.covering(names[d])
        weights.append(axis)
    if output.stored is not None:
        _check_size(output, weights[n_each:])
    crops = math.prod(axis.most for axis in weights)
    free = output.weighted and windows is None
    importance = importance_map(output.blend, weights[n_each:], names[n_each:]) if free else None
    maps = [importance] if importance is not None else [w.window for w in weights]
    spans = [m[m > 0].min() / m.max() for m in maps if m is not None and m.any()]
    return replace(
        output,
        steep=math.prod(spans) < STEEP,
        compensated=(output.weighted or output.kind == "sum") and crops > PLAIN,
        sigma_scale=float(sigma_scale) if output.kind == "gaussian" else 0.125,
        weights=tuple(weights),
        importance=importance,
        # A power of two changes no bits of the result.
        factor=1.0 if importance is None else 2.0 ** -math.frexp(float(importance.max()) * crops)[1],
        n_each=n_each,
    )


def refuse_on_device(outputs: Sequence[BoundOutput], *, disagreement: bool, valid: bool) -> None:
    """Raise a `TilingError` unless results of ``from_torch(on_device=True)`` can be summed on the device."""
    problem = None
    if disagreement:
        problem = "disagreement=True compares results in double precision on the host"
    elif valid:
        problem = "where= and nodata= look at results on the host"
    for output in outputs:
        dtype = output.accumulator()
        if problem is not None:
            break
        if output.stored is not None:
            problem = "labels are painted on the host"
        elif callable(output.reduce):
            problem = 'reduce= is a callable of numpy arrays (the device knows "argmax")'
        elif dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
            problem = f"torch has no dtype {dtype}"
        elif dtype.kind == "c" and (output.kind not in ("trim", "sum") or output.reduce is not None):
            problem = f"{dtype} results can only be trimmed or summed there"
        elif dtype.kind == "u" and dtype.itemsize > 1 and (output.kind in ("max", "min") or output.reduce):
            problem = f"torch does not compare {dtype}"
    if problem is not None:
        raise TilingError(f"on_device=True of from_torch: {problem}. Use on_device=False.")


def _check_size(output: BoundOutput, weights: Sequence[AxisWeights]) -> None:
    """Raise if labels have more samples than ids."""
    shape = list(output.shape)
    for axis, w in zip(output.axes, weights, strict=True):
        shape[axis] = w.extent
    if math.prod(shape) >= NO_CLAIM:
        raise TilingError(
            f"labels of {math.prod(shape):.1e} samples are too many for ids that are positions; at most "
            f"{NO_CLAIM:.1e} have one. Make an axis an each= axis, or tile parts of the image."
        )


def _channel(output: Output, shape: Index, axes: Index) -> int:
    untiled = [a for a in range(len(shape)) if a not in axes]
    if len(untiled) == 1:
        return untiled[0]
    channel = output.channel_axis % max(1, len(shape))
    if channel not in untiled:
        raise TilingError(
            f'reduce="argmax" needs a channel axis; the result of shape {shape} has untiled axes {untiled} '
            f"and channel_axis is {output.channel_axis}. Declare channels= or channel_axis=."
        )
    return channel


def _dtype(output: Output, values: np.dtype[Any] | None, shape: Index, channel: int | None) -> np.dtype[Any]:
    dtype: np.dtype[Any]
    if output.dtype is not None:
        dtype = as_dtype(output.dtype)
    elif channel is not None:
        dtype = np.min_scalar_type(max(0, shape[channel] - 1))
    elif output.labels is not None:
        dtype = np.dtype("uint32")
    elif values is not None:
        dtype = values
    else:
        raise TilingError("the dtype of an output is not known; say Output(dtype, ...).")
    if dtype.hasobject or dtype.subdtype is not None or not dtype.itemsize:
        said = f" {dtype}" if output.dtype is None else f"={dtype}"
        raise TilingError(
            f"an output cannot have dtype{said}; tilework handles numbers, bool, datetimes, and text "
            "and records of a fixed length, such as 'f4' and 'U5'."
        )
    return np.dtype(dtype)


def _reduced(reduce: Reduce | None, shape: Index, axes: Index, channel: int | None) -> tuple[Index, Index]:
    """Return shape and tiled axes after ``reduce``; a callable is tried on a small block of zeros."""
    if reduce is None:
        return shape, axes
    if channel is not None:
        kept = [a for a in range(len(shape)) if a != channel]
        return tuple(shape[a] for a in kept), tuple(kept.index(a) for a in axes)
    assert callable(reduce)
    for start in (2, 11, 23):
        # Lengths that no other axis has identify the tiled axes in the result.
        free = (n for n in itertools.count(start) if n not in shape)
        small = list(shape)
        for axis, length in zip(axes, free, strict=False):
            small[axis] = length
        lengths = tuple(small[a] for a in axes)
        with Guard(lambda: "raised by reduce= on a small block of zeros"):
            got = np.shape(reduce(np.zeros(small, np.float32)))
        if all(got.count(n) == 1 for n in lengths):
            break
    else:
        raise ContractError(
            "reduce must keep the tiled axes; "
            f"it maps a block of shape {tuple(small)} (tiled axes {axes}) to {got}."
        )
    order = [got.index(n) for n in lengths]
    full = list(got)
    for axis, source in zip(order, axes, strict=True):
        full[axis] = shape[source]
    return tuple(full), tuple(order)


def _check_names(names: tuple[str, ...] | None, shape: Index, axes: Index) -> None:
    """Raise unless the result has an untiled axis with one sample per name."""
    untiled = [n for a, n in enumerate(shape) if a not in axes]
    if names is not None and len(names) not in untiled:
        raise TilingError(
            f"channel_names has {len(names)} names; the result of shape {shape} has untiled axes of lengths "
            f"{untiled}. Give one name per channel."
        )


def _check_blend(output: Output, bound: BoundOutput) -> None:
    """Raise when the graph is built if a blend would fail, or average labels, in the first task."""
    known = bound.values or (bound.dtype if bound.reduce is None else None)
    if known is None:
        return
    if bound.stored is not None:
        check_ids(np.zeros(0, known), "the function returns")
        return
    accumulation_dtype(known, bound.kind)
    if bound.weighted and may_be_labels(known) and output.dtype is None and output.reduce is None:
        raise TilingError(
            f'{known} values would be averaged; labels must not be averaged: use Output(labels="own"). '
            f'If they are numbers, say so with dtype="{known}".'
        )


# -- positions of the tiled axes in a result --------------------------------------------------------------


def _axes_of(
    key: int | str | None, output: Output, shape: Index, crop_shape: Index, crop_axes: Index, lengths: Index
) -> Index:
    """Return the positions of the tiled axes in a result of ``shape``, of which nothing else is declared."""
    if output.axes is None:
        usual, axes = place(output, crop_shape, crop_axes, lengths)
        return axes if shape == usual else find_axes(shape, lengths, crop_shape, crop_axes, key)
    axes = normal_axes(output.axes, len(shape), len(lengths))
    if tuple(shape[a] for a in axes) != lengths:
        raise ContractError(
            f"the function returned shape {shape}; it must have lengths {lengths} on the tiled axes {axes}."
        )
    return axes


def place(output: Output, crop_shape: Index, crop_axes: Index, lengths: Index) -> tuple[Index, Index]:
    """Return the result's shape for a full crop, and the positions of the tiled axes in it."""
    n = len(lengths)
    rest = [size for axis, size in enumerate(crop_shape) if axis not in crop_axes]
    if output.shape is not None:
        replaced = list(crop_shape)
        for axis, length in zip(crop_axes, lengths, strict=True):
            replaced[axis] = length
        axes = output.axes or find_axes(output.shape, lengths, tuple(replaced), crop_axes)
        axes = normal_axes(axes, len(output.shape), n)
        if tuple(output.shape[a] for a in axes) != lengths:
            raise GridError(
                f"Output(shape={output.shape}) must have lengths {lengths} (crop less margin, times scale) "
                f"on the tiled axes {axes}."
            )
        return output.shape, axes
    if output.channels is not None:
        rest = [output.channels] if output.channels else []
    ndim = n + len(rest)
    if output.axes is not None:
        axes = normal_axes(output.axes, ndim, n)
    elif output.channels:
        channel = normal_axes((output.channel_axis,), ndim, 1)[0]
        axes = tuple(a for a in range(ndim) if a != channel)
    else:
        axes = tuple(range(n)) if output.channels == 0 else crop_axes
    by_axis = dict(zip(axes, lengths, strict=True))
    others = iter(rest)
    return tuple(by_axis[a] if a in by_axis else next(others) for a in range(ndim)), axes
