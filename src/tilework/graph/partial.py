"""Dask arrays of which only boxes are computed, for what reads no more of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from dask.array.chunk import getitem
from dask.base import tokenize
from dask.highlevelgraph import Layer, MaterializedLayer
from dask.task_spec import Task, TaskRef

from tilework._types import Array, Index, Ints, Span
from tilework.graph.tasks import Key
from tilework.source.base import BlockSource, check_block, slices_of

__all__ = ["PartialLayer", "partial_of"]


class PartialLayer(Layer):
    """The blocks of an array in which only the samples of some boxes mean something.

    Parameters
    ----------
    name : str
    source : BlockSource
        The array.
    nodes : dict
        The tasks of the blocks in which there are some. A task may ask for blocks between them, too.
    """

    has_legacy_tasks = False

    def __init__(self, name: str, source: BlockSource, nodes: Mapping[Key, Any]) -> None:
        super().__init__()
        self.name, self.source, self.nodes = name, source, nodes

    def __getitem__(self, key: Key) -> Any:
        if key in self.nodes:
            return self.nodes[key]
        if key not in self:
            raise KeyError(key)
        return Task(key, _nothing, self.source.block_shape(key[1:]), self.source.dtype)

    def __contains__(self, key: object) -> bool:
        return (
            isinstance(key, tuple)
            and len(key) == len(self.source.offsets) + 1
            and key[0] == self.name
            and all(0 <= i < len(edges) - 1 for i, edges in zip(key[1:], self.source.offsets, strict=True))
        )

    def __iter__(self) -> Iterator[Key]:
        return itertools.product([self.name], *(range(len(edges) - 1) for edges in self.source.offsets))

    def __len__(self) -> int:
        return math.prod(len(edges) - 1 for edges in self.source.offsets)

    def get_output_keys(self) -> AbstractSet[Key]:
        """Return the keys of all blocks."""
        return self.keys()

    def is_materialized(self) -> bool:
        """Return whether all tasks were made."""
        return False

    def cull(self, keys: set[Key], all_hlg_keys: Collection[Key]) -> tuple[Layer, Mapping[Key, Any]]:
        """Return the tasks of ``keys``, and the keys that each task needs."""
        del all_hlg_keys
        nodes = {key: self[key] for key in keys if key in self}
        return MaterializedLayer(nodes), {key: set(node.dependencies) for key, node in nodes.items()}


def partial_of(
    source: BlockSource, boxes: tuple[Ints, Ints], most: int
) -> tuple[PartialLayer, dict[Key, Any]] | None:
    """Return the layer of an array of which boxes are read, and the tasks that cut its blocks.

    None if these would be more than ``most``.
    """
    wanted = sorted({tuple(zip(*box, strict=True)) for box in zip(*(b.tolist() for b in boxes), strict=True)})
    name = f"{source.dask_name}-boxes-{tokenize(wanted)}"
    blocks, count = dict[Index, list[tuple[Span, ...]]](), 0
    for box in wanted:
        along = [list(_pieces(source, axis, span)) for axis, span in enumerate(box)]
        count += math.prod(map(len, along))
        if count > most:
            return None
        for pieces in itertools.product(*along):
            spans = tuple([span for _, span in pieces])
            blocks.setdefault(tuple([number for number, _ in pieces]), []).append(spans)
    cuts, nodes = dict[Key, Any](), dict[Key, Any]()
    for index, found in blocks.items():
        block: Key = (source.dask_name, *index)
        parts = _apart(found)
        own: list[Key] = [(f"{name}-cut", len(cuts) + k) for k in range(len(parts))]
        for part, spans in zip(own, parts, strict=True):
            cuts[part] = Task(part, getitem, TaskRef(block), slices_of(spans))
        key: Key = (name, *index)
        what = index, source.dask_name, source.block_shape(index), tuple(parts)
        nodes[key] = Task(key, _placed, *what, *map(TaskRef, own))
    return PartialLayer(name, source, nodes), cuts


def _pieces(source: BlockSource, axis: int, span: Span) -> Iterator[tuple[int, Span]]:
    """Yield the blocks along an axis that meet an interval, with their own samples in it."""
    edges = source.offsets[axis]
    for number in source.meeting(axis, span):
        first, stop = max(span[0], edges[number]), min(span[1], edges[number + 1])
        if first < stop:
            yield number, (first - edges[number], stop - edges[number])


def _apart(boxes: list[tuple[Span, ...]]) -> list[tuple[Span, ...]]:
    """Return boxes, or the one around them where they hold as many samples: nothing is computed twice."""
    around = tuple(
        [(min(a for a, _ in spans), max(b for _, b in spans)) for spans in zip(*boxes, strict=True)]
    )
    return boxes if sum(map(_size, boxes)) < _size(around) else [around]


def _size(box: Sequence[Span]) -> int:
    return math.prod(b - a for a, b in box)


def _placed(index: Index, name: str, shape: Index, places: Sequence[Sequence[Span]], *parts: Array) -> Array:
    """Return a block with its parts at their places."""
    for part, place in zip(parts, places, strict=True):
        check_block(part.shape, tuple([b - a for a, b in place]), f"the dask array {name}", index)
    if parts[0].shape == shape:
        return parts[0]
    out = np.zeros(shape, parts[0].dtype)
    for part, place in zip(parts, places, strict=True):
        out[slices_of(place)] = part
    return out


def _nothing(shape: Index, dtype: Any) -> Array:
    """Return a block that is not read; it takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)
