"""Jobs that write a result into arrays: `TileJob` for one of `tiled_map`, `ChunkJob` for any dask array."""

from __future__ import annotations

import itertools
import math
import random
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from dask.task_spec import DataNode, Task, TaskRef

from tilework._types import Bits, Index, Ints, Span
from tilework.engine.reading import Failure, tiles_of
from tilework.engine.spec import Spec
from tilework.execution.piece import Job, Lane, Piece, Shared, guarded, with_sources
from tilework.graph.build import dask_arrays
from tilework.graph.tasks import BlockTasks, Key, calls_function
from tilework.grid.axis import ceil_div
from tilework.grid.tiles import Tile
from tilework.plan.tile_mask import TileMask
from tilework.source.held import this_process
from tilework.writing.claim import Claims
from tilework.writing.closing import Closing, Destination, Opening, Told
from tilework.writing.finishing import BlockWriter, write_chunk
from tilework.writing.growing import Growing
from tilework.writing.sink import Sink, Written, block_name
from tilework.writing.tables import Tables
from tilework.writing.units import Units, layout_of, tiles_of_units, with_todo

__all__ = ["ChunkJob", "ChunkedJob", "TileJob", "WriteJob", "sink_of"]

# Blocks of a run of which one unit is read back, by the task and by the client at the end.
CHECKED = 8
# Multiples of it, less whole numbers, are spread evenly from 0 to 1.
GOLDEN = 0.6180339887


def sink_of(
    destination: Destination, blocks: Sequence[Index] | Ints, again: bool,
    partial: Mapping[Index, Sequence[Index]],
) -> Sink:  # fmt: skip
    """Return an array as tasks get it; a unit of some of ``blocks`` is read back when it is written."""
    if destination.done is None:
        return Sink(destination.target)
    checked = random.sample(range(len(blocks)), min(CHECKED, len(blocks)))
    return Sink(
        destination.array, destination.run, destination.generation, again, partial,
        frozenset(block_name(blocks[row]) for row in checked), this_process(),
    )  # fmt: skip


def _forget(spec: Spec, index: Index, assembled: Any) -> None:
    """Drop a block."""
    del spec, index, assembled


class WriteJob(Job):
    """Base of the jobs that write arrays."""

    def __init__(
        self,
        title: str,
        name: str,
        destinations: Mapping[int, Destination],
        claims: Claims | None,
        retries: int | None,
        coarser: Mapping[int, Destination] | None = None,
        later: Sequence[Destination] = (),
    ) -> None:
        self.title = title
        # A cluster would take a task of the same name, of another store or of a failed run, for this one.
        self.name = f"{name}-{uuid.uuid4().hex[:8]}"
        self.run: str | None = None
        self.retries = retries
        """Further attempts that tasks make themselves; None if the scheduler makes them."""
        self.tiles = 0
        self.threads: int | None = None
        self.error: BaseException | None = None
        self.claims = claims
        """The claims of the run, until it ends."""
        arrays = {**destinations, **(coarser or {})}
        self.closing = Closing(arrays)
        """Ends the run, from what the tasks told."""
        self.closing.later = later
        self.opening, self.ending = Opening([*arrays.values(), *later]), self.closing.of_results
        self.told = Told.of(arrays)
        self.done = self.told.n_done
        """Number of units that were done when the run began."""
        self.units = self.told.n_units
        """Number of all units."""

    @property
    def failures(self) -> list[Failure]:
        """Tiles that were left out."""
        return self.told.failures

    def took(self, result: Written) -> None:
        """Take the result of a last task."""
        self.told.add(result)

    def close(self, *, complete: bool) -> None:
        """End the run: believe what the store shows, and let the claims go."""
        try:
            if complete:
                self.closing(self.told)
        finally:
            self.release()

    def release(self) -> None:
        """Let the claims go."""
        if self.claims is not None:
            self.claims.release()

    def culprits(self, key: Key) -> list[tuple[Tile, Piece]]:
        """Return the tiles of the task ``key``, each with a piece that runs it alone."""
        del key
        return []


@dataclass(frozen=True, slots=True)
class _Missing:
    """The part of a result that is still to be computed."""

    blocks: Bits
    """Which blocks to write."""
    tiles: TileMask | None = None
    """Which tiles to run; None: all that have a result."""
    partial: Mapping[int, Mapping[Index, list[Index]]] = field(default_factory=dict)
    """For each output and block of which some units are done, the units to write."""


def _missing(spec: Spec, destinations: Mapping[int, Destination]) -> _Missing:
    """Return the blocks and tiles that touch a unit that is not done."""
    missing = {n: ~d.done for n, d in destinations.items() if d.done is not None}
    if all(bits.all() for bits in missing.values()):
        return _Missing(np.ones(spec.plan.blocks, bool))
    units = {n: Units.of(spec, n, destinations[n].array) for n in missing}
    counts = {n: units[n].blocks(bits) for n, bits in missing.items()}
    blocks: Bits = np.logical_or.reduce([count > 0 for count in counts.values()])
    partial: dict[int, dict[Index, list[Index]]] = {}
    for n, bits in missing.items():
        whole = units[n].blocks(np.ones_like(bits))
        mixed = [tuple(map(int, index)) for index in np.argwhere((counts[n] < whole) & blocks)]
        partial[n] = {index: [u for u in units[n].in_block(index) if bits[u]] for index in mixed}
    return _Missing(blocks, tiles_of_units(list(units.values()), list(missing.values())), partial)


class TileJob(WriteJob):
    """Writes a result of `tiled_map`: only the units that are not done, from only the tiles that touch them.

    Parameters
    ----------
    title, name : str
        Title of the job, for messages; name of the result.
    spec : Spec
    destinations : dict of int to Destination
        The array of each output, by number.
    claims : Claims, optional
        The claims of the run on the arrays.
    retries : int or None
        Further attempts that tasks make themselves; None: the scheduler makes them.
    again : bool
        Whether a task may run again in another process, after it has written.
    apart : bool
        Whether writing is a task of its own, so that only the tasks that call the function need resources.
    coarser : dict of int to Destination, optional
        The arrays of coarser levels.
    growing : dict of int to Growing, optional
        For each output, its coarser levels.
    tables : dict of int to Tables, optional
        For each output of labels, where the facts about its blocks are kept.
    later : sequence of Destination
        Arrays that are written when all blocks are.
    """

    def __init__(
        self,
        title: str,
        name: str,
        spec: Spec,
        destinations: Mapping[int, Destination],
        *,
        claims: Claims | None = None,
        retries: int | None = None,
        again: bool = False,
        apart: bool = False,
        coarser: Mapping[int, Destination] | None = None,
        growing: Mapping[int, Growing] | None = None,
        tables: Mapping[int, Tables] | None = None,
        later: Sequence[Destination] = (),
    ) -> None:
        super().__init__(title, name, destinations, claims, retries, coarser, later)
        self.spec, self.apart = spec, apart
        self.growing = growing or {}
        self.missing = _missing(spec, destinations)
        blocks = np.argwhere(self.missing.blocks)
        self._writer = BlockWriter(
            {n: sink_of(d, blocks, again, self.missing.partial.get(n, {})) for n, d in destinations.items()},
            self.growing,
            tables or {},
        )
        self._blocks: BlockTasks | None = None
        self.threads = spec.plan.threads
        todo = with_todo(spec, self.missing.tiles).active
        self.tiles = todo.n_runs if self.missing.blocks.any() else 0

    def pieces(self) -> Iterator[Piece]:
        """Yield the tasks of every block, in raster order, so slab by slab."""
        blocks = self.missing.blocks
        if blocks.any():
            spec = replace(with_todo(self.spec, self.missing.tiles), end=self._writer, run=self.run, metas=())
            self._blocks = self._tasks(self.name, spec, blocks)
            yield from self._reading(self._by_block(self._blocks))

    def _reading(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield pieces with the tasks of the dask arrays that they read."""
        arrays, left_out = dask_arrays(self.spec.sources), self.spec.on_error != "raise"
        retries = self.spec.retries if left_out else self.retries
        return with_sources(pieces, arrays, retries, apart=self.apart, left_out=left_out)

    def _by_block(self, blocks: BlockTasks) -> Iterator[Piece]:
        """Yield the tasks of each block that has any, in raster order."""
        shared, across = Shared(blocks.shared), self._across()
        for position, index in enumerate(blocks.order()):
            nodes = dict(blocks.of(index))
            if not nodes:
                continue
            write, seam = blocks.key("write", index), blocks.key("seam", index)
            calls = (key for key, node in nodes.items() if self.apart and calls_function(node))
            yield Piece(
                self,
                shared,
                self._guarded(nodes),
                writes={write: blocks.spec.active.owned(index)} if write in nodes else {},
                heavy=frozenset(calls),
                keep={seam: position + blocks.reach} if seam in nodes else {},
                position=position,
                lane=_lane(position, across) if across else None,
            )

    def _across(self) -> int:
        """Return how many blocks lie side by side in a slab, if a process should run those near each other.

        So it is where they read the same chunks and wait for nothing of one another: those that wait for
        seams of a slower worker would hold what they have. A dask source has its chunks somewhere already.
        Otherwise 0.
        """
        plan = self.spec.active
        waiting = plan.reuse == "share" and any(table.reaching.any() for table in plan.tables)
        if plan.cache_bytes <= 0 or waiting or self.apart or dask_arrays(self.spec.sources):
            return 0
        return math.prod(plan.blocks[d] for d in plan.slow_axes[plan.n_each + 1 :])

    def _tasks(self, name: str, spec: Spec, wanted: Bits) -> BlockTasks:
        return BlockTasks(spec, name, wanted=lambda index: bool(wanted[index]), apart=self.apart)

    def _guarded(self, nodes: Mapping[Key, Any]) -> dict[Key, Any]:
        """Return the tasks, made to return their exceptions if the scheduler does not report them."""
        return {
            key: Task(key, guarded(node.func, self.retries), *node.args) if type(node) is Task else node
            for key, node in nodes.items()
        }

    def culprits(self, key: Key) -> list[tuple[Tile, Piece]]:
        """Return the tiles of the task ``key``, each with a piece that runs it alone and writes nothing."""
        found = None if self._blocks is None else self._blocks.find(key)
        if self._blocks is None or found is None:
            return []
        spec, (what, index) = self._blocks.spec, found
        ranges = spec.ranges(index, owned=what in ("group", "seam"))
        return [(tile, self._alone(tile, index)) for tile in tiles_of(spec, ranges)]

    def _alone(self, tile: Tile, index: Index) -> Piece:
        only = TileMask.of_box([(i, i + 1) for i in tile.position], self.spec.plan.grid_shape)
        spec = replace(with_todo(self.spec, only), on_error="raise", end=_forget)
        spec = replace(spec, todo=replace(spec.active, reuse="recompute"))
        blocks = self._tasks(f"{self.name}-alone-{tile.index}", spec, np.ones(spec.plan.blocks, bool))
        tasks = self._guarded(dict(blocks.of(index)))
        [piece] = self._reading([Piece(self, Shared(blocks.shared), tasks, {blocks.key("write", index): 1})])
        return piece


def _lane(position: int, of: int) -> Lane:
    """Return where a block lies among those ``of`` its slab, from its number in raster order."""
    slab, place = divmod(position, of)
    # Ends of lanes move from slab to slab, so that each has its share of the blocks.
    return Lane((place + slab * GOLDEN % 1) / of, of)


class ChunkedJob(WriteJob):
    """Base of the jobs that write an array chunk by chunk; each chunk is whole write units.

    Parameters
    ----------
    title, name : str
        Title of the job, for messages; name of the result.
    chunks : tuple of tuple of int, samples per axis
        Lengths of the chunks.
    number : int
        Number of the array among all of the run.
    destination : Destination
        The array.
    claims, retries, again, coarser
        As in `TileJob`.
    """

    def __init__(
        self,
        title: str,
        name: str,
        chunks: tuple[tuple[int, ...], ...],
        number: int,
        destination: Destination,
        claims: Claims | None = None,
        retries: int | None = None,
        again: bool = False,
        coarser: Mapping[int, Destination] | None = None,
    ) -> None:
        super().__init__(title, name, {number: destination}, claims, retries, coarser)
        self.chunks, self.number, self.destination, self.again = chunks, number, destination, again
        self.missing = dict(self._missing())
        """Samples, units and missing units of each chunk to write, by its index."""
        self.tiles = len(self.missing)

    def _missing(self) -> Iterator[tuple[Index, tuple[tuple[slice, ...], list[Span], list[Index]]]]:
        """Yield the chunks that contain a unit that is not done."""
        offsets = [list(itertools.accumulate(sizes, initial=0)) for sizes in self.chunks]
        done, unit = self.destination.done, layout_of(self.destination.array).unit
        for index in itertools.product(*(range(len(sizes)) for sizes in self.chunks)):
            box = tuple(slice(o[b], o[b + 1]) for o, b in zip(offsets, index, strict=True))
            units = [(s.start // u, ceil_div(s.stop, u)) for s, u in zip(box, unit, strict=True)]
            inside = itertools.product(*(range(a, b) for a, b in units))
            missing = [] if done is None else [unit for unit in inside if not done[unit]]
            if done is None or missing:
                yield index, (box, units, missing)

    def sink(self) -> Sink:
        """Return the array as tasks get it."""
        whole = {index: math.prod(b - a for a, b in units) for index, (_, units, _) in self.missing.items()}
        partial = {i: missing for i, (_, _, missing) in self.missing.items() if 0 < len(missing) < whole[i]}
        return sink_of(self.destination, np.array(list(self.missing)), self.again, partial)


class ChunkJob(ChunkedJob):
    """Writes any dask array whose chunks are whole write units, one task per chunk."""

    def __init__(
        self,
        title: str,
        array: Any,
        destination: Destination,
        claims: Claims | None = None,
        retries: int | None = None,
        again: bool = False,
        coarser: Mapping[int, Destination] | None = None,
        growing: Growing | None = None,
        *,
        apart: bool = False,
        in_order: bool = False,
    ) -> None:
        super().__init__(title, array.name, array.chunks, 0, destination, claims, retries, again, coarser)
        self.apart, self.in_order = apart, in_order
        self.array, self.growing = array, growing or Growing()

    def pieces(self) -> Iterator[Piece]:
        """Yield the tasks of every chunk: in raster order, or as one piece that dask orders."""
        pieces = self._by_chunk()
        if not self.in_order and (found := list(pieces)):
            tasks = {key: task for piece in found for key, task in piece.tasks.items()}
            pieces = iter([replace(found[0], tasks=tasks, writes=dict.fromkeys(tasks, 1))])
        return with_sources(pieces, [self.array], self.retries, apart=self.apart)

    def _by_chunk(self) -> Iterator[Piece]:
        """Yield the task of every chunk that writes it."""
        name = f"{self.name}-writer"
        shared = Shared({name: DataNode(name, (self.sink(), self.growing))})
        write = guarded(write_chunk, self.retries)
        for position, (index, (box, units, _)) in enumerate(self.missing.items()):
            key, chunk = (f"{self.name}-write", *index), TaskRef((self.array.name, *index))
            task = Task(key, write, TaskRef(name), index, box, units, chunk)
            yield Piece(self, shared, {key: task}, {key: 1}, position=position)
