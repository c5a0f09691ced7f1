"""Merging patches into one array: the rules (`Merge`), and the sums (`Gatherer`).

With the shape and dtype of the first patch, a `Merge` makes a `Spec`, as `tiled_map` does. Then one of three
gatherers takes all patches:

- `Kept`: no output was given; there is one canvas, and the result is returned.
- `Stored`: an output was given; there is one canvas, which is the memory of the output if it can hold the
sums.
- `ByBlock`: the sampler or the output has chunks; each block is finished, stored and dropped when its last
  patch arrives.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._checks import as_numbers, one_of, scalar
from tilework._types import Array, Index
from tilework.engine.accumulate import Accumulator
from tilework.engine.block import canvas_boxes, spans_of
from tilework.engine.canvas import Partial, combine, finish
from tilework.engine.cover import cover
from tilework.engine.spec import Spec
from tilework.engine.sums import real_dtype
from tilework.errors import ContractError, GridError, TilingError
from tilework.function.bound import UNWEIGHTED, BoundOutput
from tilework.function.calling import from_tensor, is_tensor
from tilework.grid.axis import AxisGrid, ceil_div
from tilework.grid.tiles import Box, Tile
from tilework.grid.weights import BLENDS, Blend, accumulation_dtype, kind_of
from tilework.loops.common import Cut, check_scale
from tilework.loops.writer import Sink, Spans
from tilework.plan.tile_plan import OutputPlan, TilePlan

__all__ = ["Gatherer", "Merge", "addable", "blend_of", "gatherer_of", "gaussian"]


# -- weights and dtypes -----------------------------------------------------------------------------------


def gaussian(length: int) -> Array:
    """Return Patchly's gaussian weights of a patch of ``length`` samples, as a window for ``blend=``.

    It equals the gaussian of `tiled_map` for odd lengths, and is slightly narrower for even ones, because
    Patchly spreads ``length`` samples from ``-length / 2`` to ``length / 2``.

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
    """Return the blend for ``weights``: a word of Patchly or of this package, a callable, or arrays."""
    if isinstance(weights, str):
        words: dict[str, Blend] = {"avg": "average", "gaussian": gaussian}
        return words.get(weights) or one_of("weights", weights, (*words, *BLENDS))
    if callable(weights):
        return weights  # type: ignore[no-any-return]
    if isinstance(weights, list | tuple):
        return [as_numbers("weights", from_tensor(w) if is_tensor(w) else w) for w in weights]
    return as_numbers("weights", from_tensor(weights) if is_tensor(weights) else weights)


def addable(values: Array, kind: str) -> Array:
    """Return ``values`` in a dtype that blend ``kind`` can add up: flags and 64-bit integers as floats."""
    if kind in UNWEIGHTED:
        return values
    if values.dtype.kind == "b":
        return values.astype(np.float32)
    return values.astype(np.float64) if values.dtype.kind in "iu" and values.dtype.itemsize == 8 else values


# -- rules ------------------------------------------------------------------------------------------------


def _not_called(*crops: Array) -> Array:
    raise TilingError(f"patches are appended, not computed; got a call with {len(crops)} crops.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merge:
    """The rules of merging that are known before the first patch."""

    grids: tuple[AxisGrid, ...]
    """Grid of patches along each tiled axis."""
    padded: Index
    """Extents of the padded image, which an output may also have, samples."""
    blend: Blend
    """How patches are combined where they overlap."""
    scale: tuple[Fraction, ...]
    """Result samples per image sample and tiled axis."""
    spatial_first: bool
    """Whether the tiled axes come first in patches and output, or last."""
    size: Index
    """Shape of the output, with or without the axis that is reduced, samples."""
    dtype: np.dtype[Any] | None
    """Dtype of the result; None: it follows from the patches."""
    softmax: int | None
    """Axis of the argmax in a patch."""
    post: Callable[[Array], Array] | None
    """Applied to finished blocks instead of an argmax."""
    fill_value: Any
    """Value of samples without weight."""
    given: bool
    """Whether the caller gave the output; if it has the axis of the argmax, it gets the scores."""

    def __post_init__(self) -> None:
        n = len(self.grids)
        check_scale(self.grids, tuple(map(str, range(n))), self.scale)
        if len(self.size) < n:
            raise GridError(f"the output needs the {n} tiled axes; its shape is {self.size}.")
        found = tuple(self.size[axis] for axis in self._axes(len(self.size)))
        padded = (math.ceil(p * s) for p, s in zip(self.padded, self.scale, strict=True))
        for axis, (a, b, c) in enumerate(zip(found, self.extents, padded, strict=True)):
            if a not in ((b,) if self.given else (b, c)):
                raise GridError(
                    f"the output must have the image's extent; axis {axis} has {b} samples and the output of "
                    f"shape {self.size} {a} (spatial_first={self.spatial_first})."
                )

    @property
    def extents(self) -> Index:
        """Lengths of the result along the tiled axes, samples."""
        return tuple(math.ceil(g.extent * s) for g, s in zip(self.grids, self.scale, strict=True))

    @property
    def crops(self) -> Index:
        """Lengths of a full patch along the tiled axes, samples."""
        return tuple(math.ceil(g.crop * s) for g, s in zip(self.grids, self.scale, strict=True))

    @property
    def untiled(self) -> Index:
        """Lengths of the output along the other axes, samples."""
        axes = self._axes(len(self.size))
        return tuple(n for axis, n in enumerate(self.size) if axis not in axes)

    def _around(self, untiled: Sequence[int], tiled: Sequence[int]) -> Index:
        """Return the shape with these lengths of the untiled and the tiled axes."""
        return (*tiled, *untiled) if self.spatial_first else (*untiled, *tiled)

    def _axes(self, ndim: int) -> Index:
        """Return the tiled axes of an array of ``ndim`` axes."""
        n = len(self.grids)
        return tuple(range(n)) if self.spatial_first else tuple(range(ndim - n, ndim))

    def patch_shape(self) -> Index:
        """Return the shape of a patch whose untiled axes are the output's."""
        return self._around(self.untiled, self.crops)

    def spec(self, first: Array, chunk: Index | None, unit: Index | None) -> Spec:
        """Return the `Spec` for patches like ``first``.

        Parameters
        ----------
        first : numpy.ndarray
            A patch; only its untiled axes and dtype count.
        chunk : tuple of int, image samples, optional
            Shape of the blocks to finish; None: one block, or blocks of whole ``unit``.
        unit : tuple of int, result samples, optional
            Shape of a storage unit of the output.
        """
        ndim = first.ndim
        axes = self._axes(ndim)
        untiled = tuple(n for a, n in enumerate(first.shape) if a not in axes)
        reduce, channel, left = self._reduction(ndim, untiled)
        copied = kind_of(self.blend) not in UNWEIGHTED and self._copied(first.dtype)
        blend = "trim" if copied else self.blend
        kind = kind_of(blend)
        values = addable(first[(slice(0),) * ndim], kind).dtype
        dtype = self._default(values, kind, reduce) if self.dtype is None else self.dtype
        bound = BoundOutput(
            key=None, dtype=dtype, values=values, shape=self._around(untiled, self.crops), axes=axes,
            scale=self.scale, blend=blend, kind=kind, reduce=reduce, channel_axis=channel,
            fill_value=scalar("fill_value", self.fill_value, dtype),
            reduced_shape=self._around(left, self.extents),
            reduced_axes=self._axes(len(left) + len(self.grids)),
        )  # fmt: skip
        cut = Cut.numbered(axes, self.grids)
        if copied:
            # Refuses the weights that it would refuse for patches of other dtypes.
            cut.weighed(replace(bound, blend=self.blend, kind=kind_of(self.blend)))
            # The core of a patch without context is all of it, also where the grid drops what follows.
            cut = Cut.numbered(axes, tuple(replace(grid, overlap=0) for grid in self.grids))
        rim = None if kind == "trim" else cut.rim
        size = math.prod(untiled)
        outputs = (OutputPlan(rim, self.scale, size * values.itemsize, size * dtype.itemsize),)
        plan = TilePlan(cut.grids, cut.names, 0, chunk or self._block(unit, bound), outputs, ())
        return Spec(plan=plan, sources=(), source_axes=(), fn=_not_called, outputs=(cut.weighed(bound),))

    def argmax_left(self, output: BoundOutput) -> int | None:
        """Return the axis of an argmax that is still to be taken, because the output has the scores."""
        if self.softmax is None or output.reduce is not None:
            return None
        return self.softmax % len(output.shape)

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
            return None, None, untiled
        return "argmax", channel, left

    def _expect(self, untiled: Index, left: Index) -> None:
        """Raise if the untiled axes of output and patches differ, both before and after a reduction."""
        if self.untiled not in (untiled, left):
            raise ContractError(
                f"patches have untiled axes {untiled}; the output of shape {self.size} has {self.untiled}."
            )

    def _copied(self, dtype: np.dtype[Any]) -> bool:
        """Return whether values of ``dtype`` are copied: sums would change them, and no patches overlap."""
        if dtype.kind in "fc" or (dtype.kind in "iu" and dtype.itemsize < 8):
            return False
        spans = (grid.supports(0) for grid in self.grids)
        return all(bool((stops[:-1] <= starts[1:]).all()) for starts, stops in spans)

    def _default(self, values: np.dtype[Any], kind: str, reduce: Any) -> np.dtype[Any]:
        """Return the default dtype of a result."""
        if reduce == "argmax":
            return np.dtype(np.int64)
        if reduce is not None:
            return np.dtype(np.float32)
        if kind == "trim" and kind_of(self.blend) != "trim" and values.kind in "biu":
            # The dtype of averages also for copied values, so that it does not depend on the step.
            values, kind = addable(np.empty(0, values), "average").dtype, "average"
        return accumulation_dtype(values, kind)

    def _block(self, unit: Index | None, bound: BoundOutput) -> Index:
        """Return the block shape: whole storage units at least as long as a patch, or the whole result."""
        extents = tuple(g.extent for g in self.grids)
        if unit is None or any(s != 1 for s in self.scale):
            return extents
        own = [unit[a] for a in bound.reduced_axes]
        sizes = [ceil_div(g.crop, u) * u for g, u in zip(self.grids, own, strict=True)]
        return tuple(min(n, s) for n, s in zip(extents, sizes, strict=True))


# -- sums -------------------------------------------------------------------------------------------------


class Gatherer(ABC):
    """Adds up patches, in any order, to a result; not thread-safe by itself."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.output = spec.outputs[0]
        self.times: dict[int, int] = {}
        """How often each patch was added, by its number in raster order."""
        self._kept: set[int] = set()
        """Patches that were added in a call that raised, so that appending them again adds nothing."""
        self.unknown = 0
        """How many samples of the result are ``fill_value`` because an integer cannot be NaN."""
        self._counts = spec.plan.grid_shape
        self._lengths = [weights.lengths() for weights in self.output.weights]
        self._shapes: dict[Index, Index] = {}

    def take(self, patches: Sequence[tuple[Index, Array]]) -> None:
        """Add patches, then write what is complete.

        If that fails, the patches are kept: the next call writes again, and does not add them twice.
        """
        taken = []
        try:
            for position, values in patches:
                number = self._number(position)
                if number not in self._kept:
                    self.add(position, values)
                taken.append(number)
            self.flush()
        except BaseException:
            self._kept.update(taken)
            raise
        self._kept.difference_update(taken)

    @abstractmethod
    def flush(self) -> None:
        """Write what is complete and not yet written."""

    @abstractmethod
    def add(self, position: Index, values: Array) -> None:
        """Add the patch at ``position``, its number along each axis.

        Raises
        ------
        TilingError
            If the patch was added before and cannot be averaged with itself, or its block is finished.
        """

    @abstractmethod
    def result(self) -> Any:
        """Return the array with the result of the patches so far."""

    def expected(self, position: Index) -> Index:
        """Return the shape of the patch at ``position``, samples."""
        lengths = tuple([n[i] for n, i in zip(self._lengths, position, strict=True)])
        shape = self._shapes.get(lengths)
        if shape is None:
            shape = self._shapes[lengths] = self.output.layout(lengths)
        return shape

    def parts(self) -> list[Spans]:
        """Return the spans of the blocks along each axis of the result."""
        blocks = self.spec.plan.blocks
        found: list[Spans] = [None] * len(self.output.reduced_shape)
        for d, axis in enumerate(self.output.reduced_axes):
            boxes = [self._box((0,) * d + (b,) + (0,) * (len(blocks) - d - 1)) for b in range(blocks[d])]
            found[axis] = np.array([b.start[d] for b in boxes]), np.array([b.stop[d] for b in boxes])
        return found

    def _tile(self, position: Index) -> Tile:
        return self.spec.plan.grid.tile(position)

    def _box(self, index: Index) -> Box:
        """Return the result samples of a block, per tiled axis."""
        return self.spec.boxes(index)[0]

    def _place(self, index: Index) -> tuple[slice, ...]:
        """Return a block as an index into the result."""
        return self.output.place(self._box(index))

    def _number(self, position: Index) -> int:
        """Return the number of a patch in raster order."""
        number = 0
        for i, n in zip(position, self._counts, strict=True):
            number = number * n + i
        return number

    def _check_times(self, position: Index) -> None:
        """Raise if a patch came before and cannot be averaged with itself."""
        if self.output.kind == "trim" and self._number(position) in self.times:
            raise TilingError(
                f"{self._tile(position)} came twice; values of this dtype are copied and not averaged."
            )

    def _count(self, position: Index) -> bool:
        """Count a patch; return whether this is its first time."""
        number = self._number(position)
        count = self.times.get(number, 0)
        self.times[number] = count + 1
        return not count

    def _finish(self, index: Index, parts: Sequence[Partial]) -> Array:
        """Return the samples of a block whose patches add up to ``parts``; may be the canvas of a part."""
        output, box = self.output, self._box(index)
        total = combine(output, box, parts)
        if total is None:
            return output.fill(box.shape)
        ranges = [t.touch[b] for t, b in zip(self.spec.plan.tables, index, strict=True)]
        grid = self.spec.plan.grid
        skipped, times = set[int](), dict[int, int]()
        if len(self.times) < len(grid) or max(self.times.values()) > 1:
            for tile in grid.within(ranges):
                count = self.times.get(tile.index, 0)
                if not count:
                    skipped.add(tile.index)
                elif count > 1:
                    times[tile.index] = count
        reached, divisor = cover(self.spec, output, index, box, skipped, times, dtype=real_dtype(total.dtype))
        block, unknown = finish(output, total, reached, divisor)
        self.unknown += unknown
        return block


class _OneCanvas(Gatherer):
    """Adds all patches to one canvas, which stays open: patches may follow after a result was returned."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._index: Index = (0,) * len(spec.plan.axes)
        self._sums = Accumulator(spec, [self._box(self._index)])

    def add(self, position: Index, values: Array) -> None:
        self._check_times(position)
        self._sums.add(position, [values])
        self._count(position)

    def flush(self) -> None:
        """Do nothing: the result is written when it is asked for."""

    def _finished(self) -> Array:
        """Return the samples of the result; may be the canvas."""
        self.unknown = 0
        return self._finish(self._index, self._sums.partials)

    def _leave(self, array: Array | None) -> None:
        """Continue with a copy of the canvas if it is ``array``, which now holds a result."""
        [sums] = self._sums.partials
        if sums.array is not None and sums.array is array:
            sums.array = array.copy()


class Kept(_OneCanvas):
    """Returns the result, which may be the canvas; later patches are then added to a copy of it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._result: Array | None = None

    def add(self, position: Index, values: Array) -> None:
        self._leave(self._result)
        super().add(position, values)

    def result(self) -> Array:
        self._result = self._finished()
        return self._result


class Stored(_OneCanvas):
    """Stores the result in an output; the sums are made in its memory if it can hold them."""

    def __init__(self, spec: Spec, sink: Sink) -> None:
        super().__init__(spec)
        self._sink = sink
        sink.expect(self.parts())
        output, view = self.output, sink.view
        summed = output.weighted and output.importance is None and output.reduce is None
        free = view is not None and summed and not sink.accumulate and not output.compensated
        # Asked last: an output that cannot hold the sums is refused with the first patch's dtype.
        if free and view is not None and view.dtype == output.accumulator():
            self._sums.partials[0].room = view

    def result(self) -> Any:
        block = self._finished()
        if block is not self._sink.view:
            self._leave(self._sink.view)
            self._sink.store(self._place(self._index), block, final=False)
        return self._sink.close()


class ByBlock(Gatherer):
    """Finishes, stores and drops each block when its last patch arrives.

    The steps are those of `tiled_map` with ``reuse="share"``: a patch belongs to the block in which its
    support starts; the canvas of a block is complete when all its patches have arrived; its seams then wait
    for later blocks.
    """

    def __init__(self, spec: Spec, sink: Sink) -> None:
        super().__init__(spec)
        self._sink = sink
        sink.expect(self.parts())
        self._open: dict[Index, Accumulator] = {}
        self._left: dict[Index, int] = {}
        self._own: dict[Index, Partial] = {}
        self._seams: dict[Index, dict[Index, Partial]] = {}
        self._waiting: list[Index] = []
        """Complete blocks that are not stored yet."""
        self._finished: set[Index] = set()
        self._owners = [
            np.repeat(np.arange(len(t.owned)), [b - a for a, b in t.owned]).tolist() for t in spec.plan.tables
        ]
        for owners, count in zip(self._owners, self._counts, strict=True):
            # Patches that start after the image, in its padding, belong to no block.
            owners += [-1] * (count - len(owners))

    def add(self, position: Index, values: Array) -> None:
        owner = tuple([o[i] for o, i in zip(self._owners, position, strict=True)])
        if owner in self._own or owner in self._finished:
            raise TilingError(
                f"{self._tile(position)} came too late: the chunk in which it starts is finished."
            )
        self._check_times(position)
        if min(owner) < 0:
            self._count(position)
            return
        if owner not in self._open:
            spans = spans_of(self.spec, owner, canvas_boxes(self.spec, owner))
            self._open[owner] = Accumulator(self.spec, spans)
            self._left[owner] = self.spec.plan.owned(owner)
        self._open[owner].add(position, [values])
        self._left[owner] -= self._count(position)
        if not self._left[owner]:
            self._close(owner)

    def result(self) -> Any:
        for owner in sorted(self._open):
            self._close(owner)
        self._waiting = [i for i in np.ndindex(*self.spec.plan.blocks) if i not in self._finished]
        self.flush()
        return self._sink.close()

    def _close(self, owner: Index) -> None:
        """Cut the seams of a complete canvas; find the blocks for which nothing else is missing."""
        plan = self.spec.plan
        sums, canvases = self._open.pop(owner), canvas_boxes(self.spec, owner)
        self._own[owner] = sums.partials[0]
        later = []
        for step in plan.neighbours.later(owner):
            index = tuple(b + s for b, s in zip(owner, step, strict=True))
            self._seams.setdefault(index, {})[owner] = sums.seam(step, canvases)[0]
            later.append(index)
        for index in (owner, *later):
            if (index in self._own or not plan.neighbours.owns(index)) and self._ready(index):
                self._waiting.append(index)

    def _ready(self, index: Index) -> bool:
        """Return whether the seams of all earlier neighbours are there."""
        return all(e in self._seams.get(index, {}) for e in self.spec.plan.neighbours.earlier(index))

    def flush(self) -> None:
        while self._waiting:
            self._store(self._waiting[0])
            del self._waiting[0]

    def _store(self, index: Index) -> None:
        """Store a finished block, and then drop its parts: after an error, it is stored again."""
        own, seams = self._own.get(index), self._seams.get(index, {})
        known = self.unknown
        try:
            block = self._finish(index, ([own] if own else []) + [seams[e] for e in sorted(seams)])
            self._sink.store(self._place(index), block, final=True)
        except BaseException:
            self.unknown = known
            raise
        self._finished.add(index)
        self._own.pop(index, None)
        self._seams.pop(index, None)


def gatherer_of(spec: Spec, sink: Sink | None) -> Gatherer:
    """Return the gatherer of the patches of ``spec`` into ``sink``, or into new memory."""
    if any(n != 1 for n in spec.plan.blocks):
        shape, dtype = spec.outputs[0].reduced_shape, spec.outputs[0].dtype
        return ByBlock(spec, sink or Sink(np.empty(shape, dtype)))
    return Kept(spec) if sink is None else Stored(spec, sink)
