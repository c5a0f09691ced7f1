"""Dense touching cells, segmented crop by crop: who has the objects of the whole image, and at what cost.

The scene is a jittered grid of cells that fill the image: most touch others, and every cut between tiles goes
through some. The function is a watershed, or one that hands out the cells that
the watershed of the whole image has: it takes next to no time, so all that is measured is what tiling costs.

Two rules of other tools are written again here, for their results and not for their speed: *touch* joins
labels that touch across a cut, *shrink* takes a sample off every label at a face before it does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage as ndi

from benchmarks.measure import CORES, Figures, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Labels = NDArray[np.integer[Any]]
    Segment = Callable[[NDArray[Any]], Labels]

SPACING = 20
"""Mean distance of two cells, samples."""


@dataclass(frozen=True)
class Cells:
    """A square image of touching cells."""

    side: int = 1536
    crop: int = 256 + 2 * 24
    overlap: int = 24
    replayed: bool = False
    """Whether the function hands out the cells of the whole image, instead of finding them."""

    def scaled(self, scale: float) -> Cells:
        """Return an image with another side, in whole tiles."""
        return replace(self, side=self.core * max(2, round(self.side * scale / self.core)))

    def tiny(self) -> Cells:
        """Return two tiles per axis."""
        return self.scaled(0)

    @property
    def core(self) -> int:
        """Side of a core."""
        return self.crop - 2 * self.overlap


@cache
def picture(side: int) -> NDArray[np.float32]:
    """Return cells as bumps of different heights on a jittered grid."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(SPACING // 2, side, SPACING)] * 2, indexing="ij"), -1)
    points = np.clip(grid + rng.integers(-7, 8, grid.shape), 0, side - 1).reshape(-1, 2)
    dots = np.zeros((side, side), np.float32)
    dots[tuple(points.T)] = rng.uniform(0.6, 1.4, len(points))
    return np.asarray(ndi.gaussian_filter(dots, 5.0, truncate=3.0) * 1000, np.float32)


def segment(image: NDArray[Any]) -> Labels:
    """Return the cells of an image by a watershed from its maxima."""
    from skimage.measure import label
    from skimage.segmentation import watershed

    tops = (ndi.maximum_filter(image, 7) == image) & (image > 1.2)
    return np.asarray(watershed(-image, label(tops, connectivity=2), mask=image > 0.6), np.int32)


def replay(labels: NDArray[Any]) -> Labels:
    """Return the labels of a crop under ids of its own; next to no work."""
    found = labels.astype(np.int32)
    lowest = int(found[found > 0].min(initial=2**30))
    return np.where(found > 0, found - (lowest - 1), 0)


@cache
def expected(side: int) -> Labels:
    """Return the cells of the whole image."""
    return segment(picture(side))


def _given(work: Cells) -> tuple[NDArray[Any], Segment]:
    """Return what is tiled, and the function."""
    return (expected(work.side), replay) if work.replayed else (picture(work.side), segment)


def compared(got: Labels, want: Labels) -> Figures:
    """Return the share of objects that have exactly their samples, and how many others there are."""
    pairs, counts = np.unique(np.stack((got.ravel(), want.ravel())), axis=1, return_counts=True)
    both = (pairs > 0).all(axis=0)
    ours = dict(zip(*np.unique(got, return_counts=True), strict=True))
    theirs = dict(zip(*np.unique(want, return_counts=True), strict=True))
    same = sum(
        int(n) == ours[g] == theirs[w] for (g, w), n in zip(pairs[:, both].T, counts[both], strict=True)
    )
    per_id, per_object = (np.unique(row[both], return_counts=True)[1] for row in pairs)
    return {
        "objects": float(len(theirs) - (0 in theirs)),
        "exact": float(same / max(1, len(theirs) - (0 in theirs))),
        "merged": float((per_id > 1).sum()),
        "split": float((per_object > 1).sum()),
    }


def _prepared(work: Cells, run: Callable[[NDArray[Any], Segment], Any]) -> Prepared:
    image, fn = _given(work)
    want, found = expected(work.side), dict[str, float]()

    def check(result: Any) -> float:
        found.update(compared(np.asarray(result[...]), want))
        return 1 - found["exact"]

    return Prepared(partial(run, image, fn), check, image.nbytes, figures=lambda: found)


# --------------------------------------------------------------------------------------------- limits


def crops_of(work: Cells) -> list[tuple[slice, slice]]:
    """Return what each tile sees, clipped to the image."""
    spans = [
        slice(max(0, a - work.overlap), min(work.side, a + work.core + work.overlap))
        for a in range(0, work.side, work.core)
    ]
    return list(itertools.product(spans, spans))


def only_calls(work: Cells, folder: Path) -> Prepared:
    """The function on every crop, on threads: nobody can be faster."""
    from concurrent.futures import ThreadPoolExecutor

    def run(image: NDArray[Any], fn: Segment) -> Labels:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(lambda box: fn(image[box]), crops_of(work)))
        return expected(work.side)

    return _prepared(work, run)


# ----------------------------------------------------------------------------------------------- ours


def tilework(work: Cells, folder: Path, *, stored: bool = False) -> Prepared:
    """Ours: lazy labels computed in memory, or written with numbers 1..N."""
    import dask
    import dask.array

    # Imported before the clock runs, as the peer and its libraries are.
    from tilework import Output, tiled_map, to_zarr

    def run(image: NDArray[Any], fn: Segment) -> Any:
        output = Output("uint32", labels="own")
        out = tiled_map(fn, image, work.crop, work.overlap, output=output, edge="clip")
        with dask.config.set(scheduler="threads", num_workers=CORES):
            if stored:
                return to_zarr(out, folder / "ours.zarr", progress=False, overwrite=True)
            return out.compute()

    return _prepared(work, run)


# ---------------------------------------------------------------------------------------------- peers


def patchworks(work: Cells, folder: Path, *, stitch: str) -> Prepared:
    """patchworks as it is installed: staged, merged by a rule, renumbered, and written; not read back."""
    import dask.array as da
    from patchworks import tile_process

    def run(image: NDArray[Any], fn: Segment) -> Any:
        return tile_process(
            da.from_array(image, chunks=work.core), fn, tile_shape=(work.core, work.core),
            overlap=work.overlap, max_workers=CORES, stitch=stitch, sequential_labels=True, progress=False,
            write_to=folder / f"{stitch}.zarr",
        )  # fmt: skip

    return _prepared(work, run)


def rule(work: Cells, folder: Path, *, shrink: bool | None) -> Prepared:
    """Cores side by side, joined where labels touch; with a sample off at each face, or not at all (None)."""

    def run(image: NDArray[Any], fn: Segment) -> Labels:
        result = np.zeros(image.shape, np.int64)
        highest = 0
        for (y, x), (rows, columns) in zip(_cores(work), crops_of(work), strict=True):
            part = fn(image[rows, columns]).astype(np.int64)
            core = part[y - rows.start :, x - columns.start :][: work.core, : work.core]
            result[y : y + work.core, x : x + work.core] = np.where(core > 0, core + highest, 0)
            highest += int(part.max())
        return result if shrink is None else _joined(result, work, highest, shrink=shrink)

    return _prepared(work, run)


def _cores(work: Cells) -> list[tuple[int, int]]:
    return list(itertools.product(range(0, work.side, work.core), repeat=2))


def _joined(result: Labels, work: Cells, highest: int, *, shrink: bool) -> Labels:
    """Return labels with those made one that touch across a cut."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = []
    for cut in range(work.core, work.side, work.core):
        for turned in (result, result.T):
            a, b = turned[cut - 1], turned[cut]
            if shrink:
                # A sample of a face counts if both its neighbours along the face have its label.
                a, b = (np.where((f == np.roll(f, 1)) & (f == np.roll(f, -1)), f, 0) for f in (a, b))
            met = (a > 0) & (b > 0)
            edges.append(np.stack((a[met], b[met])))
    one, two = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(one)), (one, two)), shape=(highest + 1,) * 2)
    components = connected_components(graph, directed=False)[1]
    return np.where(result > 0, components[result] + 1, 0)
