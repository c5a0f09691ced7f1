"""Painting the objects that a tile owns, and adding up what several tiles paint.

A painted sample is one integer that `combined` adds up in any order: the claim on it, above flags. The claim
is 1 plus the raveled position of the first sample that its object would paint; the smallest claim wins. So
ids do not depend on tiles, and the flags tell where tiles disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tilework._types import Array, Bits, Index, Ints, Span
from tilework.labels.owner import cut_sides, owned
from tilework.labels.runs import Runs, raveled

__all__ = ["NOTHING", "NO_CLAIM", "Claims", "Counts", "Place", "combined", "painted", "shown", "trimmed"]

FOREGROUND = 1
"""A sample of an object in the core of its own tile."""
DENIED = 2
"""A sample on which a claim that is not weak has lost, or of the background in the core of its own tile."""
MET = 4
"""A sample on which two weak claims have met."""
APART = 8
"""A sample that its own tile sees in another object than a sample before it, along some axis."""
WEAK = 16
"""A weak claim, see `owner`; above the other flags, so that of two equal claims the other one wins."""
FLAGS = 5
"""Number of flags."""
PLAIN = FOREGROUND | DENIED | MET | APART
NO_CLAIM = 2**56 - 1
"""More than any claim: an image with that many samples is too large."""
NOTHING = NO_CLAIM << FLAGS
"""A sample that nobody claims: the neutral value of `combined`."""
# Samples that are combined at a time, so that they stay in the processor's cache.
PIECE = 2**16


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a tile's result in the result of the whole, samples per axis of the result."""

    crop: tuple[Span, ...]
    """Where the tile has a result; may stick out of the image."""
    core: tuple[Span, ...]
    """What it owns."""
    extents: Index
    """Extents of the whole."""
    tiled: Index
    """The axes that are tiled."""
    index: int = 0
    """Raveled index of the ``each`` axes."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a tile, or several, claimed."""

    ids: Ints
    """The claims that are not weak, plus the index of the ``each`` axes times one more than its samples."""
    large: int = 0
    """How many claims are of objects that are cut: they touch a cut side, and are longer than is safe."""
    extent: Index = ()
    """The largest extents of these per tiled axis, samples of the result; 0 where none is cut."""
    cut: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """These claims, as ``ids``."""

    @classmethod
    def joined(cls, parts: Iterable[Claims]) -> Claims:
        """Return the claims of several tiles."""
        found = list(parts)
        if not found:
            return cls(np.zeros(0, np.int64))
        columns = zip(*(c.extent for c in found if c.extent), strict=True)
        ids = np.concatenate([c.ids for c in found])
        cut = np.concatenate([c.cut for c in found])
        return cls(ids, sum(c.large for c in found), tuple(map(max, columns)), cut)


def painted(result: Array, place: Place) -> tuple[Array, Claims]:
    """Return what a tile paints: the objects that it owns, whole; and its claims.

    Parameters
    ----------
    result : int array
        The labels of its crop.
    place : Place

    Returns
    -------
    int64 array of the shape of ``result``
        To be added up by `combined`.
    Claims
    """
    out = np.full(result.shape, NOTHING)
    inside = tuple(
        slice(max(0, -a), min(b, n) - a) for (a, b), n in zip(place.crop, place.extents, strict=True)
    )
    labels = result[inside]
    runs = Runs.of(labels)
    objects = runs.objects()
    start = [max(0, a) for a, _ in place.crop]
    low, high = objects.low + start, objects.high + start
    tiled = list(place.tiled)
    box = low[:, tiled], high[:, tiled]
    own = owned(*box, [place.core[a] for a in tiled])
    claims = 1 + raveled(objects.first, labels.shape, start, place.extents)
    weak, long = _doubtful(*box, place)
    values = np.where(own, claims << FLAGS | np.where(weak, WEAK, 0), NOTHING)
    here = out[inside]
    here[...] = runs.painted(values[objects.number], NOTHING)
    core = tuple(slice(a - s, b - s) for (a, b), s in zip(place.core, start, strict=True))
    here[core] |= _seen(labels[core])
    large = long & own[:, None]
    extent = np.where(large, box[1] - box[0], 0).max(axis=0, initial=0)
    keys = place.index * (math.prod(place.extents) + 1) + claims
    cut = keys[large.any(axis=1)]
    return out, Claims(keys[own & ~weak], len(cut), tuple(map(int, extent)), cut)


def _seen(labels: Array) -> Array:
    """Return flags of what a tile sees in its core."""
    objects = labels != 0
    apart = np.zeros(labels.shape, bool)
    for now, before in _neighbours(labels.ndim):
        differ = labels[now] != labels[before]
        differ &= objects[before]
        apart[now] |= differ
    apart &= objects
    # Numbers of bytes: a mask as an index takes four times as long.
    flags: Array = objects * np.uint8(FOREGROUND ^ DENIED)
    flags ^= np.uint8(DENIED)
    flags |= apart * np.uint8(APART)
    return flags


def _neighbours(ndim: int) -> Iterable[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Yield, per axis, the index of all samples but the first, and that of the samples before these."""
    for axis in range(ndim):
        others = (slice(None),) * axis
        yield (*others, slice(1, None)), (*others, slice(None, -1))


def _doubtful(low: Ints, high: Ints, place: Place) -> tuple[Bits, Bits]:
    """Return which claims on boxes are weak, and along which axes boxes are cut and too long to be whole.

    A box that its owner's crop cuts is longer than twice the context of the core on that side. With one
    sample more it may be whole: if it is not, another tile claims some of its samples, or nobody does. If
    there is no context, no other tile sees these samples, and nothing tells whether the box is whole.
    """
    tiled = place.tiled
    crop, core = ([spans[a] for a in tiled] for spans in (place.crop, place.core))
    before, after = cut_sides(low, high, crop, [place.extents[a] for a in tiled])
    lower = np.array([c - a for (a, _), (c, _) in zip(crop, core, strict=True)], np.int64)
    upper = np.array([b - d for (_, b), (_, d) in zip(crop, core, strict=True)], np.int64)
    lengths = high - low
    weak = after & (lengths <= 2 * upper)
    lower, upper = (np.where(context > 0, 2 * context + 1, 0) for context in (lower, upper))
    long = (before & (lengths > lower)) | (after & (lengths > upper))
    return np.asarray(weak.any(axis=1)), np.asarray(long)


def trimmed(result: Array, place: Place) -> Array:
    """Return the pieces of objects in the core of a tile, with 1 plus the position of their first sample."""
    out = np.zeros(result.shape, np.int64)
    core = tuple(slice(a - s, b - s) for (a, b), (s, _) in zip(place.core, place.crop, strict=True))
    runs = Runs.of(result[core])
    objects = runs.objects()
    ids = 1 + raveled(objects.first, runs.shape, [a for a, _ in place.core], place.extents)
    out[core] = runs.painted(ids[objects.number])
    return out


def combined(target: Array, values: Array) -> None:
    """Add what another tile paints to ``target``, in place."""
    for part in _pieces(target.shape):
        a, b = target[part], values[part]
        # The flags are below the claims, so that the smaller number has the claim that wins.
        winner, loser, flags = np.minimum(a, b), np.maximum(a, b), a | b
        np.bitwise_and(flags, PLAIN, out=flags)
        both = loser < NOTHING
        if both.any():
            weak = (loser & WEAK) != 0
            flags |= np.where(both & ~weak, DENIED, 0)
            flags |= np.where(both & weak & ((winner & WEAK) != 0), MET, 0)
        np.bitwise_and(winner, ~PLAIN, out=winner)
        winner |= flags
        target[part] = winner


def _pieces(shape: Sequence[int]) -> Iterable[slice | tuple[()]]:
    """Yield slices along the first axis of about `PIECE` samples."""
    if not shape:
        return [()]
    rows = max(1, PIECE // max(1, math.prod(shape[1:])))
    return [slice(a, a + rows) for a in range(0, shape[0], rows)]


@dataclass(frozen=True, slots=True)
class Counts:
    """What is doubtful about the objects of a block, or of a whole result."""

    contested: int = 0
    """Samples that two tiles claim, or one tile otherwise than the tile whose core they are in sees them."""
    unclaimed: int = 0
    """Samples of objects in the cores of their own tiles that belong to no painted object."""
    claims: Claims = field(default_factory=lambda: Claims.joined(()))
    """What the tiles of the block claim."""

    @classmethod
    def joined(cls, parts: Iterable[Counts]) -> Counts:
        """Return the counts of several blocks."""
        found = list(parts)
        return cls(
            sum(c.contested for c in found),
            sum(c.unclaimed for c in found),
            Claims.joined(c.claims for c in found),
        )

    @property
    def doubtful(self) -> bool:
        """Whether anything is."""
        return bool(self.contested or self.unclaimed or self.claims.large)


def _joined(total: Array, flags: Array, ids: Ints, n_each: int) -> Bits:
    """Return samples that one claim joins to those before them, although their own tile sees them apart.

    What is before the first samples is in another block, and not known; nor is what is not shown.
    """
    joined: Bits = (flags & APART) != 0
    if joined.any():
        for axis, (now, before) in enumerate(_neighbours(ids.ndim)):
            if axis >= n_each:
                joined[(slice(None),) * axis + (0,)] = False
                nothing = (ids[before] == 0) & (total[before] != 0)
                joined[now] &= nothing | (ids[now] == ids[before])
    return joined


def shown(total: Array, n_each: int) -> tuple[Array, int, int]:
    """Return the ids of painted samples, and how many are contested, and unclaimed.

    0 in ``total`` is a sample that is not shown at all. Ids restart along its first ``n_each`` axes.
    """
    ids = total >> FLAGS
    claimed = ids != NO_CLAIM
    ids *= claimed
    flags = total.astype(np.uint8)  # the claim is cut off; a byte takes an eighth of the time
    unclaimed = ~claimed & ((flags & FOREGROUND) != 0)
    contested = ((flags & DENIED) != 0) | ((flags & (MET | WEAK)) == (MET | WEAK))
    contested |= _joined(total, flags, ids, n_each)
    contested &= claimed
    return ids, int(np.count_nonzero(contested)), int(np.count_nonzero(unclaimed))
