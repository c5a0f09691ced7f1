"""`Spec`: the data that all tasks of one `tiled_map` share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilework._types import Array, Function, Index, Predicate, Span
from tilework.engine.notices import Notice
from tilework.engine.products import Products
from tilework.engine.validity import Validity, validity_of
from tilework.formats.meta import ImageMeta
from tilework.function.bound import BoundOutput
from tilework.grid.tiles import Box
from tilework.plan.decoding import Kept, kept_chunks
from tilework.plan.nodata import Valid
from tilework.plan.request import Layout, Request
from tilework.plan.tile_plan import TilePlan
from tilework.source.base import Source
from tilework.source.padding import AxisRead, Boundary

__all__ = ["Needs", "Spec", "with_validity"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spec:
    """The data that all tasks of one `tiled_map` share: one graph key, never inlined."""

    plan: TilePlan
    """Tiles and blocks."""
    sources: tuple[Source, ...]
    """The arrays that are read: those of which the function gets crops, then those of ``validity``."""
    source_axes: tuple[tuple[int | None, ...], ...]
    """Per source, its axis for each grid axis; None if it has none."""
    fn: Function
    """The function that is called on crops."""
    outputs: tuple[BoundOutput, ...]
    """The arrays that the function returns, with their weights."""
    boundary: Boundary = "reflect"
    """How samples outside the image are filled."""
    cval: Any = 0
    """The constant of ``boundary="constant"``."""
    validity: Validity | None = None
    """Which samples are valid; None: all."""
    skip: Predicate | None = None
    """Predicate on a crop; the function does not run where it returns true."""
    pass_tile: bool = False
    """Whether the function also gets its tile."""
    many: bool = False
    """Whether the function returns a tuple or dict."""
    fixed: bool = False
    """Whether the caller chose the blocks."""
    todo: TilePlan | None = None
    """The plan whose mask has only the tiles that a resumed run computes; None: all tiles of ``plan``."""
    on_error: Any = "raise"
    """Treatment of a tile that fails: "raise", "fill", or a callable that gets tile and exception."""
    retries: int = 0
    """Further attempts before a tile counts as failed, unless ``on_error`` is "raise"."""
    run: str | None = None
    """The run of `to_zarr` to which the tasks belong; None: they may be computed any number of times."""
    end: Callable[..., Any] | None = None
    """When writing, called with ``(spec, index, assembled)`` in the last task of each block."""
    metas: tuple[ImageMeta | None, ...] = ()
    """What the samples of each output mean; None where nothing is known."""
    notice: Notice = field(default_factory=Notice)
    """Whether NaN in an integer result was reported."""
    doubts: Notice = field(default_factory=Notice)
    """Whether doubtful objects were reported."""
    products: Products = field(default_factory=Products)
    """Products of the weights, in this process."""
    mark: str = field(init=False, default_factory=lambda: uuid.uuid4().hex)
    """Of this object and its copies in other processes alone."""

    def __dask_tokenize__(self) -> Any:
        """Return a token for the graphs that a client sends, in which dask hashes each value.

        It refuses those that it cannot hash, such as a dataset of h5py, and would hash a network for each
        part of a run.
        """
        return type(self), self.mark

    @property
    def active(self) -> TilePlan:
        """The plan of the tiles that this run computes; ``plan`` has all tiles with a result."""
        return self.todo or self.plan

    @property
    def inputs(self) -> tuple[Source, ...]:
        """The arrays of which the function gets crops."""
        return self.sources if self.validity is None else self.sources[: self.validity.inputs]

    def names(self, name: str) -> list[str]:
        """Return the names of the dask arrays of all outputs of the result ``name``."""
        return [f"{name}-{o.key}" for o in self.outputs] if self.many else [name]

    def ranges(self, index: Index, *, owned: bool) -> list[Span]:
        """Return the tiles per axis of a group (``owned``) or block, without idle ones at the ends."""
        spans = self.plan.shared_pairs if owned else [t.touch for t in self.plan.tables]
        return self.running([along[b] for along, b in zip(spans, index, strict=True)])

    def running(self, ranges: list[Span]) -> list[Span]:
        """Return ranges of tiles per axis without those at the ends of which none runs."""
        mask = self.active.mask
        return ranges if mask is None else mask.shrunk(ranges)

    def boxes(self, index: Index) -> list[Box]:
        """Return, per output, the result samples of a block."""
        box = self.plan.box(index)
        return [output.region(box) for output in self.outputs]

    def rooms(self, index: Index) -> list[Array | None]:
        """Return, per output, the memory where a finished block is wanted; None where there is none."""
        room = getattr(self.end, "room", None)
        return [None] * len(self.outputs) if room is None else room(self, index)

    def reads(self, source: int, ranges: Sequence[Span]) -> list[AxisRead]:
        """Return the reads from one source for the tiles in ``ranges``, one per axis."""
        plans = [AxisRead(((0, n),)) for n in self.sources[source].shape]
        for d, (axis, tiles) in enumerate(zip(self.source_axes[source], ranges, strict=True)):
            if axis is not None:
                plans[axis] = self.read(source, d, tiles)
        return plans

    def read(self, source: int, d: int, tiles: Span) -> AxisRead:
        """Return the read from one source for a range of tiles along grid axis ``d``."""
        grid, axis = self.plan.axes[d], self.source_axes[source][d]
        assert axis is not None
        start, stop = grid.read(tiles[0])[0], grid.read(tiles[1] - 1)[1]
        return AxisRead.plan(start, stop, grid.extent, self.boundary, self.sources[source].shape[axis])

    def kept(self, source: int) -> Kept | None:
        """Return what a process keeps of the chunks of a source; None if it has none."""
        found = self.sources[source]
        if found.chunks is None:
            return None
        axes = tuple(axis for axis in self.source_axes[source] if axis is not None)  # all: it has chunks
        return kept_chunks(self.plan, source, found.shape, found.chunks, axes, self.todo)


class Needs:
    """What the tasks of many blocks must be given.

    It looks up what blocks have in common along an axis, so that a task is made in a few microseconds.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._given = [k for k, source in enumerate(spec.sources) if source.given]
        # Of the axes that are not cut.
        self._parts: dict[int, list[Any]] = {}
        for k in self._given:
            source, cut = spec.sources[k], spec.source_axes[k]
            whole = enumerate(source.shape)
            self._parts[k] = [None if a in cut else source.along(a, AxisRead(((0, n),))) for a, n in whole]
        self._known: dict[tuple[int, int, Span], Any] = {}

    def __bool__(self) -> bool:
        """Return whether tasks must be given anything."""
        return bool(self._given)

    def of(self, index: Index, *, owned: bool) -> list[Any]:
        """Return, per source, what the task of a group (``owned``) or block must be given; None: nothing."""
        found: list[Any] = [None] * len(self._spec.sources)
        ranges = self._spec.ranges(index, owned=owned) if self._given else []
        for k in self._given:
            parts = self._parts[k].copy()
            for d, (axis, tiles) in enumerate(zip(self._spec.source_axes[k], ranges, strict=True)):
                if axis is not None:
                    parts[axis] = self._part(k, d, axis, tiles)
            found[k] = self._spec.sources[k].together(parts)
        return found

    def _part(self, source: int, d: int, axis: int, tiles: Span) -> Any:
        key = source, d, tiles
        if key not in self._known:
            read = self._spec.read(source, d, tiles)
            self._known[key] = self._spec.sources[source].along(axis, read)
        return self._known[key]


def with_validity(spec: Spec, valid: Valid, layout: Layout, request: Request) -> Spec:
    """Return a `Spec` that looks at which samples are valid."""
    # A result has no sample where the image has none; what it holds there instead is its own nodata.
    metas = (
        None if m is None else m.replace(nodata=o.fill_value)
        for m, o in zip(spec.metas, spec.outputs, strict=True)
    )
    return replace(
        spec,
        sources=(*spec.sources, *(source for source, _ in valid.extra)),
        source_axes=(*spec.source_axes, *(axes for _, axes in valid.extra)),
        validity=validity_of(valid, spec.sources, layout, request),
        metas=tuple(metas),
    )
