"""The tasks of blocks: their keys, order and dependencies.

Keys of one result called ``NAME``::

    NAME-spec                  the `Spec`, which every task refers to; with a mark if NAME was given by hand
    NAME-part-K, *block        a view of array K in memory (no other source has such keys)
    NAME-group, *block         canvases of the tiles that the block runs        (share)
    NAME-seam, *block          the parts of canvases in later blocks            (share)
    NAME, *block               a block of the result
    NAME-all, *block           a tuple of blocks, for several outputs
    NAME-OUTPUT, *block        a block of one of several outputs, taken from the tuple
    NAME-fill-S                the block of shape S in which nothing runs
    NAME-write, *block         the last task of a block, which delivers it and does not return it
    NAME-block, *block         the block to deliver, if delivering is a task of its own

Block numbers in inner keys have the slowest axis first, and leading zeros: dask breaks ties by key.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import operator
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.base import clone_key
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
from tilework.engine.spec import Needs, Spec

__all__ = ["BlockTasks", "Key", "Names", "Nodes", "calls_function"]

# Owners that are looked at in place of one that has no seam, or is waited for already.
MOST_PASSED = 4
# References to blocks of a dask array that are kept for the next tasks; 200 bytes each.
MOST_REFERENCES = 2**14

Key = Any
Nodes = Iterator[tuple[Key, Any]]


def calls_function(node: Any) -> bool:
    """Return whether a task calls the user's function, if delivering is a task of its own."""
    return type(node) is Task and node.func in (gather_owned, assemble, make_block)


def _everything(index: Index) -> bool:
    del index
    return True


@dataclass(frozen=True, slots=True)
class Names:
    """The names in the keys of one result."""

    inner: str
    """Begins the keys that no other layer refers to."""
    spec: str
    """Key of the `Spec`."""
    outputs: tuple[str, ...]
    """Names of the dask arrays of all outputs."""
    sources: tuple[str | None, ...]
    """Names of the dask arrays that are read; None for other sources."""

    @classmethod
    def of(cls, spec: Spec, name: str) -> Names:
        """Return the names of the result ``name``."""
        return cls(name, f"{name}-spec", tuple(spec.names(name)), tuple(s.dask_name for s in spec.sources))

    def cloned(self, spec: Spec, keys: Collection[Key], seed: Any) -> Names:
        """Return the names of a clone, as `dask.base.clone_key` makes them; only ``keys`` are cloned."""
        sources = []
        for name, source in zip(self.sources, spec.sources, strict=True):
            if name is not None and (name, *(0 for _ in source.shape)) in keys:
                name = clone_key(name, seed)
            sources.append(name)
        return Names(
            clone_key(self.inner, seed),
            clone_key(self.spec, seed) if self.spec in keys else self.spec,
            tuple(clone_key(name, seed) for name in self.outputs),
            tuple(sources),
        )


class _Padded(dict[int, str]):
    """The numbers below ``n`` as text with leading zeros, so that their order is that of the text.

    With ``down`` it is the reverse of it.
    """

    def __init__(self, n: int, *, down: bool = False) -> None:
        super().__init__()
        self._last, self._down = n - 1, down
        self._width = len(str(n - 1))

    def __missing__(self, number: int) -> str:
        text = self[number] = str(self.own(number)).zfill(self._width)
        return text

    def own(self, number: int) -> int:
        """Return the number in the text of another number; the number of a text, from that in it."""
        return self._last - number if self._down else number


class _References(dict[Index, TaskRef]):
    """References to the blocks of a dask array by their numbers.

    Neighbours with halos read most blocks several times. A reference and a key of its own in each task are
    most of the objects of a graph, and Python's garbage collector looks at all of them again and again.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __missing__(self, block: Index) -> TaskRef:
        if len(self) >= MOST_REFERENCES:
            self.clear()
        made = self[block] = TaskRef((self._name, *block))
        return made


class BlockTasks:
    """Makes the tasks of one block at a time, for dask arrays and for writing.

    Without ``spec.end``, blocks have the keys of the dask array. With it, tasks with keys
    ``(NAME-write, *block)`` deliver them.

    Parameters
    ----------
    spec : Spec
    names : Names or str
        Names in the keys, or the name of the result: unique per plan, source and function.
    wanted : callable
        Returns whether a block is to be finished; tiles of other blocks may still reach into it.
    apart : bool
        Whether delivering is a task of its own, so that only the function's tasks hold a GPU.
    """

    def __init__(
        self,
        spec: Spec,
        names: Names | str,
        *,
        wanted: Callable[[Index], bool] = _everything,
        apart: bool = False,
    ) -> None:
        self.spec, self.wanted, self._apart = spec, wanted, apart
        self.names = Names.of(spec, names) if isinstance(names, str) else names
        self._axes = spec.plan.slow_axes
        self._blocks = spec.plan.blocks
        self._counts = [self._blocks[d] for d in self._axes]
        self._strides = [math.prod(self._counts[k + 1 :]) for k in range(len(self._counts))]
        self._open_axes = spec.plan.open_axes
        # dask runs tasks that need nothing of one another from the last key to the first (2026.8), and gets a
        # run in parts. Each would first read what the next part needs, and it would wait: the chunks of a
        # volume of 512 blocks were decoded 1.9 times.
        down = spec.active.reuse != "share"
        self._texts = [_Padded(n, down=down) for n in self._counts]
        self._in_order = self._axes == list(range(len(self._axes)))
        self._near = spec.active.neighbours
        self._ref = TaskRef(self.names.spec)
        self._needs = Needs(spec)
        self._given_to_none = None if self._needs else [None] * len(spec.sources)
        self._references = [None if name is None else _References(name) for name in self.names.sources]
        outputs = zip(self.names.outputs, spec.outputs, strict=True)
        # Exact names: the keys of a result called "image-2" also begin with "image-".
        kinds = ["group", "seam", "all", "write", "block", *(f"part-{k}" for k in range(len(spec.sources)))]
        self._kinds = {f"{self.names.inner}-{kind}": kind for kind in kinds}
        self._outputs = [(key, o.grid_axes, o.n_each + len(o.reduced_shape)) for key, o in outputs]

    @property
    def shared(self) -> dict[Key, Any]:
        """The node to which every task refers."""
        return {self.names.spec: DataNode(self.names.spec, self.spec)}

    @functools.cached_property
    def reach(self) -> int:
        """Number of blocks, in raster order, after which a seam is used for the last time."""
        columns = list(zip(self._axes, self._strides, self._counts, self._owners, strict=True))
        steps = sum(s for d, s, *_ in columns if d in self._open_axes)
        # A block at the start of a row waits for the last owner of a row before it.
        idle = sum(s * (n - 1 - along[-1]) for _, s, n, along in columns[1:])
        return steps + max(1, idle)

    def order(self) -> Iterator[Index]:
        """Return the numbers of all blocks in raster order, the slowest axis first."""
        ordered = itertools.product(*map(range, self._counts))
        return ordered if self._in_order else map(self.index, ordered)

    def index(self, ordered: Sequence[Any]) -> Index:
        """Return the index of a block from its numbers in the order of inner keys."""
        index = [0] * len(self._axes)
        for d, number in zip(self._axes, ordered, strict=True):
            index[d] = int(number)
        return tuple(index)

    def key(self, what: str, index: Index) -> Key:
        """Return an inner key.

        dask breaks ties by the text of keys, and "10" sorts before "2". Without leading zeros, rows would run
        in the order 0, 1, 10, 11, 2, and chunks of the source would be decoded 2.2 times (16 x 16 blocks).
        """
        ordered = index if self._in_order else [index[d] for d in self._axes]
        return (f"{self.names.inner}-{what}", *map(operator.getitem, self._texts, ordered))

    def find(self, key: Key) -> tuple[str, Index] | None:
        """Return the kind and the block of the task of an inner key; None for any other key."""
        if not isinstance(key, tuple) or key[0] not in self._kinds or len(key) != 1 + len(self._axes):
            return None
        columns = zip(key[1:], self._counts, strict=True)
        if not all(isinstance(b, str) and b.isdecimal() and int(b) < n for b, n in columns):
            return None
        numbers = [texts.own(int(b)) for texts, b in zip(self._texts, key[1:], strict=True)]
        return self._kinds[key[0]], self.index(numbers)

    def block_of(self, key: Key, number: int = 0) -> Index | None:
        """Return the block of a key of the dask array of an output; None for any other key."""
        name, axes, ndim = self._outputs[number]
        if not isinstance(key, tuple) or key[0] != name or len(key) != ndim + 1:
            return None
        try:
            numbers = tuple(map(operator.index, key[1:]))  # a mapping finds keys of numpy's integers too
        except TypeError:
            return None
        index = tuple([numbers[axis] for axis in axes])
        inside = sum(map(abs, numbers)) == sum(index) and all(map(operator.lt, index, self._blocks))
        return index if inside else None

    # -- the tasks of blocks --------------------------------------------------------------------------------

    def of(self, index: Index) -> Nodes:
        """Yield the keys and tasks of one block: those that later blocks need, and the block if wanted."""
        wanted = self.wanted(index)
        if not self._near.touched(index):
            return self._fill(index) if wanted else iter(())
        if self.spec.active.reuse == "share":
            later = self._later(index)
            earlier = self._near.earlier(index) if wanted else None
            return self._share(index, earlier, later, seam=bool(later))
        return self._alone(index, owned=False) if wanted else iter(())

    def _later(self, index: Index) -> list[Index]:
        """Return the steps to the later neighbours that need a seam of a block."""
        later = self._near.later(index) if self._near.owns(index) else []
        if self.wanted is _everything:
            return later
        return [s for s in later if self.wanted(tuple(map(operator.add, index, s)))]

    def needed(self, wanted: Iterable[Index]) -> dict[Key, Any]:
        """Return the tasks of blocks, and those of other blocks that they need, by key; each as in the whole.

        Parameters
        ----------
        wanted : iterable of tuple of int
            The blocks to finish.
        """
        near, nodes = self._near, dict[Key, Any]()
        blocks = set(wanted)
        if self.spec.active.reuse != "share":
            for index in self._sorted(blocks):
                nodes.update(self._alone(index, owned=False) if near.touched(index) else self._fill(index))
            return nodes
        earlier = {index: near.earlier(index) for index in blocks if near.touched(index)}
        seams = set().union(*earlier.values())
        for index in self._sorted(blocks | seams):
            if index in blocks and index not in earlier:
                nodes.update(self._fill(index))
                continue
            later = near.later(index) if near.owns(index) else []
            nodes.update(self._share(index, earlier.get(index), later, seam=index in seams))
        return nodes

    def _sorted(self, blocks: set[Index]) -> Iterable[Index]:
        """Return blocks in raster order."""
        if len(blocks) == math.prod(self._counts):
            return self.order()
        return sorted(blocks, key=lambda index: [index[d] for d in self._axes])

    def _alone(self, index: Index, *, owned: bool) -> Nodes:
        """Yield the single task of a block that shares no tiles with others."""
        given = yield from self._given(index, owned=owned)
        yield from self._last(index, gather_tiles, given)

    def _share(self, index: Index, earlier: list[Index] | None, later: list[Index], *, seam: bool) -> Nodes:
        """Yield the tasks of a block that runs the tiles it owns and adds the seams of others.

        Parameters
        ----------
        index : tuple of int
        earlier : list of tuple of int, or None
            The blocks whose seams are added; None: the block is not to be finished.
        later : list of tuple of int
            Steps to the later neighbours that the seam is for.
        seam : bool
            Whether to copy the seam.
        """
        owned, wanted = self._near.owns(index), earlier is not None
        if owned and not later and earlier == []:
            yield from self._alone(index, owned=True)
            return
        group: Any = ()
        if owned and (wanted or seam):
            given = yield from self._given(index, owned=True)
            key = self.key("group", index)
            yield key, Task(key, gather_owned, self._ref, index, given)
            group = TaskRef(key)
        if seam:
            key = self.key("seam", index)
            yield key, Task(key, cut_seams, self._ref, index, later, group)
        if earlier is not None:
            seams = List(*[TaskRef(self.key("seam", owner)) for owner in earlier]) if earlier else ()
            after = self._raster_edges(index, earlier)
            yield from self._last(index, gather_seams, group, earlier, seams, List(*after) if after else ())

    def _raster_edges(self, index: Index, earlier: Sequence[Index]) -> list[TaskRef]:
        """Return references to seams that block ``index`` waits for without needing them.

        dask first computes tasks that need the fewest roots. Blocks at the faces of a volume would run before
        its inside, and most seams of a 3-D blend would wait at the same time (119 of 256 for 16 x 4 x 4
        blocks, seen with dask 2026.8). If rows wrap around, so that a block at the start of a row also waits
        for the end of the row before, all blocks need the same number of roots and dask keeps raster order:
        22 seams wait, whatever the length of the slowest axis. So does a block at the start of a slab, or two
        slabs would run side by side. A block that owns no tiles waits for one owner more, and offsets are
        counted among owners: otherwise dask ran the last column of blocks down the whole image first. This is
        only for runs that deliver blocks: a slice would have to compute those that it waits for.
        """
        if self.spec.end is None:
            return []
        number, before, roots = self._number(index), self._owners_before(index), set[Index]()
        # A block that owns no tiles has no group of its own among its roots.
        for offset in (*self._offsets, *(() if self._near.owns(index) else (1,))):
            first = before - offset
            for owner in map(self._owner, range(first, max(-1, first - MOST_PASSED), -1)):
                if number - self._number(owner) > self.reach:
                    break
                if owner not in roots and self._later(owner):
                    roots.add(owner)
                    break
        return [TaskRef(self.key("seam", owner)) for owner in sorted(roots.difference(earlier))]

    @functools.cached_property
    def _owners(self) -> list[list[int]]:
        """The blocks along each axis that own tiles, the slowest axis first."""
        return [self._near.owners_along(d) for d in self._axes]

    @functools.cached_property
    def _offsets(self) -> list[int]:
        """The distances in raster order, among owners, from a block to the neighbours before it."""
        counts = list(map(len, self._owners))
        strides = [math.prod(counts[k + 1 :]) for k, d in enumerate(self._axes) if d in self._open_axes]
        steps = itertools.product((1, 0), repeat=len(strides))
        return sorted({sum(map(operator.mul, step, strides)) for step in steps} - {0}, reverse=True)

    def _number(self, index: Index) -> int:
        """Return the number of a block in raster order."""
        return sum(index[d] * s for d, s in zip(self._axes, self._strides, strict=True))

    def _owners_before(self, index: Index) -> int:
        """Return how many owners are before a block in raster order."""
        count, inside = 0, True
        for d, along in zip(self._axes, self._owners, strict=True):
            place = bisect.bisect_left(along, index[d]) if inside else 0
            inside = inside and place < len(along) and along[place] == index[d]
            count = count * len(along) + place
        return count

    def _owner(self, number: int) -> Index:
        """Return the owner with a number among all owners."""
        ordered = []
        for along in reversed(self._owners):
            number, place = divmod(number, len(along))
            ordered.append(along[place])
        return self.index(ordered[::-1])

    def _given(self, index: Index, *, owned: bool) -> Generator[tuple[Key, Any], None, Any]:
        """Yield the tasks that hold parts of arrays in memory; return the data given to a block's task."""
        if self._given_to_none is not None:
            return self._given_to_none
        given: list[Any] = []
        for number, need in enumerate(self._needs.of(index, owned=owned)):
            references = self._references[number]
            if references is not None:
                given.append(List(*map(references.__getitem__, need)))
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
        else:
            key = self.key("all", index) if spec.many else self.output_key(index)
            yield key, Task(key, make_block, *what)

    def _fill(self, index: Index) -> Nodes:
        """Yield the task of a block in which nothing runs; blocks of one shape share it."""
        if self.spec.end is not None:
            key = self.key("write", index)
            yield key, Task(key, deliver_fill, self._ref, index)
            return
        shape = self.spec.plan.box(index).shape
        common = self._fill_key(shape)
        yield common, self.fill(shape)
        if not self.spec.many:
            key = self.output_key(index)
            yield key, Alias(key, common)

    def _fill_key(self, shape: Index) -> str:
        return f"{self.names.inner}-fill-{'x'.join(map(str, shape))}"

    def fill(self, shape: Index) -> Task:
        """Return the task of all blocks of ``shape`` in which nothing runs."""
        # The task of a key is always the same, whichever blocks are wanted.
        columns = zip(shape, self.spec.plan.block, self._blocks, strict=True)
        first = tuple(0 if length == size else n - 1 for length, size, n in columns)
        return Task(self._fill_key(shape), fill_block, self._ref, first)

    def filled(self, key: Key) -> Index | None:
        """Return the shape of the blocks of a key of `fill`; None for any other key."""
        return self._fills.get(key) if isinstance(key, str) else None

    @functools.cached_property
    def _fills(self) -> dict[Key, Index]:
        """The shapes of blocks by the keys of `fill`."""
        corners = itertools.product(*({0, n - 1} for n in self._blocks))
        shapes = [self.spec.plan.box(index).shape for index in corners]
        return {self._fill_key(shape): shape for shape in shapes}

    def output_key(self, index: Index, number: int = 0) -> Key:
        """Return the key of a block in the dask array of an output."""
        name, axes, ndim = self._outputs[number]
        numbers = [0] * ndim
        for axis, b in zip(axes, index, strict=True):
            numbers[axis] = b
        return (name, *numbers)

    def output_keys(self, number: int = 0) -> Iterator[Key]:
        """Yield the keys of all blocks in the dask array of an output; a microsecond each would be long."""
        name, axes, ndim = self._outputs[number]
        counts = [1] * ndim
        for axis, n in zip(axes, self._blocks, strict=True):
            counts[axis] = n
        return itertools.product((name,), *map(range, counts))

    def block(self, index: Index) -> Key:
        """Return the key of a finished block of all outputs, or of the block that it shares with others."""
        if not self._near.touched(index):
            return self._fill_key(self.spec.plan.box(index).shape)
        return self.key("all", index)

    def block_keys(self) -> Iterator[Key]:
        """Yield the key of `block` of every block, and all keys of `fill` if there are blocks without tiles.

        Whether tiles run in a block takes a microsecond for each block, and is found for all at once here.
        """
        mask, ranges = self.spec.active.mask, [t.touches for t in self.spec.active.tables]
        along = [np.flatnonzero(r.low < r.high).tolist() for r in ranges]
        name, whole = f"{self.names.inner}-all", math.prod(self._blocks)
        if mask is None:
            texts = [[t[b] for b in along[d]] for t, d in zip(self._texts, self._axes, strict=True)]
            found: Iterable[Key] = itertools.product((name,), *texts)
            count = math.prod(map(len, along))
        else:
            numbers = np.nonzero(mask.run_in(ranges))
            columns = (
                map(t.__getitem__, numbers[d].tolist()) for t, d in zip(self._texts, self._axes, strict=True)
            )
            found, count = zip(itertools.repeat(name), *columns), len(numbers[0])
        yield from found
        if count < whole:
            yield from self._fills

    def getter(self, index: Index, number: int) -> Task:
        """Return the task that takes the block of one of several outputs."""
        return Task(self.output_key(index, number), _take, TaskRef(self.block(index)), number)


def _take(blocks: Sequence[Block], number: int) -> Block:
    return blocks[number]
