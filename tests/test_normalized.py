"""`normalized`: the numbers of the whole image, on every crop."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
from scipy import ndimage as ndi

import tilework as tw
from tilework.errors import ContractError, TilingError
from tilework.graph.naming import fn_token
from tilework.writing.code import describe

QUIET = {"progress": False}
MODES = ("zscore", "percentile", "callable")


def smooth(x):
    """Return what depends on neighbours along the last two axes, without sums that round."""
    return ndi.median_filter(x, (1,) * (x.ndim - 2) + (5, 5)) + x


def clipped(x, stats):
    """Normalise as nnU-Net does with CT: clip to quantiles, then by mean and deviation."""
    low, high = stats.quantiles[0.01], stats.quantiles[0.99]
    return ((np.clip(x, low, high) - stats.mean) / stats.std).astype("f4")


def mode_of(name):
    return clipped if name == "callable" else name


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    return (rng.gamma(2, 100, (3, 70, 60)) + np.array([0, 500, 90])[:, None, None]).astype("u2")


@pytest.fixture(scope="module")
def stats(image):
    return tw.image_statistics(image, each=0, **QUIET)


# ------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("mode", MODES)
def test_the_formula(image, stats, mode):
    got = tw.normalized(np.asarray, stats, mode_of(mode))(image)
    assert got.dtype == np.float32
    for k, plane in enumerate(image.astype("f8")):
        mean, std = plane.mean(), plane.std()
        low, high = (np.quantile(plane, q, method="inverted_cdf") for q in (0.01, 0.99))
        expected = {
            "zscore": (plane - mean) / std,
            "percentile": (plane - low) / (high - low),
            "callable": (np.clip(plane, low, high) - mean) / std,
        }[mode]
        np.testing.assert_allclose(got[k], expected, rtol=2e-5, atol=2e-6)


# ------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("given", "returned"),
    [("?", "f4"), ("u1", "f4"), ("i2", "f4"), (">u2", "f4"), ("f2", "f4"), ("f4", "f4"), (">f4", "f4"),
     ("i4", "f4"), ("u8", "f4"), ("f8", "f8"), (">f8", "f8")],
)  # fmt: skip
def test_dtypes(given, returned):
    image = np.arange(12).reshape(3, 4).astype(given)
    fn = tw.normalized(np.asarray, tw.image_statistics(image, **QUIET))
    assert fn(image).dtype == np.dtype(returned)


def test_wide_integers_are_normalised_in_double_precision():
    image = np.array([2**30, 2**30 + 1, 2**30 + 2], "i4")
    got = tw.normalized(np.asarray, tw.image_statistics(image, **QUIET))(image)
    np.testing.assert_allclose(got, [-(1.5**0.5), 0, 1.5**0.5], rtol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(1e6, 0.2), (300, 0.01), (-4e4, 1), (1e-30, 1e-32)])
@pytest.mark.parametrize("mode", ["zscore", "percentile"])
def test_images_far_from_zero(mean, std, mode):
    """The mean is no number of single precision, and all samples would be off by the difference."""
    image = np.random.default_rng(0).normal(mean, std, (40, 50)).astype("f4")
    stats = tw.image_statistics(image, **QUIET)
    low, width = stats.mean, stats.std
    if mode == "percentile":
        low, high = np.float64(stats.quantiles[0.01]), np.float64(stats.quantiles[0.99])
        width = high - low
    found = tw.normalized(lambda x: x, stats, mode)(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (image.astype("f8") - low) / width, rtol=1e-6, atol=2e-5)


def test_constant_images_become_zero():
    image = np.full((4, 4), 7, "u1")
    stats = tw.image_statistics(image, **QUIET)
    for mode in ("zscore", "percentile"):
        assert not tw.normalized(np.asarray, stats, mode)(image).any()


def test_clip_ends_at_0_and_1(image, stats):
    got = tw.normalized(np.asarray, stats, "percentile", clip=True)(image)
    assert (got.min(), got.max()) == (0, 1)
    assert tw.normalized(np.asarray, stats, "percentile")(image).max() > 1


def test_the_crop_is_left_as_it_was(image, stats):
    crop = image.astype("f4")
    before = crop.copy()
    tw.normalized(np.asarray, stats, "percentile", clip=True)(crop)
    assert np.array_equal(crop, before)


# -------------------------------------------------------------------------------------------- wrapping


def test_it_is_pickled_as_numbers(image, stats):
    fn = tw.normalized(smooth, stats)
    fn(image)
    packed = pickle.dumps(fn)
    assert len(packed) < 6000
    assert np.array_equal(pickle.loads(packed)(image), fn(image))


def test_load_once_and_batches(image, stats):
    fn = tw.normalized(tw.load_once(lambda: smooth), stats)
    expected = tw.normalized(smooth, stats)(image)
    for batch_size in (None, 3):
        out = tw.tiled_map(fn, image, 20, 3, axes=(1, 2), batch_size=batch_size)
        assert np.array_equal(out.compute(), expected)


def test_a_network_takes_batches(image, stats):
    torch = pytest.importorskip("torch")
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x):
            seen.append((tuple(x.shape), x.dtype))
            return x * 1

    fn = tw.normalized(tw.from_torch(Net()), stats)
    for batch_size in (None, 2):
        out = tw.tiled_map(fn, image, 40, 4, axes=(1, 2), batch_size=batch_size)
        assert np.array_equal(out.compute(), tw.normalized(np.asarray, stats)(image))
    assert {dtype for _, dtype in seen} == {torch.float32}


def test_several_arrays(image, stats):
    labels = image > 100

    def masked(x, m):
        return x * m

    out = tw.tiled_map(tw.normalized(masked, stats), (image, labels), 20, 0, axes=(1, 2))
    expected = tw.normalized(np.asarray, stats)(image)
    assert np.array_equal(out.compute(), expected * labels)
    both = tw.normalized(masked, (None, stats))(image, image)
    assert np.array_equal(both, image * expected)
    with pytest.raises(ContractError, match="statistics for 2 arrays; fn gets 1"):
        tw.normalized(masked, (None, stats))(image)


def test_pass_tile(image, stats):
    def fn(x, tile):
        return x + tile.position[0]

    out = tw.tiled_map(tw.normalized(fn, stats), image, 30, 0, axes=(1, 2), pass_tile=True)
    assert out.compute().shape == image.shape
    with pytest.raises(TypeError, match="its signature has no argument 'tile'"):
        tw.tiled_map(tw.normalized(smooth, stats), image, 30, 0, axes=(1, 2), pass_tile=True)


# ------------------------------------------------------------------------------------------ channels


def test_channels_last(image):
    last = np.moveaxis(image, 0, -1)
    fn = tw.normalized(np.asarray, tw.image_statistics(last, each=-1, **QUIET))
    out = tw.tiled_map(fn, last, 20, 0, axes=(0, 1))
    expected = tw.normalized(np.asarray, tw.image_statistics(image, each=0, **QUIET))(image)
    assert np.array_equal(np.moveaxis(out.compute(), -1, 0), expected)


def test_two_axes_of_numbers(image):
    movie = np.stack([image, image + 7])
    stats = tw.image_statistics(movie, each=(0, 1), **QUIET)
    got = tw.normalized(np.asarray, stats)(movie)
    for t in range(2):
        for c in range(3):
            assert np.array_equal(got[t, c], tw.normalized(np.asarray, stats.at(t, c))(movie[t, c]))


def test_axes_of_numbers_in_another_order():
    image = np.random.default_rng(0).normal(5, 3, (2, 3, 20, 20)) * np.arange(1, 7).reshape(2, 3, 1, 1)
    stats = tw.image_statistics(image, each=(0, 1), **QUIET)
    plain = tw.normalized(lambda x: x, stats)(image)
    swapped = tw.normalized(lambda x: x, stats, axis=(-3, -4))(image.swapaxes(0, 1))
    np.testing.assert_array_equal(swapped.swapaxes(0, 1), plain)
    np.testing.assert_allclose(plain.mean((2, 3)), 0, atol=1e-12)


def test_axis_says_where_channels_are(image, stats):
    movie = np.stack([image, image + 7])
    with pytest.raises(TilingError, match="say where that axis is in a crop, axis=-3 for example"):
        tw.tiled_map(tw.normalized(smooth, stats), movie, 20, 3, axes=(2, 3), dtype="f4")
    fn = tw.normalized(smooth, stats, axis=-3)
    for each in ((), 0):
        out = tw.tiled_map(fn, movie, 20, 3, axes=(2, 3), each=each)
        assert np.array_equal(out.compute()[0], fn(image))


def test_a_crop_without_another_axis_is_told_where_channels_would_be(image, stats):
    """Time is in ``each``, so that a crop has the channels and fewer axes than the image."""
    movie = np.stack([image, image[::-1]])
    measured = tw.image_statistics(movie, each=1, **QUIET)
    with pytest.raises(TilingError, match=r"a crop has 3: say .*axis=-3 for example") as caught:
        tw.tiled_map(tw.normalized(smooth, measured), movie, 20, 3, axes=(2, 3), each=0, dtype="f4")
    assert "leave it out there" in str(caught.value)
    fn = tw.normalized(smooth, measured, axis=-3)
    got = tw.tiled_map(fn, movie, 20, 3, axes=(2, 3), each=0, dtype="f4").compute()
    whole = (movie - movie.mean((0, 2, 3))[:, None, None]) / movie.std((0, 2, 3))[:, None, None]
    np.testing.assert_allclose(got, [smooth(channels) for channels in whole], atol=1e-4)
    with pytest.raises(TilingError, match=r"a crop has 2: if it is in each="):
        tw.tiled_map(tw.normalized(smooth, measured), movie, 20, 3, each=(0, 1), dtype="f4")


def test_a_batch_of_as_many_crops_as_channels_is_no_axis_of_channels(image):
    """A crop without channels, in batches of three, looks like three channels."""
    fn = tw.normalized(smooth, tw.image_statistics(image, each=0, **QUIET))
    with pytest.raises(TilingError, match=r"a crop has 2: .*leave it out there.*stats\.at\(0\)"):
        tw.tiled_map(fn, image, 20, 3, each=0, batch_size=3, dtype="f4")


def test_a_function_of_one_channel_runs_on_all_of_them(image, stats):
    """The cure that the message names: each channel with its own numbers."""
    fn = tw.normalized(lambda crop: np.stack([smooth(plane) for plane in crop]), stats)
    got = tw.tiled_map(fn, image, 20, 3, axes=(1, 2), dtype="f4").compute()
    for c, plane in enumerate(image):
        one = tw.normalized(smooth, stats.at(c))
        assert np.array_equal(got[c], tw.tiled_map(one, plane, 20, 3, dtype="f4").compute())


def test_other_channels_are_refused(image, stats):
    with pytest.raises(ContractError, match=r"those of \(3,\) indices"):
        tw.normalized(smooth, stats)(image[:2])
    with pytest.raises(ContractError, match="dtype complex"):
        tw.normalized(smooth, stats)(image.astype(complex))


# ------------------------------------------------------------------------------------------- identity


def test_other_numbers_are_another_result(image, stats, tmp_path):
    other = tw.image_statistics(image[:, :50], each=0, **QUIET)
    out = tw.tiled_map(tw.normalized(smooth, stats), image, 20, 3, axes=(1, 2))
    assert out.name == tw.tiled_map(tw.normalized(smooth, stats), image, 20, 3, axes=(1, 2)).name
    changed = tw.tiled_map(tw.normalized(smooth, other), image, 20, 3, axes=(1, 2))
    assert out.name != changed.name
    stored = tw.to_zarr(out, tmp_path / "x.zarr", progress=False)
    record = stored.attrs["tilework"]["fingerprint"]
    assert record["fn statistics mean"] == str(stats.mean.tolist())
    tw.to_zarr(out, tmp_path / "x.zarr", progress=False)
    with pytest.raises(TilingError, match="changed: fn statistics count: "):
        tw.to_zarr(changed, tmp_path / "x.zarr", progress=False)


@pytest.mark.parametrize(
    "change",
    [{"mode": "percentile"}, {"axis": -2}, {"mode": clipped}, {"fn": np.abs}],
    ids=["mode", "axis", "callable", "fn"],
)
def test_every_part_is_in_the_fingerprint(stats, change):
    given = {"fn": smooth, "stats": stats, "mode": "zscore"}
    one, two = (tw.normalized(**g) for g in (given, given | change))
    assert describe(one, "fn") != describe(two, "fn")
    assert fn_token(one) != fn_token(two)
    assert fn_token(one) == fn_token(tw.normalized(**given))


@pytest.mark.parametrize("between", [lambda fn: fn, functools.partial], ids=["plain", "partial"])
def test_statistics_inside_statistics_are_in_the_fingerprint(image, stats, between):
    plain, other = (tw.image_statistics(x, **QUIET) for x in (image, image[:, :50]))
    found = [
        tw.normalized(between(tw.normalized(smooth, inner)), outer)
        for inner, outer in [(stats, plain), (plain, stats), (stats, other), (other, plain)]
    ]
    assert len({str(describe(fn, "fn")) for fn in found}) == 4
    assert len({fn_token(fn) for fn in found}) == 4


def test_names_tell_statistics_apart_by_every_bit_and_functions_by_their_code(image):
    def made(number):
        return lambda x: x + number

    image = image * 1.0
    stats = tw.image_statistics(image, **QUIET)
    image[0, 0, 0] += 1e-6
    near = tw.image_statistics(image, **QUIET)
    assert repr(near) == repr(stats)
    tokens = [fn_token(tw.normalized(made(n), s)) for n, s in [(1, stats), (1, near), (2, stats)]]
    assert len(set(tokens)) == 3
    assert fn_token(tw.normalized(made(1), stats)) == tokens[0]


def test_a_callable_may_look_at_everything(stats):
    """Of bytes, twice 200 is 144."""
    image = np.full((20, 20), 200, "u1")
    one, two = (tw.normalized(smooth, tw.image_statistics(x, **QUIET), clipped) for x in (image, image * 1.0))
    assert describe(one, "fn") != describe(two, "fn")
    assert fn_token(one) != fn_token(two)


def test_clip_is_in_the_fingerprint(stats):
    one, two = (tw.normalized(smooth, stats, "percentile", clip=c) for c in (True, False))
    assert describe(one, "fn") != describe(two, "fn")
    assert fn_token(one) != fn_token(two)


def test_probe_draws_values_that_the_statistics_know():
    """Values of 0 to 1 would be one and the same to a function that expects thousands."""
    image = 1000 + 50 * np.random.default_rng(0).standard_normal((64, 64))
    fn = tw.normalized(lambda x: smooth(np.clip(x, -3, 3)), tw.image_statistics(image, **QUIET))
    assert tw.probe(fn, (40, 40), dtype="f8").overlap == (2, 2)


# ------------------------------------------------------------------------------------------- refused


def test_wrong_arguments(image, stats):
    with pytest.raises(TypeError, match=r"what tw\.image_statistics returned; got 3"):
        tw.normalized(smooth, 3)
    with pytest.raises(TypeError, match="got none"):
        tw.normalized(smooth, None)
    with pytest.raises(TilingError, match="mode must be"):
        tw.normalized(smooth, stats, "minmax")
    with pytest.raises(TilingError, match="counts from the end"):
        tw.normalized(smooth, stats, axis=0)
    with pytest.raises(TilingError, match="one number for each of the 1 axes"):
        tw.normalized(smooth, stats, axis=(-3, -4))
    with pytest.raises(TilingError, match="one number for each of the 1 axes"):
        tw.normalized(smooth, stats, axis=(-3, -3))
    wide = tw.image_statistics(np.array([-1.7e308, 1.7e308]), **QUIET)
    with pytest.raises(TilingError, match="further apart than float64 holds"):
        tw.normalized(smooth, wide, "percentile")
    with pytest.raises(TilingError, match='for mode="percentile"'):
        tw.normalized(smooth, stats, clip=True)
    with pytest.raises(TilingError, match="needs two quantiles"):
        tw.normalized(smooth, tw.image_statistics(image, (0.5,), **QUIET), "percentile")
    with pytest.raises(TilingError, match=r"no finite samples at index \(1,\)"):
        tw.normalized(smooth, tw.image_statistics(np.array([[1.0], [np.nan]]), each=0, **QUIET))
