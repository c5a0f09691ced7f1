"""Arrays of other libraries as sources and as results: subclasses, views, lazy kinds, and what is refused."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tilework as tw

IMAGE = np.arange(1600, dtype="f4").reshape(40, 40)


def run(array: Any, fn: Any = lambda x: x, **options: Any) -> np.ndarray:
    return np.asarray(tw.tiled_map(fn, array, 12, 1, **options).compute(scheduler="sync"))


# -- torch ------------------------------------------------------------------------------------------------


def tensors() -> dict[str, tuple[Any, np.ndarray]]:
    """Return tensors of many kinds, each with its values."""
    torch = pytest.importorskip("torch")

    class Named(torch.Tensor):  # type: ignore[misc]
        def numpy(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("a method of the subclass was called")

    plain = torch.from_numpy(IMAGE.copy())
    wave = plain * 1j
    return {
        "subclass": (plain.as_subclass(Named), IMAGE),
        "parameter": (torch.nn.Parameter(plain), IMAGE),
        "with gradient": (plain.clone().requires_grad_() * 2, 2 * IMAGE),
        "conjugate": (wave.conj(), -1j * IMAGE),
        "negative": (wave.conj().imag, -IMAGE),
        "bfloat16": (plain.bfloat16(), plain.bfloat16().float().numpy()),
        "float8": ((plain % 8).to(torch.float8_e4m3fn), IMAGE % 8),
        "complex half": ((plain % 8).to(torch.complex32), (IMAGE % 8).astype("c8")),
        "sparse": (plain.to_sparse(), IMAGE),
        "sparse rows": (plain.to_sparse_csr(), IMAGE),
        "transposed": (plain.T, IMAGE.T),
        "uint16": (plain.to(torch.uint16), IMAGE.astype("u2")),
    }


KINDS = [
    "subclass", "parameter", "with gradient", "conjugate", "negative", "bfloat16", "float8", "complex half",
    "sparse", "sparse rows", "transposed", "uint16",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:ComplexHalf")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_any_kind_are_sources_and_results(kind: str) -> None:
    tensor, values = tensors()[kind]
    got = run(tensor)
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)
    result = tw.tiled_map(lambda _: tensor, IMAGE, 40, 0).compute()
    assert result.dtype == values.dtype
    np.testing.assert_array_equal(result, values)


TARGETS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda values: np.zeros(values.shape, values.dtype),
    "zarr": lambda values: zarr.create_array({}, shape=values.shape, dtype=values.dtype, chunks=(16, 24)),
    "tensor": lambda values: torch_zeros(values, ""),
    "with gradient": lambda values: torch_zeros(values, "requires_grad_"),
    "conjugate": lambda values: torch_zeros(values, "conj"),
}


def torch_zeros(values: np.ndarray, method: str) -> Any:
    import torch

    if values.dtype.kind == "u" and method == "requires_grad_":
        values = values.astype("f4")
    made = torch.from_numpy(np.zeros_like(values))
    return getattr(made, method)() if method else made


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:ComplexHalf")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_loops_take_tensors_of_any_kind(kind: str, target: str) -> None:
    tensor, values = tensors()[kind]
    rough = "sparse" in kind  # torch cuts no sparse tensors
    slices = tw.Slicer(IMAGE, 40, 0) if rough else tw.Slicer(IMAGE, 16, 2)
    output = TARGETS[target](values)
    with slices.writer(output) as out:
        for _, _, place in slices:
            out[place] = tensor if rough else tensor[place]
    stored = output.detach().resolve_conj() if hasattr(output, "detach") else output[...]
    np.testing.assert_array_equal(np.asarray(stored), values)
    sampler = tw.GridSampler(IMAGE, (40, 40), (40, 40))
    output = TARGETS[target](values)
    aggregator = tw.Aggregator(sampler, output=output, accumulate=True)
    aggregator.append(tensor, sampler.get_bbox(0))
    stored = aggregator.get_output()
    stored = stored.detach().resolve_conj() if hasattr(stored, "detach") else stored
    np.testing.assert_array_equal(np.asarray(stored), values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e5m2"])
def test_small_floats_of_numpy_are_written_into_tensors(dtype: str) -> None:
    torch, small = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    image = (IMAGE % 8).astype(getattr(small, dtype))
    output = torch.zeros(40, 40, dtype=getattr(torch, dtype))
    slices = tw.Slicer(image, 16, 2)
    with slices.writer(output) as out:
        for crop, source, place in slices:
            out[place] = crop[source]
    np.testing.assert_array_equal(output.float().numpy(), IMAGE % 8)


@pytest.mark.parametrize("target", ["numpy", "zarr"])
def test_a_writer_does_not_lose_imaginary_parts(target: str) -> None:
    refused = pytest.raises(
        tw.ContractError, match=r"dtype complex64; the array has dtype float32.*imaginary"
    )
    with tw.Slicer(IMAGE, 40, 0).writer(TARGETS[target](IMAGE)) as out, refused:
        out[:] = IMAGE * 1j


def test_tensors_of_monai_are_tensors() -> None:
    """They are defined in MONAI's module, and carry more than values."""
    data = pytest.importorskip("monai.data")
    torch = pytest.importorskip("torch")
    image = data.MetaTensor(torch.from_numpy(IMAGE), affine=torch.eye(4))
    np.testing.assert_array_equal(run(image), IMAGE)
    np.testing.assert_array_equal(run(IMAGE, lambda x: data.MetaTensor(torch.from_numpy(x))), IMAGE)
    out = tw.tiled_map(tw.from_torch(torch.nn.Identity()), image, 12, 1)
    np.testing.assert_array_equal(out.compute(), IMAGE)


def test_a_reader_may_open_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    reader = tw.load_once(lambda: torch.arange(1600).reshape(40, 40).bfloat16())
    got = run(reader)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, torch.arange(1600).reshape(40, 40).bfloat16().float())


def test_tensors_without_values_are_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(tw.TilingError, match=r"on meta; give array=tensor\.cpu"):
        run(torch.zeros(40, 40, device="meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked = torch.masked.masked_tensor(torch.zeros(12, 12), torch.zeros(12, 12, dtype=torch.bool))
        nested = torch.nested.nested_tensor([torch.zeros(3)])
    with pytest.raises(tw.ContractError, match="lose its mask"):
        run(IMAGE, lambda _: masked)
    with pytest.raises(tw.ContractError, match="nested"):
        run(IMAGE, lambda _: nested)


# -- h5py -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    records = np.zeros((40, 40), [("a", "u1"), ("b", "f4"), ("c", "f4")])
    records["b"], records["c"] = IMAGE, -IMAGE
    with h5py.File(tmp_path / "a.h5", "w") as new:
        new.create_dataset("scan/raw", data=IMAGE.astype("u2"), chunks=(10, 10))
        new["records"] = records
        new["empty"] = h5py.Empty("f4")
        new["text"] = np.full((40, 40), "ab", dtype="S2")
        new["words"] = np.full((40, 40), "ab", dtype=h5py.string_dtype())
    return tmp_path / "a.h5"


VIEWS: dict[str, tuple[Any, Any]] = {
    "dataset": (lambda f: f["scan/raw"], IMAGE.astype("u2")),
    "astype": (lambda f: f["scan/raw"].astype("f8"), IMAGE.astype("f8")),
    "field": (lambda f: f["records"].fields("b"), IMAGE),
    "other field": (lambda f: f["records"].fields("c"), -IMAGE),
    "text": (lambda f: f["text"], np.full((40, 40), b"ab")),
}


@pytest.mark.sample(0)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_file_may_be_closed_before_computing(
    view: str, scheduler: str, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is opened again by its path, which may have been relative to another folder."""
    import h5py

    monkeypatch.chdir(file.parent)
    make, values = VIEWS[view]
    with h5py.File(file.name) as opened:
        out = tw.tiled_map(np.copy, make(opened), 12, 1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(out.compute(scheduler=scheduler), values)
    np.testing.assert_array_equal(tw.view(out)[3:7, 5], values[3:7, 5])


def test_several_fields_are_read_together(file: Path) -> None:
    import h5py

    with h5py.File(file) as opened:
        both = opened["records"].fields(["b", "c"])
        out = tw.tiled_map(lambda x: x["b"] + x["c"], both, 12, 1)
        one, two = (tw.tiled_map(np.copy, opened["records"].fields(n), 12, 1) for n in "bc")
        assert one.name != two.name
    np.testing.assert_array_equal(out.compute(), np.zeros((40, 40)))


def test_stores_of_two_fields_are_not_taken_for_each_other(file: Path, tmp_path: Path) -> None:
    import h5py

    with h5py.File(file) as opened:
        one, two = (tw.tiled_map(np.copy, opened["records"].fields(n), 12, 1) for n in "bc")
        tw.to_zarr(one, tmp_path / "out.zarr", progress=False)
        with pytest.raises(tw.TilingError, match="records"):
            tw.to_zarr(two, tmp_path / "out.zarr", progress=False)


def test_a_file_that_was_open_for_writing_is_not_trusted_after_it_was_closed(file: Path) -> None:
    import h5py

    with h5py.File(file, "r+") as opened:
        out = tw.tiled_map(np.copy, opened["scan/raw"], 12, 1)
        opened["scan/raw"][0, 0] = 7
        assert out[0, 0].compute() == 7
    for scheduler in ("threads", "processes"):
        with pytest.raises(tw.TilingError, match=r"open for writing.*mode 'r'"):
            out.compute(scheduler=scheduler)


def test_a_file_that_was_replaced_after_it_was_closed_is_refused(file: Path) -> None:
    import h5py

    with h5py.File(file) as opened:
        out = tw.tiled_map(np.copy, opened["scan/raw"], 12, 1)
    with h5py.File(file, "w") as opened:
        opened["scan/raw"] = np.zeros((40, 40), "u2")
    with pytest.raises(tw.TilingError, match="was replaced or rewritten"):
        out.compute()


def test_files_and_groups_list_their_datasets(file: Path) -> None:
    import h5py

    with h5py.File(file) as opened:
        with pytest.raises(TypeError, match=r'h5py file; .*\["records"\]:\n.*records \(40, 40\)') as error:
            run(opened)
        assert "scan/raw (40, 40) uint16" in str(error.value)
        with pytest.raises(TypeError, match=r'h5py group; .*\["/scan"\]\["raw"\]:\n +raw \(40, 40\) uint16'):
            run(opened["scan"])
        with pytest.raises(TypeError, match="must be an h5py dataset; got h5py DatasetID"):
            run(opened["scan/raw"].id)
        with pytest.raises(tw.TilingError, match="empty is empty"):
            run(opened["empty"])
        with pytest.raises(tw.TilingError, match="dtype object"):
            run(opened["words"])
        with pytest.raises(tw.TilingError, match="text of h5py"):
            run(opened["words"].asstr())
        closed = opened["scan/raw"]
    for array in (closed, opened):
        with pytest.raises(tw.TilingError, match="h5py object is closed; open it again"):
            run(array)


def test_a_file_with_many_datasets_lists_some(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "many.h5", "w") as new:
        for number in range(30):
            new[f"{number:02}"] = np.zeros(3)
        with pytest.raises(TypeError, match=r"09 \(3,\) float64\n +\.\.\.$"):
            run(new)
    with h5py.File(tmp_path / "none.h5", "w") as new, pytest.raises(TypeError, match="without datasets"):
        run(new)


# -- xarray and duck arrays -------------------------------------------------------------------------------


class Duck:
    """An array of a library that has functions of its own."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)

    def __array_function__(self, *args: Any) -> Any:
        return NotImplemented

    def __array_ufunc__(self, *args: Any) -> Any:
        return NotImplemented

    def __getitem__(self, index: Any) -> Any:
        return type(self)(self.values[index])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.values, dtype)


class Sparse(Duck):
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise RuntimeError("cannot convert a sparse array to dense automatically")


class OnDevice(Duck):
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed")


class Quantity(Duck):
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        warnings.warn("the unit of the quantity is stripped", stacklevel=1)
        return self.values


def wrapped(array: Any) -> Any:
    return pytest.importorskip("xarray").DataArray(array, dims=("y", "x"))


@pytest.mark.parametrize("by", [lambda a: a, wrapped], ids=["alone", "in xarray"])
def test_duck_arrays_are_read_or_refused(by: Any) -> None:
    np.testing.assert_array_equal(run(by(Duck(IMAGE))), IMAGE)
    for kind, reason in {Sparse: "sparse array to dense", OnDevice: "implicit", Quantity: "unit"}.items():
        with pytest.raises(TypeError, match=rf"{kind.__name__}, of which numpy.*{reason}.*as_numpy\(\)"):
            run(by(kind(IMAGE)))


def test_subclasses_of_arrays_are_known_by_what_they_are() -> None:
    da, xr = pytest.importorskip("dask.array"), pytest.importorskip("xarray")

    class Dask(da.Array):  # type: ignore[misc]
        pass

    class Labelled(xr.DataArray):  # type: ignore[misc]
        __slots__ = ()

    lazy = da.from_array(IMAGE, chunks=10)
    mine = Dask(lazy.dask, lazy.name, lazy.chunks, lazy.dtype)
    np.testing.assert_array_equal(run(mine), IMAGE)
    np.testing.assert_array_equal(run(Labelled(lazy, dims=("y", "x")), axes="yx"), IMAGE)
    np.testing.assert_array_equal(run(xr.Variable(("y", "x"), IMAGE), axes="yx"), IMAGE)
    both = xr.Dataset({"one": (("y", "x"), IMAGE), "two": (("y", "x"), IMAGE)})
    with pytest.raises(TypeError, match=r"one variable.*Dataset with 'one', 'two'"):
        run((both, both))


# -- dtypes that are only moved ---------------------------------------------------------------------------

RECORD = np.dtype([("r", "u1"), ("g", "f4")])
MOVED = ["U3", "S4", "M8[s]", "m8[ns]", "V4", RECORD, np.dtype([("xyz", "f4", 3)])]


def values_of(dtype: Any) -> np.ndarray:
    dtype = np.dtype(dtype)
    if dtype.kind in "SUmM":
        return IMAGE.astype("i8").astype(dtype)
    raw = np.random.default_rng(0).integers(0, 100, (40, 40, dtype.itemsize), dtype=np.uint8)
    return np.ascontiguousarray(raw).view(dtype)[..., 0]


@pytest.mark.parametrize("dtype", MOVED, ids=str)
@pytest.mark.parametrize("edge", ["shift", "squeeze", "pad", "clip", "drop"])
def test_text_records_and_times_are_trimmed(dtype: Any, edge: Any) -> None:
    """Nothing is filled, and the fill value is left at its default."""
    image = values_of(dtype)
    got = run(image, np.copy, edge=edge, boundary="constant")
    assert got.dtype == image.dtype
    owned = (slice(0, 31),) * 2 if edge == "drop" else ...
    np.testing.assert_array_equal(got[owned], image[owned])
    np.testing.assert_array_equal(run(image, np.copy, dtype=image.dtype), image)


@pytest.mark.parametrize("dtype", MOVED, ids=str)
def test_where_nothing_ran_they_are_empty(dtype: Any) -> None:
    image = values_of(dtype)
    mask = np.zeros((2, 2), bool)
    mask[0, 0] = True
    got = tw.tiled_map(np.copy, image, 10, 0, mask=mask).compute()
    np.testing.assert_array_equal(got[:20, :20], image[:20, :20])
    np.testing.assert_array_equal(got[20:], np.zeros((20, 40), dtype))
    padded: list[np.ndarray] = []

    def keep(crop: np.ndarray) -> np.ndarray:
        padded.append(crop.copy())
        return crop

    tw.tiled_map(keep, image, 12, 1, edge="pad", boundary="constant", dtype=dtype).compute(scheduler="sync")
    assert padded[0][0, 0] == np.zeros((), dtype)[()]


def test_their_fill_values() -> None:
    words, records = values_of("U3"), values_of(RECORD)
    one = np.array((3, 1.5), RECORD)[()]
    got = tw.tiled_map(np.copy, records, 12, 1, fill_value=one, skip=lambda x: True).compute()
    assert (got == one).all()
    got = tw.tiled_map(np.copy, words, 12, 1, fill_value="no", skip=lambda x: True).compute()
    assert (got == "no").all()
    for image, value in ((words, "long text"), (words, 1), (records, 1), (records, "no")):
        with pytest.raises(tw.TilingError, match=r"fill_value .* cannot be held by dtype"):
            tw.tiled_map(np.copy, image, 12, 1, fill_value=value)
    with pytest.raises(tw.TilingError, match="dtype object"):
        run(IMAGE.astype(object))


# -- results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(0, 1), (1, 0), (5, -1), ("a", 3)])
def test_a_dict_may_have_numbers_as_keys(keys: tuple[Any, Any], tmp_path: Path) -> None:
    def fn(crop: np.ndarray) -> dict[Any, np.ndarray]:
        return {keys[0]: crop, keys[1]: -crop.astype("f8")}

    declared = {keys[0]: tw.Output("f4"), keys[1]: tw.Output("f8")}
    for out in (
        tw.tiled_map(fn, IMAGE, 12, 1),
        tw.tiled_map(fn, IMAGE, 12, 1, output=declared),
        tw.tiled_map(fn, IMAGE, 16, "auto"),
    ):
        assert tuple(out) == keys
        np.testing.assert_array_equal(out[keys[0]].compute(), IMAGE)
        np.testing.assert_array_equal(out[keys[1]].compute(), -IMAGE)
    group = tw.to_zarr(out, tmp_path / "out.zarr", progress=False)
    np.testing.assert_array_equal(group[str(keys[1])][...], -IMAGE)


def test_keys_that_would_be_one_name_are_refused() -> None:
    with pytest.raises(tw.TilingError, match=r"keys of outputs must differ as text; got \[1, '1'\]"):
        tw.tiled_map(lambda x: {1: x, "1": x}, IMAGE, 12, 1)


def test_a_tuple_stays_a_tuple_and_a_wrong_structure_is_named() -> None:
    out = tw.tiled_map(lambda x: [x, -x], IMAGE, 12, 1)
    assert isinstance(out, tuple)
    declared = tw.tiled_map(lambda x: x, IMAGE, 12, 1, output={0: tw.Output("f4"), 2: tw.Output("f4")})
    with pytest.raises(tw.ContractError, match=r"returned a ndarray; the declared outputs are \[0, 2\]"):
        declared[0].compute()
    declared = tw.tiled_map(lambda x: (x, x), IMAGE, 12, 1, output={0: tw.Output("f4"), 2: tw.Output("f4")})
    with pytest.raises(tw.ContractError, match=r"returned outputs \[0, 1\]; the declared ones are \[0, 2\]"):
        declared[0].compute()


class Method:
    def batched(self) -> None:
        """Be an attribute that has nothing to do with tilework."""

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        assert crop.ndim == 2
        return crop


def test_an_attribute_named_batched_means_nothing() -> None:
    def flagged(crop: np.ndarray) -> np.ndarray:
        assert crop.ndim == 2
        return crop

    flagged.batched = True  # type: ignore[attr-defined]
    for fn in (flagged, Method(), functools.partial(flagged)):
        np.testing.assert_array_equal(run(IMAGE, fn), IMAGE)
        np.testing.assert_array_equal(run(IMAGE, fn, dtype="f4", blend="average"), IMAGE)
    assert tw.probe(Method(), (16, 16)).overlap == (0, 0)


# -- what a predicate returns -----------------------------------------------------------------------------

TRUTHS: dict[str, tuple[Any, bool | str]] = {
    "None": (None, False),
    "bool": (True, True),
    "numpy": (np.bool_(False), False),
    "number": (0.0, False),
    "array of one": (np.array([True]), True),
    "NaN": (float("nan"), r"got nan \(float\)"),
    "text": ("no", "got 'no'"),
    "samples": (IMAGE > 3, r"got shape \(40, 40\)"),
    "nothing": ([], r"got shape \(0,\)"),
}


@pytest.mark.parametrize("case", TRUTHS)
def test_a_predicate_returns_one_truth_value(case: str) -> None:
    """NaN and text are true for Python, so that tiles were left out."""
    value, said = TRUTHS[case]
    if isinstance(said, str):
        with pytest.raises(tw.ContractError, match=f"skip must return one True or False .*{said}"):
            run(IMAGE, skip=lambda _: value)
    else:
        np.testing.assert_array_equal(run(IMAGE, skip=lambda _: value, fill_value=-1), -1 if said else IMAGE)


def test_small_floats_are_no_place_for_complex_numbers() -> None:
    small = pytest.importorskip("ml_dtypes").bfloat16
    with pytest.raises(tw.ContractError, match="returned dtype complex64; the declared dtype is bfloat16"):
        run(IMAGE, lambda x: x * 1j, dtype=small)
    np.testing.assert_array_equal(run(IMAGE % 8, dtype=small).astype("f4"), IMAGE % 8)
    with pytest.raises(tw.TilingError, match=r"values of dtype bfloat16; let the function return float32"):
        run(IMAGE, lambda x: x.astype(small), blend="hann")
