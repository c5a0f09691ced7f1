"""What `explain(measure=True)` predicts, beside what the run then takes.

``python -m benchmarks.predicted`` runs cases out of Zarr, trimmed and blended, on threads and in one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import zarr

import tilework as tw
from tilework.diagnostics.measuring import measure


def smooth(crop: Any) -> Any:
    """Return the mean of each sample and its four neighbours, some times over."""
    for _ in range(8):
        crop = (crop + sum(np.roll(crop, d, a) for d in (1, -1) for a in range(crop.ndim))) / (
            1 + 2 * crop.ndim
        )
    return crop


CASES: dict[str, tuple[Callable[[Any], Any], int, dict[str, Any]]] = {
    "trim": (smooth, 2, {"crop": 512, "overlap": 32}),
    "hann, half": (smooth, 2, {"crop": 512, "stride": 256, "blend": "hann"}),
    "gaussian, half": (smooth, 2, {"crop": 256, "stride": 128, "blend": "gaussian"}),
    "hann, three quarters": (np.negative, 2, {"crop": 256, "stride": 64, "blend": "hann"}),
    "hann, many small": (np.negative, 2, {"crop": 64, "stride": 16, "blend": "hann", "chunks": 1024}),
    "gaussian, 3-D": (smooth, 3, {"crop": 64, "stride": 32, "blend": "gaussian"}),
    "gaussian, 3-D, three quarters": (np.negative, 3, {"crop": 64, "stride": 16, "blend": "gaussian"}),
    "max": (smooth, 2, {"crop": 256, "stride": 192, "blend": "max"}),
}


def compare(folder: str, extent: int) -> None:
    """Print predicted and real seconds of every case."""
    random = np.random.default_rng(0)
    sources = {}
    for ndim, n in ((2, extent), (3, round(extent ** (2 / 3)) // 64 * 64)):
        chunks = (512,) * 2 if ndim == 2 else (64,) * 3
        sources[ndim] = zarr.create_array(
            f"{folder}/{ndim}.zarr", shape=(n,) * ndim, chunks=chunks, dtype="f4"
        )
        sources[ndim][...] = random.random((n,) * ndim, dtype="f4")
    sys.stdout.write(f"{'case':30} {'scheduler':10} predicted   real  ratio\n")
    for name, (fn, ndim, options) in CASES.items():
        out = tw.tiled_map(fn, sources[ndim], dtype="f4", **options)
        for scheduler in ("synchronous", "threads"):
            with dask.config.set(scheduler=scheduler):
                predicted = measure(out).seconds
                start = time.perf_counter()
                out.compute()
                real = time.perf_counter() - start
            ratio = predicted / real
            sys.stdout.write(f"{name:30} {scheduler:10} {predicted:9.2f} {real:6.2f} {ratio:6.2f}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extent", type=int, default=4096, help="samples along an axis of the image")
    with tempfile.TemporaryDirectory() as place:
        compare(place, parser.parse_args().extent)
