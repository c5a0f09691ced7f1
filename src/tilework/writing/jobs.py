"""One result on its way into storage, as pieces that a run may submit one after the other."""

from __future__ import annotations

import functools
import itertools
import math
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from dask.task_spec import DataNode, Task, TaskRef

from tilework.engine.reading import Failure, tiles_of
from tilework.engine.spec import Index, Spec
from tilework.errors import TilingError
from tilework.graph.layer import BlockTasks, Key, Nodes
from tilework.grid.tiles import Tile
from tilework.writing.ledger import Marks
from tilework.writing.units import Bits, Units, tiles_touching, with_todo

__all__ = ["Broken", "ChunkJob", "Job", "Piece", "TileJob", "Writer"]


@dataclass(slots=True)
class Piece:
    """Tasks that are submitted together."""

    job: Job
    tasks: dict[Key, Any]
    writes: dict[Key, int]
    """Last tasks, which return nothing, and the tiles that each finishes."""
    shared: Mapping[Key, Any]
    """Nodes that many pieces refer to."""
    keep: Mapping[Key, int] = field(default_factory=dict)
    """Seams that later pieces of the same ``shared`` need, and the position of the last one."""
    position: int = 0


@dataclass(slots=True)
class Broken:
    """What a task returns instead of raising, so that other tasks go on."""

    error: BaseException
    text: str
    """The traceback, which does not travel between processes."""


def guarded(retries: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``, again if it fails; return its exception, and hand on that of an argument."""
    for argument in args:
        for value in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(value, Broken):
                return value
    for _ in range(retries):
        try:
            return function(*args)
        except Exception:
            continue
    try:
        return function(*args)
    except Exception as error:
        return Broken(error, traceback.format_exc())


class Writer:
    """Writes blocks of the outputs to their arrays, and marks their units; the end of each task."""

    def __init__(
        self,
        arrays: Mapping[int, Any],
        units: Mapping[int, Units] | None = None,
        partial: Mapping[int, Mapping[Index, Sequence[Index]]] | None = None,
    ) -> None:
        self.arrays, self.partial = dict(arrays), dict(partial or {})
        self.units = {n: (u.shape, u.unit) for n, u in (units or {}).items()}

    def __reduce__(self) -> tuple[Any, ...]:
        for array in self.arrays.values():
            if isinstance(array, np.ndarray):
                raise TilingError(
                    "an array in memory can only be written into by threads of this process; give a Zarr "
                    "store for processes and clusters."
                )
        return _writer, (self.arrays, self.units, self.partial)

    def __call__(self, spec: Spec, index: Index, block: Any, failures: Sequence[Failure]) -> Any:
        """Write a block, or the tuple of blocks of all outputs; return the failures, if any."""
        for number, array in self.arrays.items():
            part = block[number] if spec.many else block
            where = spec.outputs[number].place(spec.boxes(index)[number])
            try:
                self._write(spec, number, array, index, where, part, failures)
            except Exception as error:
                error.add_note(f"raised while writing samples {_text(where)} of the result")
                raise
        return list(failures) or None

    def _write(
        self,
        spec: Spec,
        number: int,
        array: Any,
        index: Index,
        where: tuple[slice, ...],
        part: Any,
        failures: Sequence[Failure],
    ) -> None:
        if number not in self.units:
            array[where] = part
            return
        units = Units(spec, number, *self.units[number])
        missing = self.partial.get(number, {}).get(index)
        if missing is None:
            array[where] = part
            finished = set(itertools.product(*(range(a, b) for a, b in units.ranges(where))))
        else:
            starts = [s.indices(n)[0] for s, n in zip(where, units.shape, strict=True)]
            for unit in missing:
                box = units.slices(unit)
                inner = (slice(s.start - a, s.stop - a) for s, a in zip(box, starts, strict=True))
                array[box] = part[tuple(inner)]
            finished = set(missing)
        for failure in failures:
            finished.difference_update(units.of_tile(failure.tile))
        Marks(array).set(sorted(finished))


def _writer(arrays: Any, units: Any, partial: Any) -> Writer:
    writer = Writer(arrays, None, partial)
    writer.units = units
    return writer


def _text(box: Sequence[slice]) -> str:
    return "[" + ", ".join(f"{s.start}:{s.stop}" if s.stop is not None else ":" for s in box) + "]"


class Job:
    """What a run asks of a result on its way into storage."""

    def __init__(self, title: str, arrays: Mapping[int, Any], done: Mapping[int, Bits]) -> None:
        self.title = title
        self.arrays, self.done = dict(arrays), dict(done)
        self.failures: list[Failure] = []
        self.error: BaseException | None = None
        self.outstanding = 0
        self.closed = False
        self.tiles = 0
        """Tiles that this run computes."""
        self.threads: int | None = None
        """Tasks at a time in a process, where fewer than usual; None: as many as there are."""

    @property
    def found(self) -> tuple[int, int]:
        """How many units were found done, and how many there are."""
        return sum(int(d.sum()) for d in self.done.values()), sum(d.size for d in self.done.values())

    def pieces(self) -> Iterator[Piece]:
        """Yield what is to be run, in order."""
        raise NotImplementedError

    def culprits(self, key: Key) -> list[tuple[Tile, Piece]]:
        """Return the tiles of the task ``key``, each with a piece that runs it alone."""
        del key
        return []

    def close(self) -> None:
        """Put the marks together, whether all is done or not."""
        if self.closed:
            return
        self.closed = True
        for number in self.done:
            Marks(self.arrays[number]).pack()


class TileJob(Job):
    """Writes the result of `tiled_map`: only missing units, from only the tiles that touch them."""

    def __init__(
        self,
        title: str,
        name: str,
        spec: Spec,
        upstream: Mapping[Key, Any],
        arrays: Mapping[int, Any],
        units: Mapping[int, Units],
        done: Mapping[int, Bits],
        guard: int | None,
        apart: bool,
    ) -> None:
        super().__init__(title, arrays, done)
        # A cluster would take tasks of an equal name, of another store or of a run that failed, for done.
        self.name = f"{name}-{uuid.uuid4().hex[:8]}"
        self.spec, self.upstream = spec, upstream
        self.units, self.guard, self.apart = dict(units), guard, apart
        self.threads = spec.plan.threads
        self._plan_missing()
        self._slabs: dict[str, BlockTasks] = {}

    def _plan_missing(self) -> None:
        """Find the blocks and tiles that touch a missing unit."""
        missing = {n: ~bits for n, bits in self.done.items()}
        self.fresh = all(bits.all() for bits in missing.values())
        plan = self.spec.plan
        self.wanted = np.ones(plan.blocks, bool)
        self.todo: Bits | None = None
        self.partial: dict[int, dict[Index, list[Index]]] = {n: {} for n in self.done}
        if not self.fresh:
            units = [self.units[n] for n in missing]
            counts = {n: self.units[n].blocks(bits) for n, bits in missing.items()}
            self.wanted = np.logical_or.reduce([c > 0 for c in counts.values()])
            self.todo = tiles_touching(units, list(missing.values()))
            for n, bits in missing.items():
                whole = self.units[n].blocks(np.ones_like(bits))
                for index in np.argwhere((counts[n] < whole) & self.wanted):
                    block = tuple(map(int, index))
                    ranges = itertools.product(*(range(a, b) for a, b in self.units[n].of_block(block)))
                    self.partial[n][block] = [u for u in ranges if bits[u]]
        todo = with_todo(self.spec, self.todo).active
        self.tiles = todo.count([(0, n) for n in todo.grid_shape]) if self.wanted.any() else 0

    def pieces(self) -> Iterator[Piece]:
        """Yield the tasks of every block, slab by slab."""
        for number, (wanted, tiles) in enumerate(self._slab_parts()):
            if wanted.any():
                yield from self._slab(
                    f"{self.name}-{number}" if self.spec.plan.slabs else self.name, wanted, tiles
                )

    def _slab_parts(self) -> Iterator[tuple[Bits, Bits | None]]:
        """Yield, per slab, the blocks to write and the tiles to run."""
        plan = self.spec.plan
        if not plan.slabs:
            yield self.wanted, self.todo
            return
        cut = plan.slab_axes
        for place in itertools.product(*(range(plan.blocks[d]) for d in cut)):
            at = dict(zip(cut, place, strict=True))
            chosen = tuple(slice(at[d], at[d] + 1) if d in at else slice(None) for d in range(len(plan.axes)))
            wanted = np.zeros_like(self.wanted)
            wanted[chosen] = self.wanted[chosen]
            touch = tuple(
                slice(*plan.tables[d].touch[at[d]]) if d in at else slice(None) for d in range(len(plan.axes))
            )
            tiles = np.zeros(plan.grid_shape, bool)
            tiles[tuple(touch)] = True if self.todo is None else self.todo[tuple(touch)]
            yield wanted, tiles

    def _slab(self, name: str, wanted: Bits, tiles: Bits | None) -> Iterator[Piece]:
        writer = Writer(self.arrays, self.units, self.partial)
        blocks = self._blocks(name, replace(with_todo(self.spec, tiles), end=writer), wanted)
        self._slabs[name] = blocks
        shared = blocks.shared
        # What a dask array is made of comes with it whole: then a window would save nothing.
        merged: Piece | None = None
        for position, index in enumerate(blocks.order()):
            tasks = self._guarded(blocks.of(index))
            if not tasks:
                continue
            write, seam = blocks.key("write", index), blocks.key("seam", index)
            plan = blocks.spec.active
            writes = {write: plan.owned(index)} if write in tasks else {}
            keep = {seam: position + blocks.reach} if seam in tasks else {}
            if self.upstream:
                merged = merged or Piece(self, dict(self.upstream), {}, shared)
                merged.tasks.update(tasks)
                merged.writes.update(writes)
            else:
                yield Piece(self, tasks, writes, shared, keep, position)
        if merged is not None:
            yield merged

    def _blocks(self, name: str, spec: Spec, wanted: Bits) -> BlockTasks:
        return BlockTasks(spec, name, wanted=lambda index: bool(wanted[index]), apart=self.apart)

    def _guarded(self, nodes: Nodes) -> dict[Key, Any]:
        """Return tasks that return their exceptions, where the scheduler does not see to them."""
        if self.guard is None:
            return dict(nodes)
        return {
            key: Task(key, functools.partial(guarded, self.guard, node.func), *node.args)
            if type(node) is Task
            else node
            for key, node in nodes
        }

    def culprits(self, key: Key) -> list[tuple[Tile, Piece]]:
        """Return the tiles of the task ``key``, each with a piece that runs it alone and writes nothing."""
        for name, blocks in self._slabs.items():
            for what in ("group", "seam", "block", "write"):
                if isinstance(key, tuple) and key[0] == f"{name}-{what}":
                    index = blocks.index(key[1:])
                    ranges = blocks.spec.ranges(index, owned=what in ("group", "seam"))
                    return [(t, self._alone(t, index)) for t in tiles_of(blocks.spec, ranges)]
        return []

    def _alone(self, tile: Tile, index: Index) -> Piece:
        only = np.zeros(self.spec.plan.grid_shape, bool)
        only[tile.position] = True
        spec = replace(with_todo(self.spec, only), on_error="raise", end=_forget)
        spec = replace(spec, todo=replace(spec.active, reuse="recompute"))
        name = f"{self.name}-alone-{tile.index}"
        blocks = self._blocks(name, spec, np.ones(self.spec.plan.blocks, bool))
        tasks = self._guarded(blocks.of(index))
        return Piece(self, {**self.upstream, **tasks}, {blocks.key("write", index): 1}, blocks.shared)


def _forget(spec: Spec, index: Index, block: Any, failures: Any) -> None:
    del spec, index, block, failures


class ChunkJob(Job):
    """Writes any dask array whose chunks are whole write units, one task per chunk."""

    def __init__(
        self, title: str, array: Any, target: Any, done: Bits | None, unit: Index, guard: int | None
    ) -> None:
        super().__init__(title, {0: target}, {} if done is None else {0: done})
        self.array, self.unit, self.guard = array, unit, guard
        self.name = f"{array.name}-{uuid.uuid4().hex[:8]}"
        self._offsets = [list(itertools.accumulate(sizes, initial=0)) for sizes in array.chunks]
        self.boxes = dict(self._missing())
        self.tiles = len(self.boxes)

    def _missing(self) -> Iterator[tuple[Index, tuple[slice, ...]]]:
        for index in itertools.product(*map(range, self.array.numblocks)):
            box = tuple(slice(o[b], o[b + 1]) for o, b in zip(self._offsets, index, strict=True))
            if not self.done or not self.done[0][self._units(box)].all():
                yield index, box

    def _units(self, box: tuple[slice, ...]) -> tuple[slice, ...]:
        return tuple(slice(s.start // u, math.ceil(s.stop / u)) for s, u in zip(box, self.unit, strict=True))

    def pieces(self) -> Iterator[Piece]:
        """Yield the whole graph: it is there already."""
        from dask.optimization import cull

        if not self.boxes:
            return
        writer, writes = f"{self.name}-writer", {}
        inputs = [(self.array.name, *index) for index in self.boxes]
        tasks, _ = cull(dict(self.array.dask), inputs)
        for index, box in self.boxes.items():
            key = (f"{self.name}-write", *index)
            units = self._units(box) if self.done else None
            call: Any = (
                _write_chunk if self.guard is None else functools.partial(guarded, self.guard, _write_chunk)
            )
            tasks[key] = Task(key, call, TaskRef(writer), box, units, TaskRef((self.array.name, *index)))
            writes[key] = 1
        yield Piece(self, tasks, writes, {writer: DataNode(writer, Writer(self.arrays))})


def _write_chunk(writer: Writer, box: tuple[slice, ...], units: tuple[slice, ...] | None, chunk: Any) -> None:
    array = writer.arrays[0]
    try:
        array[box] = chunk
    except Exception as error:
        error.add_note(f"raised while writing samples {_text(box)} of the result")
        raise
    if units is not None:
        Marks(array).set(itertools.product(*(range(s.start, s.stop) for s in units)))
