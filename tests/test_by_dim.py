"""Lengths by the names of axes: crops, overlaps, chunks."""

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tilework.cli import main
from tilework.graph.build import plan_of

IMAGE = np.arange(2 * 20 * 30 * 3, dtype="f4").reshape(2, 20, 30, 3)
NAMES = ("t", "y", "x", "c")


def in_zarr(array, names=NAMES):
    return zarr.create_array(
        zarr.storage.MemoryStore(), data=array, dimension_names=names, chunks=(1, 10, 10, 3)
    )


SOURCES = {
    "xarray": lambda: xr.DataArray(IMAGE, dims=NAMES),
    "zarr": lambda: in_zarr(IMAGE),
    "meta": lambda: IMAGE,
}


@given(
    st.permutations("yx"), st.permutations("yx"), st.sampled_from([(8, 12), (20, 6)]), st.integers(0, 2),
    st.sampled_from(["none", "multiple", "rim"]),
    st.sampled_from([None, {"x": 12, "y": 8}, {"t": 2, "y": 16, "x": -1}]),
)  # fmt: skip
def test_dicts_are_numbers_in_the_order_of_the_axes(order, other, crop, overlap, more, chunks):
    sizes, around = dict(zip("yx", crop, strict=True)), {"y": overlap, "x": 1}
    by_name = {"crop": {k: sizes[k] for k in order}, "overlap": {k: around[k] for k in other}}
    by_number = {"crop": crop, "overlap": (overlap, 1), "axes": (1, 2)}
    if more == "rim":
        by_name |= {"rim": {"x": 1}, "blend": "hann"}
        by_number |= {"rim": (0, 1), "blend": "hann"}
        if not overlap:
            return
    elif more == "multiple":
        by_name |= {"multiple": {"y": 2}, "overlap": {"y": 2, "x": 1}}
        by_number |= {"multiple": (2, 1), "overlap": (2, 1)}
    if chunks is not None:
        by_name["chunks"] = chunks
        by_number["chunks"] = tuple(chunks.get(k, 1) for k in "tyx")
    named = tw.tiled_map(np.sqrt, SOURCES["zarr"](), each="t", **by_name)
    numbered = tw.tiled_map(np.sqrt, SOURCES["zarr"](), each=0, **by_number)
    assert plan_of(named).to_json() == plan_of(numbered).to_json()
    assert named.chunks == numbered.chunks


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_with_names_takes_dicts(kind):
    meta = {"meta": tw.ImageMeta(NAMES)} if kind == "meta" else {}
    out = tw.tiled_map(
        np.negative, SOURCES[kind](), {"x": 8, "y": 6}, stride={"y": 4, "x": 8}, each="t", **meta
    )
    np.testing.assert_array_equal(np.asarray(out), -IMAGE)
    assert plan_of(out).names == ("t", "y", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": {"Y": 8}, "overlap": 0}, "crop=.* names 'Y'; the axes of the array are t, y, x, c"),
        ({"crop": {}, "overlap": 0}, "is empty"),
        ({"crop": {"y": 8}, "overlap": {"y": 1, "x": 1}}, "overlap names x: not tiled. It can name y;"),
        (
            {"crop": {"y": 8, "x": 8}, "overlap": {"y": 1}},
            r"overlap=.* every tiled axis \(y, x\); x is missing",
        ),
        ({"crop": {"y": 8}, "overlap": 0, "axes": "yx"}, r"crop=.* every tiled axis \(y, x\); x is missing"),
        ({"crop": {"y": 8, "t": 1}, "overlap": 0, "each": "t"}, "is in axes=.* and in each='t'"),
        ({"crop": {"y": 8}, "overlap": 0, "chunks": {"c": 1, "y": 4}}, "chunks names c: whole in each block"),
        ({"crop": {"y": 8}, "overlap": 0, "rim": {"c": 1}}, "rim names c: not tiled"),
        ({"crop": {"y": 8}, "overlap": {"y": 9}}, r"crop 8 and overlap 9 on axis y"),
    ],
)
def test_messages_name_the_axes(arguments, message):
    with pytest.raises(tw.GridError, match=message):
        tw.tiled_map(np.sqrt, SOURCES["zarr"](), **arguments)


def test_an_array_without_names_says_so():
    for call in (
        lambda: tw.tiled_map(np.sqrt, IMAGE, {"y": 8}, 0), lambda: tw.plan_tiles((9, 9), {"y": 8}, 0),
        lambda: tw.probe(np.sqrt, {"y": 8}, IMAGE),
    ):  # fmt: skip
        with pytest.raises(tw.GridError, match=r"names axes, but the array has no names.*tw\.ImageMeta"):
            call()


def test_plans_and_probes_take_the_sizes_of_an_array():
    sizes = SOURCES["xarray"]().sizes
    plan = tw.plan_tiles(sizes, {"y": 8, "x": 8}, {"x": 1, "y": 0}, each="t", source_chunks={"y": 10})
    assert plan.names == ("t", "y", "x")
    numbers = tw.plan_tiles(IMAGE.shape, 8, (0, 1), axes=(1, 2), each=0, source_chunks=(2, 10, 30, 3))
    assert list(plan) == list(numbers)
    assert plan.sources == numbers.sources
    shift = lambda x: x + np.roll(x, 2, 1)  # noqa: E731
    for options in ({"shape": {"y": 40, "x": 40}}, {}, {"array": SOURCES["xarray"]()[0, :, :, 0]}):
        report = tw.probe(shift, {"y": 20, "x": 24}, **options)
        assert report.names == ("y", "x")
        assert report.overlap == (0, 2)


def named_result(**outputs):
    image = xr.DataArray(IMAGE, dims=NAMES)
    fn = (lambda x: dict.fromkeys(outputs, x)) if outputs else np.negative
    return tw.tiled_map(fn, image, {"y": 10, "x": 10}, 0, output=outputs or None)


def test_chunks_of_a_store_by_name():
    out = named_result().data
    written = tw.to_zarr(out, zarr.storage.MemoryStore(), chunks={"y": 5, "x": 10}, progress=False)
    assert written.chunks == (2, 5, 10, 3)
    written = tw.to_zarr(out, zarr.storage.MemoryStore(), chunks=5, shards={"y": 10}, progress=False)
    assert (written.chunks, written.shards) == ((2, 5, 5, 3), (2, 10, 5, 3))
    with pytest.raises(tw.TilingError, match="names none that there is: the axes are c, t, x, y"):
        tw.to_zarr(out, zarr.storage.MemoryStore(), chunks={"z": 5})
    plain = tw.tiled_map(np.negative, IMAGE, (10, 10, 3), 0, axes=(1, 2, 3))
    with pytest.raises(tw.TilingError, match="the axes have no names"):
        tw.to_zarr(plain, zarr.storage.MemoryStore(), chunks={"y": 5})
    named = tw.to_zarr(
        plain, zarr.storage.MemoryStore(), chunks={"y": 5}, dimension_names=NAMES, progress=False
    )
    assert named.chunks[1] == 5
    store = zarr.storage.MemoryStore()
    tw.to_zarr(out, store, chunks={"y": 5, "x": 10}, progress=False)
    assert tw.to_zarr(out, store, chunks={"x": 10}, progress=False).chunks == (2, 5, 10, 3)
    with pytest.raises(tw.AlignmentError, match="chunks"):
        tw.to_zarr(out, store, chunks={"x": 5}, progress=False)


def test_a_dict_means_keys_or_names_of_axes_and_never_both():
    out = {k: v.data for k, v in named_result(a=tw.Output("f4"), y=tw.Output("f4")).items()}
    for chunks, want in (({"x": 10}, [10, 10]), ({"a": {"x": 5}, "y": (2, 10, 10, 3)}, [5, 10])):
        group = tw.to_zarr(out, zarr.storage.MemoryStore(), chunks=chunks, progress=False)
        assert [group[k].chunks[2] for k in ("a", "y")] == want
    with pytest.raises(
        tw.TilingError, match=r"may mean the outputs a, y or the axes c, t, x, y; give it by output"
    ):
        tw.to_zarr(out, zarr.storage.MemoryStore(), chunks={"y": 5})
    with pytest.raises(tw.TilingError, match="the outputs are a, y, and the axes are c, t, x, y"):
        tw.to_zarr(out, zarr.storage.MemoryStore(), chunks={"b": 5})


def test_the_command_line_takes_names(tmp_path):
    zarr.create_array(str(tmp_path / "in.zarr"), data=IMAGE, dimension_names=NAMES, chunks=(1, 10, 10, 3))
    (tmp_path / "own.py").write_text("def fn(x):\n    return x + 1\n")
    arguments = [f"{tmp_path}/own.py:fn", f"{tmp_path}/in.zarr", f"{tmp_path}/out.zarr", "--crop", "x=8,y=6"]
    done = CliRunner().invoke(
        main, ["run", *arguments, "--overlap", "y=1,x=0", "--chunks", "y=4", "--no-progress"]
    )
    assert done.exit_code == 0, done.output
    written = zarr.open(tmp_path / "out.zarr")
    np.testing.assert_array_equal(written[...], IMAGE + 1)
    assert written.chunks[1] == 4
    for text in ("x=", "x=8,9", "x=a"):
        wrong = CliRunner().invoke(main, ["run", *arguments[:3], "--crop", text, "--overlap", "0"])
        assert wrong.exit_code == 2
