"""Arrays to write into that share samples with what is read, or with each other, of whatever kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

import tilework as tw
from tilework.identity import samples

IMAGE = np.random.default_rng(0).random((48, 48), dtype="f4")
Case = Callable[[Path], tuple[Any, Any]]
READ = "the array to write into is the one that is read"


class Wrapped:
    """An array of another library that shows its memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.array[index] = value

    @property
    def __array_interface__(self) -> Any:
        return self.array.__array_interface__


def tensor_of(array: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(array)


def raw(folder: Path, mode: str = "r+") -> Any:
    if not (folder / "raw").exists():
        IMAGE.tofile(folder / "raw")
    return np.memmap(folder / "raw", "f4", mode, shape=IMAGE.shape)


def hdf5(folder: Path) -> Any:
    """Return a file with a dataset, the same under another name, and one that is virtual."""
    file = h5py.File(folder / "a.h5", "a")
    if "a" not in file:
        file["a"] = IMAGE
        file["again"] = file["a"]
        layout = h5py.VirtualLayout(IMAGE.shape, "f4")
        layout[:] = h5py.VirtualSource(file["a"])
        file.create_virtual_dataset("virtual", layout)
    return file


def in_memory(left: Callable[[Any], Any], right: Callable[[Any], Any]) -> Case:
    def both(_: Path) -> tuple[Any, Any]:
        array = IMAGE.copy()
        return left(array), right(array)

    return both


def labelled(array: Any) -> xr.DataArray:
    return xr.DataArray(array, dims=["y", "x"])


def same(array: Any) -> Any:
    return array


ONE: dict[str, Case] = {
    "DataArray and its array": in_memory(labelled, same),
    "array and a DataArray of it": in_memory(same, labelled),
    "two DataArrays": in_memory(labelled, labelled),
    "a Variable": in_memory(same, lambda x: labelled(x).variable),
    "DataArray and a turned view": in_memory(labelled, lambda x: x[::-1].T),
    "tensor and array": in_memory(tensor_of, same),
    "two tensors": in_memory(tensor_of, tensor_of),
    "masked": in_memory(np.ma.asarray, labelled),
    "another library": in_memory(Wrapped, same),
    "two of another library": in_memory(Wrapped, Wrapped),
    "a buffer": in_memory(same, lambda x: labelled(np.asarray(memoryview(x)))),
    "two maps": lambda folder: (raw(folder), raw(folder)),
    "a map and a DataArray of it": lambda folder: (raw(folder), labelled(raw(folder))),
    "a map and a tensor of it": lambda folder: (one := raw(folder), tensor_of(one)),
    "datasets": lambda folder: (hdf5(folder)["a"], hdf5(folder)["again"]),
    "a virtual dataset": lambda folder: (hdf5(folder)["virtual"], hdf5(folder)["a"]),
    "into a virtual dataset": lambda folder: (hdf5(folder)["a"], hdf5(folder)["virtual"]),
}


def mapped(source: Any, **options: Any) -> Any:
    return tw.tiled_map(np.negative, source, 16, 4, chunks=16, dtype="f4", **options)


@pytest.mark.parametrize("case", ONE)
def test_what_is_read_is_not_written_into(case: str, tmp_path: Path) -> None:
    source, target = ONE[case](tmp_path)
    for write in (tw.compute, lambda out, into: tw.to_zarr(out, into, progress=False)):
        with pytest.raises(tw.TilingError, match=READ):
            write(mapped(source), target)
    np.testing.assert_array_equal(np.asarray(source[...]), IMAGE)


def test_a_view_of_a_dataset_is_the_dataset(tmp_path: Path) -> None:
    file = hdf5(tmp_path)
    with pytest.raises(tw.TilingError, match=READ):
        tw.compute(mapped(file["a"].astype("f8")), into=file["again"])


def test_a_series_is_not_written_into_its_own_values() -> None:
    pandas = pytest.importorskip("pandas")
    values = np.arange(100.0)
    out = tw.tiled_map(np.negative, pandas.Series(values, copy=False), 16, 4)
    with pytest.raises(tw.TilingError, match=READ):
        tw.compute(out, into=values)


def woven(both: Any) -> tuple[Any, Any]:
    both[:] = IMAGE[..., None]
    return both[..., 0], both[..., 1]


APART: dict[str, Case] = {
    "DataArrays": in_memory(labelled, lambda x: labelled(x.copy())),
    "tensors": in_memory(tensor_of, lambda x: tensor_of(x.copy())),
    "another library": in_memory(Wrapped, lambda x: Wrapped(x.copy())),
    "DataArray and tensor": in_memory(labelled, lambda x: tensor_of(x.copy())),
    "woven": lambda _: woven(np.empty((*IMAGE.shape, 2), "f4")),
    "datasets": lambda folder: (hdf5(folder)["a"], hdf5(folder).require_dataset("b", IMAGE.shape, "f4")),
    "woven in a map": lambda folder: woven(np.memmap(folder / "b", "f4", "w+", shape=(*IMAGE.shape, 2))),
}


@pytest.mark.parametrize("case", APART)
def test_what_is_apart_is_written(case: str, tmp_path: Path) -> None:
    source, target = APART[case](tmp_path)
    assert tw.compute(mapped(source), into=target) is target
    np.testing.assert_array_equal(np.asarray(target[...]), -IMAGE)
    np.testing.assert_array_equal(np.asarray(source[...]), IMAGE)
    assert tw.to_zarr(mapped(source), target, progress=False) is target


def test_what_load_once_opens_is_not_written_into(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGE)
    zarr.save_array(str(tmp_path / "a.zarr"), IMAGE)
    out = mapped(tw.load_once(np.load, (str(tmp_path / "a.npy"), "r")))
    with pytest.raises(tw.TilingError, match=READ):
        tw.compute(out, into=np.load(tmp_path / "a.npy", "r+"))
    out = mapped(tw.load_once(zarr.open_array, (str(tmp_path / "a.zarr"),)))
    with pytest.raises(tw.TilingError, match="holds the array that is read"):
        tw.to_zarr(out, tmp_path / "a.zarr", overwrite=True, progress=False)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr", mode="r")[:], IMAGE)


@pytest.mark.parametrize("case", [case for case in ONE if "virtual" not in case])
def test_members_of_into_share_nothing(case: str, tmp_path: Path) -> None:
    with pytest.raises(tw.TilingError, match="members of into share memory"):
        tw.compute(pair(), into=ONE[case](tmp_path))


@pytest.mark.parametrize("case", APART)
def test_members_of_into_may_be_of_any_kind(case: str, tmp_path: Path) -> None:
    into = APART[case](tmp_path)
    assert tw.compute(pair(), into=into) is into
    for array, values in zip(into, (IMAGE, -IMAGE), strict=True):
        np.testing.assert_array_equal(np.asarray(array[...]), values)


def pair() -> Any:
    outputs = (tw.Output("f4"), tw.Output("f4"))
    return tw.tiled_map(lambda x: (x, -x), IMAGE, 16, 4, chunks=16, output=outputs)


# -- arrays of other libraries as targets -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "with gradient", "turned", "DataArray", "Variable", "read"])
def test_arrays_in_memory_are_filled(kind: str, tmp_path: Path) -> None:
    labelled(np.zeros_like(IMAGE)).to_netcdf(tmp_path / "a.nc")
    into: Any = {
        "tensor": lambda: tensor_of(np.zeros_like(IMAGE)),
        "with gradient": lambda: tensor_of(np.zeros_like(IMAGE)).requires_grad_(),
        "turned": lambda: tensor_of(np.zeros_like(IMAGE)).T,
        "DataArray": lambda: labelled(np.zeros_like(IMAGE)),
        "Variable": lambda: labelled(np.zeros_like(IMAGE)).variable,
        "read": lambda: xr.open_dataarray(tmp_path / "a.nc").load(),
    }[kind]()
    assert tw.compute(mapped(IMAGE), into=into) is into
    values = into.detach() if kind == "with gradient" else into
    np.testing.assert_array_equal(np.asarray(values), -IMAGE)
    assert tw.to_zarr(mapped(-IMAGE), into, progress=False) is into
    np.testing.assert_array_equal(np.asarray(values), IMAGE)


def windows() -> np.ndarray:
    rows, columns = IMAGE.shape
    line = np.zeros(rows + columns - 1, "f4")
    return np.lib.stride_tricks.sliding_window_view(line, columns, writeable=True)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("bfloat16", tw.TilingError, "torch.bfloat16 on cpu that numpy cannot write into"),
        ("sparse", tw.TilingError, "tensor of layout sparse_coo, which takes no samples"),
        ("meta", tw.TilingError, "tensor on meta, which takes no samples"),
        ("integers", tw.TilingError, "dtype int64; the result has"),
        ("expanded", tw.TilingError, "several samples of .* are one in memory"),
        ("strides", tw.TilingError, "several samples of .* are one in memory"),
        ("windows", tw.TilingError, "several samples of .* are one in memory"),
        ("windows of a tensor", tw.TilingError, "several samples of .* are one in memory"),
        ("read-only", tw.TilingError, "is read-only"),
        ("hdf5", tw.TilingError, r"is read-only; open its file for writing: h5py\.File"),
        ("chunked", TypeError, "holds data"),
        ("lazy", TypeError, "holds data"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_arrays_that_would_take_no_samples_are_refused(
    kind: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    labelled(np.zeros_like(IMAGE)).to_netcdf(tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.zeros_like(IMAGE)
    shape = IMAGE.shape
    into = {
        "bfloat16": lambda: torch.zeros(shape, dtype=torch.bfloat16),
        "sparse": lambda: torch.zeros(shape).to_sparse(),
        "meta": lambda: torch.zeros(shape, device="meta"),
        "integers": lambda: torch.zeros(shape, dtype=torch.int64),
        "expanded": lambda: torch.zeros(1).expand(shape),
        "strides": lambda: np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), shape, (0, 0)),
        "windows": lambda: labelled(windows()),
        "windows of a tensor": lambda: torch.from_numpy(windows()),
        "read-only": lambda: labelled(np.broadcast_to(np.float32(0), shape)),
        "hdf5": lambda: h5py.File(tmp_path / "a.h5")["a"],
        "chunked": lambda: labelled(np.zeros_like(IMAGE)).chunk(16),
        "lazy": lambda: xr.open_dataarray(tmp_path / "a.nc"),
    }[kind]()
    for write in (tw.compute, lambda out, into: tw.to_zarr(out, into, progress=False)):
        with pytest.raises(error, match=message):
            write(mapped(IMAGE), into)


def _bytes_met(array: np.ndarray) -> np.ndarray:
    """Return the places of all samples in memory, sorted."""
    places = np.zeros(1, np.int64)
    for length, step in zip(array.shape, array.strides, strict=True):
        places = np.add.outer(places, np.arange(length) * step).ravel()
    return np.sort(places)


@pytest.mark.parametrize("seed", range(20))
def test_samples_are_one_exactly_where_their_bytes_are(seed: int) -> None:
    random, found = np.random.default_rng(seed), set()
    memory = np.zeros(4000, "u1")
    for _ in range(150):
        shape = random.integers(random.integers(2), 6, random.integers(5))
        dtype = np.dtype(str(random.choice(["u1", "f4", "V3"])))
        steps = random.integers(-60, 61, len(shape)) * random.choice([1, dtype.itemsize])
        if random.integers(2):  # steps of a view of an array
            steps = random.permutation(np.cumprod(random.integers(1, 6, len(shape)))) * dtype.itemsize
        array = np.lib.stride_tricks.as_strided(
            memory[2000 : 2000 + dtype.itemsize].view(dtype), shape, steps
        )
        one = bool((np.diff(_bytes_met(array)) < dtype.itemsize).any())
        found.add(one)
        try:
            samples.check_samples("into", array)
        except tw.TilingError:
            assert one, (shape, steps, dtype)
        else:
            assert not one, (shape, steps, dtype)
    assert found == {False, True}


VIEWS: dict[str, Callable[[], Any]] = {
    "turned": lambda: np.zeros((40, 48, 48), "f4").transpose(2, 0, 1)[:, 3],
    "Fortran": lambda: np.zeros(IMAGE.shape, "f4", order="F"),
    "from behind": lambda: np.zeros((96, 48), "f4")[::-2, ::-1],
    "woven": lambda: np.zeros((48, 48, 2), "f4")[..., 1],
    "a field": lambda: np.zeros(IMAGE.shape, "u1,f4")["f1"],
    "windows apart": lambda: np.lib.stride_tricks.as_strided(np.zeros(48 * 50, "f4"), (48, 48), (200, 4)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_written_into(view: str) -> None:
    into = VIEWS[view]()
    assert tw.compute(mapped(IMAGE), into=into) is into
    np.testing.assert_array_equal(into, -IMAGE)


def test_a_result_without_samples_has_none_that_are_one() -> None:
    empty = mapped(IMAGE)[:0]
    assert tw.compute(empty).shape == (0, 48)
    assert tw.compute(empty, into=np.empty((0, 48), "f4")).shape == (0, 48)


def test_the_index_of_an_axis_is_refused() -> None:
    axis = xr.DataArray(np.zeros(100), dims=["x"], coords={"x": np.arange(100.0)}).x
    with pytest.raises(tw.TilingError, match="an index of xarray"):
        tw.compute(tw.tiled_map(np.negative, np.arange(100.0), 16, 4), into=axis)


# -- the loops --------------------------------------------------------------------------------------------


def aggregated(image: Any, output: Any) -> Any:
    sampler = tw.GridSampler(image, (48, 48), (16, 16), (8, 8), mode="edge")
    aggregator = tw.Aggregator(sampler, output=output, weights="trim")
    for patch, box in sampler:
        aggregator.append(-np.asarray(patch), box)
    return aggregator.get_output(inplace=True)


def sliced(image: Any, output: Any) -> Any:
    slices = tw.Slicer(image, 16, 4)
    with slices.writer(output) as out:
        for crop, source, destination in slices:
            out[destination] = -np.asarray(crop)[source]
    return output


LOOPS = {"Aggregator": aggregated, "Slicer": sliced}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("view", VIEWS)
def test_loops_write_into_views(loop: str, view: str) -> None:
    output = VIEWS[view]()
    LOOPS[loop](IMAGE, output)
    np.testing.assert_array_equal(output, -IMAGE)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("expanded", tw.TilingError, "several samples of output are one in memory"),
        ("expanded bfloat16", tw.TilingError, "several samples of output are one in memory"),
        ("sparse", tw.TilingError, "output is a tensor of layout sparse_coo, which takes no samples"),
        ("meta", tw.TilingError, "output is a tensor on meta, which takes no samples"),
        ("windows", tw.TilingError, "several samples of output are one in memory"),
        ("labelled windows", tw.TilingError, "several samples of output are one in memory"),
        ("read-only", tw.TilingError, "output is read-only"),
        ("chunked", TypeError, "output must be an array that holds data.*load it"),
        ("chunked variable", TypeError, "output must be an array that holds data.*load it"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." not in value else "",
)
def test_loops_refuse_arrays_that_would_take_no_samples(
    loop: str, kind: str, error: type[Exception], message: str
) -> None:
    torch = pytest.importorskip("torch")
    output = {
        "expanded": lambda: torch.zeros(1, 48).expand(48, 48),
        "expanded bfloat16": lambda: torch.zeros(1, 48, dtype=torch.bfloat16).expand(48, 48),
        "sparse": lambda: torch.zeros(48, 48).to_sparse(),
        "meta": lambda: torch.zeros(48, 48, device="meta"),
        "windows": windows,
        "labelled windows": lambda: labelled(windows()),
        "read-only": lambda: np.broadcast_to(np.zeros(48, "f4"), (48, 48)),
        "chunked": lambda: labelled(np.zeros_like(IMAGE)).chunk(16),
        "chunked variable": lambda: labelled(np.zeros_like(IMAGE)).chunk(16).variable,
    }[kind]()
    with pytest.raises(error, match=message):
        LOOPS[loop](IMAGE, output)


LOOP_READ = "output is, or shares samples with, the image that is read"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("case", ONE)
def test_loops_do_not_write_into_their_image(loop: str, case: str, tmp_path: Path) -> None:
    source, output = ONE[case](tmp_path)
    with pytest.raises(tw.TilingError, match=LOOP_READ):
        LOOPS[loop](source, output)
    np.testing.assert_array_equal(np.asarray(source[...]), IMAGE)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("case", [case for case in APART if "tensor" not in case])
def test_loops_write_into_what_is_apart(loop: str, case: str, tmp_path: Path) -> None:
    source, output = APART[case](tmp_path)
    LOOPS[loop](source, output)
    np.testing.assert_array_equal(np.asarray(output[...]), -IMAGE)
    np.testing.assert_array_equal(np.asarray(source[...]), IMAGE)


MEMORY: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "bfloat16": lambda t: (t.bfloat16(), "detach"),
    "conjugate": lambda t: (t.cfloat(), "conj"),
    "dlpack": lambda t: (t, np.from_dlpack(t)),
    "to dlpack": lambda t: (np.from_dlpack(t), t),
    "gradient": lambda t: (t.requires_grad_(), "detach"),
}


@pytest.mark.parametrize("case", MEMORY)
def test_views_of_tensors_share_their_memory(case: str) -> None:
    """Whatever the dtype, the library that shows the view, and what torch does to the samples on the way."""
    whole, view = MEMORY[case](tensor_of(IMAGE.copy()))
    view = getattr(whole, view)() if isinstance(view, str) else view
    assert samples.same_array(whole, view)
    assert samples.same_array(view[1:], whole[:2])
    assert not samples.same_array(view[1:], whole[:1])
    assert not samples.same_array(whole, whole + 0)


@pytest.mark.parametrize("loop", LOOPS)
def test_loops_do_not_write_into_the_tensor_of_a_device_that_they_read(loop: str) -> None:
    torch = pytest.importorskip("torch")

    class There(torch.Tensor):  # type: ignore[misc]
        """A tensor that says that it is on a device."""

        number = 0

        @property
        def device(self) -> Any:
            return torch.device("cuda", self.number)

    image = tensor_of(IMAGE.copy()).as_subclass(There)
    # A slice in the memory of another device may have the same numbers as addresses.
    elsewhere = type("Elsewhere", (There,), {"number": 1})
    assert not samples.same_array(image, image.as_subclass(elsewhere))
    for output in (image, image.detach(), image.T):
        with pytest.raises(tw.TilingError, match=LOOP_READ):
            LOOPS[loop](image, output)


def test_loops_do_not_read_tensors_without_samples() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(tw.ContractError, match="meta device has no samples"):
        tw.Slicer(torch.zeros(48, 48, device="meta"), 16, 4)
    with pytest.raises(tw.ContractError, match="meta device has no samples"):
        tw.tiled_map(lambda x: torch.zeros(x.shape, device="meta"), IMAGE, 16, 4, dtype="f4").compute()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["itself", "opened again", "path", "load_once"])
def test_loops_do_not_write_into_the_zarr_array_that_they_read(loop: str, kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "a.zarr")
    output = zarr.create_array(path, data=IMAGE, chunks=(16, 16))
    source = {
        "itself": lambda: output,
        "opened again": lambda: zarr.open_array(path, mode="r"),
        "path": lambda: path,
        "load_once": lambda: tw.load_once(zarr.open_array, (path,)),
    }[kind]()
    with pytest.raises(tw.TilingError, match=LOOP_READ):
        LOOPS[loop](source, output)
    beside = zarr.create_array(str(tmp_path / "b.zarr"), shape=IMAGE.shape, dtype="f4", chunks=(16, 16))
    LOOPS[loop](source, beside)
    np.testing.assert_array_equal(beside[...], -IMAGE)
    np.testing.assert_array_equal(output[...], IMAGE)


def test_an_aggregator_writes_into_none_of_several_images() -> None:
    images = {"a": IMAGE.copy(), "b": IMAGE.copy()}
    sampler = tw.GridSampler(images, (48, 48), (16, 16))
    for image in images.values():
        with pytest.raises(tw.TilingError, match=LOOP_READ):
            tw.Aggregator(sampler, output=image)
    tw.Aggregator(sampler, output=IMAGE.copy())


# -- what tasks can reach ---------------------------------------------------------------------------------

REACHED: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda _: np.zeros_like(IMAGE),
    "a map": lambda folder: np.memmap(folder / "new", "f4", "w+", shape=IMAGE.shape),
    "hdf5": lambda folder: h5py.File(folder / "new.h5", "w").create_dataset("a", IMAGE.shape, "f4"),
    "another library": lambda _: Wrapped(np.zeros_like(IMAGE)),
    "DataArray": lambda _: labelled(np.zeros_like(IMAGE)),
}


def refuse(folder: Path, case: str, **where: Any) -> None:
    """Check that nothing runs for an array that tasks cannot reach."""
    ran = []

    def told(_: int, __: int) -> None:
        ran.append(1)

    for out in (mapped(IMAGE), mapped(IMAGE) + 1):
        for write in (tw.compute, tw.to_zarr):
            with pytest.raises(tw.TilingError, match="can only be written into by threads"):
                write(out, REACHED[case](folder), progress=told, **where)
    assert not ran


@pytest.mark.distributed
@pytest.mark.parametrize("case", REACHED)
def test_a_cluster_reaches_no_array_of_this_process(case: str, client: Any, tmp_path: Path) -> None:
    refuse(tmp_path, case)
    out = mapped(IMAGE)
    np.testing.assert_array_equal(np.asarray(tw.compute(out, scheduler="threads")), -IMAGE)


@pytest.mark.parametrize("case", REACHED)
def test_processes_reach_no_array_of_this_process(case: str, tmp_path: Path) -> None:
    refuse(tmp_path, case, scheduler="processes")


@pytest.mark.parametrize("store", ["numpy", "zarr"])
def test_several_results_are_not_written_into_one_array(store: str) -> None:
    array: Any = np.ones_like(IMAGE)
    if store == "zarr":
        array = zarr.create_array({}, data=array)
    with pytest.raises(tw.TilingError, match="several results, and store is one array"):
        tw.to_zarr(pair(), array, overwrite=True, progress=False)
    np.testing.assert_array_equal(array[...], np.ones_like(IMAGE))
