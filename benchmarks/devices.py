"""Contestants whose function keeps a device busy: what a run adds to the time of the device."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.in_memory import LAYERS, Denoise, in_thread, largest_difference, noise
from benchmarks.measure import CORES, Figures, Prepared

# -------------------------------------------------------------------------------------- that waits


@dataclass(frozen=True)
class Waiting:
    """Tiles of which reading, the call and writing take as long as each other, and no processor."""

    tiles: int
    seconds: float
    """Of each of the three."""

    def scaled(self, scale: float) -> Waiting:
        """Return `scale` times as many tiles."""
        return replace(self, tiles=max(8, round(self.tiles * scale)))

    def tiny(self) -> Waiting:
        """Return eight tiles."""
        return replace(self, tiles=8)


CROP = 16


class Far:
    """An image and a target far away."""

    def __init__(self, work: Waiting) -> None:
        self.shape, self.dtype, self.chunks = (work.tiles * CROP, CROP), np.dtype("f4"), (CROP, CROP)
        self.seconds, self.values = work.seconds, np.zeros(self.shape, "f4")

    def __getitem__(self, box: tuple[slice, ...]) -> Any:
        time.sleep(self.seconds)
        return self.values[box]

    def __setitem__(self, box: tuple[slice, ...], values: Any) -> None:
        time.sleep(self.seconds)
        self.values[box] = values


def _device(seconds: float) -> Callable[[Any], Any]:
    def call(crop: Any) -> Any:
        time.sleep(seconds)
        return crop + 1

    return call


def tilework_lanes(work: Waiting, folder: Path, lanes: int | None = None) -> Prepared:
    """Read, call and write on as many threads as a function with a device gets, or on some."""
    import tilework as tw

    def run() -> Any:
        source, target = Far(work), Far(work)
        fn = tw.load_once(_device, (work.seconds,))
        out = tw.tiled_map(fn, source, CROP, 0, axes=(0, 1), dtype="f4", chunks=(CROP, CROP))
        tw.compute(out, into=target, lanes=lanes, scheduler="threads")
        return target.values

    return Prepared(run, lambda result: largest_difference(result, np.ones_like(result)))


def longest_sum(work: Waiting, folder: Path) -> Prepared:
    """Wait as long as all calls take, one after the other."""
    return Prepared(lambda: time.sleep(work.tiles * work.seconds), lambda _: 0.0)


# -------------------------------------------------------------------------------------- a network


# Of the larger networks of DnCNN; the small ones have `LAYERS`.
DEEP = 17


def _network(layers: int = LAYERS) -> Any:
    import torch

    torch.manual_seed(0)
    widths = itertools.pairwise((1, *(64,) * (layers - 1), 1))
    layers = [(torch.nn.Conv2d(a, b, 3, padding=1), torch.nn.ReLU()) for a, b in widths]
    return torch.nn.Sequential(*itertools.chain(*layers)).eval()


def tilework_stored(work: Denoise, folder: Path, lanes: int | None = None) -> Prepared:
    """From Zarr to Zarr, beside the calls alone on a crop that is in memory."""
    import torch

    import tilework as tw

    torch.set_num_threads(CORES)
    network = tw.from_torch(_network(), device="cpu")
    image = noise((work.extent, work.extent))
    expected = network(image[None])[0]
    crop = image[None, : work.crop, : work.crop].copy()

    def calls() -> list[float]:
        def timed() -> float:
            begin = time.perf_counter()
            network(crop)
            return time.perf_counter() - begin

        return in_thread(lambda: [timed() for _ in range(8)])

    return _beside_calls(
        work, folder, network, image, calls, lambda written: largest_difference(written[:], expected), lanes
    )


def tilework_on_gpu(work: Denoise, folder: Path) -> Prepared:
    """From Zarr to Zarr on a GPU, beside the network alone on a crop that is there, call after call."""
    import torch

    import tilework as tw

    if not torch.cuda.is_available():
        raise ModuleNotFoundError("No module named 'cuda'")  # as the table says what a contestant needs
    module = _network(DEEP).to("cuda")
    network = tw.from_torch(module)
    image = noise((work.extent, work.extent))
    corner = min(work.extent, 2 * work.crop)
    expected = tw.compute(tw.tiled_map(network, image[:corner, :corner], work.crop, work.overlap, dtype="f4"))
    inner = slice(0, work.crop)  # of which all neighbours are in the corner
    crop = torch.from_numpy(image[None, None, : work.crop, : work.crop].copy()).to("cuda")

    def calls() -> list[float]:
        with torch.no_grad():
            for repeats in (3, 20):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                for _ in range(repeats):
                    module(crop)
                torch.cuda.synchronize()
        return [(time.perf_counter() - begin) / repeats]

    return _beside_calls(
        work, folder, network, image, calls,
        lambda written: largest_difference(written[inner, inner], expected[inner, inner]),
    )  # fmt: skip


def _beside_calls(
    work: Denoise,
    folder: Path,
    network: Any,
    image: Any,
    calls: Callable[[], list[float]],
    check: Callable[[Any], float],
    lanes: int | None = None,
) -> Prepared:
    """Run a network from Zarr to Zarr; `calls` times calls alone, seconds of each."""
    import zarr

    import tilework as tw
    from tilework.function.devices import busy_seconds

    source = zarr.create_array(
        folder / "noisy.zarr", data=image, chunks=(work.crop, work.crop), overwrite=True
    )
    out = tw.tiled_map(network, source, work.crop, work.overlap, dtype="f4", name="bench")
    tiles = len(tw.plan_tiles(image.shape, work.crop, work.overlap))
    alone = calls()
    took: list[tuple[float, float]] = []

    def run() -> Any:
        begin, busy = time.perf_counter(), sum(busy_seconds().values())
        written = tw.to_zarr(
            out, folder / "clean.zarr", overwrite=True, progress=False, lanes=lanes, scheduler="threads"
        )
        took.append((time.perf_counter() - begin, sum(busy_seconds().values()) - busy))
        return written

    def figures() -> Figures:
        alone.extend(calls())  # before and after, so that a change of load meets both sides
        wall, busy = took[-1]
        return {
            "tiles": tiles, "alone_ms": 1e3 * statistics.median(alone),
            "over_alone": wall / (tiles * statistics.median(alone)), "over_busy": wall / busy,
        }  # fmt: skip

    return Prepared(run, check, image_bytes=image.nbytes, figures=figures)
