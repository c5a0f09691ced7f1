"""The tasks of blocks: their keys, order and dependencies.

Keys of one result called ``NAME``::

    NAME-spec                  the `Spec`, which every task refers to
    NAME-part-K, *block        a view of array K in memory (no other source has such keys)
    NAME-group, *block         canvases of the tiles that the block owns        (share)
    NAME-seam, *block          copies of the parts of canvases in later blocks  (share)
    NAME, *block               a block of the result; NAME-all holds a tuple of blocks for several outputs
    NAME-fill-S                the block of shape S in which nothing runs
    NAME-write, *block         the last task of a block, which delivers it and does not return it
    NAME-block, *block         the block to deliver, if delivering is a task of its own

Block numbers in inner keys have the slowest axis first, and leading zeros: dask breaks ties by key.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
from dask.task_spec import Alias, DataNode, List, Task, TaskRef

from tilework._types import Index
from tilework.engine.block import (
    Block,
    assemble,
    cut_seams,
    deliver,
    deliver_assembled,
    deliver_fill,
    fill_block,
    gather_owned,
    gather_seams,
    gather_tiles,
    make_block,
)
from tilework.engine.spec import Spec

__all__ = ["BlockTasks", "Key", "Nodes", "calls_function", "spec_key"]

Key = Any
Nodes = Iterator[tuple[Key, Any]]


def spec_key(name: str) -> str:
    """Return the key of the `Spec` of the result ``name``."""
    return f"{name}-spec"


def calls_function(node: Any) -> bool:
    """Return whether a task calls the user's function, if delivering is a task of its own."""
    return type(node) is Task and node.func in (gather_owned, assemble)


def _everything(index: Index) -> bool:
    del index
    return True


class BlockTasks:
    """Makes the tasks of one block at a time, for dask arrays and for writing.

    Without ``spec.end``, blocks have the keys of the dask array. With it, tasks with keys
    ``(NAME-write, *block)`` deliver them.

    Parameters
    ----------
    spec : Spec
    name : str
        Name of the result: unique per plan, source and function.
    wanted : callable
        Returns whether a block is to be finished; tiles of other blocks may still reach into it.
    apart : bool
        Whether delivering is a task of its own, so that only the function's tasks hold a GPU.
    """

    def __init__(
        self, spec: Spec, name: str, *, wanted: Callable[[Index], bool] = _everything, apart: bool = False
    ) -> None:
        self.spec, self.name, self.wanted, self._apart = spec, name, wanted, apart
        self._axes = spec.plan.slow_axes
        self._counts = [spec.plan.blocks[d] for d in self._axes]
        self._strides = [math.prod(self._counts[k + 1 :]) for k in range(len(self._counts))]
        self._ref = TaskRef(spec_key(name))
        self._filled: set[Index] = set()
        columns = zip(spec.names(name), spec.outputs, strict=True)
        self._outputs = [(key, o.grid_axes, o.n_each + len(o.reduced_shape)) for key, o in columns]

    @property
    def shared(self) -> dict[Key, Any]:
        """The node to which every task refers."""
        return {spec_key(self.name): DataNode(spec_key(self.name), self.spec)}

    @property
    def reach(self) -> int:
        """Number of blocks, in raster order, after which a seam is used for the last time."""
        return sum(s for s, n in zip(self._strides, self._counts, strict=True) if n > 1)

    def order(self) -> Iterator[Index]:
        """Return the numbers of all blocks in raster order, the slowest axis first."""
        return map(self.index, itertools.product(*map(range, self._counts)))

    def index(self, ordered: Sequence[Any]) -> Index:
        """Return the index of a block from its numbers in the order of inner keys."""
        by_axis = dict(zip(self._axes, map(int, ordered), strict=True))
        return tuple(by_axis[d] for d in range(len(self._axes)))

    def key(self, what: str, index: Index) -> Key:
        """Return an inner key.

        dask breaks ties by the text of keys, and "10" sorts before "2". Without leading zeros, rows would run
        in the order 0, 1, 10, 11, 2, and chunks of the source would be decoded 2.2 times (16 x 16 blocks).
        """
        place = (str(index[d]).zfill(len(str(n - 1))) for d, n in zip(self._axes, self._counts, strict=True))
        return (f"{self.name}-{what}", *place)

    def find(self, key: Key) -> tuple[str, Index] | None:
        """Return the kind and the block of the task of an inner key; None for any other key."""
        if not isinstance(key, tuple) or not str(key[0]).startswith(f"{self.name}-"):
            return None
        return str(key[0]).removeprefix(f"{self.name}-"), self.index(key[1:])

    def of(self, index: Index) -> Nodes:
        """Yield the keys and tasks of one block: those that later blocks need, and the block if wanted."""
        plan, wanted = self.spec.active, self.wanted(index)
        if not plan.touched(index):
            return self._fill(index) if wanted else iter(())
        if plan.reuse == "share":
            return self._share(index, wanted=wanted)
        return self._alone(index, owned=False) if wanted else iter(())

    def _alone(self, index: Index, *, owned: bool) -> Nodes:
        """Yield the single task of a block that shares no tiles with others."""
        given = yield from self._given(index, owned=owned)
        yield from self._last(index, gather_tiles, given)

    def _share(self, index: Index, *, wanted: bool) -> Nodes:
        """Yield the tasks of a block that runs the tiles it owns and adds the seams of others."""
        plan = self.spec.active
        owned, earlier = plan.owned(index) > 0, plan.earlier(index) if wanted else []
        later = [s for s in (plan.later(index) if owned else ()) if self.wanted(_step(index, s))]
        if wanted and owned and not later and not earlier:
            yield from self._alone(index, owned=True)
            return
        group = None
        if owned and (wanted or later):
            given = yield from self._given(index, owned=True)
            key = self.key("group", index)
            yield key, Task(key, gather_owned, self._ref, index, given)
            group = TaskRef(key)
        if later:
            seam = self.key("seam", index)
            yield seam, Task(seam, cut_seams, self._ref, index, later, group)
        if wanted:
            seams = [TaskRef(self.key("seam", owner)) for owner in earlier]
            after = self._raster_edges(index, earlier)
            yield from self._last(index, gather_seams, group, earlier, List(*seams), List(*after))

    def _raster_edges(self, index: Index, earlier: Sequence[Index]) -> list[TaskRef]:
        """Return references to seams that block ``index`` waits for without needing them.

        dask first computes tasks that need the fewest roots. Blocks at the faces of a volume would run before
        its inside, and most seams of a 3-D blend would wait at the same time (119 of 256 for 16 x 4 x 4
        blocks, seen with dask 2026.8). If rows wrap around, so that a block at the start of a row also waits
        for the end of the row before, all blocks need the same number of roots and dask keeps raster order:
        22 seams wait, whatever the length of the slowest axis. This is only for runs that compute and deliver
        everything: a slice, or a resumed run, would have to compute the blocks that it waits for.
        """
        if self.spec.end is None or self.spec.todo is not None:
            return []
        plan, waited = self.spec.plan, []
        number = sum(index[d] * s for d, s in zip(self._axes, self._strides, strict=True))
        steps = itertools.product(*((1, 0) if n > 1 else (0,) for n in self._counts))
        for offset in {
            sum(s * stride for s, stride in zip(step, self._strides, strict=True)) for step in steps
        }:
            if 0 < offset <= number:
                owner = self.index(np.unravel_index(number - offset, self._counts))
                if owner not in earlier and plan.owned(owner) and plan.later(owner):
                    waited.append(TaskRef(self.key("seam", owner)))
        return waited

    def _given(self, index: Index, *, owned: bool) -> Generator[tuple[Key, Any], None, Any]:
        """Yield the tasks that hold parts of arrays in memory; return the data given to a block's task."""
        spec = self.spec
        given: list[Any] = []
        for number, need in enumerate(spec.needs(index, owned=owned)):
            dask_name = spec.sources[number].dask_name
            if dask_name is not None:
                given.append(List(*(TaskRef((dask_name, *block)) for block in need)))
            elif need is not None:
                key = self.key(f"part-{number}", index)
                yield key, DataNode(key, need)
                given.append(TaskRef(key))
            else:
                given.append(None)
        return List(*given)

    def _last(self, index: Index, gather: Callable[..., Any], *args: Any) -> Nodes:
        """Yield the last task of a block: the block itself, a tuple with getters, or its delivery."""
        spec, what = self.spec, (gather, self._ref, index, *args)
        if spec.end is not None and self._apart:
            made, key = self.key("block", index), self.key("write", index)
            yield made, Task(made, assemble, *what)
            yield key, Task(key, deliver_assembled, self._ref, index, TaskRef(made))
        elif spec.end is not None:
            key = self.key("write", index)
            yield key, Task(key, deliver, *what)
        elif spec.many:
            key = self.key("all", index)
            yield key, Task(key, make_block, *what)
            for number, one in enumerate(self._output_keys(index)):
                yield one, Task(one, _take, TaskRef(key), number)
        else:
            [key] = self._output_keys(index)
            yield key, Task(key, make_block, *what)

    def _fill(self, index: Index) -> Nodes:
        """Yield the task of a block in which nothing runs; blocks of one shape share it."""
        if self.spec.end is not None:
            key = self.key("write", index)
            yield key, Task(key, deliver_fill, self._ref, index)
            return
        shape = self.spec.plan.box(index).shape
        common = f"{self.name}-fill-{'x'.join(map(str, shape))}"
        if shape not in self._filled:
            self._filled.add(shape)
            yield common, Task(common, fill_block, self._ref, index)
        for number, key in enumerate(self._output_keys(index)):
            many = self.spec.many
            yield key, Task(key, _take, TaskRef(common), number) if many else Alias(key, common)

    def _output_keys(self, index: Index) -> list[Key]:
        """Return the keys of a block in the dask arrays of all outputs."""
        keys = []
        for name, axes, ndim in self._outputs:
            number = [0] * ndim
            for axis, b in zip(axes, index, strict=True):
                number[axis] = b
            keys.append((name, *number))
        return keys


def _take(blocks: Sequence[Block], number: int) -> Block:
    return blocks[number]


def _step(index: Index, step: Index) -> Index:
    return tuple(b + s for b, s in zip(index, step, strict=True))
