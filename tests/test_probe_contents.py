"""`probe` says "exact" of no function that is not: content, sizes, margins, and inputs that it may give."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage as ndi

import tilework as tw
from tilework.probing import blackbox

Array = np.ndarray[Any, Any]

pytest.importorskip("skimage")
from tests.probe_functions import Sample, composed, images, run_lengths, samples  # noqa: E402

# scikit-image sets shapes of arrays, which numpy 2.5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")

SAMPLES = {sample.name: sample for sample in samples()}


# -- functions of scipy and scikit-image --------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_only_local_functions_are_called_exact(name: str) -> None:
    sample = SAMPLES[name]
    report = tw.probe(sample.fn, sample.crop, dtype=sample.dtype)
    assert not report.exact or sample.kind == "local", report


@pytest.mark.sample(0)
def test_most_local_functions_are_called_exact_in_few_calls() -> None:
    """And each reason to doubt is the reason somewhere."""
    reports = {s.name: tw.probe(s.fn, s.crop, dtype=s.dtype) for s in SAMPLES.values()}
    told = " ".join(doubt for report in reports.values() for doubt in report.doubts)
    for reason in ("lines and flat areas change", "one draw reached", "treats axis", "integers or bool"):
        assert reason in told
    unknown = [s.name for s in SAMPLES.values() if s.kind == "local" and not reports[s.name].exact]
    # A structuring element that hardly ever fits, and thresholds of floats.
    assert set(unknown) <= {"hit or miss", "adaptive threshold", "niblack", "peaks"}
    assert np.median([report.calls for report in reports.values()]) <= 40


def auto_equals(sample: Sample, image: Array) -> bool:
    """Return whether a tiled result with overlap "auto" equals the untiled one."""
    out = tw.tiled_map(sample.fn, image, sample.crop, "auto").compute(scheduler="sync")
    whole = np.asarray(sample.fn(image))
    return out.shape == whole.shape and bool(np.allclose(out, whole, rtol=1e-4, atol=1e-4))


@pytest.mark.parametrize(
    "name", [s.name for s in SAMPLES.values() if len(s.crop) == 2 and s.name != "valid"][::3]
)
def test_auto_equals_the_untiled_result_of_a_photograph_or_warns(name: str, recwarn: Any) -> None:
    from skimage import data

    sample, coins = SAMPLES[name], data.coins()[40:232, 8:200]
    floats = np.dtype(sample.dtype).kind == "f"
    image = coins / 255 if floats else coins > 110 if sample.dtype == "bool" else coins
    equal = auto_equals(sample, image.astype(sample.dtype))
    assert equal or any(issubclass(w.category, tw.TilingWarning) for w in recwarn)


# Only lines show the first of these last ones, only islands the others.
@pytest.mark.parametrize("seed", [*range(40), 302, 451, 617, 894])
def test_compositions(seed: int) -> None:
    """Stencils, rank filters, pools, thresholds, and steps that follow structures, one after the other."""
    compare_composed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, 50))
def test_a_thousand_compositions(first: int) -> None:
    for seed in range(first, first + 50):
        compare_composed(seed)


def compare_composed(seed: int) -> None:
    fn = composed(seed)
    report = tw.probe(fn, (72, 72))
    if not report.exact:
        return
    for image in images(seed):
        out = tw.tiled_map(fn, image, 72, report.overlap, multiple=report.multiple, dtype="float32")
        np.testing.assert_allclose(out.compute(scheduler="sync"), fn(image), atol=1e-5, err_msg=str(report))


def test_what_is_suspected_is_said_by_auto() -> None:
    image = np.random.default_rng(0).random((160, 160), np.float32)
    with pytest.warns(tw.TilingWarning, match=r"bounded as far as seen.*integers or bool.*tw\.check"):
        tw.tiled_map(lambda x: ndi.gaussian_filter(x, 1) > 0.5, image, 64, "auto")


def test_a_threshold_of_single_samples_is_not_suspected() -> None:
    assert tw.probe(lambda x: x > 0.7, (64, 64)).exact
    assert tw.probe(lambda x: np.digitize(x, [0.1, 0.5]), (64, 64)).exact


def test_the_most_frequent_value_of_the_image_is_tried() -> None:
    """A background of 37 in 16 bits lies between the levels that are tried without an image."""

    def fn(x: Array) -> Array:
        inside = ndi.binary_propagation(x > 3900, mask=(x == 37) | (x > 3900))
        return x + inside.astype(x.dtype)

    image = np.random.default_rng(0).integers(0, 4000, (200, 200)).astype("uint16")
    image[90:110, 90:110] = 37  # in the middle of the crop, away from what is replaced
    assert not tw.probe(fn, (64, 64), image).exact


def test_functions_that_refuse_structures_are_not_called_exact() -> None:
    def fn(x: Array) -> Array:
        if x.std() == 0:
            raise ValueError("flat")
        return np.asarray(ndi.maximum_filter(x, 3))

    report = tw.probe(fn, (64, 64))
    assert (report.bounded, report.exact, report.overlap) == (True, False, (1, 1))
    assert "flat images were refused (ValueError)" in str(report)


# -- sizes --------------------------------------------------------------------------------------------------

SIZES: dict[str, tuple[Callable[[Array], Array], tuple[int, ...]]] = {
    "sigma by rows": (lambda x: ndi.gaussian_filter(x, x.shape[0] / 48), (64, 64)),
    "sigma by columns": (lambda x: ndi.gaussian_filter(x, x.shape[1] / 48), (64, 64)),
    "a branch on the shorter side": (lambda x: x * (1 if min(x.shape) < 100 else 2), (64, 64)),
    "a branch on one length": (lambda x: x * (1 + (x.shape == (64, 64))), (64, 64)),
    "divided by the number of samples": (lambda x: x / x.size, (64, 64)),
    "1-D": (lambda x: ndi.uniform_filter1d(x, len(x) // 16), (128,)),
    "3-D": (lambda x: ndi.uniform_filter(x, x.shape[2] // 8), (24, 24, 24)),
    "only bright samples": (lambda x: np.where(x > 0.98, x * x.shape[0], x), (64, 64)),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_function_of_the_crops_size_is_not_exact(name: str) -> None:
    fn, crop = SIZES[name]
    report = tw.probe(fn, crop)
    assert not report.exact
    assert "depend on the crop's length" in str(report)


def test_the_length_of_each_axis_is_tried_where_all_at_once_is_too_much() -> None:
    def fn(x: Array) -> Array:
        if x.size > 3 * 64 * 64:
            raise MemoryError("too large a crop")
        return np.asarray(ndi.gaussian_filter(x, x.shape[0] / 48))

    report = tw.probe(fn, (64, 64))
    assert not report.exact
    assert "depend on the crop's length: crops of 64 and 128" in str(report)


def test_the_verdict_says_which_lengths_were_seen() -> None:
    report = tw.probe(lambda x: ndi.uniform_filter(x, 5), (64, 48))
    assert report.exact
    assert report.lengths == ((64, 128), (48, 96))
    assert "crops of 64 to 128 and 48 to 96 samples" in report.verdict
    assert "crops of 64 to 256 samples" in tw.probe(lambda x: ndi.uniform_filter(x, 5), (64,)).verdict


def test_a_function_of_one_length_is_asked_of_that_length() -> None:
    def fn(x: Array) -> Array:
        if x.shape != (64, 64):
            raise ValueError("made for one size")
        return np.asarray(ndi.uniform_filter(x, 5))

    report = tw.probe(fn, (64, 64))
    assert (report.overlap, report.lengths) == ((2, 2), ((64,), (64,)))
    assert "a longer crop was refused" in str(report)


# -- margins ------------------------------------------------------------------------------------------------


def valid(x: Array, lo: int, hi: int) -> Array:
    """Return sums over ``lo`` samples before to ``hi`` after each, where all of them are in the crop."""
    kernel = np.arange(1.0, lo + hi + 2)
    for axis in range(x.ndim):
        x = np.apply_along_axis(np.convolve, axis, x, kernel / kernel.sum(), "valid")
    return x.astype(np.float32)


def resized(y: Array, scale: Fraction) -> Array:
    """Return ``y`` repeated or averaged in cells."""
    m = scale.denominator
    for axis in range(y.ndim):
        n = y.shape[axis] // m
        y = y.take(range(n * m), axis)
        y = y.reshape(*y.shape[:axis], n, m, *y.shape[axis + 1 :]).mean(axis + 1)
        y = y.repeat(scale.numerator, axis)
    return y


@pytest.mark.parametrize("length", [64, 65, 70, 72])
@pytest.mark.parametrize("scale", [Fraction(1), Fraction(2), Fraction(3), Fraction(1, 2), Fraction(1, 4)])
@pytest.mark.parametrize(("lo", "hi"), [(0, 0), (7, 7), (4, 4), (0, 1), (6, 8), (5, 2)])
def test_what_is_reported_goes_into_tiled_map(lo: int, hi: int, scale: Fraction, length: int) -> None:
    def fn(x: Array) -> Array:
        return resized(valid(x, lo, hi), scale)

    report = tw.probe(fn, (length,))
    image = np.random.default_rng(0).random(300, np.float32)

    def tiled(overlap: Any, multiple: Any) -> Array:
        out = tw.tiled_map(fn, image, length, overlap, multiple=multiple, output=report.output)
        return np.asarray(out.compute(scheduler="sync"))

    if "Give a crop such as" in str(report.doubts):
        assert not report.exact
        with pytest.raises(tw.TilingError):
            tiled(report.overlap, report.multiple)
        return
    whole, ((before, _),) = fn(image), report.margin
    if scale >= 1:
        assert report.margin == (((lo + hi) // 2, (lo + hi + 1) // 2),)
    if report.exact:
        start = int(before * scale)
        part = tiled(report.overlap, report.multiple)[start : start + len(whole)]
        np.testing.assert_allclose(part[: len(whole) - 4], whole[: len(part)][: len(whole) - 4], atol=1e-5)
    else:
        tiled(report.overlap, report.multiple)


@pytest.mark.peers
@pytest.mark.parametrize("scale", [2, Fraction(1, 4)], ids=str)
def test_networks_without_padding_at_another_scale(scale: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    nn = torch.nn
    ends = [nn.Upsample(scale_factor=2)] if scale == 2 else [nn.AvgPool2d(4)]
    net = nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 5), nn.ReLU(), nn.Conv2d(4, 1, 7), *ends
    )

    def fn(x: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(net(torch.from_numpy(x)[None, None])[0, 0].numpy())

    crop = 78 if scale == 2 else 80
    report = tw.probe(fn, (crop, crop))
    if scale == 2:
        assert (report.margin, report.overlap) == (((7, 7), (7, 7)), (7, 7))
    image = np.random.default_rng(0).random((240, 200), np.float32)
    out = tw.tiled_map(
        fn, image, crop, report.overlap, multiple=report.multiple, output=report.output
    ).compute(scheduler="sync")  # fmt: skip
    assert report.exact, report
    start, whole = int(report.margin[0][0] * scale), fn(image)
    rows, columns = (n - 2 for n in whole.shape)
    part = out[start : start + rows, start : start + columns]
    np.testing.assert_allclose(part, whole[:rows, :columns], atol=1e-5)


def test_a_crop_that_no_overlap_fits_is_named() -> None:
    report = tw.probe(lambda x: resized(x, Fraction(1, 4)), (66,))
    assert not report.exact
    with (
        pytest.warns(tw.TilingWarning, match=r"multiple of 4.*Give a crop such as 68"),
        pytest.raises(tw.TilingError),
    ):
        tw.tiled_map(lambda x: resized(x, Fraction(1, 4)), np.zeros(264, "f4"), 66, "auto")


# -- inputs -------------------------------------------------------------------------------------------------


class Recorder:
    """A filter that remembers the range of its inputs."""

    def __init__(self) -> None:
        self.low, self.high, self.nan = np.inf, -np.inf, False

    def __call__(self, x: Array) -> Array:
        self.nan |= bool(np.isnan(x).any())
        self.low, self.high = min(self.low, np.nanmin(x)), max(self.high, np.nanmax(x))
        return np.asarray(ndi.uniform_filter(x, 5))


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16"])
def test_inputs_stay_within_the_range_unless_asked(dtype: str) -> None:
    fn = Recorder()
    tw.probe(fn, (48, 48), dtype=dtype, values=(10, 100))
    assert (fn.low >= 10, fn.high <= 100, fn.nan) == (True, True, False)
    tw.probe(fn, (48, 48), dtype=dtype, values=(10, 100), nan=True)
    assert fn.nan == (np.dtype(dtype).kind == "f")
    assert fn.low >= 10
    tw.probe(fn, (48, 48), dtype=dtype, values=(10, 100), extremes=True)
    assert fn.high > 100


def test_the_reach_of_nan_is_found_where_it_was_given() -> None:
    assert tw.probe(lambda x: ndi.uniform_filter(x, 5), (48, 48)).nan_sides is None
    report = tw.probe(lambda x: ndi.correlate1d(x, [0, 0, 1.0, 0, 0, 0, 0]), (48,), nan=True)
    assert report.nan_sides is not None
    assert max(report.nan_sides[0]) >= 1


def test_python_code_that_does_not_end_is_stopped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blackbox, "PATIENCE", 0.3)

    def fn(x: Array) -> Array:
        while x.min() == x.max():
            pass
        return np.asarray(ndi.maximum_filter(x, 3))

    with caplog.at_level(logging.WARNING, "tilework"):
        report = tw.probe(fn, (64, 64))
    assert not report.exact
    assert "the search was stopped" in str(report.doubts)
    assert "may not end" in caplog.text


def test_a_call_that_ends_late_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the function moves."""
    calls, clock = [], [0.0]
    monkeypatch.setattr(blackbox, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def fn(x: Array) -> Array:
        calls.append(1)
        clock[0] += 1000 if len(calls) == 9 else 0.001
        return x + 1

    report = tw.probe(fn, (64, 64))
    assert (report.calls, report.exact, report.commutes) == (9, False, False)


# -- the opposite side --------------------------------------------------------------------------------------


def test_wrapping_is_said_only_where_padding_with_the_opposite_side_explains_it() -> None:
    assert tw.probe(lambda x: x + np.roll(x, 3, 0), (64, 64)).wraps == ("0",)
    # The last row is added to the first one, whatever the distance: no padding gives that.
    report = tw.probe(lambda x: np.vstack([x[:1] + x[-1:], x[1:]]), (64, 64))
    assert (report.wraps, report.exact) == ((), False)


# -- found by others ----------------------------------------------------------------------------------------

BRANCHES: dict[str, Callable[[Array], Array]] = {
    "low deviation": lambda x: x if x.std() > 0.03 else x - x.mean(),
    "low range": lambda x: x * (1 + np.float32(np.ptp(x) < 0.5)),
    "many zeros": lambda x: x + np.float32((x == 0).sum() > x.size / 2),
    "mostly bright": lambda x: x if (x > 0.5).mean() < 0.9 else x * 0,
    "high mean": lambda x: x * (1 + np.float32(x.mean() > 0.8)),
    "few values": lambda x: x * (1 + np.float32(len(np.unique(x)) < 30)),
    "every 50th row": lambda x: x * (1 + (np.arange(len(x)) % 50 == 0)[:, None]),
    "the first 100 rows": lambda x: np.where(np.arange(len(x))[:, None] < 100, x, 2 * x),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_that_noise_does_not_take(name: str) -> None:
    assert not tw.probe(BRANCHES[name], (64, 64)).exact


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32"])
def test_runs_of_a_line(dtype: str) -> None:
    def fn(x: Array) -> Array:
        return np.where(run_lengths(x[None] > (0 if dtype == "bool" else 0.4))[0] > 40, x, 0).astype(dtype)

    assert not tw.probe(fn, (128,), dtype=dtype, values=(0, 1)).exact


@pytest.mark.parametrize("size", [11, 13, 15])
def test_what_hardly_answers_is_not_exact_without_overlap(size: int) -> None:
    report = tw.probe(lambda x: ndi.binary_opening(x, np.ones((size, size))), (64, 64), dtype=bool)
    assert not report.exact


@pytest.mark.peers
def test_a_margin_keeps_crops_on_the_grid() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 4, 3), nn.PixelShuffle(2))

    def fn(x: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(net(torch.from_numpy(np.ascontiguousarray(x))[None, None])[0, 0].numpy())

    report = tw.probe(fn, (64, 64))
    assert (report.margin, report.multiple, report.exact) == (((2, 2), (2, 2)), (2, 2), True)
    image = np.random.default_rng(0).random((200, 160), np.float32)
    out = tw.tiled_map(fn, image, 64, report.overlap, multiple=report.multiple, output=report.output)
    np.testing.assert_allclose(out.compute()[2:-2, 2:-2], fn(image), atol=1e-5)


@pytest.mark.peers
def test_padding_inside_a_function_with_a_margin_is_said() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3))

    def fn(x: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(net(torch.from_numpy(np.ascontiguousarray(x))[None, None])[0, 0].numpy())

    report = tw.probe(fn, (64, 64))
    assert not report.exact
    assert "near the border of the image differ" in str(report.doubts)
