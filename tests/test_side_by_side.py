"""Blends of crops that do not overlap, as MONAI's ``overlap=0`` has them, and windows that end at 0."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tests.reference import reference
from tilework.grid.axis import EDGES
from tilework.grid.weights import profile

IMAGE = np.random.default_rng(0).random((25, 37))
BLENDS: dict[str, Any] = {
    name: name for name in ("average", "linear", "hann", "gaussian", "max", "min", "sum")
}
BLENDS |= {
    "callable": lambda n: np.arange(n) + 1.0,
    "arrays": (np.arange(5) + 1.0, np.ones(6)),
    "map": np.arange(30.0).reshape(5, 6) + 1,
}


def centred(crop: np.ndarray) -> np.ndarray:
    """Return a crop less its mean, which belongs to the whole crop."""
    return crop - crop.mean()


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("blend", BLENDS)
def test_every_crop_stands_alone(blend: str, edge: Any) -> None:
    """Where they fit, and where the last ones are moved, padded, cut or left out, as the oracle says."""
    whole = IMAGE[:15, :24]
    out = tw.tiled_map(centred, whole, (5, 6), 0, edge=edge, blend=BLENDS[blend], dtype=float)
    got = out.compute(scheduler="sync")
    for y, x in itertools.product(range(0, 15, 5), range(0, 24, 6)):
        alone = centred(whole[y : y + 5, x : x + 6])
        np.testing.assert_allclose(got[y : y + 5, x : x + 6], alone, rtol=0, atol=1e-15)
    options: dict[str, Any] = {"stride": (5, 6), "edge": edge, "blend": BLENDS[blend], "fill_value": -9}
    ragged = IMAGE[:13, :22]
    out = tw.tiled_map(centred, ragged, (5, 6), dtype=float, **options)
    expected = reference(centred, ragged, (5, 6), axes=(0, 1), **options)
    np.testing.assert_allclose(out.compute(scheduler="sync"), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("blend", ["hann", "average", "max"])
def test_one_axis_may_overlap_and_the_other_not(blend: Any) -> None:
    out = tw.tiled_map(centred, IMAGE, (5, 6), (0, 2), blend=blend, rim=(0, 1), dtype=float)
    expected = reference(centred, IMAGE, (5, 6), (0, 2), axes=(0, 1), blend=blend, rim=(0, 1))
    np.testing.assert_allclose(out.compute(), expected, rtol=0, atol=1e-14)


def test_results_of_another_size_stand_side_by_side() -> None:
    """A function that pools, and one without padding, whose results touch where crops overlap."""
    image = IMAGE[:24, :36]
    pooled = tw.tiled_map(
        lambda x: x[::2, ::2] * x.mean(), image, 6, 0, blend="hann",
        output=tw.Output(float, scale=Fraction(1, 2)),
    )  # fmt: skip
    valid = tw.tiled_map(
        lambda x: x[1:-1, 1:-1] - x.mean(), image, 8, stride=6, blend="gaussian",
        output=tw.Output(float, margin=1),
    )  # fmt: skip
    padded = np.pad(image, 1, "reflect")
    for y, x in itertools.product(range(0, 24, 6), range(0, 36, 6)):
        crop = image[y : y + 6, x : x + 6]
        at = (slice(y // 2, y // 2 + 3), slice(x // 2, x // 2 + 3))
        np.testing.assert_allclose(pooled.compute()[at], crop[::2, ::2] * crop.mean(), atol=1e-15)
        around = padded[y : y + 8, x : x + 8]
        got = valid.compute()[y : y + 6, x : x + 6]
        np.testing.assert_allclose(got, crop - around.mean(), atol=1e-14)


def test_plans_name_and_write_them_as_any_other(tmp_path: Any) -> None:
    plan = tw.plan_tiles((25, 36), (5, 6), 0, blend="gaussian")
    assert len(plan) == 30
    out = tw.tiled_map(centred, IMAGE, (5, 6), 0, blend="gaussian", dtype=float)
    written = tw.to_zarr(out, tmp_path / "out.zarr", progress=False)
    np.testing.assert_array_equal(written[...], out.compute())


def test_a_rim_still_needs_an_overlap() -> None:
    for rim, overlap in ((1, 0), (3, 2)):
        with pytest.raises(tw.GridError, match=f"rim must not exceed overlap.*rim {rim}, overlap {overlap}"):
            tw.tiled_map(centred, IMAGE, 9, overlap, blend="hann", rim=rim, dtype=float)


# -- windows that are 0 at their ends ---------------------------------------------------------------------


def below_zero(n: int) -> np.ndarray:
    """Return a window that rounding makes negative at its ends, as those of scipy.signal are."""
    weights = np.hanning(n)
    weights[[0, -1]] = -1.4e-17
    return weights


@pytest.mark.parametrize("window", [np.hanning, np.blackman, np.bartlett, below_zero])
@pytest.mark.parametrize("edge", EDGES)
def test_windows_that_end_at_zero_blend_up_to_the_border(window: Any, edge: Any) -> None:
    """Only there their zeros get weight: no other crop has any."""
    assert window(12).min() <= 0
    out = tw.tiled_map(np.copy, IMAGE, 12, 3, blend=window, edge=edge, dtype=float).compute()
    covered = (slice(0, 23), slice(0, 35)) if edge == "drop" else ...
    np.testing.assert_allclose(out[covered], IMAGE[covered], rtol=1e-13)
    rim = tw.tiled_map(np.copy, IMAGE, 12, 3, blend=window, rim=1, edge=edge, dtype=float).compute()
    np.testing.assert_allclose(out, rim, rtol=1e-13)


def test_windows_of_scipy_and_torch_are_taken() -> None:
    windows = pytest.importorskip("scipy.signal").windows
    for name in ("hann", "blackman", "bohman", "cosine", "nuttall", "tukey", "hamming"):
        out = tw.tiled_map(np.copy, IMAGE, 12, 3, blend=getattr(windows, name), dtype=float)
        np.testing.assert_allclose(out.compute(), IMAGE, rtol=1e-13)
    with pytest.raises(tw.GridError, match="not negative"):
        tw.tiled_map(np.copy, IMAGE, 12, 3, blend=windows.flattop, dtype=float)
    torch = pytest.importorskip("torch")
    out = tw.tiled_map(
        np.copy, IMAGE, 12, 3, blend=lambda n: torch.blackman_window(n, periodic=False), dtype=float
    )
    np.testing.assert_allclose(out.compute(), IMAGE, rtol=1e-13)


def test_rounding_is_clipped_and_negative_weights_are_refused() -> None:
    exact = np.hanning(12)
    exact[[0, -1]] = 0
    assert profile(below_zero, 12).tolist() == exact.tolist()
    for blend in (below_zero, (below_zero(12),) * 2, np.outer(below_zero(12), below_zero(12))):
        one = tw.tiled_map(centred, IMAGE, 12, 3, blend=blend, edge="pad", dtype=float)
        same = np.outer(exact, exact) if isinstance(blend, np.ndarray) else (exact, exact)
        two = tw.tiled_map(centred, IMAGE, 12, 3, blend=same, edge="pad", dtype=float)
        np.testing.assert_array_equal(one.compute(), two.compute())
    for least in (-1e-6, -1e-12, -1.0):
        bad = np.hanning(12)
        bad[0] = least
        for blend in ((bad, bad), np.outer(bad, np.ones(12)), lambda n, b=bad: b):
            with pytest.raises(tw.GridError, match="must be finite, not negative"):
                tw.tiled_map(centred, IMAGE, 12, 3, blend=blend, edge="pad", dtype=float)


def test_a_hole_inside_a_window_is_refused() -> None:
    def hollow(n: int) -> np.ndarray:
        return np.where(np.abs(np.arange(n) - n / 2) < 4, 0.0, 1.0)

    with pytest.raises(tw.GridError, match="sample 3 on axis 0 has none"):
        tw.tiled_map(centred, IMAGE, 12, 0, blend=hollow, dtype=float)
    # More zeros than overlap: the border is reached, the middle between two crops is not.
    narrow = lambda n: np.where(np.abs(np.arange(n) - (n - 1) / 2) < 2, 1.0, 0.0)  # noqa: E731
    with pytest.raises(tw.GridError, match="every sample needs a positive weight"):
        tw.tiled_map(centred, IMAGE, 12, 2, blend=narrow, dtype=float)
