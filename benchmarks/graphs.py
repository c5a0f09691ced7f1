"""Contestants that only build, look at what was built, and compute a small part of it."""

from __future__ import annotations

import gc
import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.in_memory import identity
from benchmarks.measure import Figures, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CROPS = {2: 256, 3: 64, 4: 16, 5: 8}
"""Samples of a crop per axis, by the number of axes: a crop of a usual size."""
PART = 10_000
"""Samples of the part that is computed."""


@dataclass(frozen=True)
class Grid:
    """Blended crops at half their length, in blocks of the given length along each axis."""

    shape: tuple[int, ...]
    crop: int
    block: int

    def scaled(self, scale: float) -> Grid:
        """Return extents times `scale`, of at least two blocks."""
        return replace(self, shape=tuple(max(2 * self.block, round(n * scale)) for n in self.shape))

    def tiny(self) -> Grid:
        """Return two blocks per axis."""
        return self.scaled(0)

    @property
    def part(self) -> tuple[slice, ...]:
        """Return a box of about 10 000 samples in the middle."""
        side = round(PART ** (1 / len(self.shape)))
        return tuple(slice((n - side) // 2, (n - side) // 2 + side) for n in self.shape)

    @property
    def options(self) -> dict[str, Any]:
        """Return how crops lie, are blended and grouped."""
        return {"crop": self.crop, "stride": self.crop // 2, "blend": "gaussian", "chunks": self.block}


def grid(ndim: int, blocks: int) -> Grid:
    """Return a grid of about as many blocks, each of one crop: the smallest blocks that share tiles."""
    crop = CROPS[ndim]
    return Grid((round(blocks ** (1 / ndim)) * crop,) * ndim, crop, crop)


class Zeros:
    """An image of any extent that takes no room and no time to open or to hash."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.ndim, self.dtype = shape, len(shape), np.dtype("f4")

    def __getitem__(self, box: tuple[slice, ...]) -> Any:
        return np.zeros([len(range(*s.indices(n))) for s, n in zip(box, self.shape, strict=True)], self.dtype)


def _first(crop: Any, *others: Any) -> Any:
    """Return what came of the first image."""
    return crop


def _seconds(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def _of(work: Grid, given: Grid | None) -> Grid:
    """Return the grid of a contestant at the scale of the case, whose workload stands for all sizes."""
    if given is None:
        return work
    factor = work.shape[0] / WHOLE.shape[0]
    return given if factor == 1 else given.scaled(factor)


WHOLE = Grid((1_000_000, 1_000_000), 512, 2048)
"""A million samples along each axis, more than any slide has."""


def _source(kind: str, here: Grid) -> Any:
    """Return an image without data: of no library, of dask, or of Zarr in chunks as long as a block."""
    import dask.array as da
    import zarr

    if kind == "zeros":
        return Zeros(here.shape)
    chunks = (here.block,) * len(here.shape)
    if kind == "dask":
        return da.zeros(here.shape, chunks=chunks, dtype="f4")
    return zarr.create_array({}, shape=here.shape, chunks=chunks, dtype="f4")


def chosen_build(
    work: Grid, folder: Path, given: Grid, source: str = "zarr", mask: int = 0, **options: Any
) -> Prepared:
    """Build a result whose blocks are chosen, and explain it; with a mask of so many samples an axis."""
    import tilework as tw

    here = _of(work, given)
    image = _source(source, here)
    options = here.options | options | {"chunks": "auto"}
    if mask:
        options["mask"] = np.random.default_rng(0).random((mask,) * image.ndim) < 0.5
    built: list[Any] = []

    def run() -> Any:
        built[:] = [tw.tiled_map(identity, image, dtype="f4", name="bench", **options)]
        return built[0]

    def figures() -> Figures:
        return {
            "blocks": float(math.prod(built[0].numblocks)),
            "explain_s": _seconds(lambda: tw.explain(built[0])),
        }

    return Prepared(run, lambda out: 0.0 if out.shape == here.shape else float("inf"), figures=figures)


CHOSEN: dict[str, dict[str, Any]] = {
    "10^7 x 10^7 of Zarr": {"given": Grid((10**7,) * 2, 512, 1000)},
    "10^7 x 10^7 of Zarr, recompute": {"given": Grid((10**7,) * 2, 512, 1000), "reuse": "recompute"},
    "640 000 cubed of Zarr": {"given": Grid((640_000,) * 3, 64, 100)},
    "five axes of Zarr, within 1 GB": {
        "given": Grid((10_000, 8_000, 9_000, 7_000, 6_000), 12, 16),
        "memory_limit": "1GB",
        "edge": "clip",
    },
    "10^8 samples in crops of 10": {"given": Grid((10**8,), 10, 1000), "source": "zeros"},
    "mask of 4 million tiles": {"given": Grid((10**6,) * 2, 1024, 1024), "source": "zeros", "mask": 100},
    "mask of 10^10 tiles": {"given": Grid((10**7,) * 2, 128, 1024), "mask": 100},
}
"""Builds that choose their blocks: the more tiles an axis has, the more there would be to look at."""


def tilework_build(work: Grid, folder: Path, given: Grid | None = None, source: str = "zeros") -> Prepared:
    """Build a result, explain and draw it, and compute a part of it."""
    import dask

    import tilework as tw

    here = _of(work, given)
    image = _source(source, here)
    built: list[Any] = []

    def run() -> Any:
        built[:] = [tw.tiled_map(identity, image, dtype="f4", name="bench", **here.options)]
        return built[0]

    def check(out: Any) -> float:
        return 0.0 if out.shape == here.shape else float("inf")

    def figures() -> Figures:
        plan = tw.plan_tiles(here.shape, **here.options)
        with dask.config.set(scheduler="synchronous"):
            return {
                "blocks": float(math.prod(built[0].numblocks)),
                "slice_s": _seconds(lambda: built[0][here.part].compute()),
                "explain_s": _seconds(lambda: tw.explain(built[0])),
                "html_s": _seconds(plan._repr_html_),
            }

    return Prepared(run, check, figures=figures)


def dask_source(work: Grid, folder: Path) -> Prepared:
    """dask's own array of as many chunks, with the list of its keys, and nothing mapped over it."""
    import dask.array as da

    def run() -> Any:
        out = da.zeros(work.shape, chunks=work.block, dtype="f4")
        out.__dask_keys__()
        return out

    return Prepared(run, lambda out: 0.0)


def map_overlap_build(work: Grid, folder: Path, given: Grid | None = None) -> Prepared:
    """dask's way of as many blocks; it trims, since it has no blend."""
    import dask
    import dask.array as da

    here = _of(work, given)
    image = da.zeros(here.shape, chunks=here.block, dtype="f4")
    meta = np.empty((0,) * image.ndim, np.float32)
    built: list[Any] = []

    def run() -> Any:
        built[:] = [
            da.map_overlap(identity, image, depth=here.crop // 4, boundary="none", dtype="f4", meta=meta)
        ]
        return built[0]

    def figures() -> Figures:
        with dask.config.set(scheduler="synchronous"):
            return {
                "blocks": float(math.prod(built[0].numblocks)),
                "slice_s": _seconds(lambda: built[0][here.part].compute()),
            }

    return Prepared(run, lambda out: 0.0, figures=figures)


# ---------------------------------------------------------------------------------------- tasks

TURNS = 5
"""Times that the tasks are made, in turn with dask's bare ones; the medians count."""


OVER_DASK: dict[str, tuple[Grid, Sequence[int], dict[str, Any]]] = {
    "halo over dask 2-D": (Grid((6400,) * 2, 80, 64), [50], {"overlap": 8, "blend": "trim"}),
    "halo over dask 3-D": (Grid((640,) * 3, 48, 32), [32], {"overlap": 8, "blend": "trim"}),
    "halo over dask 4-D": (Grid((64,) * 4, 12, 8), [8], {"overlap": 2, "blend": "trim"}),
    "halo over two of dask": (Grid((640,) * 3, 48, 32), [32, 24], {"overlap": 8, "blend": "trim"}),
    "blend over dask": (Grid((640,) * 3, 32, 32), [24], {}),
}
"""Grids, the lengths of the chunks of each source along all axes, and options; halos reach other chunks."""


def tasks(work: Grid, folder: Path, options: dict[str, Any], given: Any = None) -> Prepared:
    """Make all tasks of a result; and each again by dask's constructors alone, from what it holds.

    A reference is made anew once for all tasks that hold the same, as those that read one block of a source.
    What was there before is kept from the garbage collector, which would look at it in the time of either.
    """
    import dask.array as da
    from dask.task_spec import List, Task, TaskRef

    import tilework as tw

    def again(part: Any, known: dict[int, Any]) -> Any:
        """Return a reference, or a list of them, made anew."""
        if type(part) is List:
            return List(*[again(one, known) for one in part.args])
        if type(part) is not TaskRef:
            return part
        return known.get(id(part)) or known.setdefault(id(part), TaskRef(part.key))

    here, chunks = (work, ()) if given is None else given
    if given is not None:
        here = here.scaled(work.shape[0] / grid(2, 10_000).shape[0])
    options = here.options | options
    if "overlap" in options:
        del options["stride"]
    image: Any = tuple(da.zeros(here.shape, chunks=n, dtype="f4") for n in chunks) or Zeros(here.shape)
    found: Figures = {}

    def graph() -> dict[Any, Any]:
        out = tw.tiled_map(_first, image, dtype="f4", name="bench", **options)
        return dict(out.__dask_graph__().layers["bench"])  # without the tasks of the sources

    def run() -> None:
        ours, bare = [], []
        for _ in range(TURNS):
            gc.collect()
            gc.freeze()
            start = time.process_time()
            made = graph()
            ours.append(time.process_time() - start)
            parts = [(t.key, t.func, t.args, t.kwargs) for t in made.values() if isinstance(t, Task)]
            del made
            gc.collect()
            gc.freeze()
            known: dict[int, Any] = {}
            start = time.process_time()
            remade = {
                key: Task(key, func, *[again(one, known) for one in args], **kwargs)
                for key, func, args, kwargs in parts
            }
            bare.append(time.process_time() - start)
            del remade
        gc.unfreeze()
        each = 1e6 / len(parts)
        found.update(
            tasks=float(len(parts)), task_us=each * statistics.median(ours),
            bare_us=each * statistics.median(bare),
            over_bare=statistics.median(a / b for a, b in zip(ours, bare, strict=True)),
        )  # fmt: skip

    return Prepared(run, lambda _: 0.0, figures=lambda: found)
