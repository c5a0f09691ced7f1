"""The owner of an object: the tile whose core holds the centre of its bounding box.

Let a core have at least ``o`` samples of context on each cut side, and let no object be longer than
``2 * o + 1`` along any axis. Then every object is painted once, whole::

    crop     |<-- o -->[------- core -------)<-- o -->|
    object        [=======x=======)                       x: its centre

1. The centre of an object lies in one core, because cores partition the image. An object that is at most
   ``2 * o + 1`` long ends at most ``o`` samples from its centre, so it lies within the crop of that tile.
2. A tile whose crop cuts the object sees a part of it, which is at most ``2 * o`` long and ends at the cut
   side. The centre of the part is at most ``o - 1/2`` samples from the last sample there, so it is not in
   the tile's core, with one exception: cores are half-open, and a part of exactly ``2 * o`` samples at the
   upper side has its centre half a sample before the end of the core. Such a claim is *weak*. An object of
   ``2 * o`` samples there is rightly claimed; a part of a longer one loses all its samples to the owner of
   the object, whose first sample is not after that of the part.

The proof is one per axis: boxes, and products of cores, are products. A box is clipped to the image before
its centre is taken: what a function finds in samples beyond the border differs from tile to tile. A function
that looks ``r`` samples far may be wrong in the outer ``r`` samples of its crop, and an object that reaches
the last right sample may be joined there to something that is not in the image; so objects must stay one
sample away from these, and the limit is ``2 * (o - r) - 1``. What the function joins or finds there must not
reach around a corner of the crop, or from one side to the other: its centre may then be in the core.

An object of several parts that are not connected is painted right, too, since its owner's claim wins. But a
tile that sees some of its parts cannot tell that they are not all, and may claim them: a doubt about what is
right. A longer object of several parts may be split without a doubt. A connected one is always noticed: a
part of it ends at the cut side.

The rule asks for boxes only, so it serves points (boxes of one sample) and detections as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilework._types import Bits, Ints, Span

__all__ = ["cut_sides", "limit", "needed", "owned"]


def owned(low: Ints, high: Ints, core: Sequence[Span]) -> Bits:
    """Return which boxes a tile owns.

    Parameters
    ----------
    low, high : int arrays, shape (boxes, axes), samples
        First sample, and one past the last, of each box; clipped to the image, and not empty.
    core : sequence of (start, stop), samples per axis
        The core of the tile. Cores partition the image.

    Returns
    -------
    bool array, shape (boxes,)

    Examples
    --------
    >>> low, high = np.array([[2], [3]]), np.array([[6], [6]])
    >>> owned(low, high, [(0, 4)]).tolist(), owned(low, high, [(4, 8)]).tolist()
    ([True, False], [False, True])
    """
    # Twice the centre is a whole number.
    centre = low + high - 1
    starts, stops = np.array(core, np.int64).reshape(-1, 2).T
    return np.asarray(((2 * starts <= centre) & (centre < 2 * stops)).all(axis=1))


def cut_sides(low: Ints, high: Ints, crop: Sequence[Span], extents: Sequence[int]) -> tuple[Bits, Bits]:
    """Return whether boxes reach the lower and upper sides of a crop that are not the image's border.

    Parameters
    ----------
    low, high : int arrays, shape (boxes, axes), samples
    crop : sequence of (start, stop), samples per axis
        The samples that the tile sees; they may stick out of the image.
    extents : sequence of int, samples per axis
        Those of the image.

    Returns
    -------
    two bool arrays, shape (boxes, axes)
    """
    starts, stops = np.array(crop, np.int64).reshape(-1, 2).T
    before = (low <= starts) & (starts > 0)
    after = (high >= stops) & (stops < np.array(extents))
    return before, after


def limit(overlap: int, reach: int = 0) -> int:
    """Return the largest extent of an object that is owned safely, samples.

    ``reach`` says how far the function looks to decide about a sample.
    """
    return 2 * overlap + 1 if reach == 0 else 2 * (overlap - reach) - 1


def needed(extent: int, reach: int = 0) -> int:
    """Return the smallest overlap with which objects of ``extent`` samples are owned safely."""
    return -(-(extent - 1) // 2) if reach == 0 else reach - (-(extent + 1) // 2)
