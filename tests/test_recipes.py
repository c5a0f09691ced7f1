"""MONAI's and nnU-Net's grids and weights as arguments of `tiled_map`, against their rules written out."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

import tilework as tw
from tests.sampling import share

PADDING = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def noise(shape: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def whole(crop: np.ndarray) -> np.ndarray:
    """Return what depends on every sample of a crop, and on its place."""
    return crop + np.linspace(0.5, 2, crop.size).reshape(crop.shape) * crop.mean()


def in_the_middle(image: np.ndarray, crop: Any, mode: str, cval: float) -> tuple[np.ndarray, Any]:
    missing = [max(c - n, 0) for n, c in zip(image.shape, crop, strict=True)]
    extra = {"constant_values": cval} if mode == "constant" else {}
    padded = np.pad(image, [(m // 2, m - m // 2) for m in missing], mode, **extra)  # type: ignore[call-overload]
    inside = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, image.shape, strict=True))
    return padded, inside


def averaged(fn: Any, image: np.ndarray, crop: Any, starts: Any, weights: np.ndarray) -> np.ndarray:
    total, weight = np.zeros(image.shape), np.zeros(image.shape)
    for start in itertools.product(*starts):
        box = tuple(slice(a, a + c) for a, c in zip(start, crop, strict=True))
        total[box] += weights * fn(image[box])
        weight[box] += weights
    return total / weight


# -- MONAI ---------------------------------------------------------------------------------------------


def monai_starts(extent: int, roi: int, overlap: float) -> list[int]:
    """Return the starts of `dense_patch_slices` (monai.data.utils) with MONAI's scan interval."""
    interval = max(1, int(roi * (1 - overlap))) if roi < extent else roi
    starts = []
    for k in range(-(-extent // interval)):
        starts.append(min(k * interval, extent - roi))
        if k * interval + roi >= extent:
            break
    return starts


def monai_map(roi: Any, sigma_scale: Any) -> np.ndarray:
    """Return what `compute_importance_map` does, in double precision."""
    values = np.ones(())
    for n, s in zip(roi, np.broadcast_to(sigma_scale, len(roi)), strict=True):
        x = (np.arange(n) - (n - 1) / 2) / (s * n)
        values = np.multiply.outer(values, np.exp(-(x**2) / 2))
    return np.maximum(values, 1e-3)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12), st.floats(0, 0.9)), min_size=1, max_size=3),
    st.sampled_from(sorted(PADDING)), st.sampled_from(["constant", "gaussian"]), st.integers(0, 9),
)  # fmt: skip
def test_monai_options_give_the_numbers_of_its_rules(axes, padding, mode, seed):
    shape = tuple(min(n, 4 * r) for n, r, _ in axes)
    roi, overlap = tuple(r for _, r, _ in axes), [f for *_, f in axes]
    image, cval = noise(shape, seed), -0.5
    padded, inside = in_the_middle(image, roi, PADDING[padding], cval)
    starts = [monai_starts(n, r, f) for n, r, f in zip(padded.shape, roi, overlap, strict=True)]
    weights = monai_map(roi, 0.2) if mode == "gaussian" else np.ones(roi)
    expected = averaged(whole, padded, roi, starts, weights)[inside]
    options = tw.monai_options(shape, roi, overlap, mode, 0.2, padding, cval)
    out = tw.tiled_map(whole, image, **options, dtype=float)
    np.testing.assert_allclose(out.compute(), expected, rtol=2e-6)


def test_monai_options_from_zarr_to_zarr(tmp_path):
    """Channels and a batch in front, nothing of the volume in memory twice."""
    image = noise((2, 3, 20, 31)).astype("f4")
    zarr.save(tmp_path / "x.zarr", image)
    options = tw.monai_options(image.shape, (24, 16), 0.5, "gaussian")
    source = zarr.open_array(tmp_path / "x.zarr", mode="r")
    out = tw.tiled_map(lambda crop: crop.sum(0) - crop.mean(), source, **options, each=0)
    written = tw.to_zarr(out, tmp_path / "out.zarr", progress=False)
    for index, one in enumerate(image):
        padded = np.pad(one, [(0, 0), (2, 2), (0, 0)])
        total, weight = np.zeros((24, 31)), np.zeros((24, 31))
        weights = monai_map((24, 16), 0.125)
        for a in monai_starts(31, 16, 0.5):
            crop = padded[:, :, a : a + 16]
            total[:, a : a + 16] += weights * (crop.sum(0) - crop.mean())
            weight[:, a : a + 16] += weights
        np.testing.assert_allclose(written[index], (total / weight)[2:22], rtol=1e-4, atol=1e-5)


def test_monai_weights_are_clamped_for_all_axes_together():
    weights = tw.monai_weights((16, 24, 9), (0.1, 0.125, 0.3))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, monai_map((16, 24, 9), (0.1, 0.125, 0.3)), rtol=1e-6)
    assert weights.min() == np.float32(1e-3)
    flat = tw.monai_weights((5,), 10)
    assert flat.min() > 0.9


@pytest.mark.parametrize(
    ("shape", "roi", "expected"),
    [
        ((1, 50, 60), (32, None), ((32, 60), (24, 60))),
        ((50, 60), 32, ((32, 32), (24, 24))),
        ((50, 60), (0, -1), ((50, 60), (50, 60))),
        ((50, 20), (32, 32), ((32, 32), (24, 32))),
        ((9, 9), (1, 3), ((1, 3), (1, 2))),
    ],
)
def test_monai_options_fill_in_windows(shape, roi, expected):
    options = tw.monai_options(shape, roi)
    assert (options["crop"], options["stride"]) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (((50,), (8, 8)), tw.TilingError, "has 2 lengths, the image 1 axes"),
        (((50,), 8, 1.0), tw.TilingError, "overlap must be at least 0 and less than 1"),
        (((50,), 8, -0.1), tw.TilingError, "overlap must be at least 0"),
        (((50,), 8, (0.5, 0.5)), tw.TilingError, "overlap needs one number per tiled axis, 1"),
        (((50,), 8, 0.25, "trim"), tw.TilingError, "mode must be one of 'constant', 'gaussian'"),
        (((50,), 8, 0.25, "gaussian", 0), tw.TilingError, "sigma_scale must be positive"),
        (((50,), 8, 0.25, "constant", 0.1, "edge"), tw.TilingError, "padding_mode must be one of"),
        (((50,), (8.5,)), TypeError, "roi_size must be a whole number"),
        ((50, 8), TypeError, "shape must have one length per tiled axis"),
        (((0,), 8), tw.TilingError, "shape must be at least one length, each at least 1"),
    ],
)
def test_monai_options_that_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        tw.monai_options(*arguments)


def test_monai_weights_need_one_length_per_axis():
    with pytest.raises(TypeError, match="one length per tiled axis, such as"):
        tw.monai_weights(96)  # type: ignore[arg-type]


# -- nnU-Net -------------------------------------------------------------------------------------------


def nnunet_steps(extent: int, patch: int, step: float) -> list[int]:
    """Return one axis of `compute_steps_for_sliding_window`, of an image as long as the patch at least.

    From nnunetv2/inference/sliding_window_prediction.py of https://github.com/MIC-DKFZ/nnUNet.
    """
    target = patch * step
    count = int(np.ceil((extent - patch) / target)) + 1
    actual = (extent - patch) / (count - 1) if count > 1 else 99999999999
    return [int(np.round(actual * i)) for i in range(count)]


def nnunet_gaussian(patch: Any) -> np.ndarray:
    """Return what `compute_gaussian` of the same module does, as the predictor calls it, without torch."""
    point = np.zeros(patch)
    point[tuple(n // 2 for n in patch)] = 1
    values = gaussian_filter(point, [n / 8 for n in patch], 0, mode="constant", cval=0)
    values /= values.max() / 10
    half = values.astype(np.float32).astype(np.float16)
    half[half == 0] = half[half != 0].min()
    return half


def settings(number: int) -> list[tuple[int, int, float]]:
    """Return extents, patches and steps as they are used, and others."""
    rng = random.Random(0)
    found = []
    while len(found) < number:
        patch = rng.choice([16, 28, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, rng.randint(8, 400)])
        extent = rng.randint(max(1, patch // 2), 6 * patch)
        found.append((extent, patch, rng.choice([0.5, 0.5, 0.25, 0.3, 1 / 3, 0.6, 0.75, 0.9, 1.0])))
    return found


@pytest.mark.sample(0)
def test_nnunets_patches_start_where_it_starts_them():
    """In 1249 of 1249 settings along one axis, of which evenly spaced crops have about two in three."""
    even = 0
    for extent, patch, step in settings(1249):
        plan = tw.plan_tiles(
            (extent,),
            **{k: v for k, v in tw.nnunet_options((extent,), (patch,), step).items() if k != "cval"},
        )
        before = max(0, patch - extent) // 2
        starts = [tile.read.start[0] + before for tile in plan]
        expected = nnunet_steps(max(extent, patch), patch, step)
        assert starts == expected, (extent, patch, step)
        spaced = tw.plan_tiles((extent,), patch, stride=max(1, int(patch * step)), edge="squeeze")
        even += [tile.read.start[0] for tile in spaced] == expected
    assert even < 1000


@pytest.mark.parametrize("patch", [(1,), (7,), (64,), (400,), (28, 256), (9, 16), (20, 33, 17), (80, 96, 40)])
def test_nnunets_weights_are_its_bits(patch):
    weights = tw.nnunet_options(patch, patch)["blend"]
    np.testing.assert_array_equal(weights, nnunet_gaussian(patch))


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(4, 12), st.sampled_from([0.5, 0.3, 0.75, 1.0])),
        min_size=1, max_size=3,
    ),
    st.booleans(),
)  # fmt: skip
def test_nnunet_options_give_the_numbers_of_its_predictor(axes, gaussian):
    """But for its sums in half precision; a 2-D patch runs slice by slice."""
    shape, patch = tuple(min(n, 3 * p) for n, p, _ in axes), tuple(p for _, p, _ in axes)
    step = axes[0][2]
    images = noise((2, *shape))
    options = tw.nnunet_options(images.shape, patch, step, gaussian=gaussian)
    out = tw.tiled_map(whole, images, **options, each=0, dtype=float)
    weights = nnunet_gaussian(patch).astype(float) if gaussian else np.ones(patch)
    for got, image in zip(out.compute(), images, strict=True):
        padded, inside = in_the_middle(image, patch, "constant", 0)
        starts = [nnunet_steps(n, p, step) for n, p in zip(padded.shape, patch, strict=True)]
        np.testing.assert_allclose(got, averaged(whole, padded, patch, starts, weights)[inside], rtol=1e-9)


@pytest.mark.parametrize("step", [0, -0.5, 1.5, float("nan")])
def test_nnunets_step_is_a_fraction(step):
    with pytest.raises(tw.TilingError, match="step must be above 0 and up to 1"):
        tw.nnunet_options((100,), (32,), step)


def test_patches_that_lie_on_one_another_are_refused():
    """nnU-Net runs them twice, which counts them twice."""
    assert len(set(nnunet_steps(40, 8, 0.05))) < len(nnunet_steps(40, 8, 0.05))
    with pytest.raises(tw.TilingError, match=r"step 0\.05 of patch 8 is less than a sample.*at least 0\.125"):
        tw.nnunet_options((40,), (8,), 0.05)


@pytest.mark.slow
def test_more_of_nnunets_starts():
    for extent, patch, step in settings(share(20_000)):
        starts = tw.nnunet_options((extent,), (patch,), step)["starts"]
        assert list(starts[0]) == nnunet_steps(max(extent, patch), patch, step)
