"""Values in ascending order, a part at a time, for tables that are larger than memory.

Parts of the table are sorted and written to a file one after the other. Limits that a sample of the values
gives cut each of these into ranges, and one range of all parts is read, sorted and returned at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from tilework._types import Array, Bits, Ints

__all__ = ["AT_ONCE", "ascending", "kept", "parts"]

AT_ONCE = 1 << 20
"""Number of values in memory at a time: 8 MiB of them, in five or six arrays."""
# Larger parts for larger tables, so that the ranges of all parts are a million reads at most.
MOST_PARTS = 1 << 10
# Values in the sample for each limit. Ranges are then within a quarter of their mean size.
SAMPLES = 256
NONE: Ints = np.zeros(0, np.int64)


def parts(count: int) -> Iterator[slice]:
    """Yield the parts of a table of ``count`` values, in order."""
    step = max(AT_ONCE, -(-count // MOST_PARTS))
    yield from (slice(start, min(start + step, count)) for start in range(0, count, step))


def kept(part: slice, without: Ints) -> Bits:
    """Return which places of a part are not in ``without``, an ascending array of places."""
    low, high = np.searchsorted(without, (part.start, part.stop))
    on = np.ones(part.stop - part.start, bool)
    on[without[low:high] - part.start] = False
    return on


def ascending(
    values: Array, without: Ints = NONE, folder: str | Path | None = None
) -> Iterator[tuple[Ints, Ints]]:
    """Yield parts of a table in ascending order: the places of the values, and the values as int64.

    Equal values are in one part.

    Parameters
    ----------
    values : int array of shape (n,)
        The table; a `numpy.memmap` is read once, but for the sample.
    without : int array
        Places that are left out, ascending.
    folder : path, optional
        Where the file is that tables with more than one part need, 16 bytes for each value. It has no name,
        and ends with the iteration; by default, in the folder for temporary files.

    Examples
    --------
    >>> [(places.tolist(), found.tolist()) for places, found in ascending(np.array([30, 10, 20]))]
    [([1, 2, 0], [10, 20, 30])]
    """
    cuts = list(parts(len(values)))
    if len(cuts) < 2:
        for part in cuts:
            yield _ordered(np.flatnonzero(kept(part, without)), values)
        return
    limits = _limits(values, len(cuts))
    # Where the ranges begin in each part, and where the part begins in the file.
    begins, starts = np.zeros((len(cuts), len(cuts) + 1), np.int64), np.zeros(len(cuts), np.int64)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        written = 0
        for number, part in enumerate(cuts):
            places, found = _ordered(part.start + np.flatnonzero(kept(part, without)), values)
            begins[number, 1:-1], begins[number, -1] = np.searchsorted(found, limits), len(found)
            starts[number] = written
            for column in (places, found):
                _write(file, column)
            written += 2 * len(found)
        for low, high in zip(begins.T[:-1], begins.T[1:], strict=True):
            places, found = (
                np.concatenate(
                    [
                        _read(file, start + extra * total + a, b - a)
                        for start, total, a, b in zip(starts, begins[:, -1], low, high, strict=True)
                    ]
                )
                for extra in (0, 1)
            )
            # Sorted parts one after the other: timsort merges them.
            order = np.argsort(found, kind="stable")
            if len(order):
                yield places[order], found[order]


def _ordered(places: Ints, values: Array) -> tuple[Ints, Ints]:
    """Return the places in ascending order of their values, and these."""
    found = values[places].astype(np.int64, copy=False)
    order = np.argsort(found, kind="stable")
    return places[order], found[order]


def _limits(values: Array, ranges: int) -> Ints:
    """Return values that cut a table into so many ranges of about one size."""
    picks = np.random.default_rng(0).integers(0, len(values), ranges * SAMPLES)
    picks.sort()
    sample = np.sort(values[picks].astype(np.int64, copy=False))
    return sample[SAMPLES::SAMPLES]


def _write(file: IO[bytes], column: Ints) -> None:
    data = memoryview(column.data).cast("B")
    while len(data):
        data = data[file.write(data) :]


def _read(file: IO[bytes], start: int, count: int) -> Ints:
    file.seek(8 * int(start))
    found = np.fromfile(file, np.int64, int(count))
    if len(found) < count:
        raise OSError(f"a temporary file lost {count - len(found)} of its values.")
    return found
