"""Contestants that write: images of growing length, and many small blocks on a cluster."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import on_disk
from benchmarks.in_memory import identity
from benchmarks.measure import CORES, MB, Figures, Prepared, set_malloc


@dataclass(frozen=True)
class Long:
    """A float32 volume from Zarr to Zarr, blended; only its slowest axis grows."""

    length: int
    face: int
    crop: int
    stride: int
    chunk: int

    def scaled(self, scale: float) -> Long:
        """Return a face times `scale`."""
        return replace(self, face=self.chunk * max(1, round(self.face * scale / self.chunk)))

    def tiny(self) -> Long:
        """Return a volume of few chunks."""
        return replace(self, length=2 * self.chunk, face=self.chunk)

    def shape(self, times: int) -> tuple[int, int, int]:
        """Return the extents of the volume of `times` the length."""
        return (self.length * times, self.face, self.face)


def to_zarr(work: Long, folder: Path, times: int, traced: bool = False, one_arena: bool = False) -> Prepared:
    """Blend a stored volume into another store; with ``traced``, count what Python and numpy allocate.

    Resident memory also holds what the system's allocator keeps of memory that was freed. glibc keeps it in
    an arena per thread; ``one_arena`` is what the environment variable MALLOC_ARENA_MAX=1 does.
    """
    if one_arena:
        set_malloc(M_ARENA_MAX=1)
    import dask
    import zarr

    import tilework as tw

    source = folder / f"source-{times}-{work.face}.zarr"
    if not source.exists():
        array = zarr.create_array(str(source), shape=work.shape(times), dtype="f4", chunks=(work.chunk,) * 3)
        layer = np.random.default_rng(0).random((work.chunk, work.face, work.face), "f4")
        for start in range(0, array.shape[0], work.chunk):
            array[start : start + work.chunk] = layer + start
    lazy: list[Any] = []
    allocated: Figures = {}

    def run() -> Any:
        if traced:
            tracemalloc.start()
        try:
            return write()
        finally:
            if traced:
                allocated["allocated_mb"] = tracemalloc.get_traced_memory()[1] / MB
                tracemalloc.stop()

    def write() -> Any:
        out = tw.tiled_map(identity, str(source), work.crop, stride=work.stride, blend="gaussian", dtype="f4")
        with dask.config.set(scheduler="threads", num_workers=CORES):
            target = folder / "out.zarr"
            written = tw.to_zarr(out, target, chunks=work.chunk, overwrite=True, progress=False)
        lazy.append(out)
        return written

    def check(result: Any) -> float:
        there = zarr.open_array(str(source))
        last = slice(result.shape[0] - work.chunk, None)
        return float(np.abs(result[last] - there[last]).max())

    def figures() -> Figures:
        with dask.config.set(scheduler="threads", num_workers=CORES):
            return on_disk.estimate(lazy[-1], chunks=work.chunk) | allocated

    return Prepared(run, check, figures=figures)


@dataclass(frozen=True)
class Blocks:
    """Blocks of a square float32 image in Zarr, for two worker processes."""

    count: int
    side: int

    def scaled(self, scale: float) -> Blocks:
        """Return `scale` times as many blocks."""
        return replace(self, count=max(4, round(self.count * scale)))

    def tiny(self) -> Blocks:
        """Return four blocks."""
        return replace(self, count=4)


def _workers(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return a cluster of a process per core, which is ready, and its client; ``settings`` are dask's."""
    import dask

    # Imported first: its defaults would be lost at the end of a block that sets some.
    from distributed import Client, LocalCluster

    with dask.config.set(settings):
        cluster = LocalCluster(n_workers=CORES, threads_per_worker=1, dashboard_address=":0")
        client = Client(cluster)
        client.wait_for_workers(CORES)
    return cluster, client


def on_cluster(work: Blocks, folder: Path, who: str) -> Prepared:
    """Write an identity on a cluster, by tilework or by dask."""
    import dask.array as da
    import zarr

    import tilework as tw

    rows = int(work.count**0.5)
    shape = (rows * work.side, work.count // rows * work.side)
    source = zarr.create_array(
        str(folder / "in.zarr"), shape=shape, dtype="f4", chunks=(work.side,) * 2, overwrite=True
    )
    source[:] = np.random.default_rng(0).random(shape, "f4")
    cluster, client = _workers({})
    client.run(__import__, "tilework.writing.store")
    taken: list[float] = []

    def run() -> Any:
        store, start = str(folder / "out.zarr"), time.perf_counter()
        if who == "map_blocks":
            array = da.from_zarr(source).map_blocks(identity, dtype="f4")
            da.to_zarr(array, store, mode="w")
        else:
            fn = tw.load_once(_heavy) if who == "tilework model" else identity
            out = tw.tiled_map(fn, source, work.side, 0, dtype="f4", chunks=work.side)
            tw.to_zarr(out, store, chunks=work.side, overwrite=True, progress=False)
        taken.append(time.perf_counter() - start)
        return zarr.open_array(store)

    def figures() -> dict[str, float]:
        client.close()
        cluster.close()
        return {"run_s": min(taken)}

    return Prepared(run, lambda result: float(np.abs(result[:] - source[:]).max()), figures=figures)


def blended_on_cluster(work: Long, folder: Path, kept: bool) -> Prepared:
    """Blend a stored volume on a cluster, twice; ``kept``: workers keep memory that was freed."""
    import zarr

    import tilework as tw
    from tilework.execution.started import KEPT_MEMORY

    source = zarr.create_array(
        str(folder / "in.zarr"), shape=work.shape(1), dtype="f4", chunks=(work.chunk,) * 3, overwrite=True
    )
    source[:] = np.random.default_rng(0).random(source.shape, "f4")
    cluster, client = _workers(KEPT_MEMORY if kept else {})
    taken: list[Figures] = []

    def run() -> Any:
        store = str(folder / "out.zarr")
        for _ in range(2):  # the first one imports
            start, spent = time.perf_counter(), client.run(time.process_time)
            out = tw.tiled_map(identity, source, work.crop, stride=work.stride, blend="gaussian", dtype="f4")
            tw.to_zarr(out, store, chunks=work.chunk, overwrite=True, progress=False)
            seconds = time.perf_counter() - start
            cpu = [now - spent[worker] for worker, now in client.run(time.process_time).items()]
            taken.append({"run_s": seconds, "worker_cpu_s": sum(cpu)})
        return zarr.open_array(store)

    def figures() -> Figures:
        resident = client.run(_resident)
        client.close()
        cluster.close()
        return taken[-1] | {"worker_mb": max(resident.values()) / MB}

    return Prepared(run, lambda result: float(np.abs(result[:] - source[:]).max()), figures=figures)


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _heavy() -> Any:
    """Return a model of 52 MB that does nothing."""
    weights = np.ones(52 * 2**20 // 4, "f4")
    return lambda crop: crop * weights[0]


@dataclass(frozen=True)
class Million:
    """Blocks of a huge volume, of which the first are submitted to a scheduler that is only counted."""

    blocks: int
    looked_at: int

    def scaled(self, scale: float) -> Million:
        """Return `scale` times as many blocks to look at."""
        return replace(self, looked_at=max(100, round(self.looked_at * scale)))

    def tiny(self) -> Million:
        """Return a hundred blocks."""
        return replace(self, blocks=1000, looked_at=100)


def submitted(work: Million, folder: Path, blend: str) -> Prepared:
    """Make the tasks of a window after another, and count what a scheduler would hold."""
    import pickle

    import tilework as tw
    from tilework.execution.cluster import CLUSTER_BLOCKS
    from tilework.graph.build import find_spec
    from tilework.writing.jobs import Destination, TileJob

    del folder
    side = round(work.blocks ** (1 / 3))
    found: dict[str, float] = {}

    def run() -> None:
        source = tw.load_once(_Nothing, (side * 64,))
        # Large blocks, so that the lazy array itself is small; the job gets the small ones.
        whole = tw.tiled_map(
            identity, source, 32, stride=16, blend=blend, dtype="f4", chunks=1600, memory_limit="100TB"
        )
        origin = find_spec(whole)
        assert origin is not None
        spec = replace(origin.spec, plan=origin.spec.plan.with_blocks((64,) * 3, "share"))
        start = time.process_time()
        job = TileJob("", origin.name, spec, {0: Destination(np.empty(0))})
        window: list[Any] = []
        held: dict[Any, int] = {}
        most = sent = count = 0
        for number, piece in enumerate(job.pieces()):
            if number == work.looked_at:
                break
            window.append(piece)
            window = window[-CLUSTER_BLOCKS:]
            held |= piece.keep
            if number % 128 == 0:
                held = {key: end for key, end in held.items() if end > piece.position}
                most = max(most, sum(len(p.tasks) for p in window) + len(held))
            if number < 200:
                sent += len(pickle.dumps(piece.tasks))
            count += len(piece.tasks)
        seconds = time.process_time() - start
        found.update(
            held=float(most), ms_block=1e3 * seconds / work.looked_at, tasks_block=count / work.looked_at,
            bytes_block=sent / 200,
        )  # fmt: skip

    return Prepared(run, lambda _: 0.0, figures=lambda: found)


class _Nothing:
    """An image of any extent that is never read."""

    def __init__(self, extent: int) -> None:
        self.shape, self.dtype = (extent,) * 3, np.dtype("f4")

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("only tasks are made")
