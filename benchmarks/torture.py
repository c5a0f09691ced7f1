"""``python -m benchmarks.torture KIND``: runs that are killed, that meet, or that have an unreliable store.

Each line says how many stores were looked at and how many of them were wrong; the exit status is 1 if one
was.
A store is wrong if, without an error, it holds samples of another result than its record says, a mark of a
unit that is not written, or a file that a dead run left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

import tilework as tw
from tilework.writing.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMAGE = np.random.default_rng(0).random((192, 160)).astype("f4")
MASK = np.random.default_rng(1).random((12, 10)) < 0.7
FACTORS = {"first": 2.0, "second": -3.0}


class Slow:
    """Multiplies crops, takes a while, and leaves a byte at every call."""

    def __init__(self, log: str, seconds: float, factor: float, many: bool) -> None:
        self.log, self.seconds, self.factor, self.many = log, seconds, factor, many

    def __call__(self, crop: np.ndarray) -> Any:
        with Path(self.log).open("ab", buffering=0) as file:
            file.write(b".")
        time.sleep(self.seconds)
        return (crop * self.factor, crop + 1) if self.many else crop * self.factor


def write(
    store: str,
    log: str,
    scene: dict[str, Any],
    seconds: float,
    name: str,
    address: str | None,
    **options: Any,
) -> Any:
    """Write a scene, in a process of its own or in this one."""
    out = tw.tiled_map(
        Slow(log, seconds, FACTORS[name], scene["many"]), IMAGE, 32, stride=16 if scene["blend"] else 32,
        blend="gaussian" if scene["blend"] else "trim", mask=MASK if scene["mask"] else None, chunks=64,
        output=(tw.Output("f4"), tw.Output("f4")) if scene["many"] else tw.Output("f4"),
    )  # fmt: skip
    options = {
        "chunks": scene["chunks"],
        "shards": scene["shards"],
        "version": name,
        "progress": False,
    } | options
    if address is None:
        return tw.to_zarr(out, store, scheduler="threads", **options)
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return tw.to_zarr(out, store, client=client, **options)


def attempt(*args: Any, **options: Any) -> None:
    """Write, and end quietly whatever happens: somebody else looks at the store."""
    logging.disable()
    with (
        contextlib.suppress(BaseException),
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        write(*args, **options)


def scene_of(rng: random.Random) -> dict[str, Any]:
    """Draw what is written."""
    sharded = rng.random() < 0.5
    return {
        "many": rng.random() < 0.3, "blend": rng.random() < 0.6, "mask": rng.random() < 0.3,
        "chunks": 16 if sharded else 32, "shards": 32 if sharded else None,
    }  # fmt: skip


def files(store: Path) -> dict[str, bytes]:
    """Return all files of a store."""
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def left_over(names: Any) -> list[str]:
    """Return the names that only a running or dead writer has."""
    return [
        n for n in names
        if n.endswith((".partial", "/claim", "/beat")) or "/after-" in n or "/dirty/" in n
    ]  # fmt: skip


def busy(dask_worker: Any) -> int:
    """Return how many tasks occupy a worker, cancelled ones too."""
    return len(dask_worker.state.all_running_tasks)


def wait_until_quiet(cluster: Any) -> None:
    """Wait until no thread of a worker is busy with a task of a client that died."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        end = time.monotonic() + 60
        while (cluster.scheduler.tasks or any(client.run(busy).values())) and time.monotonic() < end:
            time.sleep(0.05)


@contextlib.contextmanager
def servers(quiet: bool = True) -> Iterator[tuple[Any, Any]]:
    """Yield a context that starts processes with all imports done, and a cluster of two processes."""
    from distributed import LocalCluster

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tilework.writing.store", "tilework.api", "distributed", "numpy", "zarr"])
    if quiet:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster:
        yield context, cluster


def started(process: Any, log: Path) -> bool:
    """Start a process, and return whether it has called its function."""
    process.start()
    end = time.monotonic() + 60
    while not log.exists() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.002)
    return log.exists()


# -- kills --------------------------------------------------------------------------------------------------


def kills(count: int, folder: Path) -> Counter[str]:
    """Kill a process on threads, the client of a cluster or one of its workers; resume; compare all bytes."""
    found: Counter[str] = Counter()
    wholes: dict[str, dict[str, bytes]] = {}
    with servers() as (context, cluster):
        for number in range(count):
            rng = random.Random(number)
            scene, kind = scene_of(rng), ("threads", "client", "worker")[number % 3]
            key = repr(scene)
            if key not in wholes:
                write(str(folder / "whole"), str(folder / "log"), scene, 0, "first", None, overwrite=True)
                wholes[key] = files(folder / "whole")
                remove(folder / "whole")
            store, log = folder / f"{number}.zarr", folder / f"{number}.log"
            address = None if kind == "threads" else cluster.scheduler_address
            if kind == "worker":
                with_worker_killed(store, log, scene, rng, address)
            else:
                process = context.Process(
                    target=attempt, args=(str(store), str(log), scene, 0.01, "first", address), daemon=True
                )
                started(process, log)
                time.sleep(rng.uniform(0, 0.4))
                process.kill()
                process.join()
                if kind == "client":
                    wait_until_quiet(cluster)
                write(str(store), str(log), scene, 0, "first", None)
            now = files(store)
            found["stores"] += 1
            found["with other bytes"] += now != wholes[key]
            found["with files left over"] += bool(left_over(now))
            remove(store)
            tell(f"kill {number + 1} of {count}: {dict(found)}")
    return found


def with_worker_killed(
    store: Path, log: Path, scene: dict[str, Any], rng: random.Random, address: Any
) -> None:
    """Write on a cluster, and kill one of its workers meanwhile."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        pids, delay = list(client.run(os.getpid).values()), rng.uniform(0, 0.4)
        begun = time.monotonic()

        def progress(done: int, total: int) -> None:
            del total
            if done and pids and time.monotonic() - begun > delay:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids.pop(), signal.SIGKILL)
                pids.clear()

        write(str(store), str(log), scene, 0.01, "first", address, progress=progress)


# -- meetings -----------------------------------------------------------------------------------------------


def meetings(count: int, folder: Path) -> Counter[str]:
    """Let a second run meet a first one that was killed, interrupted or is alive; then look at the store."""
    found: Counter[str] = Counter()
    with servers() as (context, cluster):
        for number in range(count):
            rng = random.Random(number)
            scene = scene_of(rng) | {"many": False, "blend": False, "mask": False}
            ending = ("alive", "interrupted", "killed", "client killed")[number % 4]
            other, overwrite = rng.random() < 0.7, rng.random() < 0.7
            address = cluster.scheduler_address if ending == "client killed" else None
            store, log = str(folder / f"{number}.zarr"), folder / f"{number}.log"
            first = context.Process(
                target=attempt, args=(store, str(log), scene, rng.uniform(0.02, 0.2), "first", address)
            )
            started(first, log)
            time.sleep(rng.uniform(0, 0.4))
            if ending != "alive" and first.pid:
                os.kill(first.pid, signal.SIGINT if ending == "interrupted" else signal.SIGKILL)
            second = context.Process(
                target=attempt,
                args=(store, str(log), scene, 0.01, "second" if other else "first", address),
                kwargs={"overwrite": overwrite},
            )
            second.start()
            second.join()
            first.join()
            wait_until_quiet(cluster)
            found["pairs"] += 1
            found["mixed"] += mixed(store)
            found["left over after the next run"] += not resumed(store, str(log), scene)
            remove(Path(store))
            tell(f"pair {number + 1} of {count}: {dict(found)}")
    return found


def mixed(store: str) -> bool:
    """Return whether a marked unit has samples of another result than that of the record."""
    array = zarr.open_array(store, mode="r")
    ledger = Ledger(array)
    record = ledger.record
    if record is None:
        return True
    right = IMAGE * np.float32(FACTORS[record["fingerprint"]["version"]])
    return any(
        not np.array_equal(array[box], right[box])
        for unit in np.argwhere(ledger.read())
        for box in [tuple(slice(i * u, (i + 1) * u) for i, u in zip(unit, ledger.unit, strict=True))]
    )


def resumed(store: str, log: str, scene: dict[str, Any]) -> bool:
    """Run the result of the record again; return whether it is right then, with nothing left over."""
    name = zarr.open_array(store, mode="r").attrs["tilework"]["fingerprint"]["version"]
    array = write(store, log, scene, 0, name, None)
    right = bool(np.array_equal(array[...], IMAGE * np.float32(FACTORS[name])))
    return right and tw.status(array).complete and not left_over(files(Path(store)))


# -- an unreliable store ------------------------------------------------------------------------------------


class Unreliable(zarr.storage.WrapperStore):  # type: ignore[type-arg]
    """Throttles, delays, returns what was there before, and stores a part of what it gets, at random."""

    def __init__(self, store: Any, rng: random.Random, rates: dict[str, float], before: Any = None) -> None:
        super().__init__(store)
        self.rng, self.rates = rng, rates
        self.before: dict[str, Any] = {} if before is None else before

    def _with_store(self, store: Any) -> Unreliable:
        return Unreliable(store, self.rng, self.rates, self.before)

    async def _trouble(self) -> None:
        if self.rng.random() < self.rates["delay"]:
            await asyncio.sleep(self.rng.uniform(0, 0.003))
        if self.rng.random() < self.rates["throttle"]:
            raise OSError("slow down")

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """Return an object, perhaps as it was before."""
        await self._trouble()
        if key in self.before and self.rng.random() < self.rates["old"]:
            return self.before[key]
        return await super().get(key, *args, **kwargs)

    async def set(self, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Write an object, perhaps only a part of it."""
        await self._trouble()
        from zarr.buffer import default_buffer_prototype

        self.before[key] = await super().get(key, default_buffer_prototype())
        if self.rng.random() < self.rates["cut"]:
            value = value[: self.rng.randrange(len(value))]
        await super().set(key, value, *args, **kwargs)

    async def delete(self, key: str) -> None:
        """Delete an object."""
        await self._trouble()
        await super().delete(key)


def unreliable(count: int, folder: Path) -> Counter[str]:
    """Write into such a store, resume it a few times, and read the result from the honest store."""
    del folder
    found: Counter[str] = Counter()
    logging.disable()
    for number in range(count):
        rng = random.Random(number)
        rates = {name: rng.choice([0.0, 0.01, 0.05]) for name in ("throttle", "delay", "old", "cut")}
        honest = zarr.storage.MemoryStore()
        store = Unreliable(honest, rng, rates)
        sharded = rng.random() < 0.5
        image = IMAGE[:96, :96] + np.float32(number)
        out = tw.tiled_map(np.negative, image, 32, 0, dtype="f4", chunks=32)
        options: dict[str, Any] = {
            "chunks": 16, "shards": 32 if sharded else None, "progress": False, "retries": rng.choice([0, 2]),
            "scheduler": rng.choice(["synchronous", "threads"]), "version": "1",
        }  # fmt: skip
        said = False
        for _ in range(3):
            try:
                tw.to_zarr(out, store, **options)
                said = False
                break
            except Exception:
                said = True
        found["runs"] += 1
        found[outcome(honest, -image, said)] += 1
        tell(f"run {number + 1} of {count}: {dict(found)}")
    return found


def outcome(store: Any, right: np.ndarray, said: bool) -> str:
    """Return what became of a run: "wrong" only if nothing said so."""
    if said:
        return "error of the run"
    try:
        samples = zarr.open_array(store, mode="r")[...]
    except Exception:
        return "error of the read"
    return "right" if np.array_equal(samples, right) else "wrong"


# -- the command --------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    """Delete a store."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def tell(line: str) -> None:
    """Print where the run stands, apart from the result."""
    print(line, file=sys.stderr, flush=True)


KINDS: dict[str, tuple[Callable[[int, Path], Counter[str]], int]] = {
    "kills": (kills, 200), "meetings": (meetings, 50), "unreliable": (unreliable, 500),
}  # fmt: skip
WRONG = ("with other bytes", "with files left over", "mixed", "left over after the next run", "wrong")


def main() -> int:
    """Return 1 if a store was wrong."""
    parser = argparse.ArgumentParser("python -m benchmarks.torture", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; default: all")
    parser.add_argument("--count", type=int, help="number of runs; default: 200, 50 and 500")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    warnings.simplefilter("ignore")
    bad = 0
    for kind in options.kinds or KINDS:
        run, count = KINDS[kind]
        with tempfile.TemporaryDirectory() as folder:
            found = run(options.count or count, Path(folder))
        bad += sum(found[name] for name in WRONG)
        print(f"{kind}: {', '.join(f'{n} {name}' for name, n in found.items())}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
