"""Contestants that only build: how long, how many tasks, and how many bytes travel."""

from __future__ import annotations

import math
import pickle
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import Figures, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

CROPS = {1: 4096, 2: 256, 3: 64, 4: 16, 5: 8}
"""Samples of a crop per axis, by the number of axes: a crop of a usual size."""
GRIDS = {
    "32k": {1: (32768,), 2: (256, 128), 3: (32,) * 3, 4: (16, 16, 16, 8), 5: (8,) * 5},
    "100k": {1: (100000,), 2: (400, 250), 3: (50, 50, 40), 4: (20, 20, 25, 10), 5: (10,) * 5},
}
BUILDS = 3
"""Builds of which the median counts."""


@dataclass(frozen=True)
class Build:
    """Grids of 32 768 and 100 000 crops; `share` cuts the first axis of each."""

    share: float = 1.0

    def scaled(self, scale: float) -> Build:
        """Return grids with that share of the crops."""
        return replace(self, share=min(1.0, scale))

    def tiny(self) -> Build:
        """Return grids of few crops."""
        return self.scaled(0)

    def grid(self, count: str, ndim: int) -> tuple[int, ...]:
        """Return the number of crops per axis."""
        first, *others = GRIDS[count][ndim]
        return (max(2, round(first * self.share)), *others)


class MarkedIdentity:
    """The identity, with a mark that is found again wherever its pickle went."""

    mark = b"<<the function of the graph benchmark>>"

    def __init__(self) -> None:
        self.carried = bytes(self.mark)

    def __call__(self, crop: Any) -> Any:
        return crop


def _empty_zarr(path: Path, shape: tuple[int, ...], chunk: int) -> Any:
    """Return an array without data: a source that is no burden to make or to hash."""
    import zarr

    chunks = tuple(min(n, chunk) for n in shape)
    return zarr.create_array(store=str(path), shape=shape, chunks=chunks, dtype="float32", overwrite=True)


def _timed(build: Callable[[], Any]) -> tuple[Any, float]:
    seconds = []
    for _ in range(BUILDS):
        begin = time.perf_counter()
        out = build()
        graph = dict(out.__dask_graph__())
        seconds.append(time.perf_counter() - begin)
    return (out, graph), statistics.median(seconds)


def _pickled(values: Iterable[Any]) -> list[bytes]:
    import cloudpickle

    def dump(value: Any) -> bytes:
        try:
            return pickle.dumps(value)  # a tenth of cloudpickle's time, and the same for importables
        except Exception:
            return cloudpickle.dumps(value)

    return [dump(value) for value in values]


def _weigh(out: Any, graph: dict[Any, Any]) -> Figures:
    """Count a graph. Each value is pickled by itself, as the scheduler sends it."""
    values = _pickled(graph.values())
    copies = [value.count(MarkedIdentity.mark) for value in values]
    plain = [len(value) for value, n in zip(values, copies, strict=True) if n == 0]
    return {
        "tasks": len(graph),
        "tasks_per_block": len(plain) / out.npartitions,
        "fn_copies": sum(copies),
        "task_bytes": max(plain, default=0),
        "spec_bytes": max(len(v) for v, n in zip(values, copies, strict=True) if n) if any(copies) else 0,
    }


def _built(figures: Callable[[], Figures]) -> Prepared:
    found: Figures = {}

    def run() -> None:
        found.clear()
        found.update(figures())

    return Prepared(run=run, check=lambda _: 0.0, figures=lambda: found)


def _variants(ndim: int) -> dict[str, tuple[dict[str, Any], int]]:
    """Return the options of each variant, and what an axis is longer than its strides."""
    crop = CROPS[ndim]
    stride = crop // 2
    trim = {"overlap": crop // 4, "chunks": stride}
    blend = {"stride": stride, "blend": "gaussian"}
    return {
        # The two hardest: a block for every crop, and the smallest blocks that share tiles.
        "trim": (trim, 0),
        "blend": (blend | {"chunks": crop}, stride),
        "auto": (blend, stride),
    }


def tilework_build(work: Build, folder: Path, ndim: int) -> Prepared:
    """Three kinds of graph of each size; the worst of each figure counts."""
    import tilework as tw

    crop, fn = CROPS[ndim], MarkedIdentity()

    def build(image: Any, options: dict[str, Any]) -> Any:
        return tw.tiled_map(fn, image, crop, **options, dtype="float32", name="bench")

    def figures() -> Figures:
        worst: Figures = {}
        for count in GRIDS:
            for variant, (options, longer) in _variants(ndim).items():
                shape = tuple(n * (crop // 2) + longer for n in work.grid(count, ndim))
                image = _empty_zarr(folder / "empty.zarr", shape, 4 * crop)
                (out, graph), seconds = _timed(partial(build, image, options))
                found = _weigh(out, graph) | {f"build_{count}_s": seconds}
                found[f"{variant}_{count}_tasks"] = found.pop("tasks")
                found[f"{variant}_{count}_s"] = seconds
                for key, value in found.items():
                    worst[key] = max(value, worst.get(key, 0))
        return worst

    return _built(figures)


def map_overlap_build(work: Build, folder: Path, ndim: int) -> Prepared:
    """dask's way, for about 1000 blocks."""
    import dask.array as da

    blocks = {2: (32, 32), 3: (10, 10, 10)}[ndim]
    chunk = CROPS[ndim]
    fn = MarkedIdentity()

    def build() -> Any:
        blocks_here = (max(2, round(blocks[0] * work.share)), *blocks[1:])
        image = _empty_zarr(folder / "empty.zarr", tuple(n * chunk for n in blocks_here), chunk)
        meta = np.empty((0,) * ndim, np.float32)
        return da.map_overlap(
            fn, da.from_zarr(image), depth=chunk // 4, boundary="none", dtype="float32", meta=meta
        )

    def figures() -> Figures:
        (out, graph), seconds = _timed(build)
        found = _weigh(out, graph)
        found["tasks_per_block"] = len(graph) / math.prod(out.numblocks)
        return found | {"build_s": seconds}

    return _built(figures)
