"""Errors of a newcomer's first calls: each names what to change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from scipy import ndimage as ndi

import tilework as tw
from tilework.cli import main

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (90, 100, 3), dtype=np.uint8)
IMAGE = RNG.random((90, 100)).astype(np.float32)


# -- channels of a network ---------------------------------------------------------------------------------


def note_of(error: pytest.ExceptionInfo[Exception]) -> str:
    return next(note for note in error.value.__notes__ if "channel" in note)


@pytest.mark.parametrize("way", ["module", "factory", "scripted"])
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_channels_at_the_end_are_named(way: str, batch_size: int | None) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.ReLU())
    net = torch.jit.script(net) if way == "scripted" else net
    given: Any = (lambda: net) if way == "factory" else net
    with pytest.raises(RuntimeError) as error:
        tw.tiled_map(tw.from_torch(given), RGB, 64, 1, axes=(0, 1), batch_size=batch_size)
    assert "axis 0 of the crops of shape (64, 64, 3)" in note_of(error)
    assert "takes 3. Say from_torch(..., channel_axis=-1)." in note_of(error)
    with pytest.raises(RuntimeError) as error:  # also where nothing is called before the run
        tw.tiled_map(tw.from_torch(given), RGB, 64, 1, axes=(0, 1), output=tw.Output("f4", channels=2))[
            :, :9
        ].compute(scheduler="sync")
    assert "channel_axis=-1" in note_of(error)
    right = tw.from_torch(given, channel_axis=-1)
    assert tw.tiled_map(right, RGB, 64, 1, axes=(0, 1)).shape == (90, 100, 2)


@pytest.mark.parametrize(
    ("make", "image", "options", "axes", "said"),
    [
        (lambda t: t.nn.Conv2d(3, 2, 3), RGB.transpose(2, 0, 1), {"channel_axis": -1}, (1, 2),
         "reads axis 2 .* takes 3. Say .*channel_axis=0"),
        (lambda t: t.nn.Conv3d(3, 2, 3), np.stack([RGB] * 20).transpose(0, 3, 1, 2), {}, (2, 3),
         "reads axis 0 .*channel_axis=1"),
        (lambda t: t.nn.Conv2d(3, 2, 3), IMAGE, {}, (0, 1), "channel axis of length 1.* an axis of 3"),
        (lambda t: t.nn.Conv2d(1, 2, 3), RGB, {}, (0, 1), "takes 1. With each= .* one by one"),
        (lambda t: t.nn.BatchNorm2d(3), RGB, {}, (0, 1), "If they are the last axis, say .*channel_axis=-1"),
    ],
    ids=["in front", "between", "none", "one", "no convolution"],
)  # fmt: skip
def test_other_channels_are_named(make: Any, image: Any, options: Any, axes: Any, said: str) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as error:
        tw.tiled_map(tw.from_torch(make(torch), **options), image, 64, 0, axes=axes)
    assert re.search(said, note_of(error))


@pytest.mark.parametrize("image", [IMAGE, RGB.transpose(2, 0, 1)], ids=["one channel", "three"])
def test_a_crop_without_a_batch_is_told_how_to_become_one(image: Any) -> None:
    torch = pytest.importorskip("torch")
    net = tw.from_torch(torch.nn.Conv2d(1 if image.ndim == 2 else 3, 1, 3, padding=1))
    axes = (image.ndim - 2, image.ndim - 1)
    with pytest.raises(RuntimeError) as error:
        tw.tiled_map(lambda crop: np.tanh(net(crop)), image, 64, 1, axes=axes)
    assert any("not a batch of them, call net(crop[None])[0]" in note for note in error.value.__notes__)
    out = tw.tiled_map(lambda crop: np.tanh(net(crop[None])[0]), image, 64, 1, axes=axes)
    assert out.compute().shape[-2:] == image.shape[-2:]


@pytest.mark.parametrize(
    ("given", "cure"),
    [({"weight": 0}, "network.load_state_dict"), ("net.pt", r"lambda: torch.jit.load\(path\)"), (3, "got 3")],
)
def test_what_is_no_network_is_told_how_to_become_one(given: Any, cure: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(TypeError, match=cure):
        tw.from_torch(given)


def test_a_module_from_load_once_is_told_to_go_through_from_torch() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Conv2d(1, 1, 3)
    with pytest.raises(TypeError, match=r"torch module itself.*tw.from_torch"):
        tw.load_once(net)
    loaded = tw.load_once(lambda: net)
    with pytest.raises(TypeError) as error:
        tw.tiled_map(loaded, IMAGE, 64, 0)
    assert any("takes tensors: tw.from_torch(factory)" in note for note in error.value.__notes__)
    assert loaded(torch.zeros(1, 1, 5, 5)).shape == (1, 1, 3, 3)  # in a function of the user


def test_an_error_of_another_kind_gets_no_note_on_channels() -> None:
    torch = pytest.importorskip("torch")

    class Fails(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Any) -> Any:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as error:
        tw.tiled_map(tw.from_torch(Fails()), RGB.transpose(2, 0, 1), (64, 64), 1)
    assert not any("channel" in note for note in error.value.__notes__)


# -- what is no array, and an array that is no length -------------------------------------------------------


class Picture:
    """Like an image of PIL: it has a size and makes itself an array."""

    size = (100, 90)

    @property
    def __array_interface__(self) -> Any:
        return RGB.__array_interface__


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Picture(), r"np\.asarray\(image\)"),
        (IMAGE.tolist(), r"np\.asarray\(image\)"),
        ([IMAGE, IMAGE], r"np\.stack\(images\) with each=0"),
        ({"image": IMAGE}, "give one of its values"),
    ],
    ids=["picture", "list", "images", "dict"],
)
def test_what_is_no_array_yet_says_how_it_becomes_one(given: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        tw.tiled_map(np.sqrt, given, 32, 2, axes=(0, 1))


def test_an_image_of_pil_and_a_data_frame() -> None:
    image = pytest.importorskip("PIL.Image").fromarray(RGB)
    for given in (image, pytest.importorskip("pandas").DataFrame(IMAGE)):
        with pytest.raises(TypeError, match=r"np\.asarray\(image\)"):
            tw.tiled_map(np.sqrt, given, 32, 2, axes=(0, 1))


@pytest.mark.parametrize("image", [IMAGE, RGB, RGB[0, 0, 0:3] / 2], ids=["float", "integer", "line"])
def test_an_image_where_lengths_are_wanted(image: Any) -> None:
    given = re.escape(str(image.shape))
    with pytest.raises(TypeError, match=rf"shape must .* {given}.*image\.shape"):
        tw.plan_tiles(image, 16, 2)
    with pytest.raises(TypeError, match=rf"shape must .* {given}.*image\.shape"):
        tw.probe(np.sqrt, 16, shape=image)
    for call in (
        lambda: tw.probe(np.sqrt, image),
        lambda: tw.tiled_map(np.sqrt, IMAGE, image, 2),
        lambda: tw.plan_tiles((90, 100), image, 2),
    ):
        with pytest.raises(TypeError, match=rf"crop must .* {given}.*crop=256"):
            call()
    assert tw.plan_tiles(np.array([90, 100]), np.array([16, 20]), 2).shape == (90, 100)


# -- what fn returns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda x: float(x.mean()), r"a single number; it must return an array with the crop's 2 tiled axes"),
        (lambda x: x.mean(), "a single number"),
        (lambda x: np.zeros(5), r"an array of shape \(5,\); it must"),
        (lambda x: ndi.label(x > 0.5), "a single number for output 1; .* return only those"),
        (lambda x: {"mean": x.mean(), "image": x}, "a single number for output 'mean'"),
        (lambda x: None, "returned None; it must return an array"),
    ],
)
def test_a_function_that_returns_no_image(fn: Any, said: str) -> None:
    with pytest.raises(tw.ContractError, match=said) as error:
        tw.tiled_map(fn, IMAGE, 32, 0)
    assert "..." not in str(error.value)
    with pytest.raises(tw.ContractError, match=r"np\.full\(\(32,\), value\)"):
        tw.tiled_map(np.mean, IMAGE[0], 32, 0)


def test_an_overlap_that_is_left_out() -> None:
    with pytest.raises(tw.GridError, match=r'0 if you mean it; "auto" .*stride'):
        tw.tiled_map(np.sqrt, IMAGE, 32)


@pytest.mark.filterwarnings("ignore:.*could cover the image:tilework.CostWarning")
@pytest.mark.parametrize(
    ("image", "crop", "options", "fits"),
    [
        (RGB, (32, 32, 3), {"overlap": 8}, {"overlap": (8, 8, 0)}),
        (RGB, (32, 32, 3), {"stride": 20}, {"stride": (20, 20, 3)}),
        (RGB.transpose(2, 0, 1), (3, 32, 32), {"overlap": 8}, {"overlap": (0, 8, 8)}),
        (np.stack([IMAGE] * 20), (5, 32, 32), {"overlap": 8}, {"overlap": (2, 8, 8)}),
        (np.stack([IMAGE] * 4), (5, 32, 32), {"overlap": 3, "axes": (0, 1, 2)}, {"overlap": (0, 3, 3)}),
    ],
)
def test_one_number_for_axes_of_different_crops_is_answered_with_one_for_each(
    image: Any, crop: Any, options: Any, fits: Any
) -> None:
    ((name, numbers),) = fits.items()
    with pytest.raises(tw.GridError, match=rf"such as {name}={re.escape(str(numbers))}, or name in axes="):
        tw.tiled_map(np.asarray, image, crop, **options)
    out = tw.tiled_map(np.asarray, image, crop, **options | fits)
    np.testing.assert_array_equal(out.compute(), image)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("patch_size", "crop?"), ("depth", "overlap?"), ("mode", "blend (MONAI's mode)"),
        ("halo", "overlap?"), ("n_jobs", "compute(num_workers=...)"), ("scheduler", "compute(scheduler=...)"),
        ("device", "from_torch(network, device=...)"), ("channel_axis", "from_torch(channel_axis=...)"),
        ("channels", "Output(channels=...)"), ("trim", 'blend="trim"'),
    ],
)  # fmt: skip
def test_options_of_other_tools(name: str, said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"no argument '{name}'; did you mean ") + ".*") as error:
        tw.tiled_map(np.sqrt, IMAGE, 32, 2, **{name: 3})
    assert said in str(error.value)


def test_what_is_no_result_any_more_is_named() -> None:
    out = tw.tiled_map(np.sqrt, IMAGE, 32, 2)
    for given, kind in ((out.compute(), "ndarray"), (out + 1, "Array")):
        with pytest.raises(tw.TilingError, match=f"not computed or changed; got .*{kind}"):
            tw.check(given)


# -- values that are no numbers -----------------------------------------------------------------------------

RECORD = np.dtype([("mean", "f4", (2,)), ("name", [("text", "U2")])])


def records(x: np.ndarray) -> np.ndarray:
    out = np.zeros(x.shape, RECORD)
    out["mean"][..., 1] = ndi.uniform_filter(x, 9)
    out["mean"][x > 0.9] = np.nan
    return out


def times(x: np.ndarray) -> np.ndarray:
    out = (ndi.uniform_filter(x, 9) * 1e6).astype("m8[s]")
    out[x > 0.9] = np.timedelta64("NaT", "s")
    return out


def words(x: np.ndarray) -> np.ndarray:
    return np.where(ndi.uniform_filter(x, 9) > 0.5, "above", "b")


def dates(x: np.ndarray) -> np.ndarray:
    return np.datetime64("2020-01-01", "s") + times(x)


@pytest.mark.parametrize("fn", [records, times, words, dates])
def test_values_that_are_no_numbers_are_compared_by_equality(fn: Any) -> None:
    assert tw.check(tw.tiled_map(fn, IMAGE, 32, 4)).ok
    report = tw.check(tw.tiled_map(fn, IMAGE, 32, 1))
    assert not report.ok
    assert report.causes == ("overlap",)


@pytest.mark.parametrize("fn", [records, words])
def test_what_needs_numbers_refuses_others_by_name(fn: Any) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    out = tw.tiled_map(fn, IMAGE, 32, 4)
    for call in (lambda: tw.compare(fn(IMAGE), out), lambda: tw.plot_seams(out)):
        with pytest.raises(tw.TilingError, match="a picture shows numbers; got an array of dtype"):
            call()
    with pytest.raises(tw.ContractError, match="probe measures changes of numbers; the function returned"):
        tw.probe(fn, 32, IMAGE)


def test_times_and_numbers_are_not_compared() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    with pytest.raises(tw.TilingError, match=r"dtypes timedelta64\[s\] and float32 cannot be compared"):
        tw.compare(times(IMAGE), IMAGE)


# -- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "sizes"),
    [
        (lambda c: ndi.gaussian_filter(c, 2), (2, 4, 16)),
        (lambda c: c - c.mean(), (2, 4)),
        (lambda c: c[::-1], (2, 3, 4)),
        (lambda c: ndi.median_filter(c, (3, 1, 1)), (3, 4)),
        (lambda c: np.cumsum(c, 0), (2, 3)),
        (lambda c: {"a": c, "b": c / c.max()}, (2,)),
    ],
    ids=["blurred", "mean", "reversed", "median", "summed", "second output"],
)
def test_a_function_that_mixes_its_batch(fn: Any, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        report = tw.check(tw.tiled_map(fn, IMAGE, 32, 8, batch_size=size))
        assert report.causes == ("batch",), report
        assert "the function mixes the crops of a batch" in report.help


def test_a_function_that_mixes_samples() -> None:
    stack = np.stack([IMAGE] * 3) * np.arange(1, 4, dtype="f4")[:, None, None]
    out = tw.tiled_map(lambda c: ndi.gaussian_filter(c, 2), stack, 32, 8, each=0, batch_size=4)
    assert tw.check(out).causes == ("batch",)


@pytest.mark.parametrize("size", [None, 1, 2, 4])
def test_a_batch_is_not_blamed_for_what_a_crop_alone_shows(size: int | None) -> None:
    def fn(crops: np.ndarray) -> np.ndarray:
        return ndi.uniform_filter(crops, (1,) * (crops.ndim - 2) + (9, 9))

    assert tw.check(tw.tiled_map(fn, IMAGE, 32, 1, batch_size=size)).causes == ("overlap",)
    assert tw.check(tw.tiled_map(fn, IMAGE, 32, 4, batch_size=size)).ok


# -- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["rgb.zarr", "--crop", "32"], "did you mean --axes 0,1?"),
        (["rgb.zarr", "--crop", "32"], "one index at a time of those in --each."),
        (["rgb.zarr", "--crop", "32,32,3"], "such as --overlap 8,8,0, or name in --axes only"),
        (["rgb.zarr", "--crop", "32", "--axes", "0,1", "--each", "0"], "is in --axes 0,1 and in --each 0;"),
        (["rgb.zarr", "--crop", "32", "--each", "0,1,2"], "(90, 100, 3): --each 0,1,2 takes all of them."),
        (["named.zarr", "--crop", "32", "--axes", "latlon"], "as a tuple: --axes lat,lon."),
        (
            ["named.zarr", "--crop", "32", "--axes", "lat,lon,x"],
            "--axes lat,lon,x: the array has no axis 'x'",
        ),
    ],
)
def test_errors_about_axes_name_options(
    line: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    zarr.create_array("rgb.zarr", data=RGB)
    zarr.create_array("named.zarr", data=np.stack([IMAGE] * 3), dimension_names=["time", "lat", "lon"])
    done = CliRunner().invoke(main, ["plan", *line, "--overlap", "8"])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert not re.search(r"\b(axes|each|overlap)=|None", done.output)


@pytest.mark.filterwarnings("default:fn returns int32")
def test_errors_about_stores_and_warnings_name_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    zarr.create_array("image.zarr", data=IMAGE)
    # Names of stores that are names of arguments stay.
    for name in ("overlap", f"{tmp_path}/edge=drop"):
        zarr.create_array(name, data=IMAGE)
        Path("own.py").write_text(
            "def f(x):\n    return x + 1\n\ndef label(x):\n    return (x > 0.5).astype('i4')\n"
        )
        done = CliRunner().invoke(
            main, ["run", "own.py:f", "image.zarr", name, "--crop", "32", "--overlap", "2"]
        )
        assert done.exit_code == 1
        assert f"Error: {name} already holds data" in done.output
        assert "; --overwrite deletes them." in done.output
    line = ["run", "own.py:f", "image.zarr", "out.zarr", "--crop", "32", "--overlap", "2"]
    assert CliRunner().invoke(main, line).exit_code == 0
    Path("own.py").write_text(Path("own.py").read_text().replace("+ 1", "+ 2"))
    assert "--accept 'fn constants' resumes" in (said := CliRunner().invoke(main, line).output), said
    warned = CliRunner().invoke(
        main, ["plan", "image.zarr", "--crop", "32", "--stride", "20", "--blend", "max", "--function",
               "own.py:label"],
    )  # fmt: skip
    assert '--blend "max" mixes them' in warned.output
