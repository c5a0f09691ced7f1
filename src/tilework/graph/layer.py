"""The tasks of blocks: what runs in which order, and what waits for what.

Keys of one result called ``NAME``::

    NAME-spec                  the `Spec`, which every task refers to
    NAME-part-K, *block        a view of array K in memory (no other source has such keys)
    NAME-group, *block         canvases of the tiles that the block owns        (share)
    NAME-seam, *block          copies of what lies in later blocks              (share)
    NAME, *block               a block of the result; NAME-all holds a tuple of blocks for several outputs
    NAME-fill-S                the block in which nothing runs, by shape

Block numbers in inner keys stand slowest axis first and with leading zeros: dask breaks ties by key.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.task_spec import Alias, DataNode, List, Task, TaskRef

from tilework.engine.block import (
    block_groups,
    end_block,
    end_fill,
    fill_block,
    finish_block,
    hold_block,
    merge_groups,
    run_block,
    run_group,
    take_seams,
)
from tilework.engine.canvas import Layer
from tilework.engine.reading import block_inputs
from tilework.engine.spec import Index, Spec
from tilework.source.base import BlockSource, MemorySource

__all__ = ["BlockTasks", "Ending", "Key", "Names", "Nodes", "block_tasks"]

Key = Any
Nodes = Iterator[tuple[Key, Any]]


@dataclass(frozen=True, slots=True)
class Names:
    """The dask names of one result."""

    name: str
    """Common prefix, unique per plan, source and function."""

    @property
    def spec(self) -> str:
        """Key of the `Spec`."""
        return f"{self.name}-spec"

    def output(self, spec: Spec, number: int) -> str:
        """Return the name of the dask array of one output."""
        return f"{self.name}-{spec.layers[number].bound.key}" if spec.many else self.name


@dataclass(frozen=True, slots=True)
class Ending:
    """How blocks end in ``spec.end``, in the same task, so that writing needs no task of its own."""

    wanted: Callable[[Index], bool] = lambda _: True
    """Whether a block is finished at all; tiles of others may still reach into it."""
    call: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function
    """Wraps the function of every task."""
    apart: bool = False
    """Whether the ending is a task of its own: so that only the function's tasks hold a GPU."""


class BlockTasks:
    """Makes the tasks of one block at a time.

    Parameters
    ----------
    spec : Spec
    names : Names
    arrays : sequence
        The dask arrays among the sources, None elsewhere.
    ending : Ending, optional
        Without one, blocks are kept under the keys of the dask array. With one, the keys of last tasks are
        ``(NAME-write, *block)``.
    """

    def __init__(self, spec: Spec, names: Names, arrays: Sequence[Any], ending: Ending | None = None) -> None:
        self.spec, self.names, self.arrays, self.ending = spec, names, arrays, ending
        self.axes = spec.plan.slow_axes
        counts = [spec.plan.blocks[d] for d in self.axes]
        self.strides = [math.prod(counts[k + 1 :]) for k in range(len(counts))]
        self.counts = counts
        self._last = _Last(self)

    @property
    def reach(self) -> int:
        """How many blocks later, in raster order, a seam is used for the last time."""
        return sum(s for s, n in zip(self.strides, self.counts, strict=True) if n > 1)

    def order(self) -> Iterator[Index]:
        """Return the numbers of all blocks in raster order, the slowest axis first."""
        return map(self.index, itertools.product(*map(range, self.counts)))

    def index(self, ordered: Sequence[Any]) -> Index:
        """Return the number of a block from its numbers along the axes as `order` has them."""
        by_axis = dict(zip(self.axes, map(int, ordered), strict=True))
        return tuple(by_axis[d] for d in range(len(self.axes)))

    def number(self, index: Index) -> int:
        """Return the place of a block in `order`."""
        return sum(index[d] * s for d, s in zip(self.axes, self.strides, strict=True))

    def key(self, what: str, index: Index) -> Key:
        """Return an inner key.

        dask breaks ties by the text of keys, and "10" sorts before "2": without leading zeros rows would run
        in the order 0, 1, 10, 11, 2 and chunks of the source would be decoded twice (2.2 times, 16 x 16
        blocks).
        """
        place = (str(index[d]).zfill(len(str(n - 1))) for d, n in zip(self.axes, self.counts, strict=True))
        return (f"{self.names.name}-{what}", *place)

    def wanted(self, index: Index) -> bool:
        """Return whether a block is finished."""
        return self.ending is None or self.ending.wanted(index)

    def task(self, key: Key, function: Callable[..., Any], *args: Any) -> Task:
        """Return a task, its function wrapped as the ending asks."""
        return Task(key, function if self.ending is None else self.ending.call(function), *args)

    def of(self, index: Index) -> Nodes:
        """Yield the keys and tasks of one block: what it owes to later blocks, and itself if wanted."""
        plan, spec, wanted = self.spec.active, TaskRef(self.names.spec), self.wanted(index)
        if not plan.touched(index):
            if wanted:
                yield from self._last.fill(index)
            return
        if plan.reuse == "recompute":
            if wanted:
                inputs = yield from self._inputs(index, owned=False)
                yield from self._last.task(index, block_groups, spec, index, inputs)
            return
        owned, earlier = plan.owned(index) > 0, plan.earlier(index) if wanted else []
        later = [
            s
            for s in (plan.later(index) if owned else ())
            if self.wanted(tuple(b + d for b, d in zip(index, s, strict=True)))
        ]
        owned = owned and (wanted or bool(later))
        if owned:
            inputs = yield from self._inputs(index, owned=True)
        if owned and not later and not earlier:
            yield from self._last.task(index, block_groups, spec, index, inputs)
            return
        group: Any = None
        if owned:
            key = self.key("group", index)
            yield key, self.task(key, run_group, spec, index, inputs)
            group = TaskRef(key)
            if later:
                seam = self.key("seam", index)
                yield seam, self.task(seam, take_seams, spec, index, later, group)
        if wanted:
            seams = [TaskRef(self.key("seam", owner)) for owner in earlier]
            after = [] if self.ending is None else self._raster_edges(index, earlier)
            yield from self._last.task(
                index, merge_groups, spec, index, group, earlier, List(*seams), List(*after)
            )

    def _raster_edges(self, index: Index, earlier: Sequence[Index]) -> list[TaskRef]:
        """Return references to seams that block ``index`` waits for without needing them.

        dask computes first what needs the fewest roots, so blocks at the faces of a volume come before its
        inside, and most seams of a 3-D blend wait at once (119 of 256 for 16 x 4 x 4 blocks, seen with dask
        2026.8). Where rows wrap round, as if a block at a row's start had its neighbours at the end of the
        row before, all blocks need the same number of roots and dask keeps raster order: 22 seams wait,
        whatever the length of the slowest axis. Only where everything is computed: a slice would run what it
        waits for, and so would a run that goes on where another was stopped.
        """
        if self.spec.todo is not None:
            return []
        plan, number, waited = self.spec.plan, self.number(index), []
        steps = itertools.product(*((1, 0) if n > 1 else (0,) for n in self.counts))
        for offset in {
            sum(s * stride for s, stride in zip(step, self.strides, strict=True)) for step in steps
        }:
            if 0 < offset <= number:
                owner = self.index(np.unravel_index(number - offset, self.counts))
                if owner not in earlier and plan.owned(owner) and plan.later(owner):
                    waited.append(TaskRef(self.key("seam", owner)))
        return waited

    def _inputs(self, index: Index, *, owned: bool) -> Generator[tuple[Key, Any], None, Any]:
        """Yield the tasks that hold parts of arrays in memory; return the inputs of a block's task."""
        spec, ranges = self.spec, self.spec.ranges(index, owned=owned)
        inputs: list[Any] = []
        for number, (source, array) in enumerate(zip(spec.sources, self.arrays, strict=True)):
            if isinstance(source, BlockSource):
                blocks = block_inputs(source, spec.reads(number, ranges))
                inputs.append(List(*(TaskRef((array.name, *block)) for block in blocks)))
            elif isinstance(source, MemorySource):
                reads = spec.reads(number, ranges)
                box = [(plan.intervals[0][0], plan.intervals[-1][1]) for plan in reads]
                key = self.key(f"part-{number}", index)
                yield key, DataNode(key, source.part(box))
                inputs.append(TaskRef(key))
            else:
                inputs.append(None)
        return List(*inputs)


def block_tasks(spec: Spec, names: Names, arrays: Sequence[Any]) -> Nodes:
    """Yield the keys and tasks that compute every block of a dask array."""
    blocks = BlockTasks(spec, names, arrays)
    yield names.spec, DataNode(names.spec, spec)
    for index in blocks.order():
        yield from blocks.of(index)


class _Last:
    """The last task of a block: the block itself, a tuple with getters, or what the ending makes of it."""

    def __init__(self, blocks: BlockTasks) -> None:
        self.blocks, self.spec, self.names, self.ending = blocks, blocks.spec, blocks.names, blocks.ending
        self.filled: set[Index] = set()

    def task(self, index: Index, gather: Callable[..., Any], *args: Any) -> Nodes:
        spec, names, blocks = self.spec, self.names, self.blocks
        if self.ending is not None:
            key = blocks.key("write", index)
            if self.ending.apart:
                made = blocks.key("block", index)
                yield made, blocks.task(made, hold_block, gather, *args)
                yield key, blocks.task(key, end_block, TaskRef(names.spec), index, TaskRef(made))
            else:
                yield key, blocks.task(key, finish_block, gather, *args)
        elif spec.many:
            key = blocks.key("all", index)
            yield key, Task(key, run_block, gather, *args)
            for number in range(len(spec.layers)):
                one = (names.output(spec, number), *_full(spec.layers[number], index))
                yield one, Task(one, _take, TaskRef(key), number)
        else:
            key = (names.name, *_full(spec.layers[0], index))
            yield key, Task(key, run_block, gather, *args)

    def fill(self, index: Index) -> Nodes:
        spec, names, plan = self.spec, self.names, self.spec.plan
        shape = tuple(min(s, n - b * s) for b, s, n in zip(index, plan.block, plan.shape, strict=True))
        if self.ending is not None:
            key = self.blocks.key("write", index)
            yield key, self.blocks.task(key, end_fill, TaskRef(names.spec), index, shape)
            return
        common = f"{names.name}-fill-{'x'.join(map(str, shape))}"
        if shape not in self.filled:
            self.filled.add(shape)
            yield common, Task(common, fill_block, TaskRef(names.spec), shape)
        for number, layer in enumerate(spec.layers):
            key = (names.output(spec, number), *_full(layer, index))
            yield key, Task(key, _take, TaskRef(common), number) if spec.many else Alias(key, common)


def _take(blocks: Sequence[Any], number: int) -> Any:
    return blocks[number]


def _full(layer: Layer, index: Index) -> Index:
    """Return a block's number in the axes of the returned array."""
    full = [*index[: layer.n_each], *[0] * len(layer.bound.reduced_shape)]
    for axis, b in zip(layer.bound.reduced_axes, index[layer.n_each :], strict=True):
        full[layer.n_each + axis] = b
    return tuple(full)
