"""`check` names why a result differs, by experiment, and names nothing that it did not see."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

import tilework as tw
from tests.sampling import share
from tests.test_probe import pooled, unet

RNG = np.random.default_rng(0)
IMAGE = RNG.random((230, 190)).astype(np.float32)
VOLUME = RNG.random((60, 70, 80)).astype(np.float32)
LINE = RNG.random(1500)


def box(x: np.ndarray, width: int = 7) -> np.ndarray:
    return ndi.uniform_filter(x, width)


def pooled_by(m: int) -> Callable[[np.ndarray], np.ndarray]:
    """A pooling that takes crops of any length."""

    def fn(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, [(0, -n % m) for n in x.shape], mode="edge")
        return pooled(padded, m)[: x.shape[0], : x.shape[1]]

    return fn


def overlapped(fn: Any, image: np.ndarray, **options: Any) -> Any:
    return tw.tiled_map(fn, image, 64 if image.ndim < 3 else 32, **options)


# -- overlap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "fn", "overlap", "enough"),
    [
        (IMAGE, box, 2, 3),
        (IMAGE, lambda x: box(x, 21), 4, 10),
        (VOLUME, lambda x: box(x, 5), 1, 2),
        (LINE, lambda x: box(x, 9), 3, 4),
        (IMAGE, lambda x: ndi.uniform_filter1d(x, 11, 1), 3, (3, 5)),
        ((IMAGE * 255).astype(np.uint8), lambda x: ndi.maximum_filter(x, 9), 3, 4),
        (IMAGE > 0.02, lambda x: ndi.binary_erosion(x, np.ones((9, 9))), 3, 4),
        (IMAGE * (1 + 2j), box, 2, 3),
    ],
    ids=["box", "wide", "volume", "line", "one axis", "uint8", "bool", "complex"],
)
def test_too_little_overlap_is_named_with_what_is_enough(
    image: np.ndarray, fn: Any, overlap: int, enough: Any
) -> None:
    report = tw.check(overlapped(fn, image, overlap=overlap))
    assert report.causes == ("overlap",), report
    assert f"overlap={enough} is enough" in report.help
    assert tw.check(overlapped(fn, image, overlap=enough)).ok


def test_a_reach_beyond_the_window_is_measured_in_a_larger_one() -> None:
    report = tw.check(tw.tiled_map(lambda x: box(x, 61), IMAGE, 64, 2), where=[(116, 94)])
    assert report.causes == ("overlap",), report
    assert "overlap=30 " in report.help


def test_in_a_blend_the_rim_is_what_is_too_small() -> None:
    report = tw.check(tw.tiled_map(box, IMAGE, 32, stride=20, blend="hann"))
    assert report.causes == ("overlap",)
    assert "rim=3" in report.help
    assert tw.check(tw.tiled_map(box, IMAGE, 32, stride=20, blend="hann", rim=3)).ok


def test_a_reach_that_fades_is_made_smaller_not_removed() -> None:
    def recursive(x: np.ndarray) -> np.ndarray:
        out = x.astype(np.float64)
        for i in range(1, len(x)):
            out[i] += 0.9 * out[i - 1]
        return out

    report = tw.check(tw.tiled_map(recursive, IMAGE, 64, 8), context=16)
    assert set(report.causes) <= {"overlap", "far"}
    assert not report.ok


def test_content_may_carry_a_reach_on() -> None:
    snake = np.zeros((400, 96), bool)
    snake[:, 40] = True
    seeds = snake.copy()
    seeds[3:] = False

    def flood(mask: np.ndarray, seed: np.ndarray) -> np.ndarray:
        return ndi.binary_propagation(seed, mask=mask)

    out = tw.tiled_map(flood, (snake, seeds), 32, 4)
    report = tw.check(out, where=[(40, 40), (60, 40)], context=64)
    assert not report.ok
    assert {"overlap", "far"} & set(report.causes), report
    assert not {"size", "multiple", "offset", "global"} & set(report.causes), report


# -- multiple ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 4, 5, 8])
def test_a_forgotten_multiple_is_named(m: int) -> None:
    report = tw.check(tw.tiled_map(pooled_by(m), IMAGE[:225, :180], 61, stride=43, dtype="float32"))
    assert report.causes == ("multiple",), report
    assert f"multiple={m}" in report.help


def test_a_multiple_of_a_network_along_one_axis() -> None:
    report = tw.check(tw.tiled_map(unet, IMAGE[:228, :188], 64, stride=38))
    assert report.causes == ("multiple",), report
    assert tw.check(tw.tiled_map(unet, IMAGE[:228, :188], 64, stride=36, multiple=4)).ok

    def rows(x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, 4, x.shape[1]).max(1).repeat(4, 0)

    one = tw.check(tw.tiled_map(rows, IMAGE[:228], 64, stride=38))
    assert one.causes == ("multiple",), one
    assert "multiple=(4, 1)" in one.help


def test_what_a_moved_window_loses_at_the_border_is_no_multiple() -> None:
    """The window ends at the image's border; moved to the phase of the tile, it would lack what is seen."""
    out = tw.tiled_map(lambda x: ndi.uniform_filter1d(x, 91), LINE, 128, 40)
    report = tw.check(out, where=[(48,), (60,)])
    assert report.causes == ("overlap",), report
    assert "overlap=45 " in report.help


def test_positions_that_depend_on_the_size_have_no_period() -> None:
    def zoomed(x: np.ndarray) -> np.ndarray:
        """Twice as many samples, between the first and the last: their places depend on the crop."""
        return ndi.zoom(x, 2, order=1)

    report = tw.check(tw.tiled_map(zoomed, IMAGE, 64, 4, output=tw.Output("f4", scale=2)))
    assert report.causes == ("size",), report


# -- size, global, and functions that no tiling repeats ----------------------------------------------------


def by_rows(x: np.ndarray) -> np.ndarray:
    return ndi.gaussian_filter(x, x.shape[0] / 48)


def by_branch(x: np.ndarray) -> np.ndarray:
    return box(x, 9 if x.shape[0] > 100 else 5)


@pytest.mark.parametrize(
    "fn",
    [by_rows, by_branch, lambda x: x * x.shape[-1], lambda x: np.full(x.shape, x.size)],
    ids=["sigma", "branch", "factor", "constant"],
)
def test_a_function_of_the_size_of_its_crop(fn: Any) -> None:
    report = tw.check(tw.tiled_map(fn, IMAGE, 64, 16))
    assert report.causes == ("size",), report
    assert "64 x 64" in report.help


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x - x.mean(),
        lambda x: (x - x.mean()) / (x.std() + 1),
        lambda x: x / (x.max() + 1),
        lambda x: x - x.min(),
        lambda x: x - np.median(x),
        lambda x: np.cumsum(x, 0),
        lambda x: (np.argsort(np.argsort(x.ravel())) / x.size).reshape(x.shape),
        lambda x: (255 * (x - x.min()) / (np.ptp(x) + 1)).astype(np.uint8),
    ],
    ids=["mean", "normalised", "maximum", "minimum", "median", "sum", "ranks", "stretched"],
)
def test_a_function_of_its_whole_crop(fn: Any) -> None:
    report = tw.check(tw.tiled_map(fn, IMAGE + 1, 64, 8))
    assert report.causes == ("global",), report
    assert "no overlap is enough" in report.help
    assert "blend" not in report.help


def test_a_function_that_is_not_deterministic() -> None:
    rng = np.random.default_rng(0)
    report = tw.check(tw.tiled_map(lambda x: x + rng.random(x.shape), IMAGE, 64, 8, dtype="float64"))
    assert report.causes == ("random",)


def test_what_was_given_does_not_fit() -> None:
    out = tw.tiled_map(box, IMAGE, 64, 3)
    assert tw.check(out, lambda x: box(x) + 1).causes == ("other",)
    assert tw.check(out, None, IMAGE[::-1]).causes == ("other",)


def test_what_cannot_be_told_is_not_told() -> None:
    def odd(x: np.ndarray) -> np.ndarray:
        """Wrong on the very crops of the tiles only, and different each time they have another start."""
        if x.shape == (64, 64):
            return box(x) + np.float32(0.1)
        if x.shape[0] % 32 or x.shape[1] % 32:
            raise ValueError("not these")
        return box(x)

    report = tw.check(tw.tiled_map(odd, IMAGE[:224, :160], 64, 3))
    assert not report.ok
    assert set(report.causes) <= {"size"}

    def refuses(x: np.ndarray) -> np.ndarray:
        refuses.calls += 1
        if refuses.calls > 30:
            raise RuntimeError("enough")
        return box(x)

    refuses.calls = 0
    report = tw.check(tw.tiled_map(refuses, IMAGE, 64, 2, dtype="f4"), where="corners", places=2)
    assert not report.ok
    assert report.causes == ()
    assert "was not found" in report.help


def test_functions_that_wrap_round() -> None:
    def wrapped(x: np.ndarray) -> np.ndarray:
        return ndi.gaussian_filter(x, 2, mode="wrap")

    report = tw.check(tw.tiled_map(wrapped, IMAGE, 64, 8))
    assert report.causes == ("wraps",)
    assert tw.check(tw.tiled_map(wrapped, IMAGE, 64, 8, edge="pad", boundary="wrap")).ok


# -- offsets ----------------------------------------------------------------------------------------------


def network(radius: int, scale: Fraction) -> Callable[[np.ndarray], np.ndarray]:
    """A function without padding: it loses ``radius`` samples on each side, and changes the scale."""

    def fn(x: np.ndarray) -> np.ndarray:
        inner = (slice(radius, -radius),) * x.ndim
        out = ndi.uniform_filter(x, 2 * radius + 1)[inner]
        for axis in range(x.ndim):
            out = out.repeat(scale.numerator, axis)
            n = out.shape[axis] // scale.denominator
            shape = (*out.shape[:axis], n, scale.denominator, *out.shape[axis + 1 :])
            out = out.reshape(shape).mean(axis + 1)
        return out

    return fn


@settings(max_examples=share(25))
@given(
    moved=st.tuples(st.integers(-2, 2), st.integers(-2, 2)),
    scale=st.sampled_from([Fraction(1), Fraction(2), Fraction(3), Fraction(1, 2), Fraction(1, 4)]),
    radius=st.sampled_from([4, 8]),
)
def test_a_margin_that_is_split_wrongly_is_found_at_any_scale(
    moved: tuple[int, int], scale: Fraction, radius: int
) -> None:
    """The tiles agree with each other, and with the function on larger windows."""
    steps = tuple(k * scale.denominator for k in moved)
    if any(abs(k) >= radius for k in steps):
        return
    margin = tuple((radius + k, radius - k) for k in steps)
    output = tw.Output("float32", scale=scale, margin=margin)
    out = tw.tiled_map(network(radius, scale), IMAGE[:216, :176], 64, 12, output=output)
    report = tw.check(out, places=1)
    assert report.relative <= report.rounding
    assert report.ok == (not any(steps))
    if any(steps):
        assert report.offset == steps
        assert report.causes == ("offset",)
        assert f"margin={((radius, radius),) * 2}" in report.help
        assert report.help in " ".join(str(report).split())


@pytest.mark.parametrize("image", [LINE, VOLUME], ids=["line", "volume"])
def test_offsets_of_other_dimensions_and_several_outputs(image: np.ndarray) -> None:
    def fn(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        valid = network(3, Fraction(1))(x)
        return valid, np.stack([valid, valid * 2])

    margin = ((2, 4), *[(3, 3)] * (image.ndim - 1))
    outputs = (tw.Output(image.dtype, margin=margin), tw.Output(image.dtype, margin=margin, channels=2))
    report = tw.check(tw.tiled_map(fn, image, 24, 4, output=outputs))
    assert report.offset == (-1, *[0] * (image.ndim - 1))
    assert "1 sample too early along axis 0" in report.help


def test_a_margin_on_one_side_is_a_choice_that_is_mentioned() -> None:
    causal = tw.Output("f4", margin=((6, 0), (0, 0)))
    report = tw.check(tw.tiled_map(lambda x: x[6:] - x[:-6], IMAGE, 64, 6, output=causal))
    assert report.ok
    assert report.causes == ()
    assert report.offset == (3, 0)
    assert "meant to look to one side" in report.help
    # Half a sample cannot be put right.
    steps = tw.Output("f4", margin=((0, 1), (0, 0)))
    assert tw.check(tw.tiled_map(lambda x: np.diff(x, axis=0), IMAGE, 64, 1, output=steps)).help == ""


def test_offsets_below_the_lattice_of_a_pooling_are_found() -> None:
    """A scale of 1/4 rounds each response to groups of 4; all positions in a group together do not."""

    def pool(x: np.ndarray) -> np.ndarray:
        inner = box(x, 5)[2:-2, 2:-2]
        a, b = (n // 4 for n in inner.shape)
        return inner[: a * 4, : b * 4].reshape(a, 4, b, 4).mean((1, 3))

    for k in (-1, 0, 1):
        output = tw.Output("f4", scale=Fraction(1, 4), margin=((2 + k, 2 - k), (2, 2)))
        out = tw.tiled_map(pool, IMAGE[:200, :160], 64 + 4, stride=(48, 48), output=output)
        assert tw.check(out, places=1).offset == ((k, 0) if k else ()), k


def test_classes_are_no_measure_of_a_response_but_their_scores_are() -> None:
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(3, 9, 9))

    def scores(x: np.ndarray) -> np.ndarray:
        found = [ndi.correlate(x - np.float32(0.5), k)[4:-4, 4:-4] for k in kernels]
        return np.stack(found).astype(np.float32)

    margin = ((3, 5), (4, 4))
    classes = tw.Output(channels=3, margin=margin, reduce="argmax")
    assert tw.check(tw.tiled_map(scores, IMAGE, 64, 5, output=classes)).offset == (-1, 0)
    mask = tw.Output("bool", margin=margin)
    unknown = tw.check(tw.tiled_map(lambda x: scores(x)[0] > 0, IMAGE, 64, 5, output=mask))
    assert unknown.offset == ()
    assert "could not be seen" in unknown.help


def test_an_image_too_small_to_see_an_offset() -> None:
    out = tw.tiled_map(
        network(8, Fraction(1)), IMAGE[:20, :20], 36, 9, output=tw.Output("f4", margin=((7, 9),) * 2)
    )
    report = tw.check(out)
    assert report.offset == ()
    assert "could not be seen" in report.help


def test_a_result_that_is_the_function_s_but_moved() -> None:
    out = tw.tiled_map(box, IMAGE, 64, 3)
    report = tw.check(out, lambda x: np.roll(box(x), (2, -1), (0, 1)), where=("corners", "random"))
    assert report.causes == ("offset",)
    assert "(2, -1)" in report.help
    # Stripes are equal to themselves moved by several numbers of samples, a flat result by any.
    striped = np.tile(np.arange(4, dtype=np.float32), (230, 48))
    stripes = tw.check(tw.tiled_map(box, striped, 64, 3), lambda x: np.roll(box(x), 1, 1), where="random")
    assert stripes.causes == ("other",)
    flat = tw.check(tw.tiled_map(lambda x: x * 0, IMAGE, 64, 3), lambda x: x * 0 + 1)
    assert "offset" not in flat.causes


# -- labels -----------------------------------------------------------------------------------------------

BLOBS = ndi.gaussian_filter(np.random.default_rng(3).random((300, 280)), 3) > 0.53


def numbered(x: np.ndarray) -> np.ndarray:
    return ndi.label(x)[0]


@pytest.mark.parametrize("dtype", ["int32", "uint16", "int64"])
@pytest.mark.parametrize("options", [{"overlap": 16}, {"stride": 64, "blend": "max"}], ids=str)
@pytest.mark.filterwarnings("ignore:fn returns")
def test_labels_are_recognised(dtype: str, options: dict[str, Any]) -> None:
    out = tw.tiled_map(lambda x: numbered(x).astype(dtype), BLOBS, 128, dtype=dtype, **options)
    with pytest.warns(tw.TilingWarning, match="ids of neighbouring tiles are independent") as told:
        report = tw.check(out)
    assert report.causes == ("labels",), report
    assert len(told) == 1
    assert told[0].filename == __file__
    assert 'labels="own"' in report.help


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: ndi.uniform_filter((x * 255).astype(np.int32), 9),
        lambda x: ndi.median_filter((x * 255).astype(np.uint8), 9),
        lambda x: (x * 255 / (x.max() + 1)).astype(np.int32),
        lambda x: np.digitize(box(x, 9), [0.3, 0.45, 0.5, 0.55]),
    ],
    ids=["filter", "median", "stretched", "classes"],
)
def test_other_integers_are_not_taken_for_labels(fn: Any) -> None:
    report = tw.check(tw.tiled_map(fn, IMAGE, 64, 2))
    assert not report.ok
    assert "labels" not in report.causes
