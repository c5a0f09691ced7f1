"""`PassJob`: one pass over the boxes of an image, whose counts are added up in a bounded number of chains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dask.task_spec import DataNode, List, Task, TaskRef

from tilework._types import Array, Index, Span
from tilework.execution.calls import CallsJob
from tilework.execution.piece import Piece, Shared, guarded, with_sources
from tilework.execution.where import Where
from tilework.function.load_once import in_task
from tilework.graph.build import dask_arrays
from tilework.graph.own_names import named_apart
from tilework.graph.tasks import Key
from tilework.objects.boxes import Cuts
from tilework.objects.reading import given_to
from tilework.plan.nodata import Valid
from tilework.plan.request import Layout
from tilework.source import kept
from tilework.source.base import Source, check_read
from tilework.source.padding import AxisRead, read_padded
from tilework.statistics.counting import DIGIT, Counts, Tally, Target, keys_of, tally_of

__all__ = ["Call", "Measured", "PassJob", "calls_of"]

# Bytes of the counts of all chains, as they reach the client.
KEPT = 2**28
# Chains for each concurrent task, so that none waits for the longest one.
CHAINS = 4

Call = tuple[tuple[Span, ...], tuple[int, ...], int]
"""A box, the indices of the ``each`` axes that are measured in it, and its number."""


@dataclass(frozen=True, slots=True)
class Measured:
    """An image whose samples are counted, as tasks see it."""

    sources: tuple[Source, ...]
    """The image, then what is read to know which samples are valid."""
    layout: Layout
    valid: Valid | None
    """Which samples count; None: all."""

    @property
    def shape(self) -> Index:
        """Extents of the image, samples."""
        return self.sources[0].shape

    @property
    def each(self) -> Index:
        """Numbers of the axes whose every index is measured for itself."""
        return self.layout.each[0]

    @property
    def counts(self) -> Index:
        """Extents of these axes."""
        return tuple(self.shape[a] for a in self.each)

    def spans(self, cuts: Cuts, wanted: Sequence[int]) -> list[list[Span]]:
        """Return the spans of blocks by axis; of the ``each`` axes, those with some of the wanted indices."""
        found = [list(itertools.pairwise(c)) for c in cuts]
        if self.each:
            for axis, own in zip(self.each, np.unravel_index(np.array(wanted), self.counts), strict=True):
                numbers = np.unique(np.searchsorted(cuts[axis], own, side="right")) - 1
                found[axis] = [found[axis][k] for k in numbers.tolist()]
        return found

    def reads(self, number: int, box: Sequence[Span]) -> list[AxisRead]:
        """Return how a source is read for a box of the image."""
        if number == 0 or self.valid is None:
            return [AxisRead((span,)) for span in box]
        source, own = self.valid.extra[number - 1]
        found = [AxisRead(((0, n),)) for n in source.shape]
        for axis, place in zip(self.layout.source_axes[0], own, strict=True):
            if place is not None:
                found[place] = AxisRead.plan(*box[axis], self.shape[axis], "edge", source.shape[place])
        return found

    def values(self, parts: Sequence[Array], box: Sequence[Span], index: int) -> Array:
        """Return the valid samples of one index in a box, in one dimension; may be a view.

        Parameters
        ----------
        parts : sequence of array
            What was read of each source.
        box : sequence of Span
        index : int
        """
        place = np.unravel_index(index, self.counts) if self.each else ()
        local = {a: int(i) - box[a][0] for a, i in zip(self.each, place, strict=True)}
        crop = parts[0][tuple(local.get(a, slice(None)) for a in range(len(self.shape)))]
        if self.valid is None:
            return crop.ravel("K")
        bits: Any = True
        for term in self.valid.terms:
            seen = crop
            if term.source:
                own = self.valid.extra[term.source - 1][1]
                at = dict(zip(own[: len(self.each)], local.values(), strict=True))
                seen = parts[term.source]
                seen = seen[tuple(at.get(a, slice(None)) for a in range(seen.ndim))]
            bits = bits & term.bits(seen)
        tiled = self.layout.crop_of(self.sources[0], 0)[1]
        return np.ravel(np.moveaxis(crop, tiled, range(len(tiled)))[bits])


@dataclass(frozen=True, slots=True)
class Step:
    """Adds the samples of a box to the counts of the boxes before it in a chain."""

    image: Measured
    targets: Mapping[int, tuple[Target, ...]]
    """By index."""
    first: bool
    """Whether this is the first pass."""
    run: str | None = None
    sampled: int = 0
    """Keys to keep of each chunk, if chunks are sampled; 0: all samples are measured."""

    def __call__(self, before: Counts | None, call: Call, given: Sequence[Any]) -> Counts:
        """Return the counts of a box and all boxes before it."""
        box, indices, number = call
        with kept.task(self.run), in_task():
            parts = []
            for k, (source, own) in enumerate(zip(self.image.sources, given, strict=True)):
                reads = self.image.reads(k, box)
                parts.append(read_padded(source.reader(own, reads), reads))
        check_read(parts[0], self.image.sources[0].dtype, exact=True)
        counts = Counts() if before is None else before.copy()
        for index in indices:
            targets = self.targets[index]
            values = self.image.values(parts, box, index)
            if self.sampled and self.first:
                counts.take(self._of_chunk(values, index, targets, number))
            else:
                counts.add(values, index, targets, first=self.first)
        return counts

    def _of_chunk(self, values: Array, index: int, targets: Sequence[Target], number: int) -> Counts:
        """Return the counts of a chunk, with its tally and some of its keys."""
        own = Counts()
        own.add(values, index, targets, first=True)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        tally = Tally()
        tally.take(own.tallies[index])
        found = own.found.get(Target(index))
        if values.dtype.itemsize * 8 <= DIGIT and found is not None:
            tally.take(tally_of(found, values.dtype))
        keys = np.sort(keys_of(values[np.isfinite(values)] if values.dtype.kind == "f" else values))
        if len(keys) > self.sampled:
            keys = keys[(2 * np.arange(self.sampled) + 1) * len(keys) // (2 * self.sampled)]
        own.chunks.append((number, index, tally, keys))
        return own


def calls_of(
    image: Measured, boxes: Iterable[tuple[int, Sequence[Span]]], wanted: Sequence[int]
) -> Iterator[Call]:
    """Yield the boxes of an image in which some indices of its ``each`` axes lie, cut to these.

    Parameters
    ----------
    image : Measured
    boxes : iterable of (number, box)
    wanted : sequence of int
    """
    places = [np.unravel_index(i, image.counts) if image.each else () for i in wanted]
    rows = np.array([[int(i) for i in p] for p in places]).reshape(len(wanted), len(image.each))
    for number, box in boxes:
        inside = np.ones(len(rows), bool)
        for column, axis in enumerate(image.each):
            inside &= (rows[:, column] >= box[axis][0]) & (rows[:, column] < box[axis][1])
        if not inside.any() or any(a == b for a, b in box):
            continue
        spans = list(box)
        for column, axis in enumerate(image.each):
            spans[axis] = int(rows[inside, column].min()), int(rows[inside, column].max()) + 1
        yield tuple(spans), tuple(wanted[k] for k in np.flatnonzero(inside).tolist()), number


class PassJob(CallsJob):
    """Counts the samples of many boxes; ``found`` has the counts of each chain.

    Parameters
    ----------
    image : Measured
    calls : sequence of Call
    targets : mapping of int to tuple of Target
        By index.
    where : Where
    first : bool
        Whether this is the first pass.
    size : int
        Bytes that the counts of a target take at most.
    sampled : int
        As of `Step`.
    """

    def __init__(
        self,
        image: Measured,
        calls: Sequence[Call],
        targets: Mapping[int, tuple[Target, ...]],
        where: Where,
        *,
        first: bool,
        size: int,
        sampled: int = 0,
    ) -> None:
        step = Step(image, targets, first, sampled=sampled)
        super().__init__(
            "image-statistics", step, lambda run: replace(step, run=run), [(c,) for c in calls], where.guard
        )
        self.image = replace(image, sources=named_apart(image.sources, self.name))
        size *= max(1, sum(map(len, targets.values())))
        chains = max(1, min(len(calls), CHAINS * where.at_a_time, max(where.at_a_time, KEPT // size)))
        self.length = max(1, math.ceil(len(calls) / chains))

    def pieces(self) -> Iterator[Piece]:
        """Yield one piece per chain."""
        return with_sources(self._by_chain(), dask_arrays(self.image.sources), self.retries)

    def _by_chain(self) -> Iterator[Piece]:
        name, sources = self.name, self.image.sources
        shared = Shared({name: DataNode(name, self.common(self.run))})
        task = guarded(_step, self.retries)
        calls = [call for (call,) in self.calls]
        for first in range(0, len(calls), self.length):
            tasks: dict[Key, Any] = {}
            before: Any = None
            for number, call in enumerate(calls[first : first + self.length], first):
                key = (f"{name}-box", number)
                given = []
                for k, source in enumerate(sources):
                    reads = self.image.reads(k, call[0])
                    part = (f"{name}-part-{k}", number)
                    reference, nodes = given_to(source, part, reads)
                    given.append(reference)
                    tasks |= nodes
                tasks[key] = Task(key, task, TaskRef(name), before, call, List(*given))
                before = TaskRef(key)
            last = {key: min(self.length, len(calls) - first)}
            yield Piece(self, shared, tasks, last, position=first)


def _step(step: Step, before: Counts | None, call: Call, given: Sequence[Any]) -> Counts:
    return step(before, call, given)
