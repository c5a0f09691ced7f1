"""Contestants that read one Zarr array and write another: the identity, trimmed or blended."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.in_memory import Blend, identity, weighted_sum
from benchmarks.measure import CORES, MB, Figures, Prepared, put_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Stored:
    """A float32 image in cubic chunks, and crops around each chunk or at a stride."""

    shape: tuple[int, ...]
    chunk: int
    crop: int
    stride: int
    blosc: bool = False
    """Whether chunks are compressed with Blosc, and not with zarr's default, Zstandard."""

    def scaled(self, scale: float) -> Stored:
        """Return extents times `scale`, in whole chunks."""
        extents = (self.chunk * max(2, round(n * scale / self.chunk)) for n in self.shape)
        return replace(self, shape=tuple(extents))

    def tiny(self) -> Stored:
        """Return two chunks per axis."""
        return self.scaled(0)

    @property
    def overlap(self) -> int:
        """Context on each side of a crop."""
        return (self.crop - self.stride) // 2

    def source(self, folder: Path) -> Path:
        """Return where the set-up puts the image."""
        return folder / f"source-{'x'.join(map(str, self.shape))}.zarr"

    @property
    def options(self) -> dict[str, Any]:
        """Arguments with which an array is created."""
        from zarr.codecs import BloscCodec

        return {"compressors": BloscCodec()} if self.blosc else {}

    def boxes(self) -> Iterator[tuple[slice, ...]]:
        """Yield every chunk."""
        for corner in itertools.product(*(range(0, n, self.chunk) for n in self.shape)):
            yield tuple(slice(a, a + self.chunk) for a in corner)


# An array and not its path, which da.from_zarr would open through fsspec. For da.to_zarr it is the
# other way round: given an array, it rechunks to 128 MiB.
def _open(path: Path) -> Any:
    import zarr

    return zarr.open_array(path, mode="r")


def _create(path: Path, work: Stored) -> Any:
    import zarr

    return zarr.create_array(
        store=str(path),
        shape=work.shape,
        dtype="float32",
        chunks=(work.chunk,) * len(work.shape),
        overwrite=True,
        **work.options,
    )


FRACTIONS = (1 / 30, 1 / 10, 1 / 3, 1)
"""Of the extents of a growing image: a plane gets 900 times as many samples."""
KNOT = 32
"""Samples between the knots of the smooth part of an image."""


def write_sources(work: Stored, folder: Path) -> None:
    """Write the images of all sizes."""
    for size in FRACTIONS:
        write_source(work.scaled(size), folder)


def write_source(work: Stored, folder: Path) -> None:
    """Write smooth random chunks on 1/1024 levels: they compress about as well as micrographs."""
    target, ndim = _create(work.source(folder), work), len(work.shape)
    knots = max(2, work.chunk // KNOT + 1)
    place = np.linspace(0, knots - 1, work.chunk)
    hats = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(knots))).astype(np.float32)

    def write(numbered: tuple[int, tuple[slice, ...]]) -> None:
        number, box = numbered
        rng = np.random.default_rng(number)
        smooth = rng.standard_normal((knots,) * ndim, np.float32)
        for axis in range(ndim):  # linear interpolation
            smooth = np.moveaxis(np.tensordot(hats, smooth, (1, axis)), 0, axis)
        grain = np.float32(0.01) * rng.standard_normal(smooth.shape, np.float32)
        target[box] = np.round((smooth + grain) * 1024) / 1024

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(write, enumerate(work.boxes())))


def _written(work: Stored, folder: Path, run: Callable[[Path], Any]) -> Prepared:
    target = folder / "target.zarr"

    def check(_: Any) -> float:
        expected, result = _open(work.source(folder)), _open(target)
        if (result.shape, result.chunks) != (expected.shape, expected.chunks):
            return float("inf")

        def worst(box: tuple[slice, ...]) -> Any:
            return np.abs(result[box] - expected[box]).max()

        with ThreadPoolExecutor(CORES) as pool:
            difference = float(np.max(list(pool.map(worst, work.boxes()))))  # np.max passes a NaN on
        put_aside(target)
        return difference

    size = 4 * math.prod(work.shape)
    return Prepared(run=lambda: run(target), check=check, figures=lambda: {"image_mb": size / MB})


def _two_threads() -> Any:
    import dask

    return dask.config.set(scheduler="threads", num_workers=CORES)


def tilework_trim(work: Stored, folder: Path) -> Prepared:
    """`tiled_map` written by `to_zarr`."""
    return _tilework(work, folder, {"overlap": work.overlap})


def tilework_blend(work: Stored, folder: Path) -> Prepared:
    """The same with Gaussian weights."""
    return _tilework(work, folder, {"stride": work.stride, "blend": "gaussian"})


def _tilework(work: Stored, folder: Path, options: dict[str, Any]) -> Prepared:
    import tilework as tw

    lazy: list[Any] = []
    writing = {"chunks": work.chunk, **work.options}

    def run(target: Path) -> None:
        image = _open(work.source(folder))
        with _two_threads():
            out = tw.tiled_map(identity, image, work.crop, dtype="float32", **options)
            tw.to_zarr(out, str(target), progress=False, overwrite=True, **writing)
        lazy.append(out)

    def figures() -> Figures:
        with _two_threads():
            return prepared.figures() | estimate(lazy[-1], **writing)

    prepared = _written(work, folder, run)
    return replace(prepared, figures=figures)


def estimate(out: Any, **writing: Any) -> Figures:
    """Return what the plan of the run that writes a result says of its memory.

    It keeps fewer chunks than that of the lazy array, of which dask may compute the blocks in any order.
    """
    from tilework.plan.memory import peak_bytes
    from tilework.writing.forecast import forecast

    plan, _ = forecast(out, writing)
    return {"estimate_mb": peak_bytes(plan) / MB, "calls": float(plan.calls()), "slabs": float(plan.slabs)}


def map_overlap(work: Stored, folder: Path) -> Prepared:
    """dask's way; `meta` keeps it from calling the function on empty arrays."""
    import dask.array as da

    def run(target: Path) -> None:
        with _two_threads():
            out = da.map_overlap(
                identity, da.from_zarr(_open(work.source(folder))), depth=work.overlap,
                boundary="none", dtype="float32", meta=np.empty((0,) * len(work.shape), np.float32),
            )  # fmt: skip
            out.to_zarr(str(target))

    return _written(work, folder, run)


def cubed(work: Stored, folder: Path) -> Prepared:
    """cubed on its threads; its function trims, because cubed does not."""
    import cubed

    spec = cubed.Spec(work_dir=str(folder / "cubed"), allowed_mem="2GB", executor_name="threads")
    inner = (slice(work.overlap, -work.overlap or None),) * len(work.shape)

    def run(target: Path) -> None:
        array = cubed.from_zarr(str(work.source(folder)), spec=spec)
        out = cubed.map_overlap(
            lambda block: identity(block)[inner], array, dtype=array.dtype, chunks=array.chunks,
            depth=work.overlap, boundary=0, trim=False,
        )  # fmt: skip
        cubed.to_zarr(out, str(target))

    return _written(work, folder, run)


def copy_dask(work: Stored, folder: Path) -> Prepared:
    """No halo at all: dask reads a chunk and writes it."""
    import dask.array as da

    def run(target: Path) -> None:
        with _two_threads():
            da.from_zarr(_open(work.source(folder))).to_zarr(str(target))

    return _written(work, folder, run)


def copy_pool(work: Stored, folder: Path) -> Prepared:
    """No halo and no dask: the floor."""

    def run(target: Path) -> None:
        image, out = _open(work.source(folder)), _create(target, work)

        def copy(box: tuple[slice, ...]) -> None:
            out[box] = image[box]

        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(copy, work.boxes()))

    return _written(work, folder, run)


def copy_and_add(work: Stored, folder: Path) -> Prepared:
    """Every chunk read, the sum of weighted crops on one canvas, and every chunk of it written."""
    blend = Blend(work.shape, work.crop, work.stride)

    def run(target: Path) -> None:
        source, out = _open(work.source(folder)), _create(target, work)
        image = np.empty(work.shape, np.float32)
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(lambda box: np.copyto(image[box], source[box]), work.boxes()))
            mean = weighted_sum(blend, image)
            list(pool.map(lambda box: out.__setitem__(box, mean[box]), work.boxes()))

    return _written(work, folder, run)


def patchly(work: Stored, folder: Path) -> Prepared:
    """Patchly's loop, with the image in memory."""
    from patchly import Aggregator, GridSampler, SamplingMode

    ndim = len(work.shape)

    def run(target: Path) -> None:
        image = _open(work.source(folder))[...]
        sampler = GridSampler(
            image=image, spatial_size=work.shape, patch_size=(work.crop,) * ndim,
            step_size=(work.stride,) * ndim, mode=SamplingMode.SAMPLE_EDGE,
        )  # fmt: skip
        aggregator = Aggregator(sampler, output_size=work.shape, weights="gaussian")
        for patch, box in sampler:
            aggregator.append(identity(patch), box)
        _create(target, work)[...] = aggregator.get_output()

    return _written(work, folder, run)


# -------------------------------------------------------------------------- the loop of Ryomen


def sliced(work: Stored, folder: Path, package: str, writer: bool = False) -> Prepared:
    """The loop of Ryomen's README with either package; `writer` gathers whole chunks of the target."""
    module, ndim = import_module(package), len(work.shape)

    def loop(out: Any, slices: Any) -> None:
        for crop, source, destination in slices:
            out[destination] = identity(crop)[source]

    def run(target: Path) -> None:
        image, out = _open(work.source(folder)), _create(target, work)
        slices = module.Slicer(image, crop_size=(work.crop,) * ndim, overlap=(work.overlap,) * ndim)
        if writer:
            with slices.writer(out) as whole:
                loop(whole, slices)
        else:
            loop(out, slices)

    return _written(work, folder, run)


tilework_slicer = partial(sliced, package="tilework")
tilework_writer = partial(sliced, package="tilework", writer=True)
ryomen = partial(sliced, package="ryomen")
