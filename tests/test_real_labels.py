"""Objects of real images, and of thousands of touching cells: the tiled ones are those of the whole image."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage as ndi
from skimage import data
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.segmentation import watershed

import tilework as tw
from benchmarks import labels as cells
from tilework.labels.matching import matched
from tilework.labels.owner import needed

LABELS = tw.Output("uint32", labels="own")
Image = np.ndarray[Any, Any]


def basins(mask: Image, smooth: float, apart: int) -> Image:
    """Return the parts of a mask, divided at their necks; looks as far as its parts are thick."""
    depth = ndi.gaussian_filter(np.minimum(ndi.distance_transform_edt(mask), 15), smooth, truncate=3)
    tops = (ndi.maximum_filter(depth, apart) == depth) & mask
    return np.asarray(watershed(-depth, label(tops, connectivity=mask.ndim), mask=mask))


def regions(crop: Image) -> Image:
    """Read and renumber: regions of a volume, with parts that do not touch."""
    return np.unique(crop, return_inverse=True)[1].reshape(crop.shape) + (crop.min() > 0)


@cache
def atlas() -> Image:
    """Return a volume of regions that have a part on each side, like those of a brain."""
    rng = np.random.default_rng(0)
    seeds = np.zeros((60, 90, 80), int)
    for number, place in enumerate(np.argwhere(rng.random((6, 9, 4)) < 0.9), 1):
        at = place * 10 + rng.integers(0, 10, 3)
        seeds[tuple(at)] = number
    half = watershed(np.zeros(seeds.shape), seeds)[:, :, :40]
    inside = ndi.gaussian_filter(rng.random(half.shape), 3)
    half = half * (inside > 0.49)
    return np.concatenate((half[:, :, ::-1][:, :, -24:], half[:, :, :24]), axis=2)


@cache
def scenes() -> dict[str, tuple[Callable[[Image], Image], Image, int, int, tuple[int, ...]]]:
    """Return function, image, how far the function looks, length of a core, and tiled axes, of each scene."""
    stain = ndi.gaussian_filter(rgb2hed(data.immunohistochemistry())[..., 0], 1.5)
    threshold = threshold_otsu(stain)
    dark = ndi.gaussian_filter(data.cell().astype(float), 3)
    level = np.percentile(dark, 97)
    blobs = data.binary_blobs(90, n_dim=3, blob_size_fraction=0.12, volume_fraction=0.15, rng=1)
    return {
        "coins": (lambda x: basins(ndi.binary_fill_holes(x > 107), 2, 25), data.coins()[40:], 20, 60, (0, 1)),
        "nuclei": (
            lambda x: basins(ndi.binary_opening(x > threshold, iterations=2), 1.5, 9), stain, 20, 80, (0, 1),
        ),
        "cell": (lambda x: label(x > level), dark, 0, 50, (0, 1)),
        "blobs": (lambda x: label(x, connectivity=3), blobs, 0, 12, (0, 1, 2)),
        "atlas": (regions, atlas(), 0, 12, (0, 1)),
        "touching": (cells.segment, cells.picture(768), 0, 256, (0, 1)),
    }  # fmt: skip


@pytest.mark.sample(1, whole=9)
@pytest.mark.parametrize("edge", ["shift", "squeeze", "clip"])
@pytest.mark.parametrize("name", ["coins", "nuclei", "cell", "blobs", "atlas", "touching"])
def test_the_objects_are_those_of_the_whole_image(name: str, edge: Any, tmp_path: Path) -> None:
    fn, image, reach, core, axes = scenes()[name]
    whole = fn(image)
    boxes = [box for box in ndi.find_objects(whole) if box]
    overlap = [needed(max(box[a].stop - box[a].start for box in boxes), reach) for a in axes]
    crop = [2 * o + core for o in overlap]
    assert any(c < image.shape[a] for c, a in zip(crop, axes, strict=True))
    out = tw.tiled_map(fn, image, tuple(crop), tuple(overlap), axes=axes, edge=edge, output=LABELS)
    found = matched(out.compute(scheduler="sync"), whole, [(0, n) for n in image.shape])
    assert found.identical == len(boxes) == found.compared
    if edge == "shift":
        numbered = tw.to_zarr(out, tmp_path / "labels.zarr", progress=False)[:]
        ids, firsts = np.unique(whole, return_index=True)
        ids, firsts = ids[ids > 0], firsts[ids > 0]
        table = np.zeros(int(whole.max()) + 1, np.uint32)
        table[ids[np.argsort(firsts)]] = np.arange(1, len(ids) + 1)
        assert np.array_equal(numbered, table[whole])
        report = tw.check(out)
        assert report.ok, report


@pytest.mark.sample(0)
def test_the_rules_of_other_tools_are_not_exact() -> None:
    """What the page on other tools says, on a part of the scene of the benchmark."""
    work = cells.Cells(side=768)
    image, want = cells.picture(768), cells.expected(768)
    share = {}
    for name, shrink in (("none", None), ("touch", False), ("shrink", True)):
        prepared = cells.rule(work, Path(), shrink=shrink)
        share[name] = cells.compared(prepared.run(), want)["exact"]
    assert share["none"] < share["touch"] < share["shrink"] < 1
    out = tw.tiled_map(cells.segment, image, work.crop, work.overlap, output=LABELS)
    assert cells.compared(out.compute(), want)["exact"] == 1
