"""Crops, cut out of the samples that a task reads, and the calls of the function on them."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tilework._checks import as_text, brief
from tilework._types import Array, Index, Span
from tilework.engine.canvas import check_dtype
from tilework.engine.spec import Spec
from tilework.engine.stopping import check_stop
from tilework.engine.validity import Looker, Read
from tilework.errors import ContractError, TilingError
from tilework.function.bound import BoundOutput
from tilework.function.calling import as_array, as_results, call_whole, is_batched, is_on_device
from tilework.function.device_memory import LIMITS, in_batches, is_out_of_memory
from tilework.function.devices import wants_whole_batches
from tilework.function.guard import Guard
from tilework.function.load_once import LoadOnce
from tilework.grid.tiles import Box, Tile
from tilework.source.base import Unread
from tilework.source.padding import AxisRead, read_padded
from tilework.source.zarr_array import ZarrSource

__all__ = [
    "CropCutter",
    "Failure",
    "common",
    "in_raster_order",
    "looker_of",
    "run_tiles",
    "tiles_of",
    "wait",
]

Results = tuple[Tile, list[Array]]


@dataclass(frozen=True, slots=True)
class Failure:
    """A tile that failed, in a run that continues."""

    tile: Tile
    """The tile that failed."""
    error: str
    """Type and message of the exception."""


# Time before the first repetition, and the longest one, seconds.
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
# Of its own, because the user may have seeded the common one.
_RANDOM = random.Random()


def wait(attempt: int) -> None:
    """Wait before repetition ``attempt``, the first is 0: twice as long each time, and never all in step.

    A store or a device that is overloaded needs time, and tasks that failed together should not return
    together.
    """
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt)
    time.sleep(longest * _RANDOM.uniform(0.5, 1.0))


class CropCutter:
    """Cuts the crops of one task out of one source.

    It reads the union of all its tiles at once, or tile by tile if that is fewer samples, and only when the
    first crop is cut. ``index`` is the block of the task.
    """

    def __init__(
        self, spec: Spec, number: int, ranges: Sequence[Span], given: Any, n_tiles: int, index: Index = ()
    ) -> None:
        self._spec, self._number, self._given, self._index = spec, number, given, index
        self._axes, self._n_each = spec.source_axes[number], spec.plan.n_each
        grids = spec.plan.axes
        spans = [(g.read(a)[0], g.read(b - 1)[1]) for g, (a, b) in zip(grids, ranges, strict=True)]
        union = math.prod(b - a for a, b in spans)
        apart = n_tiles * math.prod(g.crop for g in grids) < union and given is None
        self._once = not apart
        self._ranges = ranges
        self._unread = None if apart else ranges
        self._union: Array | None = None
        self.hull = Box.of(spans)
        """All that its tiles read, image samples per grid axis; it may stick out of the image."""
        self._last: tuple[int, Array] | None = None
        """What was read for one tile, by its number, until its crop is cut."""
        # Of each tile along each axis: its samples in the union.
        self._places: list[dict[int, Any]] = [
            {i: self._place(d, *grids[d].read(i), start) for i in range(*ranges[d])}
            for d, (start, _) in enumerate(spans)
        ]
        source = spec.sources[number]
        if (
            len(spec.sources) > 1
            and isinstance(source, ZarrSource)
            and (kept := spec.kept(number)) is not None
        ):
            source.begin(kept.limit)
        # Freshly decoded samples have no other owner, so a single crop needs no copy.
        self._copy = None if n_tiles == 1 and spec.sources[number].fresh else True

    def read(self) -> None:
        """Read the union of all tiles, unless it was read or tiles are read one by one."""
        if self._unread is not None:
            self._union, self._unread = self._read_union(self._unread), None

    def _read_union(self, ranges: Sequence[Span]) -> Array | None:
        try:
            return self._read(ranges)
        except Exception:
            if self._spec.on_error == "raise":
                raise
            return None  # only the tiles that cannot be read must fail

    def _read(self, ranges: Sequence[Span]) -> Array:
        """Return the samples that the tiles in ``ranges`` read, padded."""
        spec, source = self._spec, self._spec.sources[self._number]
        plans = spec.reads(self._number, ranges)
        # A task is given what the union of its tiles needs; that of one tile may be less.
        alone = self._given is not None and ranges is not self._ranges
        whole = spec.reads(self._number, self._ranges) if alone else plans
        with Guard(lambda: f"raised while reading samples [{_span(plans)}] of the source"):
            read = source.reader(self._given, whole)
            if isinstance(source, ZarrSource) and (kept := spec.kept(self._number)) is not None:
                # Crops overlap if they are read one by one; a mirrored or wrapped part is read apart.
                again = not self._once or any(len(plan.intervals) > 1 for plan in plans)
                block = self._index
                read = functools.partial(
                    source.read_shared,
                    uses=kept.uses,
                    limit=kept.limit,
                    again=again,
                    row=kept.row(block) if block else (),
                    now=kept.rank(block) if block else (),
                    last=kept.last,
                )
            return read_padded(read, plans, spec.cval)

    def was_given(self, error: Exception) -> bool:
        """Return whether a block could not be computed: each attempt at reading it has this error."""
        blocks = self._given if isinstance(self._given, list | tuple) else ()
        return any(isinstance(block, Unread) and block.error is error for block in blocks)

    def cut(self, tile: Tile, *, view: bool = False) -> Array:
        """Return the crop of ``tile``, without its ``each`` axes: a copy, or a view that must not change."""
        whole, box, alone = self.around(tile)
        self._last = None
        if alone:
            spans = enumerate(zip(box.start, box.stop, strict=True))
            places = [self._place(d, start, stop, start) for d, (start, stop) in spans]
        else:
            places = list(map(operator.getitem, self._places, tile.position))
        index: list[Any] = [slice(None)] * whole.ndim
        for axis, place in zip(self._axes, places, strict=True):
            if axis is not None:
                index[axis] = place
        if view:
            return np.asarray(whole[tuple(index)])
        return np.array(whole[tuple(index)], order="C", copy=self._copy)

    def around(self, tile: Tile) -> Read:
        """Return the samples that were read at once with those of ``tile``; they must not change."""
        if self._unread is not None:
            self.read()
        if self._union is not None:
            return Read(self._union, self.hull, False)
        if self._last is None or self._last[0] != tile.index:
            self._last = None  # no longer needed while the next one is read
            self._last = tile.index, self._read([(i, i + 1) for i in tile.position])
        return Read(self._last[1], tile.read, True)

    def _place(self, d: int, start: int, stop: int, origin: int) -> Any:
        """Return image samples of a grid axis as an index into what was read from ``origin`` on."""
        return start - origin if d < self._n_each else slice(start - origin, stop - origin)


def tiles_of(spec: Spec, ranges: Sequence[Span]) -> Iterable[Tile]:
    """Return the running tiles in ``ranges``, in raster order within each crop shape; made one by one.

    A tile takes a kilobyte, and a block may have 100 000.
    """
    tiles, mask = spec.plan.grid.within(ranges), spec.active.mask
    if mask is not None:
        tiles = itertools.compress(tiles, mask.box(ranges).flat)
    return _by_shape(spec, tiles)


def common(own: Sequence[Span], ranges: Sequence[Span]) -> list[Span]:
    """Return what two boxes of tiles have in common; (first, first) along an axis where it is nothing."""
    return [(max(a, c), max(max(a, c), min(b, d))) for (a, b), (c, d) in zip(own, ranges, strict=True)]


def in_raster_order(spec: Spec) -> bool:
    """Return whether `run_tiles` yields the tiles of a box in raster order, all but those it leaves out."""
    return spec.active.mask is None and _of_one_shape(spec)


def _of_one_shape(spec: Spec) -> bool:
    """Return whether all crops have the same shape."""
    return spec.plan.axes[-1].edge != "clip"


def _by_shape(spec: Spec, tiles: Iterable[Tile]) -> Iterable[Tile]:
    """Return tiles by the shape of their crops, those of one shape in the order that they have."""
    if _of_one_shape(spec):
        return tiles
    # Also without batches, because this is the order of summation.
    return sorted(tiles, key=lambda t: t.read.shape, reverse=True)


def looker_of(spec: Spec, crops: Sequence[CropCutter]) -> Looker | None:
    """Return what looks at the valid samples of a task; None if all samples are valid."""
    if spec.validity is None:
        return None
    return Looker(spec.validity, crops, spec.source_axes, crops[0].hull, spec.plan.shape)


def run_tiles(
    spec: Spec,
    tiles: Iterable[Tile],
    crops: Sequence[CropCutter],
    skipped: list[int],
    failures: list[Failure],
    looker: Looker | None = None,
) -> Iterator[Results]:
    """Call the function in batches; yield each tile with its results, one per output.

    All crops of a batch have one shape. Tiles of several owners are sorted by it, so that batches are full;
    those of one owner, as `tiles_of` returns them, stay in order.

    Tiles that the skip predicate leaves out are appended to ``skipped``. Tiles that fail, if that does not
    end the run, are appended to ``skipped`` and ``failures``. ``looker`` is that of `looker_of`.
    """
    size = spec.plan.batch_size or 1
    call = _Calls(spec)
    # A batch is a copy already; the predicate may change what it looks at.
    view = call.batched and spec.skip is None
    attempt: Callable[[Sequence[Results]], Iterable[Results]] = call
    if spec.on_error != "raise":
        attempt = functools.partial(_attempt, spec, call, skipped, failures)
    looker = looker_of(spec, crops) if looker is None else looker
    waiting: list[Results] = []
    for tile in _by_shape(spec, tiles):
        check_stop()
        cuts = _cut(spec, tile, crops, looker, skipped, failures, view=view)
        if cuts is None:
            continue
        if waiting and waiting[0][0].read.shape != tile.read.shape:
            yield from attempt(waiting)
            waiting = []
        waiting.append((tile, cuts))
        del cuts
        if len(waiting) == size:
            # Called while the crop is in the processor's cache, and dropped before the next one needs it.
            yield from attempt(waiting)
            waiting = []
    if waiting:
        yield from attempt(waiting)


def _cut(
    spec: Spec,
    tile: Tile,
    crops: Sequence[CropCutter],
    looker: Looker | None,
    skipped: list[int],
    failures: list[Failure],
    *,
    view: bool,
    attempt: int = 0,
) -> list[Array] | None:
    """Return the crops of a tile; None if it does not run.

    A tile without a valid sample is not among those that are ``skipped``: it leaves
    no gap, because all samples that it has weight on are invalid. A tile that cannot be read or looked at
    fails like one on which the function raises.
    """
    try:
        cuts = [c.cut(tile, view=view) for c in crops] if looker is None else looker.crops(tile)
        if cuts is not None and spec.skip is not None:
            with Guard(lambda: f"raised by skip= on {tile}"):
                skips = _truth(spec.skip(*cuts))
            if skips:
                skipped.append(tile.index)
                cuts = None
    except Exception as error:
        # With "raise", the task is tried again as a whole.
        last = attempt == spec.retries or spec.on_error == "raise"
        if last or any(c.was_given(error) for c in crops):
            _fail(spec, tile, error, skipped, failures)
            return None
    else:
        return cuts
    wait(attempt)
    return _cut(spec, tile, crops, looker, skipped, failures, view=view, attempt=attempt + 1)


def _truth(value: Any) -> bool:
    """Return what a predicate says of a crop; None is no.

    Raises
    ------
    ContractError
        If it is neither yes nor no: NaN, text and empty or several values would leave out tiles by chance.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return bool(value)
    found = as_array(value, "skip returned a")
    if found.size != 1 or found.dtype.kind not in "biuf" or bool((found != found).any()):
        few = brief(value) if found.size == 1 else f"shape {found.shape}, which is ambiguous"
        raise ContractError(
            f"skip must return one True or False for a crop, as by any() or all(); got {few}."
        )
    return bool(found.item())


def _attempt(
    spec: Spec, call: _Calls, skipped: list[int], failures: list[Failure], waiting: Sequence[Results]
) -> Iterator[Results]:
    """Yield the results of one call; if it fails, call tile by tile, and leave out what fails again."""
    error: Exception | None = None
    for attempt in range(1 + spec.retries):
        if attempt:
            wait(attempt - 1)
        try:
            # The function may write into its crop, which may be needed again; a batch is a copy.
            own = waiting if call.batched else [(tile, [c.copy() for c in cuts]) for tile, cuts in waiting]
            yield from call(own)
        except Exception as failed:
            error = failed
        else:
            return
    assert error is not None
    if len(waiting) > 1:
        for one in waiting:
            yield from _attempt(spec, call, skipped, failures, [one])
    else:
        _fail(spec, waiting[0][0], error, skipped, failures)
    del error  # its frames refer to this one, so the crops would wait for the garbage collector


def _fail(spec: Spec, tile: Tile, error: Exception, skipped: list[int], failures: list[Failure]) -> None:
    """Leave a tile without a result, or end the run."""
    if spec.on_error == "raise":
        raise error
    if callable(spec.on_error):
        as_text(error)  # it may be kept
        with Guard(lambda: f"raised by on_error= for {tile}"):
            spec.on_error(tile, error)
    skipped.append(tile.index)
    failures.append(Failure(tile, f"{type(error).__name__}: {error}"))


class _Calls:
    """Calls the function of a task with the crops of one tile, or of a batch, and checks its results."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self.batched = spec.plan.batch_size is not None or is_batched(spec.fn)
        """Whether the function gets crops as one array, with a batch axis."""
        self._keys = [output.key for output in spec.outputs]
        self._stay = is_on_device(spec.fn)
        self._places = [output.places(spec.plan.names, batched=self.batched) for output in spec.outputs]

    def __call__(self, waiting: Sequence[Results], *, part: bool = False) -> Sequence[Results]:
        """Return the tiles of ``waiting`` with their results in place of their crops.

        ``part`` means that whoever calls looks for a batch that fits into the memory of a device.
        """
        if LIMITS and not part and not self._whole:
            return self._smaller(waiting)
        spec, (tile, arguments) = self._spec, waiting[0]
        extra: dict[str, Any] = {"tile": tile} if spec.pass_tile else {}
        if self.batched:
            arguments = [_stacked(column) for column in zip(*(cuts for _, cuts in waiting), strict=True)]
            extra = {"tiles": tuple(tile for tile, _ in waiting)} if spec.pass_tile else {}
        full = ""
        try:
            with Guard(lambda: f"raised by fn on {_where(waiting)}"):
                raw = self._function(len(waiting))(*arguments, **extra)
        except Exception as error:
            if part or not is_out_of_memory(error):
                raise
            if self._whole:
                error.add_note(
                    f"fn gets batches of {spec.plan.batch_size} crops only (pad_batch), so the batch was not "
                    "halved: give a smaller batch_size, or pad_batch=False."
                )
                raise
            full = str(error) or type(error).__name__
        if full:
            del arguments
            return self._smaller(waiting, full)
        try:
            results = as_results(raw, self._keys, stay=self._stay, places=self._places)
            for output, result in zip(spec.outputs, results, strict=True):
                _check(output, tile, result, len(waiting) if self.batched else None)
        except TilingError as error:
            raise type(error)(f"{error} [{_where(waiting)}]") from None
        if self.batched:
            return [(tile, [r[k] for r in results]) for k, (tile, _) in enumerate(waiting)]
        return ((tile, results),)

    @cached_property
    def _whole(self) -> bool:
        """Whether the function wants every batch to be whole."""
        plan = self._spec.plan
        if plan.batch_size is None or plan.batches == "short":
            return False
        return plan.batches == "whole" or wants_whole_batches(self._spec.fn, build=True)

    def _function(self, crops: int) -> Callable[..., Any]:
        """Return the function for a batch of a number of crops; it may want one of another length."""
        fn, size = self._spec.fn, self._spec.plan.batch_size or 1
        return functools.partial(call_whole, fn, size) if crops < size and self._whole else fn

    def _smaller(self, waiting: Sequence[Results], full: str = "") -> Sequence[Results]:
        """Do the same in smaller batches, if a device has not enough memory for this one.

        ``full`` is what a call with the whole batch has said.
        """
        fn, crops = self._spec.fn, waiting[0][1]
        shapes = [c.shape for c in crops]
        parts = in_batches(
            lambda a, b: self(waiting[a:b], part=True), len(waiting),
            lambda: (fn.token if isinstance(fn, LoadOnce) else id(fn), *shapes), keep=fn,
            crop=lambda: f"fn with a crop of shape {', '.join(map(str, shapes))}", told=full,
            again=self.batched,  # a crop of which there is no copy may have been written into
        )  # fmt: skip
        return [one for part in parts for one in part]


def _stacked(crops: Sequence[Array]) -> Array:
    """Return crops as one array, in C order and the processor's byte order."""
    dtype = crops[0].dtype.newbyteorder("=")
    return np.stack(crops, out=np.empty((len(crops), *crops[0].shape), dtype))


def _span(plans: Sequence[AxisRead]) -> str:
    return ", ".join(f"{p.intervals[0][0]}:{p.intervals[-1][1]}" for p in plans)


def _where(waiting: Sequence[Results]) -> str:
    first, last = waiting[0][0], waiting[-1][0]
    return str(first) if len(waiting) == 1 else f"a batch of {len(waiting)} tiles, from {first} to {last}"


def _check(output: BoundOutput, tile: Tile, result: Array, batch: int | None) -> None:
    """Raise a `ContractError` unless ``result`` has the declared shape and dtype."""
    shape = result.shape
    if batch is not None:
        if not result.ndim or shape[0] != batch:
            raise ContractError(
                f"the function got a batch of {batch} crops and returned shape {shape}; the first "
                "axis must be the batch."
            )
        shape = shape[1:]
    expected = output.shape_at(tile.position)
    if shape != expected:
        which = "" if output.key is None else f" for output {output.key!r}"
        hint = ""
        if shape == tuple(expected[a] for a in sorted(output.axes)):
            hint = " If its result has no channels, declare Output(..., channels=0)."
        raise ContractError(f"the function returned shape {shape}{which}; expected {expected}.{hint}")
    if result.dtype != output.dtype or result.dtype.kind != "f":
        check_dtype(output, result)
        output.accumulator(result.dtype)  # raises for a dtype that this blend cannot add up
