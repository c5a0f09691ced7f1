"""Which axes are tiled, taken one by one or handed over whole: the page ``docs/axes.md``, and its errors."""

import ast
import re

import dask.array
import numpy as np
import pytest
import zarr

import tilework as tw
from tests.test_docs import ROOT, snippets

PAGE = ROOT / "docs" / "axes.md"
ROWS = re.findall(r"(?m)^\| (.*) `(\w+)` \| `(\(.*\))` \| `(.*)` \| `(\(.*\))` \|$", PAGE.read_text())


def arguments(text: str) -> dict:
    call = ast.parse(f"f({text})", mode="eval").body
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]}: {row[0]}")
def test_rows_of_the_table(row):
    """What a row says that the function receives, it receives; with a batch, one axis more."""
    _, names, shape, text, expected = row
    shape, expected, options = ast.literal_eval(shape), ast.literal_eval(expected), arguments(text)
    image = np.broadcast_to(np.uint8(0), shape)
    assert len(names) == len(shape)
    if isinstance(options.get("axes"), str):
        image = pytest.importorskip("xarray").DataArray(image, dims=tuple(names))
    seen = []

    def fn(crop):
        seen.append(crop.shape)
        return crop

    out = tw.tiled_map(fn, image, overlap=0, **options)
    each = options.get("each", ())
    each = tuple(map(names.index, each)) if isinstance(each, str) else each
    each = each if isinstance(each, tuple) else (each,)
    rest = [n for a, n in enumerate(shape) if a not in each]
    assert out.shape == (*(shape[a] for a in each), *rest)
    assert tw.view(out, verbose=False)[(0,) * out.ndim] == 0
    out = tw.tiled_map(fn, image, overlap=0, batch_size=8, **options)
    out[tuple(slice(min(n, 2)) for n in out.shape)].compute()
    assert {s for s in seen if len(s) == len(expected)} == {expected}
    batches = {s for s in seen if len(s) > len(expected)}
    assert {s[1:] for s in batches} == {expected}
    assert max(s[0] for s in batches) <= 8


def test_the_table_has_all_its_rows():
    assert len(ROWS) == PAGE.read_text().count("\n| ") - 1 > 12


# What the cells of the page print, in order; a text without "fn receives" is a piece of an error.
PRINTED = [
    "fn receives (256, 256, 3), returns (256, 256, 3); the result is (600, 800, 3)",
    "axis 2 has extent 3, shorter than crop 256; did you mean axes=(0, 1)?",
    "axis 2 has extent 3, shorter than crop 256; did you mean axes=(0, 1)?",
    "got crop 3 and overlap 8 on axis 2. Give one overlap per axis, such as overlap=(8, 8, 0)",
    "fn receives (256, 256, 3), returns (256, 256, 3); the result is (600, 800, 3)",
    "fn receives (256, 256), returns (256, 256); the result is (3, 600, 800)",
    "fn receives (256, 256, 3), returns (256, 256); the result is (600, 800)",
    "fn receives (256, 256, 3), returns (3, 256, 256); the result is (3, 600, 800)",
    "fn receives (256, 256, 3), returns (5, 256, 256); the result is (5, 600, 800)",
    "the function returned shape (5, 256, 256); expected (256, 256, 5).",
    "expected (256, 256, 3). If its result has no channels, declare Output(..., channels=0).",
    "fn receives (12, 256, 256), returns (256, 256); the result is (600, 800)",
    "verdict    differs: the function mixes the crops of a batch",
    "fn receives (4, 256, 256), returns (4, 256, 256); the result is (600, 800)",
    "0.0",
    "fn receives (32, 64, 64), returns (32, 64, 64); the result is (60, 100, 120)",
    "fn receives (64, 64), returns (64, 64); the result is (60, 120, 100)",
    "crop       (64, 64, 32), overlap (8, 8, 2) per side",
    "axis 0 has extent 20, shorter than crop 32; did you mean axes=(1, 2)?",
    "fn receives (20, 64, 64), returns (20, 64, 64); the result is (20, 100, 120)",
    "fn receives (64, 64), returns (64, 64); the result is (3, 2, 16, 100, 120)",
    "fn receives (2, 64, 64), returns (64, 64); the result is (3, 16, 100, 120)",
    "fn receives (16, 64, 64), returns (16, 64, 64); the result is (3, 2, 16, 100, 120)",
    "fn receives (3, 2, 16, 64, 64), returns (3, 2, 16, 64, 64); the result is (3, 2, 16, 100, 120)",
    "axis 0 has extent 3, shorter than crop 64; did you mean axes=(3, 4)?",
    "too many values to unpack (expected 2",
    "fn receives (64, 64), returns (64, 64); the result is (3, 2, 16, 100, 120)",
    "fn receives (64, 64), returns (64, 64); the result is (4, 90, 180)",
    "fn receives (64, 90), returns (64, 90); the result is (4, 90, 180)",
    "axes='YX': the array has no axis 'Y'; its axes are ('t', 'c', 'z', 'y', 'x').",
    "axes='lat lon': the array has no axis 'l'; its axes are ('time', 'lat', 'lon').",
    "Give names longer than a letter as a tuple: axes=('lat', 'lon').",
    "each='tcz' gives names, but the array has none; give axis numbers.",
    "fn receives (48, 48), returns (48, 48); the result is (3, 2, 16, 100, 120)",
    "fn receives (48, 48), returns (48, 48); the result is (3, 2, 16, 50, 60)",
    "fn receives (64, 64), returns (64, 64); the result is (30, 100, 120)",
    "fn receives (16, 64, 64), returns (16, 64, 64); the result is (30, 100, 120)",
    "fn receives (8, 256, 256, 3), returns (8, 256, 256); the result is (5, 300, 280)",
    "crop (64, 64) needs one length per tiled axis; got 2 for axes (2,).",
    "axis 0 is in axes=(0, 1) and in each=0; leave it in one.",
    "axes=(1, 3): axis 3 is out of range for 3 dimensions.",
    "to a single number; it must return an array with the crop's 3 tiled axes, lengths (32, 32, 32).",
]


def test_what_the_page_prints(tmp_path, monkeypatch, capsys):
    pytest.importorskip("xarray")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for snippet in snippets(PAGE):
        exec(snippet, names)
    printed = capsys.readouterr().out
    place = 0
    for text in PRINTED:
        place = printed.find(text, place)
        assert place >= 0, text
        place += len(text)
    assert printed.count("fn receives") == sum("fn receives" in text for text in PRINTED)


# ------------------------------------------------------------------------------------------ names


def named(dims, shape=None):
    xarray = pytest.importorskip("xarray")
    shape = shape or (4, 30, 40)[-len(dims) :]
    return xarray.DataArray(np.arange(np.prod(shape), dtype="f4").reshape(shape), dims=dims)


@pytest.mark.parametrize(
    ("dims", "axes", "each", "numbers"),
    [
        (("time", "lat", "lon"), ("lat", "lon"), "time", ((1, 2), 0)),
        (("time", "lat", "lon"), ["lat"], "time", ((1,), 0)),
        (("time", "lat", "lon"), "lat", ("time",), ((1,), 0)),
        (("time", "y", "x"), "yx", "time", ((1, 2), 0)),
        (("t", "y", "x"), "xy", "t", ((2, 1), 0)),
        (("yx", "y", "x"), "yx", (), ((0,), ())),  # a name, before the names of its letters
    ],
)
def test_text_is_one_name_or_a_name_per_letter(dims, axes, each, numbers):
    image = named(dims)
    by_name = tw.tiled_map(np.negative, image, 4, 0, axes=axes, each=each)
    by_number = tw.tiled_map(np.negative, image, 4, 0, axes=numbers[0], each=numbers[1])
    assert by_name.chunks == by_number.chunks
    np.testing.assert_array_equal(by_name.compute(), by_number.compute())


def test_a_long_name_of_a_zarr_array(tmp_path):
    image = zarr.create_array(
        tmp_path / "a.zarr",
        shape=(3, 20, 20),
        dtype="u1",
        chunks=(1, 20, 20),
        dimension_names=["time", "y", "x"],
    )
    seen = []
    tw.tiled_map(lambda crop: seen.append(crop.shape) or crop, image, 8, 0, axes="yx", each="time")
    assert seen == [(8, 8)]


@pytest.mark.parametrize(
    ("dims", "options", "message"),
    [
        (("time", "lat", "lon"), {"axes": "lat lon"}, r"Give names longer .* axes=\('lat', 'lon'\)\.$"),
        (("time", "lat", "lon"), {"axes": 0, "each": "tme"}, r"no axis 't'.* as a tuple: each="),
        (("t", "y", "x"), {"axes": "YX"}, r"no axis 'Y'; its axes are \('t', 'y', 'x'\)\.$"),
        (("time", "lat", "lon"), {"axes": ("lat", "long")}, r"no axis 'long'; its axes are \(.*\)\.$"),
    ],
)
def test_an_unknown_name_says_how_names_are_given(dims, options, message):
    with pytest.raises(tw.TilingError, match=message):
        tw.tiled_map(np.negative, named(dims), 4, 0, **options)


# ----------------------------------------------------------------------------- axes that were not named


@pytest.mark.parametrize(
    ("shape", "crop", "meant"),
    [
        ((600, 800, 3), 256, "axes=(0, 1)"),
        ((3, 600, 800), 256, "axes=(1, 2)"),
        ((3, 2, 5, 200, 220), 64, "axes=(3, 4)"),
        ((2, 600, 3, 800), 256, "axes=(1, 3)"),
        ((20, 100, 120), 32, "axes=(1, 2)"),
        ((600, 800, 3), (256, 256), "axes=(0, 1)"),
        ((90, 3, 80), (64, 64), "axes=(0, 2)"),
    ],
)
def test_a_short_axis_is_answered_with_the_axes_that_are_long_enough(shape, crop, meant):
    """What is proposed is accepted."""
    with pytest.raises(tw.TilingError, match="shorter than crop") as caught:
        tw.plan_tiles(shape, crop, 4)
    assert f"did you mean {meant}?" in str(caught.value)
    assert "each=" in str(caught.value)
    assert len(tw.plan_tiles(shape, crop, 4, axes=ast.literal_eval(meant.removeprefix("axes="))))


def test_nothing_is_proposed_where_no_axis_is_long_enough():
    with pytest.raises(tw.TilingError, match=r"shorter than crop 64\. Name the tiled axes"):
        tw.plan_tiles((10, 20, 30), 64, 4)


def test_each_axes_are_not_proposed():
    with pytest.raises(tw.TilingError, match=r"did you mean axes=\(2, 3\)\?"):
        tw.plan_tiles((100, 5, 100, 100), 64, 4, each=0)


# ------------------------------------------------------------------------------------- several arrays


def array_of(kind, data, dims):
    """The samples ``data`` as an array with names of axes."""
    if kind == "zarr":
        return zarr.create_array({}, data=data, chunks=(2,) * data.ndim, dimension_names=dims)
    array = pytest.importorskip("xarray").DataArray(data, dims=tuple(dims))
    return array.chunk(5) if kind == "dask" else array


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("kind", ["zarr", "xarray", "dask"])
@pytest.mark.parametrize("given", [{"axes": "yx", "each": "tcz"}, {"crop": {"y": 8, "x": 8}, "each": "ctz"}])
@pytest.mark.parametrize("length", [3, 4], ids=["equal", "unequal"])
def test_axes_in_each_are_found_by_their_names_in_every_array(length, given, kind, batch):
    """Where the extents are equal, the samples of other indices were taken without a word."""
    image = np.arange(3 * length * 2 * 16 * 16).reshape(3, length, 2, 16, 16)
    pair = array_of(kind, image, "tczyx"), array_of(kind, image.transpose(2, 1, 0, 3, 4), "zctyx")
    options = {"crop": 8, "overlap": 0, "batch_size": batch, "dtype": image.dtype} | given
    for first, second in (pair, pair[::-1]):
        out = tw.tiled_map(np.subtract, (first, second), **options)
        assert out.shape == first.shape
        assert not np.asarray(out).any()


@pytest.mark.parametrize("kind", ["zarr", "xarray"])
def test_an_axis_is_not_cut_with_another_one_that_the_first_array_has(kind):
    image = np.zeros((4, 16, 16))
    pair = array_of(kind, image, "tyx"), array_of(kind, image, "txy")
    for options in ({"each": 0}, {"each": "t"}, {"axes": (1, 2)}):
        with pytest.raises(tw.TilingError, match=r"'y' of the first array .*'x' of array 1; transpose"):
            tw.tiled_map(np.subtract, pair, (8, 8), 0, dtype=float, **options)
    with pytest.warns(tw.TilingWarning, match="numpy does not tell apart"):
        out = tw.tiled_map(np.subtract, pair, 8, 0, axes="yx", each="t", dtype=float)
    assert out.shape == (4, 16, 16)


def told(call):
    """The text of the one warning of a call about orders of axes."""
    with pytest.warns(tw.TilingWarning) as found:
        call()
    [text] = [str(one.message) for one in found if "tell apart" in str(one.message)]
    return text


def transposed(text, array):
    """The array after the call that a warning gives for it."""
    call, made = re.search(
        r": (array\.transpose\(.*?\)) of xarray, which (.*) makes of others", text
    ).groups()
    scope = {"tw": tw, "dask": dask, "xarray": pytest.importorskip("xarray")}
    labelled = array if hasattr(array, "dims") else eval(made, scope | {"array": array})
    return eval(call, {"array": labelled})


@pytest.mark.parametrize("how", ["auto", "given", "probe"])
@pytest.mark.parametrize("kind", ["zarr", "xarray", "dask", "result"])
def test_crops_with_the_same_axes_in_another_order_are_warned_of(kind, how):
    """fn mixed y and x of square crops, and only the docstring said in which order they come."""
    image = np.arange(3 * 16 * 16.0).reshape(3, 16, 16)
    first, second = array_of("zarr", image, "tyx"), array_of("zarr", image.transpose(2, 0, 1), "xty")
    if kind == "result":
        second = tw.tiled_map(np.copy, second, 8, 0, axes="xy")
    elif kind != "zarr":
        first, second = array_of(kind, image, "tyx"), array_of(kind, image.transpose(2, 0, 1), "xty")

    def call(pair):
        called.clear()
        if how == "probe":
            return tw.probe(fn, 8, array=pair, axes="yx", each="t")
        overlap = "auto" if how == "auto" else 0
        return tw.tiled_map(fn, pair, 8, overlap, axes="yx", each="t", dtype=float)

    def fn(a, b):
        called.append(1)
        return a - b

    called = []
    text = told(lambda: call((first, second)))
    assert "array 0 have axes ('y', 'x') and those of array 1 ('x', 'y')" in text
    cured = call((first, transposed(text, second)))
    if how != "probe":
        assert not np.asarray(cured).any()


def test_a_pair_beyond_the_first_array_is_warned_of_before_anything_runs():
    image = np.zeros((16, 16))
    arrays = image, array_of("zarr", image, "yx"), array_of("zarr", image, "xy")
    match = r"array 1 have .* array 2 \('x', 'y'\)"
    for overlap in (0, "auto"):
        with pytest.raises(ZeroDivisionError), pytest.warns(tw.TilingWarning, match=match):
            tw.tiled_map(lambda *crops: 1 / 0, arrays, 8, overlap)


@pytest.mark.parametrize(
    ("dims", "other", "options"),
    [
        ("yx", "yx", {"crop": 8}),
        ("yx", "xy", {"crop": (8, 4), "axes": "yx"}),  # numpy refuses them
        ("zyx", "yxz", {"crop": 8, "axes": "yx"}),  # 3 slices
        ("zyx", "xzy", {"crop": 8, "axes": "y", "each": "zx"}),
        ("zyx", ("z", "lat", "lon"), {"crop": 8, "axes": (1, 2)}),
        ("cyx", "ycx", {"crop": 8, "axes": "yx"}),  # 1 channel
    ],
    ids=str,
)
def test_orders_that_cannot_be_mixed_are_no_reason_to_warn(dims, other, options, recwarn):
    lengths = {"z": 3, "c": 1}
    pair = [array_of("zarr", np.zeros([lengths.get(d, 16) for d in own]), own) for own in (dims, other)]
    tw.tiled_map(lambda a, b: a, tuple(pair), overlap=0, dtype=float, **options)
    tw.tiled_map(lambda a, b: a, (np.zeros((16, 16)), np.zeros((16, 16))), 8, 0, dtype=float)
    assert not recwarn.list


def test_axes_that_one_crop_lacks_do_not_hide_the_others():
    first, second = array_of("zarr", np.zeros((3, 16, 16)), "cyx"), array_of("zarr", np.zeros((16, 16)), "xy")
    text = told(lambda: tw.tiled_map(lambda a, b: a, (first, second), 8, 0, axes="yx", dtype=float))
    assert "('c', 'y', 'x') and those of array 1 ('x', 'y')" in text
    same = array_of("zarr", np.zeros((16, 16)), "yx")
    tw.tiled_map(lambda a, b: a, (first, same), 8, 0, axes="yx", dtype=float)


@pytest.mark.parametrize("kind", ["zarr", "image", "xarray"])
def test_masks_are_turned_by_their_names(kind):
    """Masks of Zarr were taken by position, so that other tiles of a square image ran."""
    values = np.random.default_rng(0).random((8, 8)) < 0.5
    image = array_of("zarr", np.ones((8, 8)), "yx")
    mask = array_of("xarray" if kind == "xarray" else "zarr", values, "xy")
    mask = tw.open_image(mask) if kind == "image" else mask
    for options in ({"mask": mask}, {"where": mask}):
        out = tw.tiled_map(np.copy, image, 1, 0, **options)
        np.testing.assert_array_equal(np.asarray(out), values.T)


def test_other_names_of_the_same_axes_are_no_reason_to_refuse():
    image = np.zeros((4, 16, 16))
    pair = array_of("zarr", image, "tyx"), array_of("zarr", image, ("t", "lat", "lon"))
    assert tw.tiled_map(np.subtract, pair, (8, 8), 0, each=0, dtype=float).shape == (4, 16, 16)


def test_an_array_without_an_axis_of_the_first_is_named():
    times, one = (array_of("xarray", np.zeros(shape), dims) for shape, dims in (
        ((2, 16, 16), ("time", "y", "x")), ((16, 16), ("y", "x")),
    ))  # fmt: skip
    with pytest.raises(tw.TilingError, match=r"array 1: .*no axis 'time'; its axes are"):
        tw.tiled_map(np.subtract, (times, one), {"y": 8, "x": 8}, 0, each="time")
    with pytest.raises(tw.TilingError, match=r"array 1: .*names, but the array has none"):
        tw.tiled_map(np.subtract, (times, np.zeros((2, 16, 16))), {"y": 8, "x": 8}, 0, each="time")
    with pytest.raises(tw.TilingError, match=r"^each='q': the array has no axis 'q'"):
        tw.tiled_map(np.subtract, (times, times), {"y": 8, "x": 8}, 0, each="q")


def test_extents_that_differ_are_named():
    pair = array_of("zarr", np.zeros((4, 16, 16)), "tyx"), np.zeros((4, 16, 12))
    with pytest.raises(tw.TilingError, match="axis x of array 0 has 16, axis 2 of array 1 has 12"):
        tw.tiled_map(np.subtract, pair, 8, 0, each=0, dtype=float)


# -------------------------------------------------------------------------------- the call on zeros


@pytest.mark.parametrize(
    "fn",
    [
        lambda crop: (crop[0] - crop[1]) / (crop[0] + crop[1]),
        lambda crop: np.log(crop[0]),
        lambda crop: crop[0] / crop.std(),
        lambda crop: np.exp(1e6 + crop[0]),
    ],
    ids=["index of two bands", "log", "normalised", "overflow"],
)
def test_zeros_raise_no_warning_of_numpy(fn):
    """They say nothing of the image; the image itself may."""
    bands = np.random.default_rng(0).random((2, 30, 40)) + 1
    assert tw.tiled_map(fn, bands, (16, 16), 2).shape == (30, 40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,1", (0, 1)),
        ("-1", (-1,)),
        ("yx", "yx"),
        ("time", "time"),
        ("lat,lon", ("lat", "lon")),
        ("y, x", ("y", "x")),
    ],
)
def test_axes_on_the_command_line(text, expected):
    from tilework._options import axes_of

    assert axes_of(text) == expected
