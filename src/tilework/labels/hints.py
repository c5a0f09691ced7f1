"""Labels: integers that name objects, crop by crop, and so neither average nor agree between tiles."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tilework._types import Array

__all__ = ["INDEPENDENT", "label_warning", "may_be_labels", "renumbered"]

INDEPENDENT = "ids of neighbouring tiles are independent: one object may have two ids, and two objects one"
"""What is wrong with labels from tiles."""
# Share of the samples that must belong to objects with one id in each of two results, share of the objects
# that must have another id, and share of neighbouring samples of objects that must have the same one.
SAME, MOVED, JOINED = 0.9, 0.2, 0.5


def may_be_labels(values: np.dtype[np.generic], images: Iterable[np.dtype[np.generic]] = ()) -> bool:
    """Return whether a function that returns ``values`` for ``images`` may return labels.

    Functions that number objects return integers of 32 or 64 bits, which filters of images of 8 and 16 bits
    do not, and filters of other images only where the image has that dtype.

    Examples
    --------
    >>> may_be_labels(np.dtype("int32"), [np.dtype("uint16")]), may_be_labels(np.dtype("uint8"))
    (True, False)
    """
    return values.kind in "iu" and values.itemsize >= 4 and all(values != image for image in images)


def label_warning(
    key: object, values: np.dtype[np.generic], blend: str, images: Iterable[np.dtype[np.generic]]
) -> str:
    """Return what to say of the blend of a result that may hold labels; empty if nothing.

    Averages of such results are refused unless they are declared as numbers, and a sum counts. Results that
    are trimmed are not combined, so of these only `renumbered` can tell.
    """
    if blend not in ("max", "min") or not may_be_labels(values, images):
        return ""
    which = "" if key is None else f" for output {key!r}"
    return (
        f"fn returns {values}{which}, as functions that number objects do. If these are labels, "
        f'blend="{blend}" mixes them: {INDEPENDENT}; use Output(labels="own"). If they are amounts, '
        "return them as floats."
    )


def renumbered(a: Array, b: Array) -> bool:
    """Return whether two results for one place show the same objects under other ids.

    Examples
    --------
    >>> a = np.array([0, 0, 1, 1, 0, 2, 2])
    >>> renumbered(a, np.array([0, 0, 7, 7, 0, 3, 3])), renumbered(a, a), renumbered(a, a + 1)
    (True, False, False)
    """
    if a.dtype.kind not in "iu" or a.shape != b.shape or not a.size:
        return False
    pairs, counts = np.unique(np.stack((a.ravel(), b.ravel())), axis=1, return_counts=True)
    # One-to-one, but for a few samples at the ends of objects: pairs that are most frequent for both.
    order = np.argsort(-counts, kind="stable")
    mutual = np.ones(counts.size, bool)
    for side in pairs:
        _, at = np.unique(side[order], return_index=True)
        mutual &= np.isin(np.arange(counts.size), order[at])
    if counts[mutual].sum() < SAME * counts.sum():
        return False
    own, other = pairs[:, mutual].astype(np.float64)
    if np.count_nonzero(own) < 2:
        return False  # one object: a mask with another number for "inside" looks like that
    moved = own != other
    if np.count_nonzero(moved) < MOVED * np.count_nonzero(own) or not _joined(a):
        return False
    # The background keeps its number; without one, what moves by a constant is rather an offset.
    background = (own == 0) == (other == 0)
    constant = np.ptp(own - other) == 0
    return bool(background.all() and not (constant and not (own == 0).any()))


def _joined(labels: Array) -> bool:
    """Return whether neighbouring samples of objects mostly have one id, as objects do and images do not."""
    equal = pairs = 0
    for axis in range(labels.ndim):
        first, second = (np.moveaxis(labels, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        objects = (first != 0) & (second != 0)
        pairs += int(np.count_nonzero(objects))
        equal += int(np.count_nonzero(objects & (first == second)))
    return equal > JOINED * pairs
