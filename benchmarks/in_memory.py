"""Contestants whose image is a numpy array: blending with the identity, and a real network."""

from __future__ import annotations

import itertools
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure import CORES, Figures, Prepared, keep_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Prepare = Callable[[Any, Path], Prepared]

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Blend:
    """Identity on crops, put together with Gaussian weights."""

    shape: tuple[int, ...]
    crop: int
    stride: int

    def scaled(self, scale: float) -> Blend:
        """Return the same crops on extents times `scale`."""
        shape = tuple(max(self.crop + self.stride, round(n * scale)) for n in self.shape)
        return replace(self, shape=shape)

    def tiny(self) -> Blend:
        """Return two crops per axis."""
        return self.scaled(0)


@dataclass(frozen=True)
class Trim:
    """Identity on chunks with a halo of `depth`, which is trimmed off."""

    shape: tuple[int, ...]
    chunk: int
    depth: int

    def scaled(self, scale: float) -> Trim:
        """Return the same chunks on extents times `scale`, in whole chunks."""
        return replace(
            self, shape=tuple(self.chunk * max(2, round(n * scale / self.chunk)) for n in self.shape)
        )

    def tiny(self) -> Trim:
        """Return two chunks per axis."""
        return self.scaled(0)


@dataclass(frozen=True)
class Denoise:
    """A network on crops of a square image; its receptive field reaches `overlap` far."""

    extent: int
    crop: int
    overlap: int

    @property
    def stride(self) -> int:
        """Distance of neighbouring crops."""
        return self.crop - 2 * self.overlap

    def scaled(self, scale: float) -> Denoise:
        """Return the same crops on an extent times `scale`."""
        return replace(self, extent=max(self.crop + self.stride, round(self.extent * scale)))

    def tiny(self) -> Denoise:
        """Return two crops per axis."""
        return self.scaled(0)


def identity(crop: Any) -> Any:
    """Return what came."""
    return crop


def noise(shape: tuple[int, ...]) -> Image:
    """Return samples that are all different, so that a misplaced one shows."""
    return np.random.default_rng(0).random(shape, np.float32)


def largest_difference(result: Any, expected: Image) -> float:
    """Return the largest |difference|, row by row: `inf` for another shape."""
    if result.shape != expected.shape:
        return float("inf")
    pairs = zip(result, expected, strict=True)
    # np.max passes a NaN on, max() might not.
    return float(np.max([np.abs(a - b).max() for a, b in pairs]))


def blended(work: Blend | Trim, run: Callable[[Image], Any], allocates: bool = True) -> Prepared:
    """Return a run on noise, of which the identity is expected."""
    image = noise(work.shape)
    return Prepared(
        run=lambda: run(image),
        check=lambda result: largest_difference(result, image),
        image_bytes=image.nbytes,
        output_bytes=image.nbytes if allocates else 0,
    )


def beside(other: Prepare, prepare: Prepare) -> Prepare:
    """Return what prepares a run with that of another contestant just before each of its rounds."""

    def prepared(work: Any, folder: Path) -> Prepared:
        return replace(prepare(work, folder), beside=other(work, folder).run)

    return prepared


# ------------------------------------------------------------------------------------- tilework


def _lazy(work: Blend, image: Image, **options: Any) -> Any:
    import tilework as tw

    return tw.tiled_map(
        identity, image, work.crop, stride=work.stride,
        blend="gaussian", dtype="float32", **{"name": "bench"} | options,
    )  # fmt: skip


def tilework_compute(work: Blend, folder: Path, threads: int = CORES, kept: bool = False) -> Prepared:
    """`compute()`, which holds all blocks while it puts them together; ``kept`` as `keep_memory` says."""
    if kept:
        keep_memory()

    def run(image: Image) -> Any:
        out = _lazy(work, image)
        return out.compute(scheduler="threads", num_workers=threads)

    return blended(work, run)


def tilework_in_place(
    work: Blend, folder: Path, threads: int = CORES, name: str | None = "bench"
) -> Prepared:
    """`tilework.compute`, which makes each block in its place in the new array that it returns.

    Without ``name``, the result is named by a hash of the image.
    """
    import dask

    import tilework as tw

    def run(image: Image) -> Any:
        out = _lazy(work, image, name=name)
        with dask.config.set(scheduler="threads", num_workers=threads):
            return tw.compute(out)

    return blended(work, run)


def tilework_store(work: Blend, folder: Path, threads: int = CORES, memory: float | None = None) -> Prepared:
    """Block by block into an array that exists; ``memory`` is a share of the image, which limits the run."""
    import dask

    import tilework as tw

    given = np.full(work.shape, np.nan, np.float32)  # written to, so resident before the start

    def run(image: Image) -> Any:
        options = {} if memory is None else {"memory_limit": max(int(memory * image.nbytes), 2**26)}
        out = _lazy(work, image, **options)
        with dask.config.set(scheduler="threads", num_workers=threads):
            return tw.to_zarr(out, given, progress=False)

    return blended(work, run, allocates=False)


def tilework_trim(work: Trim, folder: Path, in_place: bool = False) -> Prepared:
    """`compute()` of trimmed crops, or `tilework.compute`."""
    import dask

    import tilework as tw

    def run(image: Image) -> Any:
        crop = work.chunk + 2 * work.depth
        out = tw.tiled_map(identity, image, crop, work.depth, dtype="float32", name="bench")
        with dask.config.set(scheduler="threads", num_workers=CORES):
            return tw.compute(out) if in_place else out.compute()

    return blended(work, run)


# ------------------------------------------------------------------- loops of Patchly and tilework


def sampled(
    work: Blend, folder: Path, package: str, weights: str = "gaussian", chunk: int | None = None
) -> Prepared:
    """Sampler and aggregator of Patchly, or those of tilework: one loop, only the import differs."""
    module = import_module(package)

    def run(image: Image) -> Any:
        ndim = len(work.shape)
        chunks = None if chunk is None else tuple(min(chunk, n) for n in work.shape)
        sampler = module.GridSampler(
            image=image, spatial_size=work.shape, patch_size=(work.crop,) * ndim,
            step_size=(work.stride,) * ndim, chunk_size=chunks,
            mode=module.SamplingMode.SAMPLE_EDGE,
        )  # fmt: skip
        aggregator = module.Aggregator(sampler, output_size=work.shape, weights=weights)
        for patch, box in sampler:
            aggregator.append(identity(patch), box)
        return aggregator.get_output()

    return blended(work, run)


patchly = partial(sampled, package="patchly")
"""Patchly's sampler and aggregator."""


# --------------------------------------------------------------------------------------- limits


def memcpy(work: Blend | Trim, folder: Path) -> Prepared:
    """One copy of the image into memory that is there: nothing that reads and writes it is quicker."""
    given = np.full(work.shape, np.nan, np.float32)

    def run(image: Image) -> Any:
        np.copyto(given, image)
        return given

    return blended(work, run, allocates=False)


def only_calls(work: Blend, folder: Path) -> Prepared:
    """Tiles x call: each crop is copied and `fn` is called, and nothing is put together."""

    def run(image: Image) -> Any:
        for box in _boxes(work):
            identity(image[box].copy())
        return image

    return blended(work, run, allocates=False)


def paste(work: Trim, folder: Path) -> Prepared:
    """Tiles x call: each crop is copied, and its core is put where it belongs."""

    def run(image: Image) -> Any:
        out = np.empty_like(image)
        for corner in itertools.product(*(range(0, n, work.chunk) for n in image.shape)):
            wide = [slice(max(0, a - work.depth), a + work.chunk + work.depth) for a in corner]
            crop = identity(image[tuple(wide)].copy())
            core = tuple(
                slice(a - w.start, a - w.start + work.chunk) for a, w in zip(corner, wide, strict=True)
            )
            out[tuple(slice(a, a + work.chunk) for a in corner)] = crop[core]
        return out

    return blended(work, run)


def multiply_add(work: Blend, folder: Path) -> Prepared:
    """The sum of weighted crops with numpy, on one whole canvas, in one thread and without temporaries."""
    return blended(work, partial(weighted_sum, work))


def multiply_add_copies(work: Blend, folder: Path) -> Prepared:
    """The same with a copy of each crop, as a function may write into its crop."""
    return blended(work, partial(weighted_sum, work, copies=True))


def multiply_add_threads(work: Blend, folder: Path) -> Prepared:
    """The same with copies, in two threads: each adds half of the rows to a canvas of its own."""
    return blended(work, partial(weighted_sum, work, copies=True, threads=CORES))


def weighted_sum(work: Blend, image: Image, copies: bool = False, threads: int = 1) -> Image:
    """Return the weighted mean of the crops of an image."""
    middle = (work.crop - 1) / 2
    profile = np.exp(-((((np.arange(work.crop) - middle) / (work.crop / 8)) ** 2) / 2))
    profile = np.maximum(profile, 1e-30).astype(np.float32)
    window = np.ones((), np.float32)
    for _ in work.shape:
        window = np.multiply.outer(window, profile)
    starts = [_starts(extent, work.crop, work.stride) for extent in work.shape]

    def add(rows: Sequence[int], canvas: Image) -> None:
        scratch = np.empty_like(window)
        for corner in itertools.product(rows, *starts[1:]):
            box = tuple(slice(start, start + work.crop) for start in corner)
            crop = image[box]
            np.multiply(identity(crop.copy() if copies else crop), window, out=scratch)
            part = canvas[slice(box[0].start - rows[0], box[0].stop - rows[0]), *box[1:]]
            part += scratch

    out = np.zeros_like(image)
    if threads == 1:
        add(starts[0], out)
    else:
        _add_in_threads(add, starts[0], work.crop, threads, out)
    for axis, extent in enumerate(work.shape):
        total = np.zeros(extent)
        for start in _starts(extent, work.crop, work.stride):
            total[start : start + work.crop] += profile
        shape = [-1 if d == axis else 1 for d in range(out.ndim)]
        out *= (1 / total).astype(np.float32).reshape(shape)
    return out


def _add_in_threads(
    add: Callable[[Sequence[int], Image], None], starts: list[int], crop: int, threads: int, out: Image
) -> None:
    """Add up as many parts of the rows at a time, and put these together."""
    each = -(-len(starts) // threads)
    parts = [starts[k : k + each] for k in range(0, len(starts), each)]
    canvases = [np.zeros((rows[-1] + crop - rows[0], *out.shape[1:]), out.dtype) for rows in parts]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(add, parts, canvases))
    for rows, canvas in zip(parts, canvases, strict=True):
        out[rows[0] : rows[0] + len(canvas)] += canvas


def _boxes(work: Blend) -> Iterator[tuple[slice, ...]]:
    starts = [_starts(extent, work.crop, work.stride) for extent in work.shape]
    for corner in itertools.product(*starts):
        yield tuple(slice(start, start + work.crop) for start in corner)


def _starts(extent: int, crop: int, stride: int) -> list[int]:
    return [*range(0, extent - crop, stride), extent - crop]


# -------------------------------------------------------------------------------------- network


LAYERS = 6
"""Convolutions of 3 x 3, each of which looks one sample further."""


class TimedNetwork:
    """Layers as those of a DnCNN on torch's threads, which keep how long each call took."""

    def __init__(self) -> None:
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(CORES)
        widths = itertools.pairwise((1, *(64,) * (LAYERS - 1), 1))
        layers = [(torch.nn.Conv2d(a, b, 3, padding=1), torch.nn.ReLU()) for a, b in widths]
        self.net, self.torch = torch.nn.Sequential(*itertools.chain(*layers)).eval(), torch
        self.seconds: list[float] = []

    def __call__(self, image: Image) -> Image:
        begin = time.perf_counter()
        with self.torch.inference_mode():
            planes = self.torch.from_numpy(np.ascontiguousarray(image))[None, None]
            result: Image = image - self.net(planes)[0, 0].numpy()
        self.seconds.append(time.perf_counter() - begin)
        return result

    def __dask_tokenize__(self) -> str:
        return "as DnCNN"


def in_thread(call: Callable[[], Any]) -> Any:
    """Return what `call` returns in a thread of its own, as it runs under dask.

    In the main thread glibc hands torch's buffers back to the system after each layer, which makes
    the same call slower than in any other thread.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def _denoised(work: Denoise, run: Callable[[TimedNetwork, Image], Any]) -> Prepared:
    network, image = TimedNetwork(), noise((work.extent, work.extent))
    expected = network(image)
    crop = image[: work.crop, : work.crop].copy()
    alone: list[float] = []
    inside: list[float] = []
    took: list[float] = []

    def call_alone() -> None:
        network.seconds.clear()
        in_thread(lambda: [network(crop) for _ in range(8)])
        # The first call after another shape pays for torch's new buffers.
        alone.extend(network.seconds[1:])
        network.seconds.clear()

    def timed_run() -> Any:
        begin = time.perf_counter()
        result = run(network, image)
        took.append(time.perf_counter() - begin)
        inside.extend(network.seconds)
        return result

    def figures() -> Figures:
        call_alone()  # before and after, so that a change of load meets both sides
        tiles, wall = len(inside), took[-1]
        return {
            "tiles": tiles,
            "alone_ms": 1e3 * statistics.median(alone),
            "over_alone": wall / (tiles * statistics.median(alone)),
            "over_median": wall / (tiles * statistics.median(inside)),
            "over_sum": wall / sum(inside),
        }

    call_alone()
    return Prepared(
        run=timed_run,
        check=lambda result: largest_difference(result, expected),
        image_bytes=image.nbytes,
        output_bytes=image.nbytes,
        figures=figures,
    )


def tilework_network(work: Denoise, folder: Path) -> Prepared:
    """One tile after another; the network has both cores."""
    import tilework as tw

    def run(network: TimedNetwork, image: Image) -> Any:
        out = tw.tiled_map(network, image, work.crop, work.overlap, dtype="float32", name="bench")
        return out.compute(scheduler="threads", num_workers=1)

    return _denoised(work, run)


def loop_network(work: Denoise, folder: Path) -> Prepared:
    """The loop that anybody would write: cut, call, trim, paste."""

    def loop(network: TimedNetwork, image: Image) -> Any:
        out = np.empty_like(image)
        starts = _starts(work.extent, work.crop, work.stride)
        for corner in itertools.product(starts, starts):
            # The first crop keeps its border; later ones write over what lies before their core.
            low = [work.overlap if start else 0 for start in corner]
            crop = image[tuple(slice(a, a + work.crop) for a in corner)]
            core = tuple(slice(a + o, a + work.crop) for a, o in zip(corner, low, strict=True))
            out[core] = network(crop)[low[0] :, low[1] :]
        return out

    return _denoised(work, lambda network, image: in_thread(lambda: loop(network, image)))
