"""States of a store against events: a crash at each step, whatever the run was about, loses no more than it
may.

===========  ===================  ========================  =====================  =====================
state        told by              the same result again     another result         ``overwrite=True``
===========  ===================  ========================  =====================  =====================
fresh        nothing, or only     writes                    writes                 writes
             ``.tilework``
running      a claim that beats   refused                   refused                refused
begun        a record, no chunk   writes                    writes                 a new generation
             and no mark
interrupted  a record, marks      computes what is missing  refused, parts named   a new generation
finished     a record, all marks  computes nothing          refused, parts named   a new generation
dirty        notes of late tasks  computes these units      refused, parts named   a new generation
torn mark    half an object       computes its units        refused, parts named   a new generation
torn node    half ``zarr.json``   refused, the file named   the same               afresh, if ours
foreign      data, no record      refused                   refused                replaced, if named
changed      a record that does   refused, change named     the same               a new generation
             not fit the array
===========  ===================  ========================  =====================  =====================

Events: a crash at each step (here), a run that dies or meets another (test_meeting_runs), a run that wrote
nothing (test_vacant), torn objects and changed arrays (test_torn_stores).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.writing.ledger import Ledger
from tilework.writing.status import statuses

IMAGE = np.arange(1, 40 * 32 + 1, dtype="f4").reshape(40, 32)
MASK = np.eye(5, 4, dtype=bool)
OTHER_MASK = MASK | (np.arange(4) == 0)


def double(crop: np.ndarray) -> np.ndarray:
    return crop * 2


def both(crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return crop * 2, -crop


class CrashError(Exception):
    """The process died here, as far as the store can tell."""


class Crashing(zarr.storage.WrapperStore):
    """Fails for ever from one change of the store on; counts the changes."""

    def __init__(self, store: Any, at: int, seen: list[str] | None = None) -> None:
        super().__init__(store)
        self.at = at
        self.seen = [] if seen is None else seen

    def _with_store(self, store: Any) -> Crashing:
        return Crashing(store, self.at, self.seen)

    def _step(self, key: str) -> None:
        if "beat" in key:
            return
        self.seen.append(key)
        if len(self.seen) > self.at:
            raise CrashError(f"step {len(self.seen)}: {key}")

    async def set(self, key: str, *args: Any, **kwargs: Any) -> None:
        self._step(key)
        await super().set(key, *args, **kwargs)

    async def set_if_not_exists(self, key: str, *args: Any, **kwargs: Any) -> None:
        self._step(key)
        await super().set_if_not_exists(key, *args, **kwargs)

    async def delete(self, key: str) -> None:
        self._step(key)
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        self._step(prefix)
        await super().delete_dir(prefix)


def result(fn: Any = double, **options: Any) -> Any:
    return tw.tiled_map(fn, IMAGE, 12, 2, **{"dtype": "f4", "chunks": 16} | options)


Write = Callable[[Any], Any]


def write(out: Any, **options: Any) -> Write:
    return lambda store: tw.to_zarr(
        out, store, **{"chunks": 8, "progress": False, "scheduler": "synchronous", "version": "1"} | options
    )


def format_1(store: Any) -> None:
    """Leave what version 0.1.0 left of an interrupted run."""
    written = write(result())(store)
    array = zarr.open_array(store, mode="r+")
    record = array.attrs["tilework"]
    array.attrs["tilework"] = {k: record[k] for k in ("versions", "fingerprint", "plan")} | {"format": 1}
    ledger = Ledger(written)
    ledger.objects.delete(*ledger.objects.names())
    for unit in ("0.0", "0.1", "3.2"):
        ledger.objects.write(f"done/{unit}", b"")
    for y in range(5):
        for x in range(4):
            if f"{y}.{x}" not in ("0.0", "0.1", "3.2"):
                array[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] = -7


def some_missing(store: Any) -> None:
    """Leave an interrupted run of this version."""
    written = write(result())(store)
    done = np.ones((5, 4), bool)
    done[1, 2] = done[4] = False
    Ledger(written).reset(done)
    written[8:16, 16:24] = -7
    written[32:] = -7


def dirty(store: Any) -> None:
    """Leave a result into which a late task has written."""
    written = write(result())(store)
    Ledger(written).marks().soil("late-0.0", [[(1, 2), (2, 4)]])
    written[8:16, 16:32] = -7


SCENES: dict[str, tuple[Callable[[Any], Any], Write, Any]] = {
    "fresh": (lambda store: None, write(result()), IMAGE * 2),
    "shards": (lambda store: None, write(result(), chunks=4, shards=8), IMAGE * 2),
    "resumed": (some_missing, write(result()), IMAGE * 2),
    "dirty": (dirty, write(result()), IMAGE * 2),
    "format 1": (format_1, write(result()), IMAGE * 2),
    "overwritten": (
        write(result(np.negative), version="0"), write(result(), overwrite=True), IMAGE * 2,
    ),
    "overwritten in another layout": (
        write(result(np.negative), version="0", chunks=5, zarr_format=2),
        write(result(), overwrite=True), IMAGE * 2,
    ),
    "another mask": (write(result(mask=OTHER_MASK)), write(result(mask=MASK)), None),
    "two outputs": (lambda store: None, write(result(both, output=(tw.Output("f4"),) * 2, dtype=None)), None),
    "any dask array": (lambda store: None, write(result() + 1), IMAGE * 2 + 1),
}  # fmt: skip


def content(node: Any) -> Any:
    return {key: node[key][...] for key in node} if isinstance(node, zarr.Group) else node[...]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    return np.array_equal(a, b)


def marked_units_are_right(store: Any, before: Any, after: Any) -> bool:
    """Return whether what the store says is done has the samples of the result that its record names."""
    try:
        node = zarr.open(store, mode="r")
    except (FileNotFoundError, ValueError):
        return True
    arrays = dict(node.arrays()) if isinstance(node, zarr.Group) else {"": node}
    for key, array in arrays.items():
        ledger = Ledger(array)
        if ledger.record is None:
            continue
        rights = [w[key] if isinstance(w, dict) else w for w in (before, after) if w is not None]
        for unit in np.argwhere(ledger.read()):
            box = tuple(slice(i * u, (i + 1) * u) for i, u in zip(unit, ledger.unit, strict=True))
            if not any(np.array_equal(array[box], right[box]) for right in rights):
                return False
    return True


def steps_of(name: str) -> tuple[list[int], int]:
    """Return after which changes of the store a run of a scene is to crash, and which is the first of data.

    All at the beginning and the end, and some of those between, which are alike.
    """
    prepare, run, _ = SCENES[name]
    store = zarr.storage.MemoryStore()
    prepare(store)
    counting = Crashing(store, 10**9)
    run(counting)
    count = len(counting.seen)
    data = next(n for n, key in enumerate(counting.seen) if ".tilework" not in key and "c/" in key)
    return sorted({*range(min(count, 20)), *range(20, count, 4), *range(max(0, count - 6), count)}), data


def n_done(store: Any) -> int:
    try:
        return sum(status.done for status in statuses(store))
    except tw.TilingError:
        return 0


@pytest.mark.sample(0)
@pytest.mark.filterwarnings("ignore:Object at")
@pytest.mark.parametrize("name", SCENES)
def test_I2_a_crash_at_each_step_is_recovered_from(name: str, claiming: Callable[[], set[str]]) -> None:
    """After it no mark lies, and the same call ends with the same samples."""
    prepare, run, expected = SCENES[name]
    whole = zarr.storage.MemoryStore()
    prepare(whole)
    before = None if not len(whole._store_dict) else content(zarr.open(whole, mode="r"))
    after = content(run(whole))
    if expected is not None:
        np.testing.assert_array_equal(after, expected)
    steps, data = steps_of(name)
    done = {}
    for at in steps:
        store = zarr.storage.MemoryStore()
        prepare(store)
        crashing = Crashing(store, at)
        with suppress(CrashError):  # letting the claim go is the last step, and is not missed
            run(crashing)
        assert len(crashing.seen) > at
        assert not claiming()
        assert marked_units_are_right(store, before, after), at
        done[at] = n_done(store)
        again = content(run(store))
        assert same(again, after), at
        assert tw.status(store, verify=True).complete, at
        left = [
            key for key in store._store_dict if key.rpartition("/")[2] in ("claim", "beat") or "after-" in key
        ]
        assert not left, at
    if name in ("resumed", "format 1", "dirty", "another mask"):
        kept = done[max(at for at in steps if at <= data)]
        assert kept > 0
        assert min(done.values()) == kept, "what can stay is never lost"
