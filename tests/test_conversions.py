"""The table of conversions, by numbers: each row against the tool itself, or against its own rule.

The functions here depend on the whole crop, or on a sample's place in it, so that a crop that lies elsewhere
or has another length shows. A tool that the tests do not install is written down as its *rule*: where crops
start and how they are weighed. A rule names its source. Where tiler is installed, it is compared, too.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tests.networks import require
from tests.test_docs import ROOT

# Sizes are drawn, so some grids are wasteful.
pytestmark = pytest.mark.filterwarnings("ignore::tilework.CostWarning")

Fn = Callable[[np.ndarray], np.ndarray]


def from_start(crop: np.ndarray) -> np.ndarray:
    """Add each sample's distance from the crop's start, along all axes."""
    distances = np.indices(crop.shape).astype(float)
    return crop + sum(10.0**axis * d for axis, d in enumerate(distances))


def centred(crop: np.ndarray) -> np.ndarray:
    return crop - crop.mean()


def swapped(crop: np.ndarray) -> np.ndarray:
    """Turn each crop round: what lies at its end comes to its start."""
    return crop[(slice(None, None, -1),) * crop.ndim] + crop.size


FUNCTIONS = st.sampled_from([from_start, centred, swapped])


def noise(shape: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(math.prod(shape)).normal(size=shape)


# ---------------------------------------------------------------------------------------------- sizes

Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@st.composite
def sizes(draw: Any, *, least: str = "one", odd: bool = False, even: bool = False) -> Sizes:
    """Draw shape, crop and stride of 1 to 3 axes, ragged and not.

    ``least`` is the shortest extent: "one" sample, or the "crop". Neighbours share an ``even`` number of
    samples, or crops are ``odd``, if asked for.
    """
    axes = []
    dims = draw(st.integers(1, 3))
    for _ in range(dims):
        crop = draw(st.integers(2, 9))
        crop += odd and crop % 2 == 0
        shared = draw(st.integers(1, crop - 1))
        if even:
            crop, shared = max(crop, 3), max(2, shared - shared % 2)
        axes.append(
            (
                draw(st.integers(crop if least == "crop" else 1, crop + (14, 9, 5)[dims - 1])),
                crop,
                crop - shared,
            )
        )
    shape, crop, stride = zip(*axes, strict=True)
    return shape, crop, stride


# ---------------------------------------------------------------------------------------------- rules


def blended(
    fn: Fn, image: np.ndarray, crop: Sequence[int], starts: Sequence[Sequence[int]], weights: np.ndarray
) -> np.ndarray:
    """Return the weighted average of ``fn`` of the crops; crops end with the image, zeros where none lies."""
    total, weight = np.zeros(image.shape), np.zeros(image.shape)
    for start in itertools.product(*starts):
        box = tuple(slice(a, a + c) for a, c in zip(start, crop, strict=True))
        part = image[box]
        own = weights[tuple(map(slice, part.shape))]
        total[box] += own * fn(part)
        weight[box] += own
    return np.divide(total, weight, out=np.zeros(image.shape), where=weight > 0)


def overwritten(
    fn: Fn, image: np.ndarray, crop: Sequence[int], starts: Sequence[Sequence[int]], cut: Sequence[int]
) -> np.ndarray:
    """Return ``fn`` of the crops, less ``cut`` samples at cut sides; the last crop on a sample wins."""
    out = np.zeros(image.shape)
    for start in itertools.product(*starts):
        box = [(a, a + c) for a, c in zip(start, crop, strict=True)]
        lows = [k if a > 0 else 0 for (a, _), k in zip(box, cut, strict=True)]
        highs = [k if b < n else 0 for (_, b), k, n in zip(box, cut, image.shape, strict=True)]
        inside = [(a + lo, b - hi) for (a, b), lo, hi in zip(box, lows, highs, strict=True)]
        part = tuple(slice(a - s, b - s) for (a, b), s in zip(inside, start, strict=True))
        out[tuple(slice(*x) for x in inside)] = fn(image[tuple(slice(*x) for x in box)])[part]
    return out


def stepped(extent: int, crop: int, stride: int) -> list[int]:
    """Return the starts 0, stride, ... while the crop fits, and one more that ends with the image."""
    starts = list(range(0, extent - crop + 1, stride))
    return starts if starts[-1] == extent - crop else [*starts, extent - crop]


def separable(window: Callable[[int], Any], crop: Sequence[int]) -> np.ndarray:
    return functools.reduce(np.multiply.outer, [np.asarray(window(c), float) for c in crop])


def centre_padded(
    image: np.ndarray, crop: Sequence[int], mode: Any = "constant"
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Return the image padded to the crop on both sides, as MONAI and nnU-Net do, and where it lies."""
    missing = [max(c - n, 0) for n, c in zip(image.shape, crop, strict=True)]
    widths = [(m // 2, m - m // 2) for m in missing]
    return np.pad(image, widths, mode), tuple(
        slice(a, a + n) for (a, _), n in zip(widths, image.shape, strict=True)
    )


def same(ours: Any, theirs: np.ndarray, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(
        np.asarray(ours), theirs, rtol=rtol, atol=rtol * max(1.0, np.abs(theirs).max())
    )


# --------------------------------------------------------------------------------------------- Ryomen


def ryomen(fn: Fn, image: np.ndarray, crop: Sequence[int], overlap: Sequence[int]) -> np.ndarray:
    out = np.full(image.shape, np.nan)
    for part, source, target in require("ryomen").Slicer(
        image, crop_size=tuple(crop), overlap=tuple(overlap)
    ):
        out[target] = fn(part)[source]  # crops share a buffer
    return out


@st.composite
def halos(draw: Any, *, whole: bool, least: int = 1, dims: int = 3) -> Sizes:
    """Draw shape, crop and overlap, with extents that are ``whole`` strides or any, longer than a crop."""
    axes = []
    for _ in range(draw(st.integers(1, dims))):
        overlap, stride = draw(st.integers(0, 3)), draw(st.integers(max(least, 1), 5))
        crop = stride + 2 * overlap
        fewest = crop // stride + 1
        extent = stride * draw(st.integers(fewest, fewest + 1)) + (
            0 if whole else draw(st.integers(0, stride - 1))
        )
        axes.append((extent, crop, overlap))
    shape, crop, overlap = zip(*axes, strict=True)
    return shape, crop, overlap


@pytest.mark.peers
@given(fn=FUNCTIONS, case=halos(whole=True))
def test_ryomen(fn, case):
    shape, crop, overlap = case
    ours = tw.tiled_map(fn, noise(shape), crop, overlap, edge="pad", dtype=float)
    same(ours, ryomen(fn, noise(shape), crop, overlap))


@pytest.mark.peers
@given(fn=FUNCTIONS, case=halos(whole=False))
def test_ryomen_moves_its_last_crop(fn, case):
    """Where the stride does not divide the extent, the last `crop - 2 * overlap` samples may differ."""
    shape, crop, overlap = case
    ours = tw.tiled_map(fn, noise(shape), crop, overlap, edge="pad", dtype=float).compute()
    theirs = ryomen(fn, noise(shape), crop, overlap)
    inside = [
        slice(None if n % (c - 2 * o) == 0 else n - (c - 2 * o))
        for n, c, o in zip(shape, crop, overlap, strict=True)
    ]
    same(ours[tuple(inside)], theirs[tuple(inside)])


@pytest.mark.peers
def test_ryomens_last_crop_differs_for_a_function_of_the_crop():
    image = noise((22,))
    ours = tw.tiled_map(from_start, image, 8, 2, edge="pad", dtype=float).compute()
    theirs = ryomen(from_start, image, (8,), (2,))
    np.testing.assert_array_equal(ours[:18], theirs[:18])
    np.testing.assert_allclose(theirs[18:] - ours[18:], [-2, -2, 2, 2])  # 18 and 19 belong to another crop


@pytest.mark.peers
@given(st.integers(4, 8))
def test_ryomen_shortens_its_crop_to_a_small_image(extent):
    seen = []
    ryomen(lambda crop: seen.append(crop.shape) or crop, noise((extent,)), (8,), (1,))
    assert set(seen) == {(extent,)}


# -------------------------------------------------------------------------------------------- Patchly


def patchly(fn: Fn, image: np.ndarray, crop: Any, stride: Any, mode: str, weights: str) -> np.ndarray:
    pkg = require("patchly")
    sampler = pkg.GridSampler(image, image.shape, crop, stride, mode=pkg.SamplingMode[mode])
    # Without an output of its own, Patchly adds up in single precision.
    aggregator = pkg.Aggregator(sampler, output=np.zeros(image.shape), weights=weights)
    for patch, box in sampler:
        aggregator.append(fn(np.array(patch)), box)
    with np.errstate(invalid="ignore"):  # it divides by 0 where no patch lies
        return np.asarray(aggregator.get_output())


@pytest.mark.peers
@pytest.mark.parametrize(
    ("mode", "edge"), [("SAMPLE_EDGE", "shift"), ("SAMPLE_CROP", "drop")], ids=["edge", "crop"]
)
@given(fn=FUNCTIONS, case=sizes(least="crop"))
def test_patchly_averages(mode, edge, fn, case):
    shape, crop, stride = case
    ours = tw.tiled_map(fn, noise(shape), crop, stride=stride, edge=edge, blend="average", dtype=float)
    same(ours, patchly(fn, noise(shape), crop, stride, mode, "avg"))


@pytest.mark.peers
@pytest.mark.parametrize(
    ("mode", "edge"), [("SAMPLE_EDGE", "shift"), ("SAMPLE_CROP", "drop")], ids=["edge", "crop"]
)
@given(fn=FUNCTIONS, case=sizes(least="crop", odd=True))
def test_patchlys_gaussian_of_odd_patches(mode, edge, fn, case):
    shape, crop, stride = case
    ours = tw.tiled_map(fn, noise(shape), crop, stride=stride, edge=edge, blend="gaussian", dtype=float)
    same(ours, patchly(fn, noise(shape), crop, stride, mode, "gaussian"), 1e-5)  # its weights are float32


@pytest.mark.peers
@given(fn=FUNCTIONS, case=sizes(least="crop"))
def test_patchlys_gaussian_of_any_patches(fn, case):
    from tilework.loops.aggregator import gaussian

    shape, crop, stride = case
    ours = tw.tiled_map(fn, noise(shape), crop, stride=stride, blend=gaussian, dtype=float)
    same(ours, patchly(fn, noise(shape), crop, stride, "SAMPLE_EDGE", "gaussian"), 1e-5)


@pytest.mark.peers
def test_patchlys_gaussian_of_even_patches_is_another():
    image = noise((40,))
    ours = tw.tiled_map(centred, image, 8, stride=4, blend="gaussian", dtype=float).compute()
    difference = np.abs(ours - patchly(centred, image, (8,), (4,), "SAMPLE_EDGE", "gaussian")).max()
    assert 1e-3 < difference < 0.1


def squeezed(extent: int, crop: int, stride: int) -> bool:
    """Whether what Patchly squeezes out is shared evenly by all pairs of patches."""
    pairs = math.ceil((extent - crop) / stride)
    return pairs > 0 and (pairs * stride + crop - extent) % pairs == 0


@pytest.mark.peers
@given(fn=FUNCTIONS, case=sizes(least="crop"))
def test_patchly_squeezes(fn, case):
    """As many patches; at the same places where the remainder can be shared evenly."""
    shape, crop, stride = case
    shape = tuple(
        n if squeezed(n, c, s) else c + s * ((n - c) // s + 1)
        for n, c, s in zip(shape, crop, stride, strict=True)
    )
    ours = tw.tiled_map(fn, noise(shape), crop, stride=stride, edge="squeeze", blend="average", dtype=float)
    same(ours, patchly(fn, noise(shape), crop, stride, "SAMPLE_SQUEEZE", "avg"))


@pytest.mark.peers
@given(st.integers(2, 9), st.integers(1, 8), st.integers(1, 60))
def test_patchly_gives_the_remainder_to_the_last_pair(crop, stride, more):
    stride = min(stride, crop)
    shape = (crop + more,)
    pkg = require("patchly")
    theirs = pkg.GridSampler(np.zeros(shape), shape, (crop,), (stride,), mode=pkg.SamplingMode.SAMPLE_SQUEEZE)
    starts = [int(box[0][0]) for _, box in theirs]
    ours = [tile.read.start[0] for tile in tw.plan_tiles(shape, crop, stride=stride, edge="squeeze")]
    assert len(ours) == len(starts)
    assert max(abs(a - b) for a, b in zip(ours, starts, strict=True)) < len(ours)
    gaps, theirs_gaps = np.diff(ours), np.diff(starts)
    assert max(gaps) - min(gaps) <= 1
    assert len(set(theirs_gaps[:-1])) <= 1


@pytest.mark.peers
@given(fn=FUNCTIONS, data=st.data())
def test_patchly_adapts(fn, data):
    """The same where the last patch does not lie inside its neighbour: neighbours share less than half."""
    axes = []
    for _ in range(data.draw(st.integers(1, 3))):
        stride = data.draw(st.integers(3, 7))
        crop = data.draw(st.integers(stride + 1, 2 * stride - 1))
        extent = stride * data.draw(st.integers(1, 3)) + data.draw(st.integers(crop - stride + 1, stride))
        axes.append((max(extent, crop), crop, stride))
    shape, crop, stride = zip(*axes, strict=True)
    ours = tw.tiled_map(fn, noise(shape), crop, stride=stride, edge="clip", blend="average", dtype=float)
    same(ours, patchly(fn, noise(shape), crop, stride, "SAMPLE_ADAPTIVE", "avg"))


@pytest.mark.peers
def test_patchly_adapts_with_patches_inside_their_neighbours():
    sizes_of = []
    patchly(
        lambda patch: sizes_of.append(len(patch)) or patch, noise((12,)), (8,), (2,), "SAMPLE_ADAPTIVE", "avg"
    )
    assert sizes_of == [8, 8, 8, 6, 4, 2]
    grid = tw.plan_tiles((12,), 8, stride=2, edge="clip", output=tw.Output("f4", blend="average"))
    assert [tile.read.stop[0] - tile.read.start[0] for tile in grid] == [8, 8, 8]


# ----------------------------------------------------------------------------------------------- MONAI


def monai(fn: Fn, image: np.ndarray, roi: Sequence[int], overlap: Any, **options: Any) -> np.ndarray:
    torch = require("torch")

    def predictor(batch: Any) -> Any:
        return torch.from_numpy(np.stack([fn(crop[0])[None] for crop in batch.numpy()]))

    inputs = torch.from_numpy(image)[None, None]
    run = require("monai.inferers").sliding_window_inference
    return run(inputs, tuple(roi), 3, predictor, overlap=overlap, **options)[0, 0].numpy()


PADDINGS: dict[str, Any] = {
    "constant": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}
FRACTIONS = st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.75])


def strides(roi: Sequence[int], f: float) -> tuple[int, ...]:
    return tuple(int(r * (1 - f)) for r in roi)


@pytest.mark.peers
@given(fn=FUNCTIONS, case=sizes(least="crop"), f=FRACTIONS)
def test_monai_constant(fn, case, f):
    shape, roi, _ = case
    roi = tuple(r + 4 for r in roi)
    shape = tuple(n + 4 for n in shape)
    ours = tw.tiled_map(fn, noise(shape), roi, stride=strides(roi, f), blend="average", dtype=float)
    same(ours, monai(fn, noise(shape), roi, f))


@pytest.mark.peers
@given(fn=FUNCTIONS, case=sizes(least="crop"), f=FRACTIONS)
def test_monais_map_gives_monais_numbers(fn, case, f):
    shape, roi, _ = case
    roi = tuple(r + 4 for r in roi)
    shape = tuple(n + 4 for n in shape)
    importance = require("monai.data.utils").compute_importance_map(roi, mode="gaussian").numpy()
    ours = tw.tiled_map(fn, noise(shape), roi, stride=strides(roi, f), blend=importance, dtype=float)
    same(ours, monai(fn, noise(shape), roi, f, mode="gaussian"))


@pytest.mark.peers
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_monai_clamps_its_gaussian(dims):
    """Its N-D map is at least 1e-3, so corners weigh more than ours; elsewhere the weights are the same."""
    roi = (16,) * dims
    theirs = require("monai.data.utils").compute_importance_map(roi, mode="gaussian").numpy()
    along = np.exp(-(((np.arange(16) - 7.5) / 2) ** 2) / 2)
    np.testing.assert_allclose(theirs, np.maximum(separable(lambda _: along, roi), 1e-3), rtol=1e-5)
    image = noise((41,) * dims)
    ours = tw.tiled_map(centred, image, roi, stride=8, blend="gaussian", dtype=float).compute()
    difference = np.abs(ours - monai(centred, image, roi, 0.5, mode="gaussian")).max()
    assert 1e-5 < difference < np.abs(ours).max()
    clamped = tw.tiled_map(centred, image, roi, stride=8, blend=theirs, dtype=float)
    same(clamped, monai(centred, image, roi, 0.5, mode="gaussian"))


@pytest.mark.peers
@given(fn=FUNCTIONS, padding=st.sampled_from(sorted(PADDINGS)), data=st.data())
def test_monai_pads_a_small_image_on_both_sides(fn, padding, data):
    """Pad the image first, and the numbers are MONAI's; padded at the end only, they are not."""
    dims = data.draw(st.integers(1, 3))
    roi, boundary = tuple(data.draw(st.integers(6, 9)) for _ in range(dims)), PADDINGS[padding]
    shape = tuple(data.draw(st.integers(5, 14)) for _ in range(dims))
    image = noise(shape)
    padded, place = centre_padded(image, roi, boundary)
    options = {"stride": strides(roi, 0.5), "blend": "average", "dtype": float}
    theirs = monai(fn, image, roi, 0.5, padding_mode=padding)
    same(tw.tiled_map(fn, padded, roi, **options).compute()[place], theirs)
    ours = tw.tiled_map(fn, image, roi, boundary=boundary, **options).compute()
    if padded.shape == image.shape:
        same(ours, theirs)
    elif fn is from_start and all(c - n > 1 for n, c in zip(shape, roi, strict=True) if n < c):
        assert not np.allclose(ours, theirs)


# -------------------------------------------------------------------------------------------- nnU-Net


def nnunet_starts(extent: int, crop: int, f: float) -> list[int]:
    """Return the starts of `compute_steps_for_sliding_window` (nnunetv2's sliding_window_prediction)."""
    steps = int(np.ceil((extent - crop) / (crop * f))) + 1
    distance = (extent - crop) / max(1, steps - 1)
    return [int(np.round(distance * i)) for i in range(steps)]


def nnunet_map(crop: Sequence[int]) -> np.ndarray:
    """Return the weights of `compute_gaussian` (the same module) before rounding to half precision."""
    ndimage = require("scipy.ndimage")
    point = np.zeros(crop)
    point[tuple(c // 2 for c in crop)] = 1
    values = ndimage.gaussian_filter(point, [c / 8 for c in crop], 0, mode="constant", cval=0)
    return values / values.max() * 10


def nnunet(fn: Fn, image: np.ndarray, crop: Sequence[int], f: float, weights: np.ndarray) -> np.ndarray:
    """Return what `nnUNetPredictor` (predict_from_raw_data) does, with sums in double precision."""
    padded, place = centre_padded(image, crop)
    starts = [nnunet_starts(n, c, f) for n, c in zip(padded.shape, crop, strict=True)]
    return blended(fn, padded, crop, starts, weights)[place]


def bell(length: int) -> np.ndarray:
    """Return nnU-Net's weights along one axis, before they are rounded."""
    return np.exp(-(((np.arange(length) - length // 2) / (length / 8)) ** 2) / 2)


@given(st.integers(4, 64), st.integers(0, 200), st.sampled_from([0.25, 0.3, 0.5, 0.75, 1.0]))
def test_crops_of_nnunet_lie_within_one_sample(crop, more, f):
    """As many, where `crop * f` is a whole number; nnU-Net rounds their starts, squeeze rounds them down."""
    ours = [
        t.read.start[0] for t in tw.plan_tiles((crop + more,), crop, stride=int(crop * f), edge="squeeze")
    ]
    theirs = nnunet_starts(crop + more, crop, f)
    assert len(ours) >= len(theirs)
    if crop * f == int(crop * f):
        assert len(ours) == len(theirs)
        assert all(0 <= b - a <= 1 for a, b in zip(ours, theirs, strict=True))
        if not more % max(1, len(ours) - 1):
            assert ours == theirs


def test_nnunet_rounds_a_start_up():
    assert nnunet_starts(110, 64, 0.5) == [0, 23, 46]
    assert nnunet_starts(111, 64, 0.5) == [0, 24, 47]
    assert [t.read.start[0] for t in tw.plan_tiles((111,), 64, stride=32, edge="squeeze")] == [0, 23, 47]


@given(fn=FUNCTIONS, data=st.data())
def test_nnunet(fn, data):
    """Where starts need no rounding: with its weights and its padding, its numbers."""
    crop, stride, shape = [], [], []
    for _ in range(data.draw(st.integers(1, 3))):
        stride.append(data.draw(st.integers(3, 6)))
        crop.append(2 * stride[-1])
        pairs = data.draw(st.integers(1, 2))
        distance = data.draw(st.integers((pairs - 1) * stride[-1] // pairs + 1, stride[-1]))
        shape.append(data.draw(st.integers(1, crop[-1])) if pairs == 1 else crop[-1] + pairs * distance)
    image = noise(shape)
    padded, place = centre_padded(image, crop)
    theirs = nnunet(fn, image, crop, 0.5, nnunet_map(crop))
    ours = tw.tiled_map(fn, padded, crop, stride=stride, edge="squeeze", blend=bell, dtype=float)
    same(ours.compute()[place], theirs)


def test_nnunets_weights_are_half_a_sample_off_and_in_half_precision():
    assert bell(12).argmax() == 6
    np.testing.assert_allclose(nnunet_map((12, 8)), 10 * np.multiply.outer(bell(12), bell(8)), rtol=1e-12)
    image = noise((41, 37))
    exact = nnunet(centred, image, (16, 16), 0.5, nnunet_map((16, 16)))
    half = nnunet(centred, image, (16, 16), 0.5, nnunet_map((16, 16)).astype(np.float16).astype(float))
    ours = tw.tiled_map(centred, image, 16, stride=8, edge="squeeze", blend="gaussian", dtype=float).compute()
    spread = np.abs(exact).max()
    assert 1e-7 * spread < np.abs(half - exact).max() < 1e-2 * spread
    assert 1e-4 * spread < np.abs(ours - exact).max() < spread


# --------------------------------------------------------------------------------------------- TorchIO


def torchio(fn: Fn, image: np.ndarray, crop: Any, overlap: Any, mode: str) -> np.ndarray:
    """Return what `GridSampler` and `GridAggregator` do (torchio 1.2, data.sampler and data.inference)."""
    starts = [stepped(n, c, c - v) for n, c, v in zip(image.shape, crop, overlap, strict=True)]
    if mode == "crop":
        return overwritten(fn, image, crop, starts, [v // 2 for v in overlap])
    window = np.ones if mode == "average" else torchio_hann
    return blended(fn, image, crop, starts, separable(window, crop))


def torchio_hann(length: int) -> np.ndarray:
    return np.hanning(length + 2)[1:-1]


@pytest.mark.parametrize(
    ("mode", "blend"), [("average", "average"), ("hann", torchio_hann)], ids=["average", "hann"]
)
@given(fn=FUNCTIONS, case=sizes(least="crop", even=True))
def test_torchio(mode, blend, fn, case):
    shape, crop, stride = case
    overlap = tuple(c - s for c, s in zip(crop, stride, strict=True))
    ours = tw.tiled_map(fn, noise(shape), crop, stride=stride, blend=blend, dtype=float)
    same(ours, torchio(fn, noise(shape), crop, overlap, mode), 1e-6 if mode == "hann" else 1e-9)


def test_torchios_hann_is_another():
    image = noise((40,))
    ours = tw.tiled_map(centred, image, 8, stride=4, blend="hann", dtype=float).compute()
    assert np.abs(ours - torchio(centred, image, (8,), (4,), "hann")).max() > 1e-3


@given(fn=FUNCTIONS, case=sizes(least="crop", even=True))
def test_torchio_crops(fn, case):
    """With a rim of half the shared samples, but in the last pair: TorchIO overwrites, a blend averages."""
    shape, crop, stride = case
    rim = tuple((c - s) // 2 for c, s in zip(crop, stride, strict=True))
    overlap = tuple(2 * r for r in rim)
    options = {"blend": "average", "rim": rim, "dtype": float}
    ours = tw.tiled_map(fn, noise(shape), crop, stride=stride, **options).compute()
    theirs = torchio(fn, noise(shape), crop, overlap, "crop")
    inside = tuple(
        slice(None if (n - c) % s == 0 else n - c + r)
        for n, c, s, r in zip(shape, crop, stride, rim, strict=True)
    )
    same(ours[inside], theirs[inside])


@given(case=sizes(least="crop", even=True))
def test_torchio_crops_as_trim_does_for_a_local_function(case):
    shape, crop, stride = case
    rim = tuple((c - s) // 2 for c, s in zip(crop, stride, strict=True))

    def shifted(part: np.ndarray) -> np.ndarray:
        return part + np.roll(part, rim, tuple(range(part.ndim)))

    ours = tw.tiled_map(shifted, noise(shape), crop, overlap=rim, dtype=float).compute()
    theirs = torchio(shifted, noise(shape), crop, tuple(2 * r for r in rim), "crop")
    inside = tuple(slice(r, None) for r in rim)  # np.roll wraps at the image's own border
    same(ours[inside], theirs[inside])


# ----------------------------------------------------------------------------------------------- tiler


def tiler_starts(extent: int, crop: int, overlap: int, mode: str) -> list[int]:
    """Return the starts of `Tiler.recalculate` (tiler.tiler)."""
    count, rest = divmod(extent - overlap, crop - overlap)
    return [i * (crop - overlap) for i in range(count + (rest != 0 and mode != "drop"))]


def tiler_rule(
    fn: Fn, image: np.ndarray, crop: Any, overlap: Any, mode: str, window: Any = np.ones
) -> np.ndarray:
    """Return what `Tiler` and `Merger` do (tiler.tiler, tiler.merger)."""
    starts = [tiler_starts(n, c, v, mode) for n, c, v in zip(image.shape, crop, overlap, strict=True)]
    ends = [s[-1] + c if s else 0 for s, c in zip(starts, crop, strict=True)]
    if mode == "drop":
        inside = tuple(map(slice, ends))
        return blended(fn, image, crop, starts, separable(window, crop))[inside]
    if mode == "irregular":
        return blended(fn, image, crop, starts, separable(window, crop))
    padded = np.pad(image, [(0, max(0, e - n)) for e, n in zip(ends, image.shape, strict=True)], mode)
    return blended(fn, padded, crop, starts, separable(window, crop))[tuple(map(slice, image.shape))]


def tiler_itself(
    fn: Fn, image: np.ndarray, crop: Any, overlap: Any, mode: str, window: Any = np.ones
) -> np.ndarray:
    pkg = require("tiler")
    tiler = pkg.Tiler(image.shape, crop, overlap=overlap, mode=mode)
    merger = pkg.Merger(tiler, separable(window, crop), data_dtype=float, weights_dtype=float)
    for number, part in tiler(image):
        merger.add(number, fn(part))
    return merger.merge(unpad=True)


TILER = [tiler_rule, tiler_itself] if find_spec("tiler") else [tiler_rule]
TILERS = pytest.mark.parametrize("tiler", TILER, ids=lambda tool: tool.__name__)


def triangle(length: int) -> np.ndarray:
    """Return `_triang` (tiler._windows)."""
    return 1 - np.abs(
        (np.arange(length) - (length - 1) / 2) / (length / 2 if length % 2 == 0 else (length + 1) / 2)
    )


@TILERS
@pytest.mark.parametrize("window", [np.ones, triangle], ids=["boxcar", "triang"])
@pytest.mark.parametrize("mode", ["constant", "edge"])
@given(fn=FUNCTIONS, case=sizes())
def test_tiler_pads_at_the_end(tiler, fn, mode, window, case):
    """With `multiple=stride`, crops stay where they are and the image is padded at its end."""
    shape, crop, stride = case
    overlap = tuple(c - s for c, s in zip(crop, stride, strict=True))
    shape = tuple(max(n, v + 1) for n, v in zip(shape, overlap, strict=True))  # else tiler makes no tile
    blend = "average" if window is np.ones else window
    ours = tw.tiled_map(
        fn, noise(shape), crop, stride=stride, multiple=stride, boundary=mode, blend=blend, dtype=float
    )
    same(ours, tiler(fn, noise(shape), crop, overlap, mode, window))


@TILERS
@given(fn=FUNCTIONS, case=sizes(least="crop"))
def test_tiler_drops(tiler, fn, case):
    """The same, but for the shape: tiler cuts off what no tile covers."""
    shape, crop, stride = case
    overlap = tuple(c - s for c, s in zip(crop, stride, strict=True))
    ours = tw.tiled_map(
        fn, noise(shape), crop, stride=stride, edge="drop", blend="average", dtype=float
    ).compute()
    theirs = tiler(fn, noise(shape), crop, overlap, "drop")
    inside = tuple(map(slice, theirs.shape))
    same(ours[inside], theirs)
    left = np.array(ours)
    left[inside] = 0
    assert not left.any()


@TILERS
@given(fn=FUNCTIONS, case=sizes())
def test_tiler_is_irregular(tiler, fn, case):
    shape, crop, stride = case
    overlap = tuple(c - s for c, s in zip(crop, stride, strict=True))
    shape = tuple(max(n, v + 1) for n, v in zip(shape, overlap, strict=True))
    ours = tw.tiled_map(fn, noise(shape), crop, stride=stride, edge="clip", blend="average", dtype=float)
    same(ours, tiler(fn, noise(shape), crop, overlap, "irregular"))


# ------------------------------------------------------------------------------------------------ dask


def dask_map(fn: Fn, image: np.ndarray, chunk: Any, depth: Any, boundary: Any) -> np.ndarray:
    lazy = da.from_array(image, chunks=chunk)
    return lazy.map_overlap(fn, depth=dict(enumerate(depth)), boundary=boundary, dtype=float).compute()


BOUNDARIES = st.sampled_from(
    [
        ("reflect", {"boundary": "symmetric"}),
        ("nearest", {"boundary": "edge"}),
        ("periodic", {"boundary": "wrap"}),
        (7, {"boundary": "constant", "cval": 7}),
    ]
)


@given(fn=FUNCTIONS, boundaries=BOUNDARIES, case=halos(whole=True, least=3, dims=2))
def test_dask_with_a_boundary(fn, boundaries, case):
    theirs, ours = boundaries
    shape, crop, depth = case
    chunk = tuple(c - 2 * d for c, d in zip(crop, depth, strict=True))
    got = tw.tiled_map(fn, noise(shape), crop, depth, edge="pad", dtype=float, **ours)
    same(got, dask_map(fn, noise(shape), chunk, depth, theirs))


@given(fn=FUNCTIONS, boundaries=BOUNDARIES, case=halos(whole=False, least=3, dims=2))
def test_dasks_last_chunk_is_shorter(fn, boundaries, case):
    """Where the chunk does not divide the extent, the samples of dask's last chunk may differ."""
    theirs, ours = boundaries
    shape, crop, depth = case
    chunk = tuple(c - 2 * d for c, d in zip(crop, depth, strict=True))
    shape = tuple(
        n + s - r if 0 < (r := n % s) <= d else n for n, s, d in zip(shape, chunk, depth, strict=True)
    )
    got = tw.tiled_map(fn, noise(shape), crop, depth, edge="pad", dtype=float, **ours).compute()
    expected = dask_map(fn, noise(shape), chunk, depth, theirs)
    inside = tuple(slice(n - n % s) for n, s in zip(shape, chunk, strict=True))
    same(got[inside], expected[inside])
    if fn is from_start:
        same(got, expected)  # counts from the start, which is the same


@given(fn=FUNCTIONS, case=halos(whole=False, least=3, dims=2))
def test_dask_without_a_boundary(fn, case):
    """Where the last chunk is longer than the depth; dask joins shorter ones with their neighbour."""
    shape, crop, depth = case
    chunk = tuple(c - 2 * d for c, d in zip(crop, depth, strict=True))
    shape = tuple(n - n % s if n % s <= d else n for n, s, d in zip(shape, chunk, depth, strict=True))
    if any(d >= s for d, s in zip(depth, chunk, strict=True)):
        return
    got = tw.tiled_map(fn, noise(shape), crop, depth, edge="clip", dtype=float)
    same(got, dask_map(fn, noise(shape), chunk, depth, "none"))


# ------------------------------------------------------------------------------------------- the table


TOOLS = ("Ryomen", "Patchly", "dask", "MONAI", "nnU-Net", "TorchIO", "tiler")


def table(path: str) -> dict[str, str]:
    lines = re.findall(r"(?m)^\| (\S+) (\|.*\|)$", (ROOT / path).read_text())
    return {tool: line for tool, line in lines if tool in TOOLS}


def row(tool: str, **letters: Any) -> list[dict[str, Any]]:
    """Return the arguments that a row of the README gives, one dict for each of its alternatives."""
    common, *others = re.findall(r"`([^`]*)`", table("README.md")[tool].split(" | ")[1])
    given = eval(f"dict({common})", {}, letters)
    return [given | eval(f"dict({other})", {}, letters) for other in others or [""]]


def test_the_table_is_the_same_in_the_readme_and_in_the_docs():
    assert tuple(table("README.md")) == TOOLS
    assert table("README.md") == table("docs/other-tools.md")


DIMS = pytest.mark.parametrize("dims", [1, 2, 3])


def by_row(options: dict[str, Any], shape: Sequence[int], fn: Fn = from_start) -> np.ndarray:
    return np.asarray(tw.tiled_map(fn, noise(shape), dtype=float, **options))


@pytest.mark.peers
@DIMS
def test_the_row_of_ryomen(dims):
    [options] = row("Ryomen", c=7, o=1)
    shape = (25, 20, 15)[:dims]
    same(by_row(options, shape), ryomen(from_start, noise(shape), (7,) * dims, (1,) * dims))


@pytest.mark.peers
@DIMS
def test_the_row_of_patchly(dims):
    shape, modes = (16,) * dims, ("EDGE", "CROP", "SQUEEZE", "ADAPTIVE")
    for mode, options in zip(modes, row("Patchly", p=7, s=4), strict=True):
        theirs = patchly(from_start, noise(shape), (7,) * dims, (4,) * dims, f"SAMPLE_{mode}", "avg")
        same(by_row(options, shape), theirs)


@DIMS
def test_the_row_of_dask(dims):
    shape, boundaries = (15, 10, 20)[:dims], ("none", "reflect", "nearest", "periodic", 3)
    for boundary, options in zip(boundaries, row("dask", c=5, d=1, k=3), strict=True):
        same(by_row(options, shape), dask_map(from_start, noise(shape), (5,) * dims, (1,) * dims, boundary))


@pytest.mark.peers
@DIMS
def test_the_row_of_monai(dims):
    shape = (21, 19, 17)[:dims]
    constant, gaussian = row("MONAI", r=8, f=0.25)
    same(by_row(constant, shape), monai(from_start, noise(shape), (8,) * dims, 0.25))
    theirs = monai(centred, noise(shape), (8,) * dims, 0.25, mode="gaussian")
    difference = np.abs(by_row(gaussian, shape, centred) - theirs).max()
    assert difference < 1
    assert (difference > 1e-6) == (dims > 1)  # along one axis, the weights of 8 samples exceed 0.001


@DIMS
def test_the_row_of_torchio(dims):
    shape = (21, 19, 17)[:dims]
    average, trim = row("TorchIO", p=8, v=2)
    same(by_row(average, shape), torchio(from_start, noise(shape), (8,) * dims, (2,) * dims, "average"))
    local = functools.partial(np.multiply, 3.0)
    same(by_row(trim, shape, local), torchio(local, noise(shape), (8,) * dims, (2,) * dims, "crop"))


@DIMS
def test_the_row_of_tiler(dims):
    shape = (21, 19, 17)[:dims]
    for mode, options in zip(("constant", "drop", "irregular"), row("tiler", p=7, v=3), strict=True):
        theirs = tiler_rule(from_start, noise(shape), (7,) * dims, (3,) * dims, mode)
        same(by_row(options, shape)[tuple(map(slice, theirs.shape))], theirs)


@DIMS
def test_the_row_of_nnunet(dims):
    """Its crops; the weights are another gaussian, so the results of crops that disagree are near."""
    [options] = row("nnU-Net", p=8, f=0.5)
    shape = (20, 16, 12)[:dims]
    theirs = nnunet(from_start, noise(shape), (8,) * dims, 0.5, nnunet_map((8,) * dims))
    same(by_row(options | {"blend": bell}, shape), theirs)
    ours = by_row(options, shape)
    assert 1e-3 < np.abs(ours - theirs).max() / 10.0 ** (dims - 1) < 4  # crops disagree by 4 and more
    same(by_row(options, shape, np.negative), -noise(shape))
