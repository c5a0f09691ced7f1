"""The processor time of a real scheduler for each block, apart from client and workers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.in_memory import identity
from benchmarks.measure import CORES, Prepared

# Threads of each worker process: more than the scheduler of a small run keeps busy.
THREADS = 4


@dataclass(frozen=True)
class Scheduled:
    """Blocks of a square image that exists nowhere, written into nothing."""

    blocks: int
    """Number of blocks."""
    crop: int
    """Samples per axis."""

    def scaled(self, scale: float) -> Scheduled:
        """Return `scale` times as many blocks."""
        return replace(self, blocks=max(100, round(self.blocks * scale)))

    def tiny(self) -> Scheduled:
        """Return a hundred blocks."""
        return replace(self, blocks=100)


class Nothing:
    """An image of zeros, and a target that forgets."""

    def __init__(self, side: int) -> None:
        self.shape, self.ndim, self.dtype = (side, side), 2, np.dtype("u1")

    def __getitem__(self, box: tuple[slice, ...]) -> Any:
        return np.zeros([s.stop - s.start for s in box], self.dtype)

    def __setitem__(self, box: tuple[slice, ...], values: Any) -> None:
        """Forget the values."""


@contextlib.contextmanager
def processes(folder: Path) -> Iterator[Any]:
    """Yield a client of a scheduler and of workers in processes of their own."""
    from distributed import Client

    address, modules = folder / "scheduler.json", "distributed.cli.dask_"
    options = ["--scheduler-file", str(address)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": dict(os.environ)}
    worker = ["--nworkers", str(CORES), "--nthreads", str(THREADS), "--local-directory", str(folder)]
    commands = [
        [f"{modules}scheduler", "--port", "0", "--no-dashboard", *options],
        [f"{modules}worker", "--no-dashboard", *worker, *options],
    ]
    running = [subprocess.Popen([sys.executable, "-m", *command], **quiet) for command in commands]
    try:
        while not (address.exists() and json.loads(address.read_text() or "{}")):
            time.sleep(0.1)
        with Client(scheduler_file=str(address)) as client:
            client.wait_for_workers(CORES)
            yield client
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def scheduled(work: Scheduled, folder: Path, blend: str) -> Prepared:
    """Run all blocks, and ask the scheduler for its processor time."""
    import tilework as tw
    from tilework.execution.local import run as compute
    from tilework.execution.where import Where
    from tilework.graph.build import find_spec
    from tilework.source.held import Travelling
    from tilework.writing.jobs import Destination, TileJob

    stride = work.crop if blend == "trim" else work.crop // 2
    rows = round(work.blocks**0.5)
    side = rows * 2 * work.crop
    found: dict[str, float] = {}

    def run() -> None:
        source = tw.load_once(Nothing, (side,))
        out = tw.tiled_map(
            identity, source, work.crop, stride=stride, blend=blend, dtype="u1", chunks=2 * work.crop,
            reuse="recompute" if blend == "trim" else "share",
        )  # fmt: skip
        # A run hands it to its tasks; the front door refuses arrays that processes would fill as copies.
        forgetting, origin = Travelling(Nothing(side)), find_spec(out)
        assert origin is not None
        job = TileJob("", origin.name, origin.spec, {0: Destination(forgetting)}, retries=0)
        with processes(folder) as client:
            before = client.run_on_scheduler(time.process_time)
            compute([job], Where.find(None, client), progress=False, title="")
            spent = client.run_on_scheduler(time.process_time) - before
        found.update(blocks=rows**2, scheduler_ms_block=1e3 * spent / rows**2)

    return Prepared(run, lambda _: 0.0, figures=lambda: found)
