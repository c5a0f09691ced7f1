"""The peers whose image is a numpy array, each in the form that is its best for the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.in_memory import Blend, Image, Trim, blended, identity
from benchmarks.measure import CORES

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.measure import Prepared

# --------------------------------------------------------------------------------------- blends


def monai(work: Blend, folder: Path) -> Prepared:
    """MONAI's sliding window on torch's threads; its overlap is the shared part of a window."""
    from monai.inferers import sliding_window_inference

    return _windows(work, sliding_window_inference)


def monai_face(work: Blend, folder: Path) -> Prepared:
    """The same call of `tilework.monai`, which runs it in this thread."""
    from tilework.monai import sliding_window_inference

    return _windows(work, sliding_window_inference)


def _windows(work: Blend, inference: Any) -> Prepared:
    import torch

    torch.set_num_threads(CORES)

    def run(image: Image) -> Any:
        with torch.inference_mode():
            result = inference(
                torch.from_numpy(image)[None, None], roi_size=(work.crop,) * image.ndim,
                sw_batch_size=4, predictor=identity, overlap=1 - work.stride / work.crop,
                mode="gaussian",
            )  # fmt: skip
        return result[0, 0].numpy()

    return blended(work, run)


def tiler(work: Blend, folder: Path) -> Prepared:
    """tiler's own loop; its Gaussian is given as an array, since it has none with these widths."""
    from tiler import Merger, Tiler

    middle = (work.crop - 1) / 2
    profile = np.exp(-((((np.arange(work.crop) - middle) / (work.crop / 8)) ** 2) / 2))
    window = np.ones(())
    for _ in work.shape:
        window = np.multiply.outer(window, profile)

    def run(image: Image) -> Any:
        tiles = Tiler(
            data_shape=image.shape, tile_shape=(work.crop,) * image.ndim,
            overlap=(work.crop - work.stride,) * image.ndim, channel_dimension=None,
        )  # fmt: skip
        merger = Merger(tiles, window=window)
        for number, tile in tiles(image):
            merger.add(number, identity(tile))
        return merger.merge(unpad=True, dtype=image.dtype)

    return blended(work, run)


def torchio(work: Blend, folder: Path) -> Prepared:
    """TorchIO's sampler and aggregator in memory; a plane is a volume of depth 1."""
    import torch
    import torchio as tio

    torch.set_num_threads(CORES)
    thick = 3 - len(work.shape)
    patch = (work.crop,) * len(work.shape) + (1,) * thick
    shared = (work.crop - work.stride,) * len(work.shape) + (0,) * thick

    def run(image: Image) -> Any:
        volume = torch.from_numpy(image.reshape(1, *image.shape, *(1,) * thick))
        sampler = tio.inference.GridSampler(tio.Subject(image=tio.ScalarImage(tensor=volume)), patch, shared)
        aggregator = tio.inference.GridAggregator(sampler, overlap_mode="hann")
        for batch in tio.SubjectsLoader(sampler, batch_size=4):
            aggregator.add_batch(identity(batch["image"][tio.DATA]), batch[tio.LOCATION])
        return aggregator.get_output_tensor().numpy().reshape(image.shape)

    return blended(work, run)


# ---------------------------------------------------------------------------------------- trims


def map_overlap(work: Trim, folder: Path) -> Prepared:
    """dask's own way; `meta` keeps it from calling the function on empty arrays."""
    import dask.array as da

    def run(image: Image) -> Any:
        out = da.map_overlap(
            identity, da.from_array(image, chunks=work.chunk, name=False), depth=work.depth, boundary="none",
            dtype="float32", meta=np.empty((0,) * image.ndim, np.float32),
        )  # fmt: skip
        return out.compute(scheduler="threads", num_workers=CORES)

    return blended(work, run)


def apply_parallel(work: Trim, folder: Path) -> Prepared:
    """scikit-image's wrapper around dask."""
    import dask
    from skimage.util import apply_parallel

    def run(image: Image) -> Any:
        with dask.config.set(num_workers=CORES):
            return apply_parallel(
                identity, image, chunks=work.chunk, depth=work.depth, mode="none", dtype="float32"
            )

    return blended(work, run)


def ryomen(work: Trim, folder: Path) -> Prepared:
    """The loop of Ryomen's README."""
    from ryomen import Slicer

    def run(image: Image) -> Any:
        out = np.empty_like(image)
        crop = (work.chunk + 2 * work.depth,) * image.ndim
        for part, source, destination in Slicer(image, crop_size=crop, overlap=(work.depth,) * image.ndim):
            out[destination] = identity(part)[source]
        return out

    return blended(work, run)


def cubed(work: Trim, folder: Path) -> Prepared:
    """cubed on its threads; its function trims, because cubed does not."""
    import cubed

    spec = cubed.Spec(work_dir=str(folder), allowed_mem="2GB", executor_name="threads")
    inner = (slice(work.depth, -work.depth or None),) * len(work.shape)

    def run(image: Image) -> Any:
        array = cubed.from_array(image, chunks=(work.chunk,) * image.ndim, spec=spec)
        out = cubed.map_overlap(
            lambda block: identity(block)[inner], array, dtype=array.dtype, chunks=array.chunks,
            depth=work.depth, boundary=0, trim=False,
        )  # fmt: skip
        return out.compute()

    return blended(work, run)
