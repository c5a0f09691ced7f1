"""Layers of a dask graph whose tasks are made when somebody asks for them."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from dask.base import clone_key
from dask.graph_manipulation import chunks
from dask.highlevelgraph import Layer, MaterializedLayer
from dask.optimization import cull
from dask.task_spec import DataNode, Task, TaskRef

from tilework._types import Index
from tilework.engine.spec import Spec
from tilework.errors import GridError
from tilework.graph.tasks import BlockTasks, Key, Names
from tilework.source.base import MemoryPart

__all__ = ["BlockLayer", "LazyLayer", "OutputLayer", "SpecLayer", "carried", "with_carried"]

# Most blocks that are computed at once: their tasks take about 2 kB each.
MOST_BLOCKS = 10**7
# A key that culled layers ask for and no layer has. When the last wanted key was found, dask 2026.8 keeps the
# layers that it has not come to, and makes all their tasks (`HighLevelGraph.cull`).
NEVER_FOUND = "tilework-never-found"


class SpecLayer(MaterializedLayer):
    """The one key of the `Spec`.

    It lies below the layer of blocks. dask builds layers that have none below them as soon as two arrays are
    computed together (`dask.blockwise.fuse_roots`).
    """

    def clone(self, keys: AbstractSet[Key], seed: Any, bind_to: Key | None = None) -> tuple[Layer, bool]:
        """Return a copy with other keys, which waits for ``bind_to``; all tasks of blocks wait with it."""
        nodes, bound = {}, False
        for key, node in self.mapping.items():
            cloned = clone_key(key, seed) if key in keys else key
            names = {k: clone_key(k, seed) for k in node.dependencies if k in keys}
            copy = node.substitute(names, key=cloned)
            if bind_to is not None and not names:
                copy, bound = Task(cloned, chunks.bind, copy, TaskRef(bind_to)), True
            nodes[cloned] = copy
        return SpecLayer(nodes), bound

    def cull(self, keys: set[Key], all_hlg_keys: Collection[Key]) -> tuple[Layer, Mapping[Key, Any]]:
        """Return the key if it is wanted, and what it needs."""
        layer, needs = super().cull(keys, all_hlg_keys)
        return layer, _never_all(needs)


def _never_all(needs: Mapping[Key, Any]) -> Mapping[Key, Any]:
    """Return the keys that tasks need; the first task needs `NEVER_FOUND` too."""
    return {**needs, **{key: {*needs[key], NEVER_FOUND} for key in itertools.islice(needs, 1)}}


def carried(spec: Spec) -> list[MemoryPart | None]:
    """Return what a graph carries besides the `Spec` to make its tasks elsewhere.

    Tasks are made where a graph is optimised, which is the scheduler of a cluster.
    """
    return [source.whole() for source in spec.sources]


def with_carried(spec: Spec, parts: Sequence[MemoryPart | None]) -> Spec:
    """Return a `Spec` that came to another process, with what `carried` returned."""
    pairs = zip(spec.sources, parts, strict=True)
    return replace(spec, sources=tuple(s if p is None else replace(s, handle=p.view) for s, p in pairs))


class LazyLayer(Layer):
    """A layer whose tasks are made when somebody asks for them; as a mapping it makes all and keeps them."""

    # dask would build the layer to find out.
    has_legacy_tasks = False

    def __init__(self, spec: Spec, names: Names) -> None:
        super().__init__()
        self.spec, self.names = spec, names

    @functools.cached_property
    def tasks(self) -> BlockTasks:
        """The maker of the tasks."""
        return BlockTasks(self.spec, self.names)

    @functools.cached_property
    def nodes(self) -> dict[Key, Any]:
        """All tasks."""
        return self._needed(self.tasks.order())

    def _needed(self, blocks: Iterator[Index]) -> dict[Key, Any]:
        """Return the tasks that finish ``blocks``."""
        wanted = list(itertools.islice(blocks, MOST_BLOCKS + 1))
        if len(wanted) > MOST_BLOCKS:
            raise GridError(
                f"more than {MOST_BLOCKS} blocks of {self.spec.plan.block} samples would be computed at "
                "once; compute a part at a time, write with tw.to_zarr, or use larger chunks."
            )
        return self._made(wanted)

    def _made(self, wanted: list[Index]) -> dict[Key, Any]:
        raise NotImplementedError

    def __getitem__(self, key: Key) -> Any:
        node = self.nodes[key] if self.is_materialized() else self._node(key)
        if node is None:
            raise KeyError(key)
        return node

    def _node(self, key: Key) -> Any:
        """Return the task of a key; None for a key of another layer."""
        raise NotImplementedError

    def __contains__(self, key: object) -> bool:
        return key in self.nodes if self.is_materialized() else self._node(key) is not None

    def __iter__(self) -> Iterator[Key]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def is_materialized(self) -> bool:
        """Return whether all tasks were made."""
        return "nodes" in vars(self)

    def _culled(self, nodes: Mapping[Key, Any]) -> tuple[Layer, Mapping[Key, Any]]:
        """Return the layer of some tasks, and the keys that each of them needs."""
        layer = MaterializedLayer(nodes, annotations=self.annotations)
        return layer, _never_all({key: node.dependencies for key, node in nodes.items()})

    def clone(self, keys: AbstractSet[Key], seed: Any, bind_to: Key | None = None) -> tuple[Layer, bool]:
        """Return a layer with other keys; `SpecLayer` waits for ``bind_to``, and all tasks wait for it."""
        del bind_to
        layer = copy.copy(self)
        for made in ("tasks", "nodes"):
            vars(layer).pop(made, None)
        layer.names = self.names.cloned(self.spec, keys, seed)
        return layer, False

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in vars(self).items() if key not in ("tasks", "nodes")}
        return state | {"carried": carried(self.spec)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = state.pop("carried")
        vars(self).update(state)
        self.spec = with_carried(self.spec, arrays)


class BlockLayer(LazyLayer):
    """The tasks of all blocks of a result.

    Parameters
    ----------
    spec : Spec
    names : Names
        Names in the keys.
    """

    def _made(self, wanted: list[Index]) -> dict[Key, Any]:
        return self.tasks.needed(wanted)

    def _node(self, key: Key) -> Any:
        tasks = self.tasks
        if tasks.filled(key) is not None:
            return self.nodes.get(key)  # whether such a block exists is known of all blocks only
        index = self._finished(key)
        if index is None and (found := tasks.find(key)) is not None:
            index = found[1]
        return None if index is None else dict(tasks.of(index)).get(key)

    def _finished(self, key: Key) -> Index | None:
        """Return the block that a key of this layer finishes; None for any other key."""
        if not self.spec.many:
            return self.tasks.block_of(key)
        found = self.tasks.find(key)
        return found[1] if found is not None and found[0] == "all" else None

    def get_output_keys(self) -> AbstractSet[Key]:
        """Return the keys that other layers use, without their tasks."""
        return set(self.tasks.block_keys()) if self.spec.many else OutputKeys(self.tasks, 0)

    def cull(self, keys: set[Key], all_hlg_keys: Collection[Key]) -> tuple[Layer, Mapping[Key, Any]]:
        """Return the tasks that ``keys`` need, and the keys that each task needs."""
        del all_hlg_keys
        tasks, wanted, fills, inner = self.tasks, set(), set(), []
        for key in keys:
            if (index := self._finished(key)) is not None:
                wanted.add(index)
            elif (shape := tasks.filled(key)) is not None:
                fills.add(shape)
            elif tasks.find(key) is not None:
                inner.append(key)
        nodes = self._needed(iter(wanted))
        nodes |= {task.key: task for task in map(tasks.fill, fills)}
        if inner:
            nodes |= cull(self.nodes, inner)[0]
        return self._culled(nodes)

    def is_own(self, layers: Mapping[str, Any]) -> bool:
        """Return whether nothing but the `Spec` says what the tasks compute, in a graph of ``layers``.

        A clone may wait for other arrays, or read clones of its sources, which the `Spec` does not know.
        """
        [node] = layers[self.names.spec].values() if self.names.spec in layers else [None]
        own = tuple(source.dask_name for source in self.spec.sources)
        return isinstance(node, DataNode) and self.names.sources == own


class OutputLayer(LazyLayer):
    """The tasks that take the blocks of one of several outputs.

    Parameters
    ----------
    spec : Spec
    names : Names
        Names in the keys.
    number : int
        Number of the output.
    """

    def __init__(self, spec: Spec, names: Names, number: int) -> None:
        super().__init__(spec, names)
        self.number = number

    def _made(self, wanted: list[Index]) -> dict[Key, Any]:
        getters = (self.tasks.getter(index, self.number) for index in wanted)
        return {task.key: task for task in getters}

    def _node(self, key: Key) -> Any:
        index = self.tasks.block_of(key, self.number)
        return None if index is None else self.tasks.getter(index, self.number)

    def get_output_keys(self) -> AbstractSet[Key]:
        """Return the keys of all blocks, without their tasks."""
        return OutputKeys(self.tasks, self.number)

    def cull(self, keys: set[Key], all_hlg_keys: Collection[Key]) -> tuple[Layer, Mapping[Key, Any]]:
        """Return the tasks of ``keys``, and the keys that each task needs."""
        del all_hlg_keys
        blocks = (self.tasks.block_of(key, self.number) for key in keys)
        return self._culled(self._needed(index for index in blocks if index is not None))


class OutputKeys(AbstractSet[Key]):
    """The keys of all blocks of an output, by arithmetic."""

    def __init__(self, tasks: BlockTasks, number: int) -> None:
        self._tasks, self._number = tasks, number

    @classmethod
    def _from_iterable(cls, keys: Any) -> AbstractSet[Key]:
        return set(keys)

    def __contains__(self, key: object) -> bool:
        return self._tasks.block_of(key, self._number) is not None

    def __iter__(self) -> Iterator[Key]:
        return self._tasks.output_keys(self._number)

    def __len__(self) -> int:
        return math.prod(self._tasks.spec.plan.blocks)
