"""Contestants that write an OME-Zarr image of five levels from a filtered Zarr array."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import CORES, MB, Prepared, put_aside
from benchmarks.on_disk import Stored, _create, _open, _two_threads

if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS, BESIDE = 5, "beside.ome.zarr"
SIGMA, WIDE, SIGMA_3D = 2.5, 5.0, 1.2
"""Of the filter, samples: it takes at least as long as writing its result, and the wide one twice that."""


def smooth(crop: np.ndarray, sigma: float = SIGMA) -> np.ndarray:
    """A filter that needs `4 * sigma` samples on each side."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(crop, sigma)


def _lazy(work: Stored, folder: Path, sigma: float = SIGMA) -> Any:
    import tilework as tw

    image, halo = _open(work.source(folder)), round(4 * sigma)
    fn = partial(smooth, sigma=sigma)
    return tw.tiled_map(fn, image, work.chunk + 2 * halo, halo, dtype="float32")


def _written(work: Stored, folder: Path, run: Callable[[Path], Any], paths: list[str]) -> Prepared:
    target = folder / "target.ome.zarr"

    def check(_: Any) -> float:
        worst, below = 0.0, _open(target / paths[0])[...]
        for path in paths[1:]:
            level = _open(target / path)[...]
            bins = below[tuple(slice(0, 2 * n) for n in level.shape)]
            bins = bins.reshape([n for extent in level.shape for n in (extent, 2)])
            mean = bins.mean(tuple(range(1, bins.ndim, 2)))
            worst, below = max(worst, float(np.abs(mean - level).max())), level
        for written in filter(Path.exists, (target, folder / BESIDE)):
            put_aside(written)
        return worst

    size = 4 * float(np.prod(work.shape))
    return Prepared(run=lambda: run(target), check=check, figures=lambda: {"image_mb": size / MB})


def tilework_alone(work: Stored, folder: Path, sigma: float = SIGMA) -> Prepared:
    """Level 0 only."""
    return _written(work, folder, partial(_write, work, folder, 1, sigma), ["0"])


def tilework_levels(work: Stored, folder: Path, sigma: float = SIGMA) -> Prepared:
    """All levels in one pass, beside level 0 only."""
    levels = min(LEVELS, work.shape[0].bit_length())
    run = partial(_write, work, folder, levels, sigma)
    prepared = _written(work, folder, run, [str(k) for k in range(levels)])
    return replace(prepared, beside=lambda: _write(work, folder, 1, sigma, folder / BESIDE))


def _write(work: Stored, folder: Path, levels: int, sigma: float, target: Path) -> None:
    import tilework as tw

    with _two_threads():
        out = _lazy(work, folder, sigma)
        tw.to_zarr(out, str(target), ome=True, levels=levels, chunks=work.chunk, progress=False)


def ome_zarr(work: Stored, folder: Path) -> Prepared:
    """ome-zarr-py's writer of the same lazy array, with means."""
    from ome_zarr.scale import Methods
    from ome_zarr.writer import write_image

    def run(target: Path) -> None:
        with _two_threads():
            write_image(
                _lazy(work, folder), str(target), axes="yx", scale_factors=[2, 4, 8, 16],
                method=Methods.LOCAL_MEAN, storage_options={"chunks": (work.chunk,) * 2},
            )  # fmt: skip

    return _written(work, folder, run, [f"s{k}" for k in range(LEVELS)])


def ngff_zarr(work: Stored, folder: Path) -> Prepared:
    """ngff-zarr's writer of the same lazy array, with means."""
    import ngff_zarr as nz

    def run(target: Path) -> None:
        with _two_threads():
            image = nz.to_ngff_image(_lazy(work, folder), dims=("y", "x"))
            found = nz.to_multiscales(
                image, scale_factors=[2, 4, 8, 16], chunks=work.chunk, method=nz.Methods.DASK_BIN_SHRINK
            )
            nz.to_ngff_zarr(str(target), found)

    return _written(work, folder, run, [f"scale{k}/image" for k in range(LEVELS)])


def filter_alone(work: Stored, folder: Path, sigma: float = SIGMA) -> Prepared:
    """The filter on every crop of an image in memory."""
    image, halo = _open(work.source(folder))[...], round(4 * sigma)

    def on_crop(box: tuple[slice, ...]) -> None:
        smooth(image[tuple(slice(max(0, s.start - halo), s.stop + halo) for s in box)], sigma)

    def run() -> None:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(on_crop, work.boxes()))

    return Prepared(run=run, check=lambda _: 0.0)


def chunks_alone(work: Stored, folder: Path, sigma: float = SIGMA) -> Prepared:
    """Every chunk of the filtered image, written by zarr."""
    result, target = smooth(_open(work.source(folder))[...], sigma), folder / "target.zarr"

    def run() -> None:
        out = _create(target, work)
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(lambda box: out.__setitem__(box, result[box]), work.boxes()))

    def check(_: Any) -> float:
        worst = float(np.abs(_open(target)[...] - result).max())
        put_aside(target)
        return worst

    return Prepared(run=run, check=check)
