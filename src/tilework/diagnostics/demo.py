"""The demo: vessels in a retina photograph, untiled, and tiled with enough and with too little overlap."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import psutil  # comes with distributed
import zarr
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage.color import rgb2gray
from skimage.data import retina
from skimage.filters import sato

from tilework._types import Array
from tilework.api import tiled_map
from tilework.graph.build import plan_of
from tilework.plan.tile_plan import TilePlan
from tilework.writing.store import to_zarr

__all__ = ["ridges", "run_demo"]

SIGMAS = (2, 3, 4)
# Source: scikit-image smooths twice with sigma / sqrt(2) and cuts each gaussian at 8 of its sigmas; for
# sigma 4 this reaches 2 * 23 samples, and the two derivatives are part of the gaussians.
REACH = 46
# Differences below ROUNDING are rounding; FLOOR is the smallest that the picture shows as different from 0.
ROUNDING, FLOOR = 1e-5, 1e-8


def ridges(crop: Array) -> Array:
    """Return the strength of dark ridges at each sample, the largest over several widths."""
    return np.asarray(sato(crop, sigmas=SIGMAS, black_ridges=True, mode="reflect"), np.float32)


def run_demo(folder: Path, crop: int, overlap: int, small: int) -> Iterator[str]:
    """Yield the lines that the demo prints as it runs; writes Zarr arrays and a picture into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    image = rgb2gray(retina()).astype(np.float32)
    source = folder / "retina.zarr"
    zarr.create_array(str(source), data=image, chunks=(256, 256), overwrite=True)
    size = f"{image.shape[0]} x {image.shape[1]}"
    yield f"image        retina photograph of scikit-image, {size} float32, in {source}"
    yield f"function     Sato ridge filter, sigmas {SIGMAS}: a result sample depends on {REACH} around it"
    tiled: dict[int, tuple[TilePlan, Array]] = {}
    for number in (overlap, small):
        target = folder / f"ridges-overlap-{number}.zarr"
        start = time.perf_counter()
        out = tiled_map(ridges, str(source), crop, number, dtype="float32")
        written = to_zarr(out, target, overwrite=True, progress=True)
        seconds = time.perf_counter() - start
        plan = plan_of(out)
        yield (
            f"overlap {number:<4} {len(plan)} crops, {plan.calls()} calls, {seconds:.1f} s, peak memory "
            f"{_peak() / 1e6:.0f} MB of the whole process, {target}"
        )
        tiled[number] = plan, written[...]
    whole = ridges(image)
    yield f"untiled      values up to {whole.max():.3g}"
    for number, (_, result) in tiled.items():
        difference = np.abs(result - whole)
        where = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
        verdict = "equal to rounding" if difference.max() < ROUNDING else "discontinuous: too little context"
        yield f"overlap {number:<4} largest |tiled - whole| {difference.max():.2g} at {where}: {verdict}"
    picture = folder / "demo.png"
    draw(picture, image, tiled, whole)
    yield f"picture      {picture}"


def _peak() -> int:
    """Return the highest resident memory of this process so far, bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def draw(path: Path, image: Array, tiled: dict[int, tuple[TilePlan, Array]], whole: Array) -> None:
    """Save a picture of the image with its crops, the result, and the differences from the untiled result."""
    with mpl.rc_context({"font.size": 13}):
        figure = Figure(figsize=(10, 10.9), layout="constrained")
        panels = figure.subplots(2, 2).flat
        plan, result = next(iter(tiled.values()))
        panels[0].imshow(image, cmap="gray")
        for tile in plan:
            (y, x), (height, width) = tile.core.start, tile.core.shape
            panels[0].add_patch(Rectangle((x, y), width, height, fill=False, ec="w", lw=0.4, alpha=0.7))
        tile = plan[len(plan) // 2]
        for box, color in ((tile.read, "tab:orange"), (tile.core, "tab:cyan")):
            (y, x), (height, width) = box.start, box.shape
            panels[0].add_patch(Rectangle((x, y), width, height, fill=False, ec=color, lw=2.5))
        panels[0].set_title("one crop (orange) and its core (cyan)")
        panels[1].imshow(result, cmap="magma", vmax=np.percentile(result, 99.5))
        panels[1].set_title("ridge filter, tiled")
        for panel, (number, (_, values)) in zip(panels[2:], tiled.items(), strict=False):
            difference = np.abs(values - whole)
            norm = LogNorm(FLOOR, 1e-2)
            shown = panel.imshow(np.maximum(difference, FLOOR), cmap="viridis", norm=norm)
            panel.set_title(f"overlap {number}: differs by {difference.max():.2g} at most")
        figure.colorbar(
            shown, ax=panels[2:], label="|tiled - untiled|", location="bottom", shrink=0.6, aspect=40
        )
        for panel in panels:
            panel.set_axis_off()
        figure.savefig(path, dpi=90)
