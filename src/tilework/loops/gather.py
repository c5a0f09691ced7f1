"""`Gatherer`: results that come one by one, added up and finished block by block as blocks are complete.

The steps are those of `tiled_map` with ``reuse="share"``: a tile belongs to the block in which its support
starts; a block's canvas is complete when all of its tiles came; its seams then wait for later blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilework.engine.accumulate import Accumulator, cover
from tilework.engine.block import Group, cut_seams
from tilework.engine.canvas import Partial, combine, finish
from tilework.engine.spec import Index, Spec
from tilework.errors import TilingError
from tilework.function.output import BoundOutput
from tilework.grid.tiles import Box, Tile

__all__ = ["Gatherer"]

Array = np.ndarray[Any, Any]


class Gatherer:
    """Canvases of the blocks in flight; not safe in threads by itself."""

    def __init__(self, spec: Spec, canvas: Array | None = None) -> None:
        self.spec = spec
        self.times: dict[int, int] = {}
        """How often each tile came, by number."""
        self._open: dict[Index, Accumulator] = {}
        self._left: dict[Index, int] = {}
        self._own: dict[Index, Group] = {}
        self._seams: dict[Index, dict[Index, Group]] = {}
        self._finished: set[Index] = set()
        counts = spec.plan.grid_shape
        self._steps = [math.prod(counts[d + 1 :]) for d in range(len(counts))]
        self._owner = [
            np.repeat(np.arange(len(t.owned)), [b - a for a, b in t.owned]).tolist() for t in spec.plan.tables
        ]
        for owners, count in zip(self._owner, counts, strict=True):
            # What starts behind the image, in its padding, belongs to no block.
            owners += [-1] * (count - len(owners))
        self.whole = all(n == 1 for n in spec.plan.blocks)
        """Whether there is one block, which stays open."""
        self._origin: Index = (0,) * len(spec.plan.axes)
        self._lengths = [w.lengths() for w in self.output.weights]
        self._shapes: dict[Index, Index] = {}
        if canvas is not None:
            self._accumulator(self._origin).partials[0].array = canvas

    @property
    def canvas(self) -> Array | None:
        """The sums so far, where there is one block and a patch came."""
        accumulator = self._open.get(self._origin) if self.whole else None
        return None if accumulator is None else accumulator.partials[0].array

    def detach(self) -> None:
        """Go on in a copy of the canvas, because somebody else has it now."""
        canvas = self.canvas
        assert canvas is not None
        self._open[self._origin].partials[0].array = canvas.copy()

    @property
    def output(self) -> BoundOutput:
        """The one output."""
        return self.spec.outputs[0]

    def add(self, position: Index, values: Array) -> Iterator[tuple[Index, Array]]:
        """Add the result of the tile at ``position``; yield the blocks that it completes.

        Raises
        ------
        TilingError
            When the tile's block is finished, or the tile came before and cannot be averaged with itself.
        """
        owner = self._origin if self.whole else self._owner_of(position)
        if owner in self._own or owner in self._finished:
            raise TilingError(
                f"{self._tile(position)} came too late: the chunk in which it starts is finished."
            )
        number = 0
        for i, step in zip(position, self._steps, strict=True):
            number += i * step
        count = self.times.get(number, 0)
        if count and self.output.kind == "trim":
            raise TilingError(
                f"{self._tile(position)} came twice; values of this dtype are copied and not averaged."
            )
        self.times[number] = count + 1
        if min(owner) < 0:
            return
        self._accumulator(owner).add(position, [values])
        self._left[owner] -= not count
        if not self._left[owner] and not self.whole:
            yield from self._close(owner)

    def expected(self, position: Index) -> Index:
        """Return the shape of the result of the tile at ``position``."""
        lengths = tuple([n[i] for n, i in zip(self._lengths, position, strict=True)])
        shape = self._shapes.get(lengths)
        if shape is None:
            shape = self._shapes[lengths] = self.output.layout(lengths)
        return shape

    def _owner_of(self, position: Index) -> Index:
        return tuple([o[i] for o, i in zip(self._owner, position, strict=True)])

    def _tile(self, position: Index) -> Tile:
        return self.spec.plan.grid.tile(position)

    def rest(self) -> Iterator[tuple[Index, Array]]:
        """Yield the blocks that are not finished, with what came."""
        if self.whole:
            yield self._origin, self._finish(self._origin, self._accumulator(self._origin).partials)
            return
        plan = self.spec.plan
        for owner in [i for i in np.ndindex(*plan.blocks) if i in self._open]:
            yield from self._close(owner)
        for index in np.ndindex(*plan.blocks):
            if index not in self._finished:
                yield index, self._take(index)

    def _accumulator(self, owner: Index) -> Accumulator:
        found = self._open.get(owner)
        if found is None:
            spans = [t.canvas[0][b] for t, b in zip(self.spec.plan.tables, owner, strict=True)]
            box = self.output.region(Box.of(spans))
            if self.whole:
                box = self._box(owner)
            found = self._open[owner] = Accumulator(self.spec, [box])
            self._left[owner] = self.spec.plan.owned(owner)
        return found

    def _close(self, owner: Index) -> Iterator[tuple[Index, Array]]:
        """Cut the seams of a complete canvas; yield the blocks that waited for nothing else."""
        plan = self.spec.plan
        group = Group(self._open.pop(owner).partials, [])
        seams = cut_seams(self.spec, owner, plan.later(owner), group)
        if seams and not self._ready(owner):
            # It waits: what it waits with need not be the whole canvas.
            group = Group([group.partials[0].crop(self.output, self._box(owner))], [])
        self._own[owner] = group
        del group
        nexts = []
        for step, seam in seams.items():
            index = tuple(b + s for b, s in zip(owner, step, strict=True))
            self._seams.setdefault(index, {})[owner] = seam
            nexts.append(index)
        for index in (owner, *nexts):
            if (index in self._own or not plan.owned(index)) and self._ready(index):
                yield index, self._take(index)

    def _ready(self, index: Index) -> bool:
        """Return whether the seams of all earlier neighbours are here."""
        return all(e in self._seams.get(index, {}) for e in self.spec.plan.earlier(index))

    def _take(self, index: Index) -> Array:
        """Return the finished block ``index`` and let go of its parts."""
        own, seams = self._own.pop(index, None), self._seams.pop(index, {})
        groups = ([own] if own else []) + [seams[e] for e in sorted(seams)]
        self._finished.add(index)
        return self._finish(index, [g.partials[0] for g in groups])

    def _finish(self, index: Index, parts: Sequence[Partial]) -> Array:
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
        reached, divisor = cover(self.spec, output, index, box, skipped, times)
        return finish(output, total, reached, divisor)

    def _box(self, index: Index) -> Box:
        """Return a block in result samples."""
        return self.spec.boxes(index)[0]

    def place(self, index: Index) -> tuple[slice, ...]:
        """Return where block ``index`` is in the finished array."""
        return self.output.place(self._box(index))

    def parts(self) -> list[tuple[Array, Array] | None]:
        """Return starts and stops of the blocks along each axis of the finished array; None: not cut."""
        bound, plan = self.output, self.spec.plan
        found: list[tuple[Array, Array] | None] = [None] * len(bound.reduced_shape)
        for d, axis in enumerate(bound.reduced_axes):
            numbers = [
                tuple(b if e == d else 0 for e in range(len(plan.axes))) for b in range(plan.blocks[d])
            ]
            spans = np.array([(self._box(n).start[d], self._box(n).stop[d]) for n in numbers])
            found[axis] = (spans[:, 0], spans[:, 1])
        return found
