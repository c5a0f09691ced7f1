"""What samples mean: `ImageMeta`, and what a result keeps of the meaning of its image."""

import pickle
from fractions import Fraction

import dask.array as da
import numpy as np
import pytest
import zarr
from dask.tokenize import tokenize
from hypothesis import assume, given
from hypothesis import strategies as st

import tilework as tw

IMAGE = np.arange(2 * 3 * 8 * 12, dtype=np.float32).reshape(2, 3, 8, 12)
META = tw.ImageMeta(
    "tcyx", units={"t": "second", "y": "micrometer", "x": "micrometer"}, scale={"t": 5, "y": 0.5, "x": 0.25},
    translation={"x": 10}, channel_names=["a", "b", "c"], channel_colors=["FF0000", "00ff00", "#0000FF"],
    nodata=-1, attributes={"who": "me"}, name="cells",
)  # fmt: skip


def mapped(fn=np.sqrt, *, crop=(4, 6), axes="yx", each="t", **options):
    return tw.image_meta(tw.tiled_map(fn, IMAGE, crop, 0, axes=axes, each=each, meta=META, **options))


def test_a_function_that_keeps_the_shape_keeps_the_meaning():
    assert mapped() == META
    assert hash(mapped()) == hash(META)
    assert pickle.loads(pickle.dumps(META)) == META
    assert META.channel_colors == ("FF0000", "00FF00", "0000FF")


def test_each_axes_come_first():
    moved = tw.tiled_map(np.sqrt, IMAGE, (2, 4), 0, axes="ty", each="x", meta=META)
    assert tw.image_meta(moved).axes == ("x", "t", "c", "y")
    assert tw.image_meta(moved).scale == (0.25, 5, 1, 0.5)


@pytest.mark.parametrize(
    ("output", "axes", "types", "names"),
    [
        (tw.Output(channels=5), "tcyx", ("time", "channel", "space", "space"), None),
        (tw.Output("u1", channels=2, channel_names=["in", "out"]), "tcyx", None, ("in", "out")),
        (tw.Output(channels=3, channel_axis=-1), "tyxc", None, None),
        (tw.Output(channels=0), "tyx", ("time", "space", "space"), None),
        (tw.Output("u1", channels=5, reduce="argmax"), "tyx", None, None),
        (tw.Output(channel_names=["u", "v", "w"]), "tcyx", None, ("u", "v", "w")),
        (tw.Output("f4", reduce=lambda block: block.sum(0)), "tyx", None, None),
    ],
)  # fmt: skip
def test_channels_are_added_dropped_and_renamed(output, axes, types, names):
    def fn(crop):
        if output.channels is None:
            return crop
        first = np.zeros((output.channels, *crop.shape[1:]), np.float32) if output.channels else crop[0]
        return np.moveaxis(first, 0, output.channel_axis) if output.channels else first

    found = mapped(fn, output=output)
    assert "".join(found.axes) == axes
    assert types is None or found.types == types
    assert found.channel_names == names
    assert found.units[found.axes.index("x")] == "micrometer"


def test_untiled_axes_that_the_function_moves_are_found_by_their_lengths():
    image, meta = np.zeros((2, 3, 8, 8)), tw.ImageMeta("tcyx", channel_names=["r", "g", "b"])
    out = tw.tiled_map(lambda crop: crop.swapaxes(0, 1), image, 4, 0, axes="yx", meta=meta)
    assert tw.image_meta(out).axes == ("c", "t", "y", "x")
    assert tw.image_meta(out).channel_names == meta.channel_names


@given(st.permutations(range(4)), st.booleans())
def test_a_meaning_is_transposed_as_the_samples_are(order, by_name):
    coordinates = {"x": ("x", np.arange(12.0)), "mask": (("y", "x"), np.zeros((8, 12)))}
    meta = META.replace(coordinates=coordinates)
    turned = meta.transpose([meta.axes[k] for k in order] if by_name else order)
    turned.check("the image", IMAGE.transpose(order).shape)
    for part in ("axes", "types", "units", "scale", "translation"):
        assert getattr(turned, part) == tuple(getattr(meta, part)[k] for k in order)
    assert turned.transpose(np.argsort(order)) == meta
    assert turned.transpose("tcyx") == meta


@pytest.mark.parametrize(
    "axes", ["tcy", "tcyy", "tcyq", (0, 1, 2), (0, 1, 2, 4), (0, 1, 2, 2), 3, None, {"t": 0}]
)
def test_a_wrong_order_is_refused(axes):
    with pytest.raises(tw.TilingError, match=r"each of the axes \('t', 'c', 'y', 'x'\) once"):
        META.transpose(axes)


INDICES = st.one_of(
    st.integers(-3, 2),
    st.builds(
        slice, st.none() | st.integers(0, 3), st.none() | st.integers(-4, 8), st.sampled_from([None, 1, 2])
    ),
    st.builds(slice, st.integers(0, 2), st.none(), st.sampled_from([-1, -2])),
)


@given(st.lists(INDICES, max_size=4), st.integers(0, 4))
def test_a_meaning_is_sliced_as_xarray_slices_the_samples(parts, dots):
    """Also with what lies along two axes, channels and times."""
    xr = pytest.importorskip("xarray")
    index = tuple(parts) if dots > len(parts) else (*parts[:dots], ..., *parts[dots:])
    image = xr.DataArray(
        np.zeros((3, 3, 8, 12)), dims=tuple("tcyx"), attrs={"nodata": -1},
        coords={
            "t": np.arange(3), "c": list("uvw"), "y": -2.5 * np.arange(8) + 3, "x": 0.5 * np.arange(12),
            "mask": (("y", "x"), np.arange(96).reshape(8, 12)), "one": 3.0,
        },
    )  # fmt: skip
    meta, want = tw.image_meta(image), image[index]
    assume(all(want.shape))
    got = meta.sliced(index)
    got.check("the part", want.shape)
    found = tw.image_meta(want)
    assert got.axes == found.axes
    for part in ("types", "channel_names", "nodata", "name"):
        assert getattr(got, part) == getattr(found, part)
    assert got.coordinates == found.coordinates
    for k, n in enumerate(want.shape):
        if n > 1:  # a single sample has no distance to another
            assert got.scale[k] == pytest.approx(found.scale[k])
            assert got.translation[k] == pytest.approx(found.translation[k])


def test_the_meaning_of_a_slice_is_written(tmp_path):
    """That of the whole was refused by the number of its channels, and nothing gave that of the slice."""
    meta = META.replace(channel_colors=["FF0000", "00FF00", "0000FF"], nodata=7)
    out = tw.tiled_map(np.sqrt, IMAGE, (4, 6), 0, axes="yx", each="t", meta=meta)
    with pytest.raises(tw.TilingError, match=r"extent 2; a part, .* has the meaning meta.sliced\(index\)"):
        tw.to_zarr(out[:, 1:], tmp_path / "refused.zarr", ome=True, meta=tw.image_meta(out))
    index = np.s_[:, 1:, 2:6, 3:]
    own = tw.image_meta(out).sliced(index)
    assert own.channel_names == META.channel_names[1:]
    assert own.channel_colors == ("00FF00", "0000FF")
    assert own.nodata == 7
    tw.to_zarr(out[index], tmp_path / "a.zarr", ome=True, meta=own, progress=False)
    stored = tw.open_image(tmp_path / "a.zarr").meta
    assert (stored.scale, stored.translation) == (own.scale, own.translation)
    assert own.translation[2] == META.translation[2] + 2 * META.scale[2]
    assert stored.channel_names == own.channel_names


@pytest.mark.parametrize(
    ("index", "error", "match"),
    [
        (np.s_[0, 0, 0, 0, 0], tw.TilingError, "does not fit"),
        (np.s_[..., 0, ...], tw.TilingError, "does not fit"),
        (np.s_[..., -3:], tw.TilingError, "along axis x must start at a number of 0 or more"),
        (np.s_[..., ::-1], tw.TilingError, "along axis x must start"),
        (np.s_[..., ::0], tw.TilingError, "along axis x must start"),
        (np.s_[..., 0.5:], TypeError, "the start along x"),
        (np.s_[:, [0, 2]], TypeError, "slices, whole numbers"),
        (np.s_[None], TypeError, "slices, whole numbers"),
        (True, TypeError, "slices, whole numbers"),
        ("x", TypeError, "slices, whole numbers"),
    ],
    ids=str,
)  # fmt: skip
def test_an_index_without_a_meaning_is_refused(index, error, match):
    with pytest.raises(error, match=match):
        META.sliced(index)


@pytest.mark.parametrize(
    "given", [{}, {"output": tw.Output(channels=3)}, {"output": tw.Output(channel_names=list("uvw"))}]
)
@pytest.mark.parametrize("dropped", [0, 1])
def test_an_axis_that_may_be_one_of_two_is_not_called_that_of_channels(dropped, given):
    """The function takes the largest along the channels or along the slices, and there are three of both."""
    image, meta = np.zeros((2, 3, 3, 8, 8)), tw.ImageMeta("tczyx", channel_names=["r", "g", "b"])
    out = tw.tiled_map(lambda crop: crop.max(dropped), image, 4, 0, axes="yx", each="t", meta=meta, **given)
    found = tw.image_meta(out)
    assert found.axes == ("t", "c" if given else "dim_0", "y", "x")
    assert found.types[1] == ("channel" if given else None)
    assert found.channel_names == (given["output"].channel_names if given else None)
    four = tw.tiled_map(lambda crop: crop.max(dropped), image[:, :, :2], 4, 0, axes="yx", each="t", meta=meta)
    assert tw.image_meta(four).axes[1] == "zc"[dropped]


def test_names_must_fit_the_channels():
    with pytest.raises(tw.TilingError, match="one per channel"):
        tw.Output(channels=2, channel_names=["a"])
    with pytest.raises(tw.TilingError, match="channel_names has 2 names"):
        mapped(output=tw.Output(channel_names=["a", "b"]))
    with pytest.raises(tw.TilingError, match="removes"):
        tw.Output("u1", channels=2, channel_names=["a", "b"], reduce="argmax")


@given(
    n=st.integers(1, 9), numerator=st.integers(1, 4), denominator=st.integers(1, 4),
    scale=st.floats(0.1, 10), start=st.floats(-9, 9),
)  # fmt: skip
def test_a_scaled_sample_lies_at_the_centre_of_what_it_covers(n, numerator, denominator, scale, start):
    q = Fraction(numerator, denominator)
    n *= denominator
    meta = tw.ImageMeta("x", scale=[scale], translation=[start])
    image = np.zeros(n)
    out = tw.tiled_map(
        lambda crop: np.repeat(crop, numerator)[::denominator], image, denominator, 0, meta=meta,
        output=tw.Output(float, scale=q),
    )  # fmt: skip
    found = tw.image_meta(out)
    # Edges of the image do not move.
    first = start - scale / 2
    assert found.translation[0] - found.scale[0] / 2 == pytest.approx(first, abs=1e-9)
    assert found.scale[0] * out.shape[0] == pytest.approx(scale * n)


def test_uniform_coordinates_become_centres_and_others_are_dropped_with_a_warning():
    days = np.arange("2020-01-01", "2020-01-13", dtype="M8[D]").astype("M8[s]")
    meta = tw.ImageMeta(
        "yx",
        coordinates={
            "x": ("x", np.linspace(50, 40, 12)), "y": ("y", np.array([0, 1, 4, 9, 16, 25, 36, 49.0])),
            "place": ((), 3), "time": ("x", days),
        },
    )  # fmt: skip
    image = np.zeros((8, 12), np.float32)
    half = tw.Output(np.float32, scale=(1, Fraction(1, 2)))
    found = tw.image_meta(tw.tiled_map(lambda c: c[:, ::2], image, (4, 6), 0, output=half, meta=meta))
    assert set(found.coordinates) == {"x", "y", "place", "time"}
    np.testing.assert_allclose(found.coordinates["x"].values, np.linspace(50, 40, 12).reshape(6, 2).mean(1))
    assert found.coordinates["time"].values[0] == np.datetime64("2020-01-01T12")
    with pytest.warns(tw.TilingWarning, match="'y'"):
        twice = tw.tiled_map(
            lambda c: np.repeat(c, 2, 0), image, (4, 6), 0, output=tw.Output("f4", scale=(2, 1)), meta=meta
        )
    assert set(tw.image_meta(twice).coordinates) == {"x", "place", "time"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": (1, 2)}, "one value per axis"),
        ({"scale": (1, 0, 1)}, "not 0"),
        ({"scale": (1, float("nan"), 1)}, "finite"),
        ({"scale": {"q": 1}}, "the axes are z, y, x"),
        ({"channel_names": ["a"]}, 'type "channel"'),
        ({"types": ["space", "place", "time"]}, "types must be one of"),
        ({"coordinates": {"k": ("q", [1])}}, "lies along 'q'"),
        ({"coordinates": {"k": ("z", 1)}}, "0 axes of values"),
    ],
)
def test_a_wrong_meaning_is_refused(values, message):
    with pytest.raises(tw.TilingError, match=message):
        tw.ImageMeta("zyx", **values)
    with pytest.raises(tw.TilingError, match="must differ"):
        tw.ImageMeta("zz")


@pytest.mark.parametrize(
    ("coordinate", "error", "message"),
    [
        ([1, 2], TypeError, "dims of coordinate 'lat' must be the name of an axis.*got 1"),
        ((None, [1, 2]), TypeError, "dims of coordinate 'lat'.*got None"),
        ((("y", "y"), [[1, 2], [3, 4]]), TypeError, "several that differ"),
        (("y", [[1, 2], [3]]), tw.TilingError, "values of coordinate 'lat' are no array"),
        (("y", [1, 2], 5), TypeError, "attributes of coordinate 'lat' must be a dict"),
    ],
)
def test_a_wrong_coordinate_is_named(coordinate, error, message):
    with pytest.raises(error, match=message):
        tw.ImageMeta("yx", coordinates={"lat": coordinate})


def test_places_must_be_finite_numbers():
    with pytest.raises(tw.TilingError, match="scale of axis y must be finite and not 0"):
        tw.ImageMeta("yx", scale=(10**400, 1))
    with pytest.raises(tw.TilingError, match=r"translation of axis x must be finite; got inf"):
        tw.ImageMeta("yx", translation=(0, np.inf))


def test_one_axis_is_that_of_channels():
    both = tw.ImageMeta(("band", "channel", "y", "x"))
    assert both.types == ("channel", None, "space", "space")
    assert tw.ImageMeta(("band", "c"), types={"band": None, "c": "channel"}).channel_axis == 1
    out = tw.tiled_map(np.negative, np.zeros((2, 3, 8, 8)), 4, 0, axes=("y", "x"), dtype=float, meta=both)
    assert tw.image_meta(out) == both
    with pytest.raises(tw.TilingError, match='only one axis can be of type "channel"; got c, d'):
        tw.ImageMeta("cd", types=("channel", "channel"))


@pytest.mark.parametrize(
    "value",
    [
        np.nan,
        np.float32("nan"),
        complex("nan"),
        np.datetime64("NaT", "ns"),
        np.arange(3),
        np.array([np.nan, "a"], object),
    ],
    ids=["double", "single", "complex", "NaT", "array", "object"],
)
def test_equal_meanings_are_equal_with_any_values(value):
    def of(one):
        nodata = one if np.ndim(one) == 0 else None
        return tw.ImageMeta(
            "yx", nodata=nodata, attributes={"a": {"b": [one]}}, coordinates={"k": ("y", [one])}
        )

    again = pickle.loads(pickle.dumps(value))
    if np.ndim(value):
        assert tw.ImageMeta("y", attributes={"a": value}) == tw.ImageMeta("y", attributes={"a": again})
        assert tw.ImageMeta("y", coordinates={"a": ("y", value)}) == tw.ImageMeta(
            "y", coordinates={"a": ("y", again)}
        )
        assert tw.ImageMeta("y", attributes={"a": value}) != tw.ImageMeta("y", attributes={"a": value[:1]})
    else:
        assert of(value) == of(again)
        assert of(value) != of(1)


def test_tokens_tell_long_coordinates_apart():
    places = np.linspace(0, 1, 5000) ** 2
    other = places.copy()
    other[2500] += 1e-6
    one, same, changed = (
        tw.ImageMeta("y", coordinates={"y": ("y", values)}) for values in (places, places.copy(), other)
    )
    assert one == same != changed
    assert tokenize(one) == tokenize(same) != tokenize(changed)


def test_a_meaning_of_another_shape_is_refused():
    for meta, message in (
        (tw.ImageMeta("yx"), "2 axes"), (META.replace(channel_names=["a"], channel_colors=None), "extent 3"),
        (tw.ImageMeta("tcyx", coordinates={"x": ("x", [1.0, 2])}), "have extents"),
    ):  # fmt: skip
        with pytest.raises(tw.TilingError, match=message):
            tw.tiled_map(np.sqrt, IMAGE, 4, 0, axes=(2, 3), meta=meta)
    with pytest.raises(TypeError, match="ImageMeta"):
        tw.tiled_map(np.sqrt, IMAGE, 4, 0, axes=(2, 3), meta="tcyx")


def test_what_the_meta_names_can_be_named():
    by_name = tw.tiled_map(np.sqrt, IMAGE, (4, 6), 0, axes="yx", each="t", meta=META)
    by_number = tw.tiled_map(np.sqrt, IMAGE, (4, 6), 0, axes=(2, 3), each=0)
    np.testing.assert_array_equal(by_name.compute(), by_number.compute())
    assert tw.image_meta(by_number) is None
    assert tw.image_meta(by_name + 1) is None


@pytest.mark.parametrize("kind", ["zarr", "dask", "numpy"])
def test_any_source_can_be_given_a_meaning(kind, tmp_path):
    source = {"numpy": lambda: IMAGE, "dask": lambda: da.from_array(IMAGE, chunks=4)}.get(
        kind, lambda: zarr.save_array(tmp_path / "a.zarr", IMAGE) or zarr.open_array(tmp_path / "a.zarr")
    )()
    out = tw.tiled_map(np.sqrt, source, (4, 6), 1, axes="yx", each="t", meta=META)
    assert tw.image_meta(out) == META
    assert tw.image_meta(pickle.loads(pickle.dumps(out))) == META
    both = tw.tiled_map(
        lambda c: {"a": c, "b": c[0]}, source, (4, 6), 1, axes="yx", each="t", meta=META,
        output={"a": tw.Output("f4"), "b": tw.Output("f4", channels=0)},
    )  # fmt: skip
    assert tw.image_meta(both["a"]) == META
    assert tw.image_meta(both["b"]).axes == ("t", "y", "x")
    if kind != "dask":
        np.testing.assert_array_equal(
            out.compute(scheduler="processes" if kind == "zarr" else "threads"), np.sqrt(IMAGE)
        )
