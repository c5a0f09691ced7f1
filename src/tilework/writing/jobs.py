"""Jobs that write a result into arrays: `TileJob` for one of `tiled_map`, `ChunkJob` for any dask array."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from dask.optimization import cull
from dask.task_spec import DataNode, Task, TaskRef

from tilework._types import Bits, Index
from tilework.engine.reading import Failure, tiles_of
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.execution.piece import Job, Piece, Shared, guarded
from tilework.graph.layer import BlockTasks, Key, calls_function
from tilework.grid.axis import ceil_div
from tilework.grid.tiles import Tile
from tilework.writing.ledger import Ledger
from tilework.writing.units import Units, tiles_of_units, with_todo

__all__ = ["ChunkJob", "Destination", "TileJob", "WriteJob"]


@dataclass(frozen=True, slots=True)
class Destination:
    """The array into which one output is written."""

    array: Any
    """A Zarr array, or anything with item assignment."""
    done: Bits | None = None
    """Which write units were done when the run began; None: the array cannot have marks."""

    @property
    def ledger(self) -> Ledger | None:
        """The ledger that keeps the marks."""
        return None if self.done is None else Ledger(self.array)


# -- in the tasks ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sink:
    """The array of one output, as tasks get it."""

    array: Any
    """The array to write into."""
    ledger: Ledger | None
    """The ledger in which units are marked, if there is one."""
    partial: Mapping[Index, Sequence[Index]] = field(default_factory=dict)
    """For each block of which some units are done, the units to write."""

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.array, np.ndarray):
            raise TilingError(
                "an array in memory can only be written into by threads of this process; give a Zarr store "
                "for processes and clusters."
            )
        return _Sink, (self.array, self.ledger, self.partial)


class _Writer:
    """Writes blocks of all outputs and marks their units; called at the end of each task that has a block."""

    def __init__(self, sinks: Mapping[int, _Sink]) -> None:
        self.sinks = sinks

    def __call__(self, spec: Spec, index: Index, block: Any, failures: Sequence[Failure]) -> Any:
        """Write a block, or the tuple of blocks of all outputs; return the failures, if any."""
        for number, sink in self.sinks.items():
            box = spec.outputs[number].place(spec.boxes(index)[number])
            part = block[number] if spec.many else block
            with _told(box):
                if sink.ledger is None:
                    sink.array[box] = part
                    continue
                units = Units.of(spec, number, sink.array)
                written = _write_units(sink, units, index, box, part)
                for failure in failures:
                    written.difference_update(units.of_tile(failure.tile))
                sink.ledger.mark(sorted(written))
        return list(failures) or None


def _write_units(sink: _Sink, units: Units, index: Index, box: tuple[slice, ...], part: Any) -> set[Index]:
    """Write the units of a block that are not done, and return them."""
    if index not in sink.partial:
        sink.array[box] = part
        return set(itertools.product(*(range(a, b) for a, b in units.ranges(box))))
    starts = [s.indices(n)[0] for s, n in zip(box, units.shape, strict=True)]
    for unit in sink.partial[index]:
        own = units.slices(unit)
        sink.array[own] = part[
            tuple(slice(s.start - a, s.stop - a) for s, a in zip(own, starts, strict=True))
        ]
    return set(sink.partial[index])


def _write_chunk(sink: _Sink, box: tuple[slice, ...], units: Sequence[range], chunk: Any) -> None:
    """Write a chunk of a dask array, and mark its units."""
    with _told(box):
        sink.array[box] = chunk
        if sink.ledger is not None:
            sink.ledger.mark(itertools.product(*units))


@contextmanager
def _told(box: Sequence[slice]) -> Iterator[None]:
    """Add the samples that were being written to an error."""
    try:
        yield
    except Exception as error:
        text = ", ".join(f"{s.start}:{s.stop}" if s.stop is not None else ":" for s in box)
        error.add_note(f"raised while writing samples [{text}] of the result")
        raise


def _forget(spec: Spec, index: Index, block: Any, failures: Any) -> None:
    """Drop a block."""
    del spec, index, block, failures


# -- jobs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Close:
    """Ends a job: packs the marks, and returns the array, or the tuple of arrays, that was written."""

    arrays: tuple[Any, ...]
    """All arrays of the job."""
    ledgers: tuple[Ledger, ...]
    """Ledgers of the arrays that have one."""

    def __call__(self) -> Any:
        for ledger in self.ledgers:
            ledger.pack()
        return self.arrays if len(self.arrays) > 1 else self.arrays[0]


class WriteJob(Job):
    """Base of the jobs that write arrays."""

    def __init__(
        self, title: str, name: str, destinations: Iterable[Destination], retries: int | None
    ) -> None:
        self.title = title
        # A cluster would take a task of the same name, of another store or of a failed run, for this one.
        self.name = f"{name}-{uuid.uuid4().hex[:8]}"
        self.retries = retries
        """Further attempts that tasks make themselves; None if the scheduler makes them."""
        self.tiles = 0
        self.threads: int | None = None
        self.failures: list[Failure] = []
        self.error: BaseException | None = None
        found = list(destinations)
        done = [d.done for d in found if d.done is not None]
        self.done = sum(int(bits.sum()) for bits in done)
        """Number of units that were done when the run began."""
        self.units = sum(bits.size for bits in done)
        """Number of all units."""
        ledgers = tuple(d.ledger for d in found if d.ledger is not None)
        self.close: Callable[[], Any] = _Close(tuple(d.array for d in found), ledgers)

    def culprits(self, key: Key) -> list[tuple[Tile, Piece]]:
        """Return the tiles of the task ``key``, each with a piece that runs it alone."""
        del key
        return []


@dataclass(frozen=True, slots=True)
class _Missing:
    """The part of a result that is still to be computed."""

    blocks: Bits
    """Which blocks to write."""
    tiles: Bits | None = None
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
    upstream : dict, optional
        Graphs of the dask arrays that are read.
    retries : int or None
        Further attempts that tasks make themselves; None: the scheduler makes them.
    apart : bool
        Whether writing is a task of its own, so that only the tasks that call the function need resources.
    """

    def __init__(
        self,
        title: str,
        name: str,
        spec: Spec,
        destinations: Mapping[int, Destination],
        *,
        upstream: Mapping[Key, Any] | None = None,
        retries: int | None = None,
        apart: bool = False,
    ) -> None:
        super().__init__(title, name, destinations.values(), retries)
        self.spec, self.upstream, self.apart = spec, upstream or {}, apart
        self.missing = _missing(spec, destinations)
        partial = self.missing.partial
        sinks = {n: _Sink(d.array, d.ledger, partial.get(n, {})) for n, d in destinations.items()}
        self._writer = _Writer(sinks)
        self._slabs: list[BlockTasks] = []
        self.threads = spec.plan.threads
        todo = with_todo(spec, self.missing.tiles).active
        self.tiles = todo.n_runs if self.missing.blocks.any() else 0

    def pieces(self) -> Iterator[Piece]:
        """Yield the tasks of every block, slab by slab."""
        for number, (blocks, tiles) in enumerate(self._slab_parts()):
            if not blocks.any():
                continue
            name = f"{self.name}-{number}" if self.spec.plan.slabs else self.name
            slab = self._tasks(name, replace(with_todo(self.spec, tiles), end=self._writer), blocks)
            self._slabs.append(slab)
            yield from self._merged(slab) if self.upstream else self._by_block(slab)

    def _slab_parts(self) -> Iterator[tuple[Bits, Bits | None]]:
        """Yield, per slab, the blocks to write and the tiles to run."""
        plan, missing = self.spec.plan, self.missing
        if not plan.slabs:
            yield missing.blocks, missing.tiles
            return
        for place in itertools.product(*(range(plan.blocks[d]) for d in plan.slab_axes)):
            inside, touching = [slice(None)] * len(plan.axes), [slice(None)] * len(plan.axes)
            for d, b in zip(plan.slab_axes, place, strict=True):
                inside[d], touching[d] = slice(b, b + 1), slice(*plan.tables[d].touch[b])
            blocks = np.zeros_like(missing.blocks)
            blocks[tuple(inside)] = missing.blocks[tuple(inside)]
            tiles = np.zeros(plan.grid_shape, bool)
            tiles[tuple(touching)] = True if missing.tiles is None else missing.tiles[tuple(touching)]
            yield blocks, tiles

    def _by_block(self, slab: BlockTasks) -> Iterator[Piece]:
        """Yield the tasks of each block that has any, in raster order."""
        shared = Shared(slab.shared)
        for position, index in enumerate(slab.order()):
            nodes = dict(slab.of(index))
            if not nodes:
                continue
            write, seam = slab.key("write", index), slab.key("seam", index)
            calls = (key for key, node in nodes.items() if self.apart and calls_function(node))
            yield Piece(
                self,
                shared,
                self._guarded(nodes),
                writes={write: slab.spec.active.owned(index)} if write in nodes else {},
                heavy=frozenset(calls),
                keep={seam: position + slab.reach} if seam in nodes else {},
                position=position,
            )

    def _merged(self, slab: BlockTasks) -> Iterator[Piece]:
        """Yield one piece of all blocks, because the graph of a dask source exists as a whole."""
        pieces = list(self._by_block(slab))
        if pieces:
            tasks = dict(self.upstream)
            writes: dict[Key, int] = {}
            for piece in pieces:
                tasks.update(piece.tasks)
                writes.update(piece.writes)
            heavy = frozenset().union(*(piece.heavy for piece in pieces))
            yield Piece(self, pieces[0].shared, tasks, writes, heavy)

    def _tasks(self, name: str, spec: Spec, blocks: Bits) -> BlockTasks:
        return BlockTasks(spec, name, wanted=lambda index: bool(blocks[index]), apart=self.apart)

    def _guarded(self, nodes: Mapping[Key, Any]) -> dict[Key, Any]:
        """Return the tasks, made to return their exceptions if the scheduler does not report them."""
        return {
            key: Task(key, guarded(node.func, self.retries), *node.args) if type(node) is Task else node
            for key, node in nodes.items()
        }

    def culprits(self, key: Key) -> list[tuple[Tile, Piece]]:
        """Return the tiles of the task ``key``, each with a piece that runs it alone and writes nothing."""
        for slab in self._slabs:
            found = slab.find(key)
            if found is not None:
                what, index = found
                ranges = slab.spec.ranges(index, owned=what in ("group", "seam"))
                return [(tile, self._alone(tile, index)) for tile in tiles_of(slab.spec, ranges)]
        return []

    def _alone(self, tile: Tile, index: Index) -> Piece:
        only = np.zeros(self.spec.plan.grid_shape, bool)
        only[tile.position] = True
        spec = replace(with_todo(self.spec, only), on_error="raise", end=_forget)
        spec = replace(spec, todo=replace(spec.active, reuse="recompute"))
        blocks = self._tasks(f"{self.name}-alone-{tile.index}", spec, np.ones(spec.plan.blocks, bool))
        tasks = self._guarded(dict(blocks.of(index)))
        return Piece(self, Shared(blocks.shared), {**self.upstream, **tasks}, {blocks.key("write", index): 1})


class ChunkJob(WriteJob):
    """Writes any dask array whose chunks are whole write units, one task per chunk."""

    def __init__(
        self, title: str, array: Any, destination: Destination, unit: Index, retries: int | None
    ) -> None:
        super().__init__(title, array.name, [destination], retries)
        self.array, self.destination, self.unit = array, destination, unit
        self.missing = dict(self._missing())
        """Samples and units of each chunk to write, by its index."""
        self.tiles = len(self.missing)

    def _missing(self) -> Iterator[tuple[Index, tuple[tuple[slice, ...], tuple[range, ...]]]]:
        """Yield the chunks that contain a unit that is not done."""
        offsets = [list(itertools.accumulate(sizes, initial=0)) for sizes in self.array.chunks]
        done = self.destination.done
        for index in itertools.product(*map(range, self.array.numblocks)):
            box = tuple(slice(o[b], o[b + 1]) for o, b in zip(offsets, index, strict=True))
            units = tuple(
                range(s.start // u, ceil_div(s.stop, u)) for s, u in zip(box, self.unit, strict=True)
            )
            if done is None or not done[tuple(slice(r.start, r.stop) for r in units)].all():
                yield index, (box, units)

    def pieces(self) -> Iterator[Piece]:
        """Yield the whole graph as one piece, because it exists already."""
        if not self.missing:
            return
        sink, writes = f"{self.name}-writer", {}
        tasks, _ = cull(dict(self.array.dask), [(self.array.name, *index) for index in self.missing])
        write = guarded(_write_chunk, self.retries)
        for index, (box, units) in self.missing.items():
            key = (f"{self.name}-write", *index)
            tasks[key] = Task(key, write, TaskRef(sink), box, units, TaskRef((self.array.name, *index)))
            writes[key] = 1
        node = DataNode(sink, _Sink(self.destination.array, self.destination.ledger))
        yield Piece(self, Shared({sink: node}), tasks, writes)
