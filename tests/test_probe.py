"""`probe` against functions whose receptive field, multiple and scale are known, and what that costs.

Reaches were counted by hand from the definition of each function; networks from their layers.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import ndimage as ndi
from scipy import signal

import tilework as tw
from tests.laws.test_e_networks import counts
from tests.networks import deepcr, dncnn, kodim23, noisy, realesr_x2, require

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)
KERNEL = RNG.random((9, 9)).astype(np.float32)


def pooled(x: Array, m: int) -> Array:
    """Return the largest sample of each group of m by m, at full resolution."""
    a, b = (n // m for n in x.shape)
    return x.reshape(a, m, b, m).max((1, 3)).repeat(m, 0).repeat(m, 1)


def unet(x: Array) -> Array:
    """Box 3, pool 4, box 3 on the coarse grid, back, and box 3 of the sum.

    A group of 4 depends on 1 + 4 + 4 * 1 samples beyond it: its fine box, its coarse neighbour, and the
    box of that; single samples on up to 3 more, as they may stand at the other end of their group.
    """
    fine = ndi.uniform_filter(x, 3)
    coarse = ndi.uniform_filter(pooled(fine, 4)[::4, ::4], 3)
    return ndi.uniform_filter(fine + coarse.repeat(4, 0).repeat(4, 1), 3)


def dilated(x: Array) -> Array:
    """Two 3 x 3 convolutions, dilated by 1 and 4, with a rectifier between."""
    one = np.maximum(ndi.uniform_filter(x, 3, mode="constant") - 0.5, 0)
    taps = np.zeros((9, 9), np.float32)
    taps[::4, ::4] = 1 / 9
    return ndi.convolve(one, taps, mode="constant")


def causal(x: Array) -> Array:
    """Each sample with the 3 before it and the 1 behind, along the last axis only."""
    return ndi.correlate1d(x, np.arange(1, 6.0)[::-1].astype(x.dtype), origin=1, mode="constant")


def shifted(x: Array, offset: int) -> Array:
    """Return ``y[i] = x[i + offset]``, 0 where there is no such sample."""
    out = np.zeros_like(x)
    n = len(x)
    out[max(0, -offset) : n - max(0, offset)] = x[max(0, offset) : n - max(0, -offset)]
    return out


def squeezed(x: Array) -> Array:
    """A box filter times a gate that looks at the whole crop (squeeze-excite)."""
    return ndi.uniform_filter(x, 3) / (1 + np.exp(-x.mean()))


@dataclass(frozen=True)
class Known:
    """A function with what is true of it."""

    fn: Callable[..., Any]
    overlap: tuple[int, ...]
    sides: tuple[tuple[int, int], ...]
    multiple: int = 1
    crop: tuple[int, ...] = (64, 64)
    options: dict[str, Any] = field(default_factory=dict)
    calls: int = 64
    """More calls of the function than this are too many."""


def same(r: int, n: int = 2) -> tuple[Any, Any]:
    return (r,) * n, ((r, r),) * n


KNOWN = {
    "identity": Known(lambda x: x.copy(), *same(0)),
    "box of 5": Known(lambda x: ndi.uniform_filter(x, 5), *same(2)),
    "box of 41, most of the crop": Known(lambda x: ndi.uniform_filter(x, 41), *same(20)),
    "box of 3, 5 and 7 in 3-D": Known(
        lambda x: ndi.uniform_filter(x, (3, 5, 7)), (1, 2, 3), ((1, 1), (2, 2), (3, 3)),
        crop=(24, 24, 24), calls=64,
    ),
    "stencil, 3 before and 2 behind": Known(
        lambda x: x + shifted(x, -3) + shifted(x.T, 2).T, (3, 2), ((3, 0), (0, 2))
    ),
    "causal, 3 before and 1 behind": Known(causal, (0, 3), ((0, 0), (3, 1))),
    "dilated convolutions": Known(dilated, *same(5)),
    "convolution by FFT": Known(lambda x: signal.fftconvolve(x, KERNEL, "same"), *same(4)),
    "gaussian of sigma 2, cut at 4 sigmas": Known(lambda x: ndi.gaussian_filter(x, 2), *same(8)),
    "gaussian of sigma 2, within 2 %": Known(
        lambda x: ndi.gaussian_filter(x, 2), *same(4), options={"tolerance": 0.02}
    ),
    "median of 5 x 5": Known(lambda x: ndi.median_filter(x, 5), *same(2)),
    "median of 9 in 1-D": Known(lambda x: ndi.median_filter(x, 9), *same(4, 1), crop=(256,)),
    "median of bytes": Known(lambda x: ndi.median_filter(x, 3), *same(1), options={"dtype": "uint8"}),
    "largest of 7 x 7": Known(lambda x: ndi.maximum_filter(x, 7), *same(3)),
    "grey opening of 5 in 1-D": Known(
        lambda x: ndi.grey_opening(x, 5), *same(4, 1), crop=(256,)
    ),
    "binary opening of 3 x 3": Known(
        lambda x: ndi.binary_opening(x, np.ones((3, 3))), *same(2), options={"dtype": bool}
    ),
    "pooling by 4": Known(lambda x: pooled(x, 4), (0, 0), ((3, 3), (3, 3)), 4, calls=88),
    # Coarse neighbours: 4 + 1 samples of the fine box beyond the coarse cell, 1 of the last box before it.
    "U-shaped, pooling by 4": Known(unet, (12, 12), ((9, 9), (9, 9)), 4, calls=88),
    "local contrast, integers": Known(
        lambda x: x.astype(np.int32) - ndi.minimum_filter(x, 9), *same(4), options={"dtype": "uint16"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_finds_reach_and_multiple(name: str) -> None:
    known = KNOWN[name]
    report = tw.probe(known.fn, known.crop, **known.options)
    assert report.exact, report
    assert report.deterministic
    assert report.multiple == (known.multiple,) * len(known.crop)
    assert report.sides == known.sides, report
    assert report.overlap == known.overlap
    assert report.calls <= known.calls


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["binary opening of 3 x 3", "grey opening of 5 in 1-D", "pooling by 4"])
def test_whatever_the_seed_where_few_inputs_matter(name: str, seed: int) -> None:
    known = KNOWN[name]
    report = tw.probe(known.fn, known.crop, seed=seed, **known.options)
    assert (report.sides, report.overlap) == (known.sides, known.overlap), report


def image_for(known: Known) -> Array:
    """Return an image of which no crop is all, of the dtype that the function takes."""
    shape = tuple(2 * c + 8 for c in known.crop)
    unit = np.random.default_rng(1).random(shape)
    dtype = np.dtype(known.options.get("dtype", "float32"))
    if dtype.kind == "b":
        return ndi.uniform_filter(unit, 3) > 0.45
    return (unit * 200 if dtype.kind == "u" else unit).astype(dtype)


@pytest.mark.parametrize("name", KNOWN)
def test_overlap_auto_equals_the_untiled_result(name: str) -> None:
    known = KNOWN[name]
    # FFT and sums of floats round by the length of the crop.
    expect = 1e-5 if "tolerance" in known.options or "FFT" in name else 1e-6
    image = image_for(known)
    out = tw.tiled_map(known.fn, image, known.crop, "auto")
    whole = known.fn(image)
    assert out.dtype == whole.dtype
    difference = np.abs(out.compute().astype(float) - whole.astype(float)).max()
    assert difference <= expect * max(1, np.abs(whole.astype(float)).max())


@pytest.mark.parametrize(
    "name", ["box of 5", "dilated convolutions", "U-shaped, pooling by 4", "median of 5 x 5"]
)
def test_less_overlap_is_not_exact(name: str) -> None:
    known = KNOWN[name]
    image = image_for(known)
    less = known.overlap[0] - known.multiple
    out = tw.tiled_map(known.fn, image, known.crop, less, multiple=known.multiple, dtype="float32")
    assert np.abs(out.compute() - known.fn(image)).max() > 1e-4


def test_padding_inside_the_function_counts_though_no_input_reaches_that_far() -> None:
    """Moved to and fro: each sample depends on itself alone, and both ends of a crop are lost."""

    def there_and_back(x: Array) -> Array:
        return shifted(shifted(shifted(x, 5), -9), 4)

    report = tw.probe(there_and_back, (64,))
    assert report.sides == ((0, 0),)
    assert report.borders == ((5, 4),)
    assert (report.overlap, report.exact) == ((5,), True)
    image = np.random.default_rng(0).random(300).astype(np.float32)
    exact = tw.tiled_map(there_and_back, image, 64, "auto").compute()
    np.testing.assert_array_equal(exact, there_and_back(image))
    assert (tw.tiled_map(there_and_back, image, 64, 4, dtype="float32").compute() != exact).any()


@pytest.mark.parametrize("seed", range(12))
def test_random_chains_of_stencils_and_pools_are_exact_at_what_was_found_and_not_below(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps: list[tuple[Any, Any]] = []
    for _ in range(rng.integers(1, 4)):
        offsets = sorted(set(rng.integers(-4, 5, rng.integers(1, 4)).tolist()))
        steps.append((offsets, rng.uniform(0.2, 1, len(offsets))))
        if rng.random() < 0.5:
            steps.append((None, int(rng.choice([2, 3, 4]))))

    def fn(x: Array) -> Array:
        for offsets, weights in steps:
            if offsets is None:
                m, n = weights, len(x) // weights * weights
                x = np.concatenate((x[:n].reshape(-1, m).mean(1).repeat(m), x[n:]))
            else:
                x = sum(w * shifted(x, o) for o, w in zip(offsets, weights, strict=True))
        return x

    report = tw.probe(fn, (96,), dtype="float64", seed=seed)
    assert report.exact, report
    image = np.random.default_rng(99).random(96 * 5)
    (overlap,), (multiple,) = report.overlap, report.multiple
    out = tw.tiled_map(fn, image, 96, overlap, multiple=multiple, dtype=float)
    np.testing.assert_allclose(out.compute(), fn(image), atol=1e-12)
    if overlap:
        less = tw.tiled_map(fn, image, 96, overlap - multiple, multiple=multiple, dtype=float)
        assert not np.allclose(less.compute(), fn(image), atol=1e-12)


# -- shapes of results ------------------------------------------------------------------------------------


def test_valid_region() -> None:
    report = tw.probe(lambda x: ndi.uniform_filter(x, 7)[3:-3, 3:-3], (64, 64))
    assert (report.margin, report.sides) == (((3, 3), (3, 3)), ((3, 3), (3, 3)))
    assert report.overlap == (3, 3)
    assert report.output == tw.Output("float32", margin=((3, 3), (3, 3)))


def test_valid_region_of_an_even_kernel_lies_on_one_side() -> None:
    report = tw.probe(lambda x: x[1:] + x[:-1], (64,))
    assert (report.margin, report.overlap) == (((0, 1),), (1,))


def test_scale_is_told_from_margin_by_where_results_stand() -> None:
    half = tw.probe(lambda x: ndi.uniform_filter(x, 3)[::2, ::2], (64, 64))
    assert (half.scale, half.margin, half.multiple) == ((Fraction(1, 2),) * 2, ((0, 0),) * 2, (2, 2))
    assert half.overlap == (2, 2)
    cropped = tw.probe(lambda x: x[16:-16, 16:-16] + 1, (64, 64))
    assert (cropped.scale, cropped.margin) == ((1, 1), ((16, 16), (16, 16)))


@pytest.mark.parametrize("shape", [(3, 48, 48), (48, 48, 3)])
def test_channels(shape: tuple[int, ...]) -> None:
    axes = (1, 2) if shape[0] == 3 else (0, 1)
    channel = 0 if shape[0] == 3 else 2
    report = tw.probe(lambda x: x.mean(channel), (48, 48), shape=shape, axes=axes)
    assert report.output == tw.Output("float32", channels=0)
    five = tw.probe(lambda x: np.stack([x] * 5), (48, 48), dtype="uint8")
    assert five.output == tw.Output("uint8", channels=5, channel_axis=0)


def test_several_results_have_an_output_each_and_the_largest_reach() -> None:
    report = tw.probe(lambda x: {"same": x, "box": ndi.uniform_filter(x, 5)[None]}, (48, 48))
    assert report.overlap == (2, 2)
    assert report.output == {"same": tw.Output("float32"), "box": tw.Output("float32", channels=1)}


def test_several_images_and_batches() -> None:
    def fn(a: Array, b: Array) -> Array:
        return ndi.uniform_filter1d(a, 3, 2) + ndi.uniform_filter1d(b, 5, 1)

    images = (np.zeros((100, 90), np.float32), np.zeros((100, 90), np.uint8))
    report = tw.probe(fn, (48, 40), images, batch_size=4)
    assert report.overlap == (2, 1)


def test_each_axis_and_middle_crop_are_taken_from_the_array() -> None:
    seen = []

    def fn(x: Array) -> Array:
        seen.append(x.max())
        return ndi.uniform_filter(x, 3)

    image = np.random.default_rng(0).integers(1000, 1100, (4, 90, 90)).astype(np.uint16)
    assert tw.probe(fn, (40, 40), image, each=0).overlap == (1, 1)
    assert 1000 < seen[0] < 1100


# -- what no overlap makes exact ---------------------------------------------------------------------------

GLOBAL = {
    "normalisation by mean and deviation": lambda x: (x - x.mean()) / x.std(),
    "division by the largest": lambda x: x / np.abs(x).max(),
    "squeeze-excite": squeezed,
    "instance norm": lambda x: (x - x.mean((-2, -1), keepdims=True)) / x.std((-2, -1), keepdims=True),
    "numbers of connected parts": lambda x: ndi.label(x > 0.5)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", GLOBAL)
def test_a_global_response_is_unbounded(name: str) -> None:
    report = tw.probe(GLOBAL[name], (64, 64))
    assert not report.bounded
    assert not report.exact
    assert sum("global on axis 0, 1" in note for note in report.notes) == 1
    assert ('labels="own"' if name == "numbers of connected parts" else "blend") in str(report)
    assert report.overlap == (16, 16)
    assert report.calls <= 88


def test_overlap_auto_warns_where_no_overlap_is_exact() -> None:
    image = np.random.default_rng(0).random((100, 100)).astype(np.float32)
    with pytest.warns(tw.TilingWarning, match=r"no overlap is exact.*blend"):
        out = tw.tiled_map(squeezed, image, 64, "auto", blend="gaussian")
    assert out.compute().shape == image.shape


def test_a_reach_beyond_the_crop_is_told_from_a_global_response() -> None:
    report = tw.probe(lambda x: ndi.uniform_filter1d(x, 127), (64,))
    assert not report.bounded
    [note] = [n for n in report.notes if "crop" in n]
    assert "give a larger crop, more than 126" in note
    assert "global" not in str(report)


def test_a_global_response_that_is_silent_at_the_border_is_asked_of_a_longer_crop() -> None:
    def gated(x: Array) -> Array:
        out = x * x.mean()
        out[:6] = out[-6:] = 0
        return out

    report = tw.probe(gated, (64,))
    assert not report.bounded
    assert "global" in str(report)


def test_a_quiet_result_that_moves_by_its_own_measure_counts_as_changed() -> None:
    """A probability of 1e-9 in the middle, beside a 1 that is always there."""

    def gated(x: Array) -> Array:
        out = 1e-9 * x * x.mean()
        out[0, 0] = 1
        return out

    assert not tw.probe(gated, (64, 64), dtype="float32").bounded


def test_a_crop_too_short_for_translations_says_so() -> None:
    report = tw.probe(lambda x: ndi.uniform_filter(x, 101), (64, 64))
    assert report.sides == ((50, 50), (50, 50))
    assert not report.exact
    assert "too short" in str(report)


def test_the_multiple_is_found_under_a_global_gate() -> None:
    report = tw.probe(lambda x: pooled(x, 4) * x.mean(), (96, 96))
    assert (report.bounded, report.multiple) == (False, (4, 4))


def test_a_function_of_the_place_in_the_crop_commutes_with_nothing() -> None:
    report = tw.probe(lambda x: x * np.arange(64, dtype=np.float32), (64, 64))
    assert (report.bounded, report.commutes, report.exact) == (True, False, False)
    assert "no translation along axis 1" in str(report)


def test_multiples_differ_between_axes() -> None:
    report = tw.probe(lambda x: pooled(x, 2)[:, ::2].repeat(2, 1) + pooled(x, 1), (60, 60))
    assert report.multiple == (2, 2)
    rows = tw.probe(lambda x: x.reshape(20, 3, 60).max(1).repeat(3, 0), (60, 60))
    assert rows.multiple == (3, 1)


def test_a_quincunx_does_not_commute_with_one_step_although_the_diagonal_does() -> None:
    fine = np.add.outer(np.arange(64), np.arange(64)) % 2 > 0
    assert tw.probe(lambda x: np.where(fine, x, 0), (64, 64)).multiple == (2, 2)


def test_noise_is_no_exactness() -> None:
    rng = np.random.default_rng(3)
    report = tw.probe(lambda x: x + 0.01 * rng.random(x.shape), (48, 48))
    assert not report.deterministic
    assert not report.exact
    assert "two equal calls differ" in str(report)


def test_a_function_that_never_answers_is_not_called_exact() -> None:
    report = tw.probe(np.zeros_like, (48, 48))
    assert not report.exact
    assert "values=" in str(report)


# -- arguments --------------------------------------------------------------------------------------------


def cells(x: Array, m: int) -> Array:
    """Return the mean of each group of m by m, as a feature map."""
    a, b = (n // m for n in x.shape)
    return x.reshape(a, m, b, m).mean((1, 3))


@pytest.mark.parametrize("m", [2, 4, 5, 8, 12, 16, 32])
@pytest.mark.parametrize("times", [5, 6, 8, 16])
def test_feature_maps_are_not_taken_for_another_scale_with_a_margin(m: int, times: int) -> None:
    """1 / 15 of a crop less 1 sample is a whole number too, wherever 1 / 16 of the crop is."""
    report = tw.probe(lambda x: cells(x, m), (m * times,) * 2)
    assert report.scale == (Fraction(1, m),) * 2
    assert report.margin == ((0, 0), (0, 0))
    assert (report.multiple, report.overlap) == ((m, m), (0, 0))
    # Fewer cells leave no room to move any.
    assert report.exact or times < 8


@pytest.mark.parametrize("n", [32, 64, 96])
@pytest.mark.parametrize("lost", [2, 4, 8])
def test_a_margin_is_not_taken_for_a_scale(n: int, lost: int) -> None:
    """56 of 64 samples are 7 / 8 of them, or all but 8; with one crop length alone, told by the response."""

    def valid(x: Array) -> Array:
        return np.asarray(np.lib.stride_tricks.sliding_window_view(x, lost + 1).mean(-1))

    def of_one_length(x: Array) -> Array:
        if len(x) != n:
            raise ValueError("made for one length")
        return valid(x)

    for fn in (valid, of_one_length):
        report = tw.probe(fn, (n,))
        assert (report.scale, report.margin) == ((1,), ((lost // 2, lost // 2),))


def test_a_function_of_one_length_of_crops_shows_its_scale_by_the_response() -> None:
    def fn(x: Array) -> Array:
        if x.shape != (128, 128):
            raise ValueError("made for one length")
        return cells(x, 16)

    report = tw.probe(fn, (128, 128))
    assert (report.scale, report.margin) == ((Fraction(1, 16),) * 2, ((0, 0), (0, 0)))


CIRCULAR: dict[str, Callable[[Array], Array]] = {
    "roll": lambda x: x + np.roll(x, 3, 1),
    "roll back": lambda x: x + np.roll(x, -1, 1),
    "FFT": lambda x: np.fft.ifft(ndi.fourier_gaussian(np.fft.fft(x), (0, 2))).real.astype(x.dtype),
    "wrapped filter": lambda x: ndi.uniform_filter1d(x, 5, axis=1, mode="wrap"),
}


@pytest.mark.parametrize("name", CIRCULAR)
def test_what_wraps_round_is_not_exact_at_the_border(name: str) -> None:
    """Padded by what lies across the border it is."""
    fn = CIRCULAR[name]
    report = tw.probe(fn, (64, 96))
    assert (report.wraps, report.bounded, report.exact) == (("1",), True, False)
    image = np.random.default_rng(0).random((64, 300), np.float32)
    with pytest.warns(tw.TilingWarning, match=r'border, across which it wraps.*boundary="wrap"'):
        differs = tw.tiled_map(fn, image, (64, 96), "auto")
    assert np.abs(differs.compute() - fn(image)).max() > 1e-3
    exact = tw.tiled_map(fn, image, (64, 96), "auto", edge="pad", boundary="wrap")
    np.testing.assert_allclose(exact.compute(), fn(image), atol=1e-5)


RARE: dict[str, Callable[[Array], Array]] = {
    "bright samples, 1-D": lambda x: ndi.maximum_filter((x > 0.99).astype("f4"), 5, mode="wrap"),
    "far beyond the wall": lambda x: np.roll(x, 20, 0),
    "dilated": lambda x: x + np.roll(x, 16, 0) + np.roll(x, -16, 0),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", RARE)
def test_what_wraps_round_is_seen_where_it_answers_seldom_or_lands_far_away(name: str, seed: int) -> None:
    report = tw.probe(RARE[name], (128,) if "1-D" in name else (64, 64), seed=seed)
    assert report.wraps == ("0",)
    assert not report.exact


@pytest.mark.parametrize("mode", ["reflect", "constant", "nearest", "mirror"])
def test_a_border_that_is_invented_is_not_taken_for_the_far_one(mode: str) -> None:
    assert tw.probe(lambda x: ndi.gaussian_filter(x, 1.5, mode=mode), (48, 48)).wraps == ()


def test_values_beyond_the_range_may_be_refused_by_a_global_function_too() -> None:
    def fn(x: Array) -> Array:
        if x.min() < 0 or x.max() > 1:
            raise ValueError("out of range")
        return x - x.mean()

    report = tw.probe(fn, (64, 64), np.random.default_rng(0).random((128, 128)), extremes=True)
    assert not report.bounded


def test_rounding_that_a_transform_spreads_is_no_response() -> None:
    report = tw.probe(lambda x: np.fft.ifft2(np.fft.fft2(x) * 0.5).real.astype("f4"), (96, 96))
    assert (report.overlap, report.exact) == ((0, 0), True)


def test_columns_are_as_wide_as_what_stands_in_them() -> None:
    xarray = pytest.importorskip("xarray")
    image = xarray.DataArray(np.zeros((64, 64)), dims=("vertical position", "x")).chunk()
    lines = str(tw.probe(np.sin, (32, 32), image)).splitlines()[:7]
    assert len({len(line) for line in lines}) == 1


def test_the_same_seed_gives_the_same_report() -> None:
    first, second = (tw.probe(unet, (64, 64), seed=4) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "fn",
    [lambda crop: ndi.gaussian_filter(crop, 1, truncate=3), lambda crop: crop - crop.mean(0)],
    ids=["short", "global"],
)
def test_auto_says_which_axes_need_not_be_tiled(fn: Callable[..., Any]) -> None:
    """A crop as long as the image is not cut there, so that no overlap and no translation is needed."""
    image = np.random.default_rng(0).random((8, 96, 90), dtype=np.float32)
    with pytest.warns(tw.TilingWarning, match="as long as the image along axis 0: leave it out"):
        tw.tiled_map(fn, image, (8, 48, 48), "auto")
    out = tw.tiled_map(fn, image, (48, 48), "auto")
    np.testing.assert_array_equal(out.compute(), fn(image))
    with pytest.warns(tw.TilingWarning) as caught:
        tw.tiled_map(squeezed, image[0], (96, 90), "auto")
    assert "leave it out" not in str(caught[0].message)


def test_auto_notes_what_it_chose_and_names_stay_equal() -> None:
    image = np.zeros((128, 128), np.float32)
    one, two = (tw.tiled_map(unet, image, 64, "auto") for _ in range(2))
    assert one.name == two.name
    from tilework.graph.build import plan_of

    assert 'overlap="auto": (12, 12) per side and multiple (4, 4)' in plan_of(one).explain()


def test_auto_logs_what_it_chose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="tilework"):
        tw.tiled_map(unet, np.zeros((128, 128), np.float32), 64, "auto")
    assert "(12, 12) per side and multiple (4, 4)" in caplog.text


@pytest.mark.parametrize("blend", ["average", "gaussian", "max", "min"])
@pytest.mark.parametrize("name", ["box of 5", "stencil, 3 before and 2 behind", "pooling by 4",
                                  "U-shaped, pooling by 4", "median of 9 in 1-D"])  # fmt: skip
def test_auto_blends_are_untiled_results_too(name: str, blend: str) -> None:
    """What a crop cannot know gets no weight, though single samples may reach over more than whole cells."""
    known = KNOWN[name]
    image = image_for(known)
    out = tw.tiled_map(known.fn, image, known.crop, "auto", blend=blend)
    np.testing.assert_allclose(out.compute(), known.fn(image), atol=1e-5)


def test_auto_gives_a_result_without_a_border_no_rim() -> None:
    """All that a valid convolution returns is right."""

    def valid(x: Array) -> Array:
        return np.lib.stride_tricks.sliding_window_view(x, (5, 5)).mean((2, 3))

    image = np.random.default_rng(0).random((150, 130)).astype(np.float32)
    report = tw.probe(valid, (48, 48))
    assert (report.rim, report.overlap) == ((0, 0), (2, 2))
    out = tw.tiled_map(valid, image, 48, "auto", blend="hann", boundary="edge")
    assert out.shape == image.shape
    np.testing.assert_allclose(out.compute(), valid(np.pad(image, 2, mode="edge")), atol=1e-6)


@pytest.mark.parametrize("m", [2, 4, 16])
@pytest.mark.parametrize("box", [1, 3])
def test_auto_blends_feature_maps_with_a_rim_of_whole_results(m: int, box: int) -> None:
    """Samples off the grid of cells reach farther than the cells: a rim of 1 is no whole result."""

    def fn(x: Array) -> Array:
        return cells(ndi.uniform_filter(x, box), m)

    image = np.random.default_rng(0).random((20 * m, 18 * m)).astype(np.float32)
    out = tw.tiled_map(fn, image, 10 * m, "auto", blend="gaussian")
    np.testing.assert_allclose(out.compute(), fn(image), atol=1e-6)


def test_auto_asks_each_output_whether_it_blends() -> None:
    from tilework.graph.build import plan_of

    def fn(x: Array) -> tuple[Array, Array]:
        return ndi.gaussian_filter(x, 2), x

    image = np.random.default_rng(0).random((300, 250))
    first = tw.Output("float64", blend="hann")
    outs = tw.tiled_map(fn, image, 96, "auto", output=(first, tw.Output("float64")))
    for out, whole in zip(outs, fn(image), strict=True):
        np.testing.assert_allclose(out.compute(), whole, atol=1e-12)
    trims = (tw.Output("float64", blend="trim"),) * 2
    outs = tw.tiled_map(fn, image, 96, "auto", blend="gaussian", output=trims)
    np.testing.assert_array_equal(outs[0].compute(), fn(image)[0])
    summed = plan_of(tw.tiled_map(lambda x: fn(x)[0], image, 96, "auto", blend="sum"))
    assert "rim" not in summed.explain()


def test_a_margin_on_one_side_is_told_from_one_on_both() -> None:
    for start, stop in ((0, 4), (4, 0), (2, 6), (3, 3)):
        report = tw.probe(lambda x, a=start, b=stop: x[a : len(x) - b] * 2, (64,))
        assert report.margin == ((start, stop),)


def test_auto_keeps_a_rim_and_says_what_it_chose() -> None:
    from tilework.graph.build import plan_of

    def fn(x: Array) -> Array:
        return ndi.uniform_filter(x, 7)

    image = np.random.default_rng(0).random((150, 130)).astype(np.float32)
    plan = plan_of(tw.tiled_map(fn, image, 48, "auto", blend="gaussian"))
    assert "rim=(3, 3): what crops do not know" in " ".join(plan.explain().split())
    none = plan_of(tw.tiled_map(fn, image, 48, "auto", blend="gaussian", rim=(0, 0)))
    assert none.outputs[0].rim == (3, 3)
    given = plan_of(tw.tiled_map(fn, image, 48, "auto", blend="gaussian", rim=1))
    assert given.outputs[0].rim == (1, 1)
    assert "exact only with rim=(3, 3)" in " ".join(given.explain().split())
    # An overlap equal to the rim leaves one weight per sample: neighbours share more only with more overlap.
    more = tw.tiled_map(fn, image, 48, 9, rim=3, blend="gaussian", dtype="float32")
    np.testing.assert_allclose(more.compute(), fn(image), atol=1e-6)


def test_auto_keeps_a_multiple_that_was_asked_for() -> None:
    from tilework.graph.build import plan_of

    image = np.zeros((128, 128), np.float32)
    plan = plan_of(tw.tiled_map(lambda x: ndi.uniform_filter(x, 5), image, 64, "auto", multiple=4))
    assert [(a.overlap, a.multiple) for a in plan.axes] == [(4, 4), (4, 4)]


def test_errors_say_what_to_do() -> None:
    image = np.zeros((64, 64), np.float32)
    with pytest.raises(tw.TilingError, match="probe"):
        tw.plan_tiles((64, 64), 32, "auto")
    with pytest.raises(tw.TilingError, match="pass_tile"):
        tw.tiled_map(lambda x, tile: x, image, 32, "auto", pass_tile=True)
    with pytest.raises(tw.TilingError, match="stride"):
        tw.tiled_map(np.sin, image, 32, "auto", stride=8)
    with pytest.raises(TypeError, match=r"report\.multiple"):
        tw.tiled_map(np.sin, image, 32, tw.probe(np.sin, (32, 32)))
    with pytest.raises(tw.TilingError, match="returned nothing"):
        tw.probe(lambda x: x[:0], (32, 32))
    with pytest.raises(TypeError, match='or "auto"'):
        tw.tiled_map(np.sin, image, 32, "automatic")
    with pytest.raises(tw.TilingError, match="shape="):
        tw.probe(np.sin, 32)
    with pytest.raises(tw.TilingError, match="low < high"):
        tw.probe(np.sin, (32,), values=(1, 1))
    with pytest.raises(tw.TilingError, match="no scale times crop less margin"):
        tw.probe(lambda x: np.concatenate([x, x[:7]]), (64,))
    with pytest.raises(ZeroDivisionError) as caught:
        tw.probe(lambda x: 1 // 0, (32, 32))
    assert "values=" in caught.value.__notes__[0]


def test_extreme_values_that_are_refused_are_left_out() -> None:
    def picky(x: Array) -> Array:
        if not 0 <= x.min() <= x.max() <= 1:
            raise ValueError("out of range")
        return ndi.uniform_filter(x, 5)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = tw.probe(picky, (64, 64), extremes=True)
    assert report.overlap == (2, 2)
    assert "refused" in str(report)


# -- real networks ----------------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize(("size", "reach"), [("6M", 6), ("17M", 17)])
def test_dncnn(size: str, reach: int) -> None:
    image = noisy(kodim23())[:128, :152]
    crop = 48 if size == "6M" else 64
    report = tw.probe(dncnn(size), (crop, crop), image)
    assert report.sides == ((reach, reach), (reach, reach))
    assert (report.overlap, report.multiple, report.exact) == ((reach, reach), (1, 1), True)
    assert report.calls <= 68
    out = tw.tiled_map(dncnn(size), image, crop, "auto")
    assert np.abs(out.compute() - dncnn(size)(image)).max() < 1e-5


@pytest.mark.peers
def test_deepcr_needs_8_from_even_starts() -> None:
    """Pools by 2: a group of 2 depends on 2 + 2 * 2 + 2 samples beyond it, a single sample on one more."""
    image = counts()
    report = tw.probe(deepcr(), (64, 64), image)
    assert (report.multiple, report.sides) == ((2, 2), ((9, 9), (9, 9)))
    assert (report.overlap, report.exact) == ((8, 8), True)
    assert report.calls <= 88
    out = tw.tiled_map(deepcr(), image, 64, "auto")
    assert np.abs(out.compute() - deepcr()(image)).max() < 1e-5


@pytest.mark.peers
def test_realesr_doubles() -> None:
    """18 convolutions of 3 x 3 in front of the last one, that makes the 4 samples of each."""
    image = kodim23(rgb=True)[:, 200:296, 300:390]
    report = tw.probe(realesr_x2(), (64, 64), image)
    assert (report.scale, report.multiple) == ((2, 2), (1, 1))
    assert report.output == tw.Output("float32", scale=2)
    assert report.overlap in ((18, 18), (19, 19))
    assert report.calls <= 68
    out = tw.tiled_map(realesr_x2(), image, (64, 64), "auto")
    assert np.abs(out.compute() - realesr_x2()(image)).max() < 1e-4


@pytest.mark.peers
def test_a_torch_network_with_strides_and_transposed_convolutions() -> None:
    """Strided by 2 twice and back: multiple 4; batches and channels as `from_torch` has them."""
    torch = require("torch")
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, 2), nn.ReLU(), nn.ConvTranspose2d(4, 1, 2, 2),
    )  # fmt: skip
    report = tw.probe(tw.from_torch(net, device="cpu"), (64, 64))
    assert (report.multiple, report.exact) == ((4, 4), True)
    assert report.sides[0][0] in range(3, 7)
    image = np.random.default_rng(0).random((128, 96)).astype(np.float32)
    out = tw.tiled_map(tw.from_torch(net, device="cpu"), image, 64, "auto")
    whole = tw.from_torch(net, device="cpu")(image[None])[0]
    assert np.abs(out.compute() - whole).max() < 1e-5


@pytest.mark.peers
def test_an_encoder_is_exact_at_a_sixteenth() -> None:
    """Four convolutions of 3 x 3, each with a stride of 2: 1 + 2 + 4 + 8 samples, all but one of a cell."""
    torch = require("torch")
    torch.manual_seed(0)
    nn = torch.nn
    layers = [nn.Conv2d(4 if k else 1, 4, 3, 2, 1) for k in range(4)]
    net = nn.Sequential(*(part for layer in layers for part in (layer, nn.LeakyReLU())))

    def fn(x: Array) -> Array:
        with torch.inference_mode():
            return net(torch.from_numpy(x)[None, None])[0].numpy()

    image = np.random.default_rng(0).random((512, 384)).astype(np.float32)
    report = tw.probe(fn, (192, 192), image)
    assert (report.scale, report.multiple, report.exact) == ((Fraction(1, 16),) * 2, (16, 16), True)
    assert report.overlap == (16, 16)
    out = tw.tiled_map(fn, image, 192, "auto")
    assert np.abs(out.compute() - fn(image)).max() < 1e-6
    less = tw.tiled_map(fn, image, 192, 0, multiple=16, output=report.output)
    assert np.abs(less.compute() - fn(image)).max() > 1e-3


@pytest.mark.peers
def test_batch_norm_in_training_is_global() -> None:
    torch = require("torch")
    norm = torch.nn.BatchNorm2d(1)

    def fn(x: Array) -> Array:
        norm.train()
        return norm(torch.tensor(x)[None, None])[0, 0].detach().numpy()

    assert not tw.probe(fn, (48, 48)).bounded


@pytest.mark.peers
@pytest.mark.parametrize(("depth", "dilation"), [(0, 2), (1, 2), (2, 1)], ids=str)
def test_random_u_nets_are_exact_at_what_was_found_and_not_below(depth: int, dilation: int) -> None:
    torch = require("torch")
    torch.manual_seed(depth)
    nn = torch.nn

    def conv(n_in: int, d: int = 1) -> Any:
        return nn.Sequential(nn.Conv2d(n_in, 6, 3, padding=d, dilation=d), nn.LeakyReLU())

    down = nn.ModuleList([conv(6 if i else 1, dilation) for i in range(depth + 1)])
    up = nn.ModuleList([conv(12) for _ in range(depth)])
    last = nn.Conv2d(6, 1, 1)

    def fn(image: Array) -> Array:
        x, kept = torch.tensor(image)[None, None], []
        with torch.inference_mode():
            for step in down[:-1]:
                x = step(x)
                kept.append(x)
                x = nn.functional.max_pool2d(x, 2)
            x = down[-1](x)
            for step in up:
                x = step(torch.cat([nn.functional.interpolate(x, scale_factor=2), kept.pop()], 1))
            return last(x)[0, 0].numpy()

    image = np.random.default_rng(depth).random((256, 224)).astype(np.float32)
    report = tw.probe(fn, (96, 96), image)
    multiple = 2**depth
    assert (report.multiple, report.exact) == ((multiple,) * 2, True)
    whole = fn(image)

    def worst(overlap: int) -> float:
        out = tw.tiled_map(fn, image, 96, overlap, multiple=multiple, dtype="float32")
        return float(np.abs(out.compute() - whole).max() / np.abs(whole).max())

    assert worst(report.overlap[0]) < 2e-6
    assert worst(report.overlap[0] - multiple) > 2e-5


@pytest.mark.parametrize("slow", [False, True])
def test_a_profiler_works_after_probe(slow: bool) -> None:
    """A signal that is never cleared makes Python 3.11 look for its cause without end."""
    script = f"""
import sys, numpy as np, tilework as tw
from scipy.ndimage import uniform_filter
from tilework.probing import blackbox
if {slow}:
    blackbox.PATIENCE = blackbox.TIMES = 0.0
try:
    tw.probe(lambda x: uniform_filter(x, 3), (24, 24))
except Exception as error:
    assert {slow}, error
calls = []
sys.setprofile(lambda *_: calls.append(1))
tw.plan_tiles((50, 50), 24, 2)
sys.setprofile(None)
print(len(calls) > 100)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.strip() == "True", run.stderr[-500:]
