"""F3: the workers of a cluster die, join, retire and adapt while a result is written; the bytes are the same.

As a script it repeats this and prints figures: ``python -m tests.test_workers 20``. A second number is the
first seed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGE = np.random.default_rng(0).random((256, 256)).astype("f4")


def slow(crop: np.ndarray) -> np.ndarray:
    time.sleep(0.01)
    return crop * crop.mean(dtype="f8").astype("f4")


def _result(blend: str) -> Any:
    return tw.tiled_map(slow, IMAGE, 32, stride=16, blend=blend, dtype="f4", chunks=64)


def _write(store: Path, blend: str, **options: Any) -> None:
    tw.to_zarr(_result(blend), str(store), chunks=32, version="1", **{"progress": False} | options)


def _files(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


# -- what happens to the workers --------------------------------------------------------------------------


def dies(cluster: Any, client: Any, rng: random.Random) -> None:
    """Kill a worker process; its nanny starts another."""
    if pids := list(client.run(os.getpid, on_error="ignore").values()):
        os.kill(rng.choice(pids), signal.SIGKILL)


def joins(cluster: Any, client: Any, rng: random.Random) -> None:
    """Start a worker."""
    cluster.scale(len(cluster.workers) + 1)


def retires(cluster: Any, client: Any, rng: random.Random) -> None:
    """Let a worker pass on what it holds and leave, or all."""
    cluster.scale(rng.choice((0, 1, 1)))
    time.sleep(0.5)
    cluster.scale(2)


def adapts(cluster: Any, client: Any, rng: random.Random) -> None:
    """Go to no worker and back, as an adaptive cluster does."""
    cluster.scale(0)
    time.sleep(rng.uniform(0.2, 0.6))
    cluster.adapt(minimum=0, maximum=2, interval="100ms", wait_count=1)


EVENTS: dict[str, Callable[..., None]] = {f.__name__: f for f in (dies, joins, retires, adapts)}


@contextmanager
def _workers() -> Iterator[tuple[Any, Any]]:
    import dask
    from distributed import Client, LocalCluster

    # A task may be on several workers that die, none of which it killed.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 20}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        yield cluster, client


def _tortured(store: Path, blend: str, events: list[str], seed: int) -> None:
    """Write while the events happen, one after the other, at random moments."""
    rng = random.Random(seed)
    begun = threading.Event()

    with _workers() as (cluster, client):

        def happen() -> None:
            begun.wait(60)
            for name in events:
                time.sleep(rng.uniform(0, 0.6))
                EVENTS[name](cluster, client, rng)

        events_of = threading.Thread(target=happen, daemon=True)
        events_of.start()
        _write(store, blend, client=client, progress=lambda done, total: begun.set() if done else None)
        begun.set()
        events_of.join(60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("whole")
    for blend in ("trim", "gaussian"):
        _write(folder / blend, blend, scheduler="threads")
    return {blend: _files(folder / blend) for blend in ("trim", "gaussian")}


@pytest.mark.parametrize("blend", ["trim", "gaussian"])
@pytest.mark.parametrize(
    "events",
    [pytest.param([name], id=name, marks=pytest.mark.slow) for name in EVENTS]
    + [pytest.param(["dies", "joins", "retires", "adapts"], id="all", marks=pytest.mark.slow)],
)
def test_F3_workers_come_and_go(
    events: list[str], blend: str, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """The run ends, and its files are those of a run that nobody disturbed."""
    _tortured(tmp_path / "a.zarr", blend, events, seed=0)
    assert _files(tmp_path / "a.zarr") == whole[blend]


def main(runs: int, first: int = 0) -> None:
    folder = Path(tempfile.mkdtemp())
    expected = {}
    for blend in ("trim", "gaussian"):
        _write(folder / blend, blend, scheduler="threads")
        expected[blend] = _files(folder / blend)
    found: Counter[str] = Counter()
    for seed in range(first, first + runs):
        rng = random.Random(seed)
        blend = rng.choice(("trim", "gaussian"))
        events = rng.choices(list(EVENTS), k=rng.randint(1, 4))
        store = folder / f"{seed}.zarr"
        start = time.monotonic()
        try:
            _tortured(store, blend, events, seed)
        except Exception as error:
            said = f"{type(error).__name__}: {str(error)[:80]}"
        else:
            now, then = _files(store), expected[blend]
            wrong = sum(now.get(name) != data for name, data in then.items())
            said = "same bytes" if not wrong else f"{wrong} files differ"
            if left := set(now) - set(then):
                said += f", {len(left)} files left over"
        found[said] += 1
        sys.stdout.write(f"{seed}: {blend}, {', '.join(events)}: {said} ({time.monotonic() - start:.1f} s)\n")
        sys.stdout.flush()
    sys.stdout.write(f"{dict(found)}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or ["20"]))
