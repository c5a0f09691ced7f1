"""Quantiles of an image in Zarr that is brighter at one side: how exact, and at what cost.

The error is the largest distance, as a share of all samples, of the samples that were asked for from those
that were returned.
"""

from __future__ import annotations

import importlib
import itertools
import time
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import CORES, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

QUANTILES = (0.001, 0.01, 0.5, 0.99, 0.998)


@dataclass(frozen=True)
class Drift:
    """A square image whose brightness grows along one axis."""

    dtype: str
    side: int = 4096
    chunk: int = 1024

    def scaled(self, scale: float) -> Drift:
        """Return an image with another side, of at least two chunks."""
        side = max(64, round(self.side * scale))
        return replace(self, side=side, chunk=min(self.chunk, side // 2))

    def tiny(self) -> Drift:
        """Return an image of four small chunks."""
        return self.scaled(0)


@cache
def picture(side: int, dtype: str) -> NDArray[Any]:
    """Return the image."""
    rng = np.random.default_rng(0)
    drift = np.linspace(0, 2000, side, dtype="f4")[:, None]
    return np.asarray((rng.standard_gamma(2, (side, side), "f4") * 200 + drift).astype(dtype))


def _prepared(work: Drift, folder: Path, run: Callable[[Any], Any]) -> Prepared:
    import zarr

    image = picture(work.side, work.dtype)
    array = zarr.create_array(folder / "image.zarr", data=image, chunks=(work.chunk,) * 2, overwrite=True)
    found = dict[str, float]()

    def timed() -> Any:
        start = time.process_time()
        result = run(array)
        found["cpu_ns"] = (time.process_time() - start) / image.size * 1e9
        return result

    def check(result: Any) -> float:
        ordered = np.sort(image, axis=None)
        if result is None:  # who only reads
            return 0.0
        errors = []
        for q, value in zip(QUANTILES, result, strict=True):
            low, high = (np.searchsorted(ordered, value, side) for side in ("left", "right"))
            rank = max(1, int(np.ceil(round(q * image.size, 6))))
            # The sample may stand for many equal ones.
            errors.append(max(0, low + 1 - rank, rank - max(high, low + 1)) / image.size)
        found["rank_error"] = max(errors)
        return max(errors)

    return Prepared(timed, check, figures=lambda: found)


def tilework(work: Drift, folder: Path, *, threads: int = CORES) -> Prepared:
    """Ours, with count, mean, deviation and extremes."""
    import dask

    from tilework import image_statistics

    def run(array: Any) -> Any:
        with dask.config.set(scheduler="threads", num_workers=threads):
            return list(image_statistics(array, QUANTILES, progress=False).quantiles.values())

    return _prepared(work, folder, run)


def in_memory(work: Drift, folder: Path) -> Prepared:
    """numpy, with the whole image in memory."""
    return _prepared(work, folder, lambda array: np.quantile(array[...], QUANTILES, method="inverted_cdf"))


def dask_percentile(work: Drift, folder: Path, *, method: str = "dask") -> Prepared:
    """dask's percentile of the raveled image."""
    import dask.array as da

    if method == "tdigest":
        importlib.import_module("crick")  # dask asks for it only when it computes

    def run(array: Any) -> Any:
        lazy = da.percentile(
            da.from_zarr(array).ravel(), [100 * q for q in QUANTILES], internal_method=method
        )
        return lazy.compute(scheduler="threads", num_workers=CORES)

    return _prepared(work, folder, run)


def decoding(work: Drift, folder: Path) -> Prepared:
    """Each chunk read once, and nothing else: nobody can be faster on one thread."""

    def run(array: Any) -> None:
        for y, x in itertools.product(range(0, work.side, work.chunk), repeat=2):
            array[y : y + work.chunk, x : x + work.chunk]

    return _prepared(work, folder, run)


WAYS = {
    "tilework": tilework,
    "tilework_one_thread": partial(tilework, threads=1),
    "numpy_in_memory": in_memory,
    "dask_percentile": dask_percentile,
    "dask_percentile_tdigest": partial(dask_percentile, method="tdigest"),
    "limit_decoding": decoding,
}
"""Who does it."""
