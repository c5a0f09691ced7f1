"""What a first call often looks like: little declared, paths of other formats, results wrapped in xarray."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import tilework as tw
from tilework.cli import main
from tilework.graph.build import plan_of

IMAGE = np.arange(1600, dtype="f4").reshape(40, 40)

# -- outputs of which one thing is declared -----------------------------------------------------------------


def in_front(crop: np.ndarray) -> np.ndarray:
    return np.stack([crop, 2 * crop, 3 - crop])


def behind(crop: np.ndarray) -> np.ndarray:
    return np.stack([crop, 2 * crop, 3 - crop], -1)


@pytest.mark.parametrize("fn", [in_front, behind])
@pytest.mark.parametrize("said", [
    {"fill_value": 7}, {"blend": "average"}, {"channel_axis": -1}, {"scale": 1}, {"margin": 0},
])  # fmt: skip
def test_what_is_not_declared_is_as_the_call_on_zeros_showed(fn: Any, said: dict[str, Any]) -> None:
    out = tw.tiled_map(fn, IMAGE, 12, 1, output=tw.Output(**said))
    assert (out.dtype, out.shape) == (np.float32, fn(IMAGE).shape)
    np.testing.assert_allclose(out.compute(), fn(IMAGE))


@pytest.mark.parametrize("fn", [in_front, behind])
@pytest.mark.parametrize("said", [{}, {"fill_value": 2}, {"dtype": "u2"}, {"blend": "gaussian"}])
def test_the_classes_of_an_argmax_are_found(fn: Any, said: dict[str, Any]) -> None:
    out = tw.tiled_map(fn, IMAGE, 12, 1, output=tw.Output(reduce="argmax", **said))
    assert (out.dtype, out.shape) == (np.dtype(said.get("dtype", "u1")), (40, 40))
    np.testing.assert_array_equal(out.compute(), in_front(IMAGE).argmax(0))


def test_the_fill_value_is_kept() -> None:
    out = tw.tiled_map(behind, IMAGE, 10, 0, output=tw.Output(fill_value=7), skip=lambda x: x[0, 0] >= 400)
    np.testing.assert_array_equal(out.compute()[:10], behind(IMAGE)[:10])
    assert (out.compute()[10:] == 7).all()


def test_channels_are_found_beside_a_scale_a_margin_or_axes() -> None:
    def half(crop: np.ndarray) -> np.ndarray:
        return in_front(crop)[:, ::2, ::2]

    out = tw.tiled_map(half, IMAGE, 12, 2, output=tw.Output(scale=Fraction(1, 2)))
    np.testing.assert_array_equal(out.compute(), half(IMAGE))
    valid = tw.tiled_map(lambda x: in_front(x)[:, 2:-2, 2:-2], IMAGE, 12, 2, output=tw.Output(margin=2))
    assert valid.shape == (3, 40, 40)
    np.testing.assert_array_equal(valid[:, 2:-2, 2:-2].compute(), in_front(IMAGE)[:, 2:-2, 2:-2])
    stack = np.stack([IMAGE] * 16)
    twice = tw.tiled_map(lambda x: x.repeat(2, 1).repeat(2, 2), stack, (8, 8), 1, output=tw.Output(scale=2))
    np.testing.assert_array_equal(twice.compute(), stack.repeat(2, 1).repeat(2, 2))
    # As long as the crop, the channels cannot be told from it by their number.
    many = tw.tiled_map(lambda x: np.stack([x] * 12), IMAGE, 12, 1, output=tw.Output(axes=(1, 2)))
    np.testing.assert_array_equal(many.compute(), np.stack([IMAGE] * 12))
    with pytest.raises(tw.ContractError, match=r"shape \(3, 12, 12\).*lengths \(12, 12\).*axes \(0, 1\)"):
        tw.tiled_map(in_front, IMAGE, 12, 1, output=tw.Output(axes=(0, 1)))
    with pytest.raises(tw.ContractError, match=r"returned shape \(3, 12, 12\); the declared one is \(2,"):
        tw.tiled_map(in_front, IMAGE, 12, 1, output=tw.Output(channels=2))


def test_what_is_declared_is_not_called() -> None:
    def never(crop: np.ndarray) -> np.ndarray:
        raise AssertionError("called")

    for output in (
        tw.Output("f4", fill_value=7),
        tw.Output(reduce="argmax", channels=3),
        tw.Output(reduce="argmax", shape=(3, 12, 12)),
    ):
        assert tw.tiled_map(never, IMAGE, 12, 1, output=output).shape == (40, 40)
    # The channels of the crop are those of the result.
    out = tw.tiled_map(never, in_front(IMAGE), (12, 12), 1, output=tw.Output("u1", reduce="argmax"))
    assert out.shape == (40, 40)


# -- tiles that do not exist --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {}, {"batch_size": 2}, {"blend": "hann"}, {"output": tw.Output(margin=2)},
    {"output": tw.Output(channels=3)},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:no crop fits into the image")
def test_a_tile_is_passed_although_no_crop_fits(options: dict[str, Any]) -> None:
    """To the call on zeros; none is dropped into the result."""
    seen: list[Any] = []

    def fn(crop: np.ndarray, tile: Any = None, tiles: Any = None) -> np.ndarray:
        seen.append(tile if tiles is None else tiles[0])
        crop = crop * seen[-1].index
        if "output" in options and options["output"].channels:
            return in_front(crop)
        lost = options["output"].margin if "output" in options else 0
        return crop[..., lost : crop.shape[-2] - lost, lost : crop.shape[-1] - lost]

    for image in (IMAGE, IMAGE[:, :5], np.zeros((1, 100), "f4")):
        out = tw.tiled_map(fn, image, 64, 4, edge="drop", pass_tile=True, fill_value=3, **options)
        assert seen[-1].index == 0
        assert seen[-1].read.shape == (64, 64)
        assert options or image.shape[1] > 64 or seen[-1].core.shape == (64, 64)
        assert (out.compute() == 3).all()


# -- paths of other formats ---------------------------------------------------------------------------------


LINES = {
    "a.tif": "tifffile.memmap(",
    "a.ome.tiff": "aszarr=True",
    "slide.SVS": "tifffile",
    "a.npy": 'mmap_mode="r"',
    "a.npz": '["name"]',
    "a.nii.gz": "nibabel.load(",
    "a.h5": "h5py.File(",
    "a.ims": "h5py.File(",
    "a.nc": "xarray.open_dataset(",
    "a.png": "imageio.v3.imread(",
    "a.mrc": "mrcfile.mmap(",
    "a.fits": "astropy.io.fits.open(",
    "a.dcm": "pydicom",
    "a.czi": "bioio",
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("there", [True, False])
def test_a_path_of_another_format_is_answered_by_the_line_that_opens_it(
    name: str, there: bool, tmp_path: Path
) -> None:
    path = tmp_path / name
    if there:
        path.write_bytes(b"\x00" * 100)
    for given in (path, str(path), (IMAGE, str(path))):
        with pytest.raises(tw.TilingError) as error:
            tw.tiled_map(lambda *x: x[0], given, 12, 1)
        assert LINES[name] in str(error.value)
        assert f"({str(path)!r}" in str(error.value)
        assert ("no such file" in str(error.value)) is not there
    ran = CliRunner().invoke(main, ["run", "numpy:abs", str(path), str(tmp_path / "o.zarr"), "--crop", "12"])
    assert ran.exit_code
    assert LINES[name] in ran.output.replace("\n", " ")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_lines_open_what_they_say(tmp_path: Path) -> None:
    """Those of libraries that are installed here."""
    import ast
    import gc

    np.save(tmp_path / "a.npy", IMAGE)
    np.savez(tmp_path / "a.npz", name=IMAGE)
    modules: dict[str, Any] = {"np": np, "zarr": zarr}
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", IMAGE)
    (tmp_path / "many").mkdir()
    for number in range(3):
        tifffile.imwrite(tmp_path / "many" / f"{number}.tif", IMAGE)
    modules["tifffile"] = tifffile
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["dataset"] = IMAGE
    modules["h5py"] = h5py
    for name in ("a.npy", "a.npz", "a.tif", "a.h5"):
        with pytest.raises(tw.TilingError) as error:
            tw.tiled_map(np.copy, tmp_path / name, 12, 1)
        lines = str(error.value).partition("array=")[2].rstrip(".").partition(" if it is")[0].split(", or ")
        for line in lines:
            ast.parse(line)
            array = eval(line, modules)
            np.testing.assert_array_equal(tw.tiled_map(np.copy, array, 12, 1).compute(), IMAGE)
            # Collected later, an open file would be a warning in another test.
            for opened in (array, getattr(array, "store", None), getattr(array, "file", None)):
                if hasattr(opened, "close"):
                    opened.close()
            del array, opened
            gc.collect()
    pytest.importorskip("skimage")
    for given in (tmp_path / "many", tmp_path / "many" / "*.tif"):
        with pytest.raises(tw.TilingError, match=r"array=(dask\.array\.image\.imread\(.*\))\.$") as error:
            tw.tiled_map(np.copy, given, 12, 1)
        import dask.array.image

        array = eval(str(error.value).partition("array=")[2].rstrip("."), {"dask": dask})
        out = tw.tiled_map(np.copy, array, (12, 12), 1)
        np.testing.assert_array_equal(out.compute(), [IMAGE] * 3)


def test_a_path_of_zarr_is_opened_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a.tif", "b.h5", "c"):
        zarr.save_array(tmp_path / name, IMAGE)
        np.testing.assert_array_equal(tw.tiled_map(np.copy, tmp_path / name, 12, 1).compute(), IMAGE)
    with pytest.raises(tw.TilingError, match=r"opened at '.*none\.zarr': there is no such file or folder\.$"):
        tw.tiled_map(np.copy, tmp_path / "none.zarr", 12, 1)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(tw.TilingError, match="no Zarr array or OME-Zarr group can be opened at"):
        tw.tiled_map(np.copy, tmp_path / "notes.txt", 12, 1)


# -- results wrapped in xarray ------------------------------------------------------------------------------


def test_a_dataarray_is_written(tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    out = tw.tiled_map(lambda x: x + 1, IMAGE, 12, 1)
    wrapped = xr.DataArray(out, dims=("y", "x"), coords={"y": np.arange(40)}, name="more")
    for given, name in ((wrapped, "a.zarr"), (wrapped.variable, "c.zarr")):
        written = tw.to_zarr(given, tmp_path / name, progress=False)
        np.testing.assert_array_equal(written[...], IMAGE + 1)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "a.zarr")["more"].compute(), wrapped.compute())
    # It is the result of tiled_map still: written tile by tile, and resumed without another call.
    tiles: list[Any] = []
    tw.to_zarr(wrapped, tmp_path / "a.zarr", progress=lambda *done: tiles.append(done))
    assert not tiles or tiles[-1][1] == 0
    assert tw.explain(wrapped) == tw.explain(out)
    np.testing.assert_array_equal(tw.view(wrapped, verbose=False)[3:5], IMAGE[3:5] + 1)
    assert "equal to rounding" in str(tw.check(wrapped))
    assert plan_of(wrapped) == plan_of(out)
    more = tw.to_zarr(wrapped * 2, tmp_path / "b.zarr", version="1", progress=False)
    np.testing.assert_array_equal(more[...], 2 * (IMAGE + 1))
    np.testing.assert_array_equal(tw.tiled_map(np.negative, wrapped, 12, 1, axes="yx").compute(), -IMAGE - 1)


def test_several_dataarrays_of_one_call_are_written_together(tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    one, two = tw.tiled_map(lambda x: (x, -x), IMAGE, 12, 1)
    both = {"one": xr.DataArray(one), "two": xr.DataArray(two)}
    for number, given in enumerate((both, xr.Dataset(both))):
        group = tw.to_zarr(given, tmp_path / f"{number}.zarr", progress=False)
        np.testing.assert_array_equal(group["two"][...], -IMAGE)


def test_what_is_not_lazy_is_named(tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    for given, message in {
        "DataArray is not chunked: give array.chunk": xr.DataArray(IMAGE),
        "numpy array is computed already": IMAGE,
        r"out must be a dask array, such as a result of tiled_map; got str\.$": "out",
    }.items():
        with pytest.raises(TypeError, match=given):
            tw.to_zarr(message, tmp_path / "c.zarr", progress=False)
    chunked = xr.DataArray(IMAGE).chunk({"dim_0": 20})
    written = tw.to_zarr(chunked, tmp_path / "c.zarr", version="1", progress=False)
    np.testing.assert_array_equal(written[...], IMAGE)
