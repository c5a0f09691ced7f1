"""Contestants that read one Zarr array and write another: the identity with trimmed halos."""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.in_memory import identity
from benchmarks.measure import CORES, Figures, Prepared
from tests.store_counts import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Trim:
    """A square float32 image in square chunks, and crops of a chunk with a halo around it."""

    extent: int
    chunk: int
    overlap: int

    def scaled(self, scale: float) -> Trim:
        """Return an extent times `scale`, in whole chunks."""
        return replace(self, extent=self.chunk * max(2, round(self.extent * scale / self.chunk)))

    def tiny(self) -> Trim:
        """Return two chunks per axis."""
        return self.scaled(0)

    @property
    def nbytes(self) -> int:
        """Decoded size."""
        return 4 * self.extent**2

    def source(self, folder: Path) -> Path:
        """Return where the set-up puts the image."""
        return folder / f"source-{self.extent}.zarr"

    def boxes(self) -> Iterator[tuple[slice, slice]]:
        """Yield every chunk."""
        ranges = [slice(a, a + self.chunk) for a in range(0, self.extent, self.chunk)]
        return itertools.product(ranges, ranges)


@dataclass(frozen=True)
class Slices:
    """A float32 volume in cubic chunks, cut into cubic crops that overlap."""

    extent: int
    chunk: int
    crop: int
    overlap: int

    def scaled(self, scale: float) -> Slices:
        """Return an extent times `scale`, in whole chunks."""
        return replace(self, extent=self.chunk * max(1, round(self.extent * scale / self.chunk)))

    def tiny(self) -> Slices:
        """Return one chunk."""
        return self.scaled(0)

    def source(self, folder: Path) -> Path:
        """Return where the set-up puts the volume."""
        return folder / f"volume-{self.extent}.zarr"


# An array and not its path, which da.from_zarr would open through fsspec. For da.to_zarr it is the
# other way round: given an array, it rechunks to 128 MiB.
def _open(path: Path) -> Any:
    import zarr

    return zarr.open_array(path, mode="r")


def _create(path: Path, work: Trim) -> Any:
    import zarr

    return zarr.create_array(
        store=str(path), shape=(work.extent, work.extent), dtype="float32",
        chunks=(work.chunk, work.chunk), overwrite=True,
    )  # fmt: skip


def write_source(work: Trim, folder: Path) -> None:
    """Write smooth random chunks on 1/1024 levels: they compress about as well as micrographs."""
    target = _create(work.source(folder), work)
    knots = work.chunk // 32 + 1
    place = np.linspace(0, knots - 1, work.chunk)
    hats = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(knots)))  # linear interpolation

    def write(numbered: tuple[int, tuple[slice, slice]]) -> None:
        number, box = numbered
        rng = np.random.default_rng(number)
        smooth = hats @ rng.standard_normal((knots, knots)) @ hats.T
        grain = 0.01 * rng.standard_normal(smooth.shape, np.float32)
        target[box] = (np.round((smooth + grain) * 1024) / 1024).astype(np.float32)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(write, enumerate(work.boxes())))


class Counters:
    """Tasks that dask ran and chunk files that were read, while `run` ran."""

    def __init__(self, work: Trim, folder: Path) -> None:
        self.work, self.root = work, work.source(folder)
        self.tasks = self.reads = 0

    def around(self, run: Callable[[], None]) -> None:
        """Call `run` and count."""
        from dask.callbacks import Callback
        from zarr.storage import LocalStore

        self.tasks = self.reads = 0
        original = LocalStore.get

        async def get(store: Any, key: str, *args: Any, **kwargs: Any) -> Any:
            if Path(store.root) == self.root and key.startswith("c/"):
                self.reads += 1  # only ever in zarr's own event loop, so without a lock
            return await original(store, key, *args, **kwargs)

        def count_task(*_: Any) -> None:
            self.tasks += 1

        # On the class: a recipe opens the store again by its path, past any wrapper around it.
        LocalStore.get = get
        try:
            with Callback(pretask=count_task):
                run()
        finally:
            LocalStore.get = original

    def figures(self) -> Figures:
        """Return what was counted."""
        decoded = self.reads * 4 * self.work.chunk**2
        figures = {"decoded": decoded / self.work.nbytes}
        return figures | ({"tasks": self.tasks} if self.tasks else {})


def _copied(work: Trim, folder: Path, run: Callable[[Path], None]) -> Prepared:
    counters, target = Counters(work, folder), folder / "target.zarr"
    shutil.rmtree(target, ignore_errors=True)

    def check(_: None) -> float:
        expected, result = _open(work.source(folder)), _open(target)
        if (result.shape, result.chunks) != (expected.shape, expected.chunks):
            return float("inf")
        worst = np.max([np.abs(result[box] - expected[box]).max() for box in work.boxes()])
        shutil.rmtree(target)
        return float(worst)

    return Prepared(
        run=lambda: counters.around(lambda: run(target)),
        check=check,
        image_bytes=work.nbytes,
        figures=counters.figures,
    )


def _two_threads() -> Any:
    import dask

    return dask.config.set(scheduler="threads", num_workers=CORES)


def tilework_to_zarr(work: Trim, folder: Path) -> Prepared:
    """`tiled_map` written by `to_zarr`."""
    import tilework as tw

    def run(target: Path) -> None:
        image = _open(work.source(folder))
        with _two_threads():
            out = tw.tiled_map(identity, image, work.chunk + 2 * work.overlap, work.overlap, dtype="float32")
            tw.to_zarr(out, str(target), chunks=(work.chunk, work.chunk), progress=False, overwrite=True)

    return _copied(work, folder, run)


def map_overlap(work: Trim, folder: Path) -> Prepared:
    """dask's way; `meta` keeps it from calling the function on empty arrays."""
    import dask.array as da

    def run(target: Path) -> None:
        with _two_threads():
            out = da.map_overlap(
                identity, da.from_zarr(_open(work.source(folder))), depth=work.overlap,
                boundary="none", dtype="float32", meta=np.empty((0, 0), np.float32),
            )  # fmt: skip
            out.to_zarr(str(target))

    return _copied(work, folder, run)


def copy_dask(work: Trim, folder: Path) -> Prepared:
    """No halo at all: dask reads a chunk and writes it."""
    import dask.array as da

    def run(target: Path) -> None:
        with _two_threads():
            da.from_zarr(_open(work.source(folder))).to_zarr(str(target))

    return _copied(work, folder, run)


def copy_pool(work: Trim, folder: Path) -> Prepared:
    """No halo and no dask: the floor."""

    def run(target: Path) -> None:
        image, out = _open(work.source(folder)), _create(target, work)

        def copy(box: tuple[slice, slice]) -> None:
            out[box] = image[box]

        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(copy, work.boxes()))

    return _copied(work, folder, run)


# -------------------------------------------------------------------------- the loop of Ryomen


def write_volume(work: Slices, folder: Path) -> None:
    """Write grains on 1/64 levels: they compress to about a third."""
    target = _create_volume(work.source(folder), work)
    for z in range(0, work.extent, work.chunk):
        rng = np.random.default_rng(z)
        slab = rng.standard_normal((work.chunk, work.extent, work.extent), np.float32)
        target[z : z + work.chunk] = np.round(slab * 64) / 64


def _create_volume(path: Path, work: Slices) -> Any:
    import zarr

    return zarr.create_array(
        store=str(path), shape=(work.extent,) * 3, dtype="float32", chunks=(work.chunk,) * 3, overwrite=True
    )


def sliced(work: Slices, folder: Path, package: str, writer: bool = False) -> Prepared:
    """The loop of Ryomen's README with either package; `writer` gathers whole chunks of the target."""
    module, target = import_module(package), folder / "sliced.zarr"
    counts = {"decoded": 0.0, "written": 0.0}

    def loop(out: Any, slices: Any) -> None:
        for crop, source, destination in slices:
            out[destination] = identity(crop)[source]

    def run() -> None:
        out = _create_volume(target, work)
        volume = _open(work.source(folder))
        with counted(volume) as reads, counted(out) as writes:
            slices = module.Slicer(volume, crop_size=(work.crop,) * 3, overlap=(work.overlap,) * 3)
            if writer:
                with slices.writer(out) as whole:
                    loop(whole, slices)
            else:
                loop(out, slices)
        chunks = (work.extent // work.chunk) ** 3
        counts["decoded"] = sum(reads.reads.values()) / chunks
        counts["written"] = sum(writes.writes.values()) / chunks

    def check(_: None) -> float:
        result, expected = _open(target), _open(work.source(folder))
        steps = range(0, work.extent, work.chunk)
        slabs = (np.abs(result[z : z + work.chunk] - expected[z : z + work.chunk]).max() for z in steps)
        return float(np.max(list(slabs)))

    return Prepared(run=run, check=check, image_bytes=4 * work.extent**3, figures=lambda: counts)
