"""`where`, `nodata` and `nodata_fill` with every kind of output, source, scheduler and way to compute."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from scipy import ndimage

import tilework as tw
from tests.store_counts import counted
from tilework.engine.reading import CropCutter
from tilework.graph.build import plan_of
from tilework.plan.cost import tasks
from tilework.plan.nodata import Term

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RNG = np.random.default_rng(5)
IMAGE = RNG.integers(1, 200, (64, 90)).astype("f4")
VALID = np.zeros(IMAGE.shape, bool)
VALID[5:40, 12:50] = VALID[50:, 70:] = True
VALID[20:24, 20:30] = False
GAPS = np.where(VALID, IMAGE, np.nan).astype("f4")
GRID: dict[str, Any] = {"crop": 16, "overlap": 4, "dtype": "f4"}
FILL = -5


def doubled(crop: np.ndarray) -> np.ndarray:
    return crop * 2


def mapped(fn: Callable[..., Any] = doubled, image: Any = IMAGE, **options: Any) -> Any:
    given = GRID | {"where": VALID, "fill_value": FILL} | options
    if "output" in given:
        del given["dtype"]
    return tw.tiled_map(fn, image, **given)


def filled(values: np.ndarray, fill: Any = FILL) -> np.ndarray:
    return np.where(VALID, values, fill)


# -- outputs ----------------------------------------------------------------------------------------------

DTYPES = ("bool", "u1", "i2", "u4", "i8", "f2", "f4", "f8", "c8", "M8[s]", "m8[s]", "U3", ">f4", "i4,f4")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str) -> None:
    image = np.zeros(IMAGE.shape, dtype)
    if dtype != "i4,f4":
        image[...] = (IMAGE % 2 if dtype == "bool" else IMAGE).astype("i8").astype(dtype)
    else:
        image["f0"], image["f1"] = IMAGE, -IMAGE
    fill = image[0, 0]
    got = mapped(np.copy, image, dtype=dtype, fill_value=fill).compute()
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.where(VALID, image, fill))


@pytest.mark.parametrize("blend", ["trim", "gaussian", "max", "sum"])
def test_nan_at_invalid_samples_is_no_class(blend: str) -> None:
    """And warns of nothing: warnings are errors here."""

    def scores(crop: np.ndarray) -> np.ndarray:
        return np.stack([crop, crop + 1, crop - 1])

    options: dict[str, Any] = {"blend": blend, "nodata": np.nan, "where": None}
    largest = tw.Output(channels=3, reduce="argmax", fill_value=9)
    np.testing.assert_array_equal(mapped(scores, GAPS, output=largest, **options), filled(VALID, 9))
    for dtype in ("u1", "i4", "f4"):
        own = tw.Output(dtype, channels=3, reduce=lambda b: 1 + (b[1] > b[0]).astype("u1"), fill_value=9)
        np.testing.assert_array_equal(mapped(scores, GAPS, output=own, **options), filled(2 * VALID, 9))


@pytest.mark.parametrize("dtype", ["u1", "i4"])
def test_nan_at_invalid_samples_of_an_integer_result_is_not_reported(dtype: str) -> None:
    options: dict[str, Any] = {
        "blend": "average",
        "nodata": np.nan,
        "where": None,
        "output": tw.Output(dtype),
    }
    out = mapped(np.copy, GAPS, **options | {"fill_value": 3})
    np.testing.assert_array_equal(out.compute(), filled(IMAGE, 3))
    np.testing.assert_array_equal(tw.view(out, verbose=False)[...], filled(IMAGE, 3))
    with pytest.warns(tw.TilingWarning, match="of the result were NaN"):
        mapped(np.copy, GAPS, **options | {"fill_value": 3, "nodata": 1}).compute()


def test_infinite_and_huge_nodata_says_nothing() -> None:
    for value in (np.inf, -np.inf, float(np.finfo("f8").min)):
        image = np.where(VALID, IMAGE.astype("f8"), value)
        out = mapped(
            np.copy, image, nodata=value, where=None, dtype="f4", blend="average", stride=8, overlap=None
        )
        np.testing.assert_allclose(out.compute(), filled(IMAGE))


@pytest.mark.parametrize("blocks", [{}, {"chunks": 32, "reuse": "share"}, {"chunks": 8}], ids=str)
def test_several_outputs_with_scales_margins_and_fills_of_their_own(blocks: dict[str, Any]) -> None:
    def fn(crop: np.ndarray) -> dict[str, np.ndarray]:
        inner = crop[2:-2, 2:-2]
        return {
            "large": inner.repeat(2, 0).repeat(2, 1), "half": inner[::2, ::2], "same": inner.astype("i2"),
            "mean": np.stack([inner, -inner]),
        }  # fmt: skip

    outputs = {
        "large": tw.Output("f4", scale=2, margin=2), "half": tw.Output("f4", scale=Fraction(1, 2), margin=2),
        "same": tw.Output("i2", margin=2, fill_value=7),
        "mean": tw.Output("f8", channels=2, margin=2, blend="hann", fill_value=np.nan),
    }  # fmt: skip
    out = mapped(fn, output=outputs, **blocks)
    got = dict(zip(out, dask.compute(*out.values()), strict=True))
    np.testing.assert_array_equal(got["large"], filled(IMAGE).repeat(2, 0).repeat(2, 1))
    pairs = VALID.reshape(32, 2, 45, 2).any((1, 3))
    np.testing.assert_array_equal(got["half"], np.where(pairs, IMAGE[::2, ::2], FILL))
    np.testing.assert_array_equal(got["same"], filled(IMAGE, 7))
    np.testing.assert_allclose(got["mean"], np.stack([filled(IMAGE, np.nan), filled(-IMAGE, np.nan)]))
    view = tw.view(out, verbose=False)
    for key, expected in got.items():
        np.testing.assert_array_equal(view[key][...], expected)
        np.testing.assert_array_equal(view[key][..., 7:33, 11], expected[..., 7:33, 11])


@pytest.mark.parametrize("reuse", ["share", "recompute"])
def test_a_valid_sample_to_which_no_crop_gives_weight_is_the_fill_value(reuse: str) -> None:
    weights = np.array([1.0, 2, 3, 0, 5, 6, 0, 8, 9, 10, 11, 12])
    options: dict[str, Any] = {"crop": 12, "overlap": None, "stride": 4, "edge": "pad", "chunks": 13}
    options |= {
        "blend": np.outer(weights, weights[::-1]),
        "mask": RNG.random(IMAGE.shape) < 0.01,
        "reuse": reuse,
    }
    whole = mapped(where=None, **options).compute()
    assert (whole == FILL).any()
    np.testing.assert_array_equal(mapped(**options).compute(), filled(whole))


def test_disagreement_is_nan_where_nothing_is_valid() -> None:
    options: dict[str, Any] = {"blend": "gaussian", "stride": 8, "overlap": None, "disagreement": True}
    plain = dask.compute(*mapped(where=None, **options))
    out, deviation = dask.compute(*mapped(**options))
    np.testing.assert_array_equal(out, filled(plain[0]))
    np.testing.assert_array_equal(deviation, filled(plain[1], np.nan))


@pytest.mark.parametrize("blend", ["trim", "gaussian"])
def test_each_batches_tiles_skip_mask_and_failures_together(blend: str) -> None:
    image = np.stack([IMAGE, IMAGE + 1, IMAGE * 2])
    valid = np.stack([VALID, VALID[::-1], np.zeros_like(VALID)])

    def fn(crops: np.ndarray, tiles: Any) -> np.ndarray:
        if any(tile.index in (14, 15) for tile in tiles):
            raise ValueError("these")
        return crops * 2

    options: dict[str, Any] = {"each": 0, "blend": blend, "batch_size": 4, "pass_tile": True, "edge": "clip"}
    options |= {"skip": lambda crop: crop[0, 0] > 150, "mask": np.arange(90)[None] < np.full((64, 1), 60)}
    found = []
    for where in (valid, None):
        out = mapped(fn, image, where=where, chunks=(1, 32, 32), **options)
        with pytest.warns(tw.TilingWarning, match="of the tiles|tiles failed|failed"):
            written = tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False, on_error="fill")
        found.append(written[...])
    assert (found[0] != FILL).any()
    np.testing.assert_array_equal(found[0], np.where(valid, found[1], FILL))


# -- what is not read, not run and not changed ------------------------------------------------------------


def test_the_image_is_not_read_where_another_array_says_that_nothing_is_valid(tmp_path: Path) -> None:
    image = zarr.create_array(tmp_path / "image.zarr", data=IMAGE, chunks=(16, 18))
    valid = np.zeros(IMAGE.shape, bool)
    valid[40:48, 40:50] = True
    out = mapped(image=image, where=valid, chunks=16)
    with counted(image) as counts:
        np.testing.assert_array_equal(out.compute(), np.where(valid, IMAGE * 2, FILL))
    needed = {f"c/{y}/{x}" for y, x in itertools.product((1, 2, 3), (1, 2, 3))}
    assert {key.partition("image.zarr/")[2] or key for key in counts.reads} <= needed


@pytest.mark.parametrize("reuse", ["share", "recompute"])
@pytest.mark.parametrize("blend", ["trim", "gaussian"])
def test_no_chunk_is_decoded_more_often_than_without(tmp_path: Path, blend: str, reuse: str) -> None:
    """The bits that a finished block needs come with the results of its tiles."""
    image = zarr.create_array(tmp_path / "image.zarr", data=GAPS, chunks=(16, 18))
    valid = zarr.create_array(tmp_path / "valid.zarr", data=VALID, chunks=(16, 18))
    options: dict[str, Any] = {"blend": blend, "chunks": 32, "reuse": reuse, "where": None}
    reads = []
    for more in ({}, {"nodata": np.nan}, {"where": tmp_path / "valid.zarr"}):
        out = mapped(image=tmp_path / "image.zarr", **options | more)
        with counted(image) as counts:
            tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False, scheduler="sync")
        reads.append(sum(counts.reads.values()))
    assert reads[1] == reads[0]
    assert reads[2] <= reads[0]
    with counted(valid) as counts:
        tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False, scheduler="sync")
    assert sum(counts.reads.values()) <= reads[0]


@pytest.mark.parametrize("image", [GAPS, IMAGE], ids=["some invalid", "all valid"])
def test_a_task_looks_once_and_cuts_the_crops_that_run(
    monkeypatch: pytest.MonkeyPatch, image: np.ndarray
) -> None:
    cuts: list[int] = []
    looks: list[int] = []
    cut, bits = CropCutter.cut, Term.bits
    monkeypatch.setattr(CropCutter, "cut", lambda self, tile: cuts.append(tile.index) or cut(self, tile))
    monkeypatch.setattr(Term, "bits", lambda *args: looks.append(args[1].size) or bits(*args))
    out = mapped(image=image, where=None, nodata=np.nan, chunks=-1)
    tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False, scheduler="sync")
    tiles = list(plan_of(out).grid)
    run = [t.index for t in tiles if not np.isnan(image[t.read.slices]).all()]
    assert cuts == run
    assert len(looks) == math.prod(plan_of(out).blocks) < len(tiles) / 10


def test_a_fine_mask_is_read_in_one_piece() -> None:

    class Fine:
        shape, dtype, reads = (640, 900), np.dtype(bool), 0

        def __getitem__(self, index: Any) -> np.ndarray:
            type(self).reads += 1
            return VALID.repeat(10, 0).repeat(10, 1)[index]

    out = mapped(where=Fine(), chunks=-1, edge="pad")
    before = Fine.reads
    np.testing.assert_array_equal(out.compute(), filled(IMAGE * 2))
    assert Fine.reads == before + 1


@pytest.mark.parametrize("reuse", ["share", "recompute"])
@pytest.mark.parametrize("blend", ["trim", "gaussian", "max"])
def test_parts_with_and_without_invalid_samples_meet_in_a_block(blend: Any, reuse: str) -> None:
    # Of four blocks that meet, one, two on a line, two on a diagonal and three have invalid samples. Under
    # the mask, only tiles of the first run, and reach into the others.
    first = np.zeros(IMAGE.shape, bool)
    first[24:30, 24:30] = True
    grid = {"chunks": 32, "overlap": 4} if blend == "trim" else {"chunks": 32, "overlap": None, "stride": 8}
    places = (((31, 31),), ((31, 33), (33, 33)), ((30, 33), (32, 29)), ((30, 30), (30, 32), (32, 30)))
    for mask, some in itertools.product((None, first), places):
        image, invalid = IMAGE.copy(), np.zeros(IMAGE.shape, bool)
        invalid[tuple(zip(*some, strict=True))] = True
        image[invalid] = np.nan
        options: Any = grid | {"where": None, "blend": blend, "reuse": reuse, "mask": mask}
        out = mapped(image=image, nodata=np.nan, **options)
        expected = np.where(invalid, FILL, mapped(**options).compute())
        np.testing.assert_array_equal(out.compute(), expected)
        np.testing.assert_array_equal(tw.view(out)[28:36, 28:36], expected[28:36, 28:36])


def test_no_task_is_added() -> None:
    for options in ({"chunks": 32, "reuse": "share"}, {"chunks": 32, "reuse": "recompute"}, {"chunks": 8}):
        options = options | {"blend": "gaussian"}
        plain, out = (mapped(where=where, **options) for where in (None, VALID))
        nodata = mapped(image=GAPS, where=None, nodata=np.nan, **options)
        counts = [
            sum("part" not in str(key) for key in result.__dask_graph__().to_dict())
            for result in (plain, nodata, out)
        ]
        assert len(set(counts)) == 1
        assert tasks(plan_of(plain)) == tasks(plan_of(out))


@pytest.mark.parametrize("scale", [1, Fraction(1, 2), 2])
def test_blocks_and_so_the_bits_of_a_blend_are_those_of_the_whole_image(scale: Any) -> None:
    for shape, crop in (((256, 256, 256), 32), ((4096, 4096), 256)):
        image = da.zeros(shape, "f4", chunks=64 if len(shape) == 3 else 512)
        options: dict[str, Any] = {
            "stride": crop // 2,
            "blend": "gaussian",
            "output": tw.Output("f4", scale=scale),
        }
        whole = tw.tiled_map(doubled, image, crop, **options)
        assert plan_of(tw.tiled_map(doubled, image, crop, nodata=0, **options)).block == plan_of(whole).block


def test_the_plan_says_at_most() -> None:
    assert "at most" not in str(tw.explain(mapped(where=None)))
    text = str(tw.explain(mapped()))
    assert f"at most {plan_of(mapped()).calls()} crops" in text
    assert "crops without a valid sample do not run" in text
    plan = plan_of(mapped())
    assert type(plan).from_json(plan.to_json()) == plan
    assert "counted" not in plan_of(mapped(where=None)).to_json()
    assert "about" in str(tw.explain(mapped(image=GAPS, where=None, nodata=np.nan), measure=True))
    with pytest.warns(tw.TilingWarning, match="where is False everywhere"):
        nothing = mapped(where=np.zeros_like(VALID))
    assert (nothing.compute() == FILL).all()
    with pytest.raises(tw.TilingError, match="no tile that was tried runs"):
        tw.explain(nothing, measure=True)


def test_without_them_names_and_results_stay() -> None:
    one, other = mapped(where=None), tw.tiled_map(doubled, IMAGE, **GRID, fill_value=FILL)
    assert one.name == other.name != mapped().name
    assert mapped().name == mapped().name != mapped(nodata_fill=1).name != mapped(nodata=1).name


# -- sources of where -------------------------------------------------------------------------------------


def test_where_is_any_array_of_any_resolution(tmp_path: Path, scheduler: str) -> None:
    coarse = VALID[::2, ::2]
    near = coarse.repeat(2, 0).repeat(2, 1)
    fine = VALID.repeat(3, 0).repeat(3, 1)
    for name, data in (("coarse", coarse), ("same", VALID), ("fine", fine)):
        zarr.create_array(tmp_path / name, data=data.astype("u1"), chunks=(20, 20))
    for where, valid in (
        (VALID.astype("i8"), VALID), (tmp_path / "same", VALID), (str(tmp_path / "coarse"), near),
        (tmp_path / "fine", VALID), (da.from_array(coarse, chunks=10), near), (coarse, near),
        (tw.load_once(np.copy, (VALID,)), VALID),
    ):  # fmt: skip
        out = mapped(where=where, chunks=32)
        np.testing.assert_array_equal(out.compute(), np.where(valid, IMAGE * 2, FILL), err_msg=str(where))
        if scheduler == "sync":
            np.testing.assert_array_equal(
                out[30:50, 5:].compute(), np.where(valid, IMAGE * 2, FILL)[30:50, 5:]
            )
            whole = tw.view(out, verbose=False)
            np.testing.assert_array_equal(whole[3:, 7:], np.where(valid, IMAGE * 2, FILL)[3:, 7:])


def test_where_finds_its_axes_by_name() -> None:
    xarray = pytest.importorskip("xarray")
    image = xarray.DataArray(da.from_array(np.stack([IMAGE, -IMAGE]), chunks=40), dims=("t", "y", "x"))
    where = xarray.DataArray(VALID.T, dims=("x", "y"))
    out = mapped(image=image, where=where, axes="yx", each="t")
    np.testing.assert_array_equal(np.asarray(out), np.stack([filled(IMAGE * 2), filled(IMAGE * -2)]))
    rows = xarray.DataArray(
        VALID[:, ::9], dims=("y", "x")
    )  # other ratios are no mistake where axes have names
    out = mapped(image=image, where=rows, axes="yx", each="t", fill_value=0)
    np.testing.assert_array_equal(np.asarray(out)[0] != 0, VALID[:, ::9].repeat(9, 1))


@pytest.mark.parametrize("step", [-10.0, 10.0])
def test_where_covers_what_the_image_does(step: float) -> None:
    xarray = pytest.importorskip("xarray")
    n, m = IMAGE.shape

    def placed(data: Any, factor: float) -> Any:
        y = 5e6 + step * factor * (np.arange(len(data)) + 0.5)
        x = 4e5 + 10 * factor * (np.arange(data.shape[1]) + 0.5)
        return xarray.DataArray(data, {"y": y, "x": x}, ("y", "x"))

    image, expected = placed(IMAGE, 1), filled(IMAGE * 2)
    coarse = VALID[::2, ::2]
    near = np.where(coarse.repeat(2, 0).repeat(2, 1), IMAGE * 2, FILL)
    floor = placed(VALID[: n // 7 * 7 : 7, : m // 7 * 7 : 7], 7)  # as a level of a pyramid
    assert mapped(image=image, where=floor).shape == IMAGE.shape
    turned = mapped(image=image.expand_dims("t"), where=placed(VALID, 1).T, axes="yx", each="t")
    np.testing.assert_array_equal(np.asarray(turned)[0], expected)
    for where, want in (
        (placed(VALID, 1), expected), (placed(coarse, 2), near),
        (placed(VALID, 1).assign_coords(y=image.y + 9), expected),
        (placed(VALID, 1).drop_vars("y"), expected), (placed(VALID, 1).drop_vars(["y", "x"]), expected),
        (placed(VALID, 1)[::-1].drop_vars("y")[::-1], expected), (placed(VALID, 1).data[:], expected),
        (placed(VALID, 1).assign_coords(y=("y", image.y.data / 1e3, {"units": "km"})), expected),
    ):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(mapped(image=image, where=where)), want)
        np.testing.assert_array_equal(mapped(where=where).compute(), want)  # the image says nothing
    for wrong, axis in (
        (placed(VALID, 1)[::-1], "y"), (placed(VALID, 1)[:, ::-1], "x"), (placed(coarse, 2)[::-1], "y"),
        (placed(VALID, 1)[: n // 2], "y"), (placed(VALID, 1).assign_coords(x=image.x + 100), "x"),
    ):  # fmt: skip
        with pytest.raises(tw.TilingError, match=f"where must cover what the image does: along '{axis}'"):
            mapped(image=image, where=wrong)
        mapped(image=image, where=placed(wrong.data, IMAGE.shape[0] / len(wrong)).drop_vars(["y", "x"]))


def test_where_of_a_cluster(client: Any) -> None:
    for image, options in ((IMAGE, {}), (GAPS, {"where": None, "nodata": np.nan})):
        out = mapped(image=image, chunks=32, blend="gaussian", **options)
        expected = out.compute(scheduler="sync")
        np.testing.assert_array_equal(out.compute(), expected)
        written = tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False, client=client)
        np.testing.assert_array_equal(written[...], expected)
        np.testing.assert_array_equal(tw.view(out, verbose=False)[3:50, 7:80], expected[3:50, 7:80])


# -- nodata -----------------------------------------------------------------------------------------------


def test_nodata_is_of_all_channels_and_of_the_first_array() -> None:
    image = np.stack([GAPS, np.where(VALID[::-1], IMAGE, np.nan)])
    either = VALID | VALID[::-1]
    out = mapped(np.copy, image, axes=(1, 2), where=None, nodata=np.nan)
    np.testing.assert_array_equal(out.compute(), np.where(either, image, FILL))
    labels = (IMAGE % 3).astype("u1")
    for nodata, valid in ((np.nan, VALID), ((np.nan, 2), VALID & (labels != 2)), ((None, 2), labels != 2)):
        out = mapped(lambda a, b: b, (GAPS, labels), where=None, nodata=nodata, dtype="u1", fill_value=9)
        np.testing.assert_array_equal(out.compute(), np.where(valid, labels, 9))
    seen = mapped(
        lambda a, b: a + b, (GAPS, labels), where=None, nodata=np.nan, nodata_fill=(100, None), dtype="f4",
        blend="max", fill_value=1,
    ).compute()  # fmt: skip
    np.testing.assert_array_equal(seen, filled(IMAGE + labels, 1))


def test_nodata_true_is_what_the_image_says_and_a_result_says_its_fill_value() -> None:
    meta = tw.ImageMeta("yx", nodata=-9999)
    image = np.where(VALID, IMAGE, -9999).astype("f4")
    out = mapped(image=image, where=None, nodata=True, meta=meta)
    np.testing.assert_array_equal(out.compute(), filled(IMAGE * 2))
    found = tw.image_meta(out)
    assert found is not None
    assert found.nodata == FILL
    again = mapped(image=out, where=None, nodata=True, meta=found, fill_value=0)
    np.testing.assert_array_equal(again.compute(), filled(IMAGE * 4, 0))


def test_a_time_that_is_no_time_is_nodata() -> None:
    image = np.where(VALID, IMAGE.astype("i8").astype("M8[s]"), np.datetime64("NaT", "s"))
    out = mapped(np.copy, image, where=None, nodata=np.datetime64("NaT", "s"), dtype="M8[s]", fill_value=0)
    np.testing.assert_array_equal(out.compute(), filled(image, np.datetime64(0, "s")))


@pytest.mark.parametrize("boundary", ["reflect", "wrap", "constant"])
def test_padded_samples_follow_those_that_they_repeat(boundary: Any) -> None:
    image = np.array([np.nan, np.nan, 3, 4, 5, 6, 7, np.nan], "f4")
    crops: list[list[float]] = []

    def fn(crop: np.ndarray) -> np.ndarray:
        crops.append(crop.tolist())
        return crop

    tw.tiled_map(
        fn,
        image,
        4,
        1,
        chunks=8,
        edge="pad",
        boundary=boundary,
        cval=np.nan,
        nodata=np.nan,
        nodata_fill=0,
        dtype="f4",
    ).compute()
    first = {"reflect": 0, "wrap": 0, "constant": np.nan}[boundary]
    last = {"reflect": 7, "wrap": 0, "constant": np.nan}[boundary]
    np.testing.assert_array_equal(crops[0], [first, 0, 0, 3])
    np.testing.assert_array_equal(crops[-1], [6, 7, 0, last])


# -- the other ways ---------------------------------------------------------------------------------------


def test_check_compares_with_the_function_that_has_nodata() -> None:
    def smooth(crop: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.uniform_filter(crop, 7))

    for options in ({"nodata_fill": 7}, {"nodata_fill": 7, "blend": "gaussian", "rim": 3}):
        out = mapped(smooth, GAPS, where=None, nodata=np.nan, output=tw.Output("f4"), **options)
        assert tw.check(out).ok
        short = mapped(
            smooth, GAPS, where=None, nodata=np.nan, overlap=2, output=tw.Output("f4"), nodata_fill=7
        )
        assert not tw.check(short).ok
    with pytest.raises(tw.TilingError, match="no tile ran at any place"):
        tw.check(out, where=((60, 5),))


def test_a_store_with_another_mask_of_samples_is_another_result(tmp_path: Path) -> None:
    image = np.where(VALID, IMAGE, 0)
    for name, options, part in (
        ("where", {"where": VALID[:, ::-1]}, "where data"), ("nodata", {"nodata": 0}, "nodata 0"),
        ("fill", {"nodata_fill": 4}, "nodata_fill"), ("none", {"where": None}, "where"),
        ("masked", {"image": np.ma.masked_less(image, 5)}, "mask 0"),
    ):  # fmt: skip
        base: dict[str, Any] = {"image": image}
        store = zarr.storage.MemoryStore()
        tw.to_zarr(mapped(**base), store, progress=False)
        tw.to_zarr(mapped(**base), store, progress=False)
        with pytest.raises(tw.TilingError, match=part):
            tw.to_zarr(mapped(**base | options), store, progress=False), name


def peak_of(out: Any) -> int:
    """Return the most bytes that a result takes while it is computed."""
    out.compute(scheduler="sync")
    tracemalloc.start()
    try:
        out.compute(scheduler="sync")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bits_of_many_arrays_take_the_memory_of_one() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 99, (512, 512), dtype="u1") for _ in range(9)]

    def peak(n: int) -> int:
        options: dict[str, Any] = {"overlap": 8, "chunks": 512, "dtype": "u1", "nodata": (0,) * n}
        return peak_of(tw.tiled_map(lambda *crops: crops[0], tuple(arrays[:n]), 64, **options))

    assert peak(9) - peak(2) < arrays[0].size / 2


def test_bits_of_channels_in_front_take_the_memory_of_a_few() -> None:
    def peak(n: int) -> int:
        image = np.ones((n, 512, 512), "u1")
        image[:, ::3, ::5] = 0
        output = tw.Output("u1", channels=0)
        options: dict[str, Any] = {"overlap": 8, "chunks": 512, "axes": (1, 2), "nodata": 0, "output": output}
        return peak_of(tw.tiled_map(lambda crop: crop[0], image, 64, **options))

    assert peak(40) - peak(4) < 2 * 512**2


def test_bits_of_arrays_that_are_read_at_once_and_tile_by_tile_are_joined() -> None:
    """One place of the second cannot be read, so it is read tile by tile; ``where`` lacks an axis of each."""

    class Broken:
        shape, dtype, ndim = (2, *IMAGE.shape), IMAGE.dtype, 3

        def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
            if all(s.start <= 30 < s.stop for s in index[1:]):
                raise OSError("unreadable")
            return second[index]

    first = np.where(RNG.random((2, *IMAGE.shape)) < 0.1, 0, IMAGE).astype("f4")
    second = np.where(RNG.random(first.shape) < 0.1, np.nan, IMAGE).astype("f4")
    second[:, :20, :30] = np.nan
    out = tw.tiled_map(
        lambda a, b: a.copy(), (first, Broken()), 16, overlap=4, each=0, chunks=(1, 40, 40),
        nodata=(0, np.nan), where=VALID, fill_value=FILL, dtype="f4",
    )  # fmt: skip
    with pytest.warns(tw.TilingWarning, match="tiles failed"):
        got = tw.compute(out, on_error="fill", progress=False)
    expected = np.where((first != 0) & (second == second) & VALID, first, FILL)
    lost = got != expected
    assert lost.any()
    assert (got[lost] == FILL).all()
    assert not lost[:, :15].any()
    assert not lost[..., :15].any()
    assert not lost[..., 46:].any()


def test_a_value_of_python_that_the_dtype_rounds_to_infinity_is_refused() -> None:
    lowest = float(np.finfo("f8").min)
    for options in ({"nodata": lowest}, {"nodata_fill": lowest}, {"fill_value": lowest}):
        with pytest.raises(tw.TilingError, match="cannot be held by dtype float32"):
            mapped(**options)
    mapped(nodata=float(np.finfo("f4").min), nodata_fill=0.1, fill_value=np.inf)


@pytest.mark.parametrize("where", [True, [[True] * 90] * 64, (VALID, VALID)], ids=["flag", "list", "tuple"])
def test_what_is_no_mask_of_samples_is_named(where: Any) -> None:
    with pytest.raises(TypeError, match="where must be an array of bool, a path or a URL"):
        mapped(where=where)
