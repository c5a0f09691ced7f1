"""Objects of two label images of one place, compared as sets of samples: ids mean nothing.

Every object that lies wholly inside a trusted box is compared; one that leaves it may go on outside. An
object is *identical* if one object of the other image has exactly its samples. What differs is named by
majorities, so that a few samples at a rim do not turn neighbours into one object:

* *missing*: at least half of its samples are background in the other image;
* *merged*: one object there holds the greater part of it, and of another object too;
* *split*: it holds the greater part of two objects there, or more;
* *changed*: anything else.

An object that only the other image has, with at least half of its samples on background, is *extra*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tilework._types import Array, Bits, Index, Ints, Span
from tilework.labels.runs import Objects, Runs

__all__ = ["Choice", "Matched", "matched"]

Choice = Callable[[Objects, Bits], Bits]
"""Given objects and which of them may be compared, returns which are."""


@dataclass(frozen=True, slots=True)
class Matched:
    """How the objects of a tiled result differ from those that were wanted; numbers of objects."""

    identical: int = 0
    missing: int = 0
    merged: int = 0
    split: int = 0
    changed: int = 0
    extra: int = 0
    wide: int = 0
    """Objects that are longer than a crop inside the trusted box, whether they end there or not."""
    cut: int = 0
    """Objects that are not compared, because they leave the trusted box."""
    extent: Index = ()
    """The largest extent of a compared object per axis, samples."""
    wrong: tuple[tuple[int, tuple[Span, ...]], ...] = ()
    """Id and bounding box, in the compared arrays, of each wanted object that differs."""
    stray: tuple[Span, ...] | None = None
    """The bounding box of an extra object."""

    @property
    def compared(self) -> int:
        """Number of objects that were compared."""
        return self.identical + self.differing

    @property
    def differing(self) -> int:
        """Number of compared objects that are not identical."""
        return self.missing + self.merged + self.split + self.changed + self.extra

    @classmethod
    def joined(cls, parts: Iterable[Matched]) -> Matched:
        """Return the numbers of several places together; without boxes.

        What leaves the boxes may be one object in several of them: its number is the largest of one place.
        """
        found = list(parts)
        extents = [m.extent for m in found if m.extent]
        return cls(
            identical=sum(m.identical for m in found),
            missing=sum(m.missing for m in found),
            merged=sum(m.merged for m in found),
            split=sum(m.split for m in found),
            changed=sum(m.changed for m in found),
            extra=sum(m.extra for m in found),
            wide=max((m.wide for m in found), default=0),
            cut=max((m.cut for m in found), default=0),
            extent=tuple(map(max, zip(*extents, strict=True))),
        )


def matched(
    got: Array,
    want: Array,
    trusted: Sequence[Span],
    longest: Sequence[int] | None = None,
    counted: Choice | None = None,
    ours_counted: Choice | None = None,
) -> Matched:
    """Compare the objects of two label images of one place.

    Parameters
    ----------
    got, want : int arrays of one shape
        The tiled labels, and those that are right.
    trusted : sequence of (start, stop), samples per axis
        The box in which objects are compared.
    longest : sequence of int, samples per axis, optional
        Objects that are longer inside the box are counted as wide. Default: none is.
    counted, ours_counted : callable, optional
        Called with the objects of ``want``, or of ``got``, and with those that lie wholly inside the box;
        returns which of these are compared. Default: all.

    Examples
    --------
    >>> want = np.array([0, 5, 5, 0, 7, 7, 0, 9, 0])
    >>> found = matched(np.array([0, 2, 2, 0, 4, 3, 0, 0, 8]), want, [(0, 9)])
    >>> found.identical, found.split, found.missing, found.extra
    (1, 1, 1, 1)
    """
    ours, theirs = Runs.of(got).objects(), Runs.of(want).objects()
    g, w, count = _pairs(got, want)
    g, w = np.searchsorted(ours.ids, g) + (g > 0), np.searchsorted(theirs.ids, w) + (w > 0)
    area_g, area_w = np.concatenate(([0], ours.area)), np.concatenate(([0], theirs.area))
    # The greater part of an object can lie in one other only.
    both = (g > 0) & (w > 0)
    host = _assigned(len(area_w), w, g, both & (2 * count > area_w[w]))
    home = _assigned(len(area_g), g, w, both & (2 * count > area_g[g]))
    same = np.zeros(len(area_w), bool)
    same[w[both & (count == area_g[g]) & (count == area_w[w])]] = True
    bare_w, bare_g = np.zeros(len(area_w), np.int64), np.zeros(len(area_g), np.int64)
    bare_w[w[g == 0]], bare_g[g[w == 0]] = count[g == 0], count[w == 0]
    low, high = np.array(trusted, np.int64).reshape(-1, 2).T
    whole = np.concatenate(([False], ((theirs.low >= low) & (theirs.high <= high)).all(axis=1)))
    cut = int(np.count_nonzero(~whole[1:]))
    if counted is not None:
        whole[1:] &= counted(theirs, whole[1:].copy())
    missing = 2 * bare_w >= area_w
    guests = np.bincount(host, minlength=len(area_g))
    merged = (host > 0) & (guests[host] > 1)
    split = np.bincount(home, minlength=len(area_w)) > 1
    kinds = np.select([same, missing, merged, split], range(4), 4)
    numbers = np.bincount(kinds[whole], minlength=5)
    own = np.concatenate(([False], ((ours.low >= low) & (ours.high <= high)).all(axis=1)))
    own &= 2 * bare_g >= area_g
    if ours_counted is not None:
        own[1:] &= ours_counted(ours, own[1:].copy())
    extra = np.flatnonzero(own) - 1
    lengths = np.minimum(theirs.high, high) - np.maximum(theirs.low, low)
    wide = 0 if longest is None else int(np.count_nonzero((lengths > np.array(longest)).any(axis=1)))
    chosen = whole[1:]
    extent = lengths[chosen].max(axis=0, initial=0) if chosen.any() else ()
    wrong = np.flatnonzero(chosen & ~same[1:])
    named = ("identical", "missing", "merged", "split", "changed")
    return Matched(
        **dict(zip(named, numbers.tolist(), strict=True)), extra=int(extra.size), wide=wide, cut=cut,
        extent=tuple(map(int, extent)),
        wrong=tuple((int(theirs.ids[k]), _box(theirs.low[k], theirs.high[k])) for k in wrong.tolist()),
        stray=_box(ours.low[extra[0]], ours.high[extra[0]]) if extra.size else None,
    )  # fmt: skip


def _pairs(got: Array, want: Array) -> tuple[Array, Array, Ints]:
    """Return the pairs of ids that meet on samples, and on how many."""
    a, b = np.ascontiguousarray(got).ravel(), np.ascontiguousarray(want).ravel()
    if not a.size:
        return a, b, np.zeros(0, np.int64)
    # Runs of one pair are far fewer than samples.
    begins = np.flatnonzero(np.concatenate(([True], (a[1:] != a[:-1]) | (b[1:] != b[:-1]))))
    lengths = np.diff(begins, append=a.size)
    a, b = a[begins], b[begins]
    order = np.lexsort((b, a))
    a, b, lengths = a[order], b[order], lengths[order]
    first = np.flatnonzero(np.concatenate(([True], (a[1:] != a[:-1]) | (b[1:] != b[:-1]))))
    return a[first], b[first], np.add.reduceat(lengths, first)


def _assigned(length: int, index: Ints, values: Ints, chosen: Bits) -> Ints:
    """Return zeros with ``values`` at ``index`` where these are chosen."""
    found = np.zeros(length, np.int64)
    found[index[chosen]] = values[chosen]
    return found


def _box(low: Ints, high: Ints) -> tuple[Span, ...]:
    return tuple(zip(low.tolist(), high.tolist(), strict=True))
