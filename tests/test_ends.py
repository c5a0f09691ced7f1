"""The ends of types: floats that become integers, NaN that no integer can hold, inf, largest floats."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilework as tw

# Integers of 32 and 64 bits may be labels.
pytestmark = pytest.mark.filterwarnings("ignore:fn returns .* as functions that number objects do")

INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32")
LONG = ("int64", "uint64")
WEIGHTED = ("average", "linear", "hann", "gaussian", np.full(16, 2.5))
UNWEIGHTED = ("max", "min", "sum")
FILL = 7


def constant(value: Any) -> Callable[[Any], Any]:
    return lambda crop: np.full_like(crop, value)


def said(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return the value of a call, and the warnings of this package that it made."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        value = call()
    return value, [str(w.message) for w in found if issubclass(w.category, tw.TilingWarning)]


def blended(value: Any, source: Any, dtype: str, blend: Any, **more: Any) -> Any:
    options = {"stride": 8, "blend": blend, "dtype": dtype, "fill_value": FILL, "chunks": 8} | more
    return tw.tiled_map(constant(value), np.zeros(40, source), 16, **options)


def ends(dtype: str) -> list[tuple[float, int]]:
    """Return floats that an integer cannot hold, with the integers that they become."""
    info = np.iinfo(dtype)
    low, high = int(info.min), int(info.max)
    return [(3e30, high), (-3e30, low), (np.inf, high), (-np.inf, low), (float(high), high), (low, low)]


@pytest.mark.sample(4)
@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_blends_clip_at_both_ends(dtype: str, source: str) -> None:
    """A blend of 3e9 as int32 was -2147483648: float32 does not hold 2147483647."""
    for blend in (*WEIGHTED, *UNWEIGHTED):
        for value, end in ends(dtype):
            found = blended(value, source, dtype, blend).compute(scheduler="sync")
            assert found.dtype == dtype
            assert (found == end).all(), (blend, value)


@pytest.mark.parametrize("source", ["float16", "float32", "float64", "longdouble"])
@pytest.mark.parametrize("dtype", [*INTEGERS, *LONG])
def test_reductions_and_patches_clip_at_both_ends(dtype: str, source: str) -> None:
    for value, end in ends(dtype):
        with np.errstate(over="ignore"):
            low = np.array(value).astype(source)  # float16 may make it inf
        if float(low) != value and np.isfinite(low):
            continue
        reduced = tw.Output(dtype, reduce=lambda block: block)
        out = tw.tiled_map(constant(low), np.zeros(40, source), 16, stride=8, output=reduced)
        assert (out.compute(scheduler="sync") == end).all(), value
        if source == "float64":
            sampler = tw.GridSampler(np.zeros(40), (40,), (16,), (8,))
            aggregator = tw.Aggregator(sampler, output_size=(40,), dtype=dtype)
            for patch, box in sampler:
                aggregator.append(patch + value, box)
            assert (aggregator.get_output() == end).all(), value


@pytest.mark.parametrize("dtype", LONG)
def test_extremes_clip_64_bit_integers(dtype: str) -> None:
    for value, end in ends(dtype):
        assert (blended(value, "float32", dtype, "max").compute() == end).all(), value


@pytest.mark.parametrize("reuse", ["share", "recompute"])
def test_sums_of_64_bit_integers_stay_at_the_end(reuse: str) -> None:
    for dtype, value, end in (
        ("int64", 2**62, 2**63 - 1),
        ("int64", -(2**62) - 5, -(2**63)),
        ("uint64", 2**63, 2**64 - 1),
    ):
        chunks = 16 if reuse == "share" else 8
        out = blended(value, dtype, dtype, "sum", stride=4, reuse=reuse, chunks=chunks).compute()
        assert out[20] == end
        assert out[0] == value


def test_integers_outside_of_the_declared_type_are_refused_by_trim() -> None:
    out = tw.tiled_map(lambda c: c.astype("int64") + 300, np.zeros(40), 16, 2, dtype="uint8")
    with pytest.raises(tw.ContractError, match="cannot hold"):
        out.compute(scheduler="sync")
    with pytest.raises(tw.ContractError, match="float64"):
        tw.tiled_map(lambda c: c + 300, np.zeros(40), 16, 2, dtype="uint8").compute(scheduler="sync")


def test_a_function_may_change_its_dtype_from_crop_to_crop() -> None:
    """A canvas of integers takes later floats without cutting them."""

    def varying(crop: Any) -> Any:
        return crop.astype("int16") if crop[0] == 0 else crop + 0.5

    image = np.arange(40, dtype="float32")
    for blend, at in (("sum", 41), ("max", 20.5), ("average", 20.5)):
        out = tw.tiled_map(varying, image, 16, stride=8, blend=blend, dtype="float32", chunks=40).compute()
        assert out[20] == at
        assert out[39] == 39.5

    def wider(crop: Any) -> Any:
        return crop.astype("int8") if crop[0] == 0 else crop.astype("int32") + 1000

    for blend in ("max", "sum"):
        big = tw.tiled_map(wider, image, 16, stride=8, blend=blend, dtype="int32", chunks=40).compute()
        assert big[39] == 1039
    halves = tw.Output("int32", reduce=lambda block: block * 2)
    twice = tw.tiled_map(varying, image, 16, stride=8, blend="sum", output=halves, chunks=40).compute()
    assert twice[20] == 82


# -- NaN --------------------------------------------------------------------------------------------------


def spotted(crop: Any) -> Any:
    """Return the crop with NaN where it is 5 or 35."""
    return np.where((crop == 5) | (crop == 35), np.nan, crop)


def integers(**more: Any) -> Any:
    options = {"stride": 8, "blend": "average", "dtype": "int16", "fill_value": FILL, "chunks": 8} | more
    return tw.tiled_map(spotted, np.arange(40, dtype="float32"), 16, **options)


def expected() -> Any:
    return np.where(np.isin(np.arange(40), (5, 35)), FILL, np.arange(40))


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_nan_becomes_the_fill_value_with_one_warning_per_run(scheduler: str) -> None:
    out = integers(reuse="recompute")
    assert out.npartitions == 5
    for _ in range(3):
        found, told = said(lambda: out.compute(scheduler=scheduler))
        assert (found == expected()).all()
        assert len(told) == 1
        assert "NaN" in told[0]


def test_no_warning_without_nan_or_for_a_float_result() -> None:
    fine = tw.tiled_map(np.negative, np.arange(40.0), 16, stride=8, blend="average", dtype="int16")
    assert said(fine.compute)[1] == []
    floats = integers(dtype="float32")
    found, told = said(floats.compute)
    assert np.isnan(found[[5, 35]]).all()
    assert told == []


def test_nan_of_several_outputs_in_every_integer_type() -> None:
    outputs = {d: tw.Output(d, fill_value=k) for k, d in enumerate(INTEGERS)}

    def many(crop: Any) -> Any:
        return {d: spotted(crop) for d in INTEGERS}

    result = tw.tiled_map(many, np.arange(40.0), 16, stride=8, blend="hann", output=outputs)
    import dask

    found, told = said(lambda: dask.compute(result)[0])
    assert [int(found[d][35]) for d in INTEGERS] == list(range(6))
    assert len(told) == 1


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_written_result_says_it_once_with_the_number(tmp_path: Any, scheduler: str) -> None:
    def write() -> Any:
        return tw.to_zarr(integers(), tmp_path / "o.zarr", chunks=8, scheduler=scheduler, progress=False)

    written, told = said(write)
    assert (written[:] == expected()).all()
    assert len(told) == 1
    assert told[0].startswith("2 samples")
    assert said(write)[1] == []  # nothing is left to compute


def test_a_written_result_without_compute_says_it(tmp_path: Any) -> None:
    later = tw.to_zarr(integers(), tmp_path / "o.zarr", chunks=8, compute=False)
    assert len(said(lambda: later.compute(scheduler="sync"))[1]) == 1


def test_many_written_results_say_it_once(tmp_path: Any) -> None:
    jobs = [(integers(), tmp_path / f"{k}.zarr") for k in range(3)]
    _, told = said(lambda: tw.write_many(jobs, progress=False))
    assert len(told) == 1
    assert told[0].startswith("6 samples")


def test_a_view_and_patches_say_it() -> None:
    shown = tw.view(integers(), verbose=False)
    assert len(said(lambda: shown[:10])[1]) == 1
    assert said(lambda: shown[10:20])[1] == []
    sampler = tw.GridSampler(np.arange(40.0), (40,), (16,), (8,))
    aggregator = tw.Aggregator(sampler, output_size=(40,), dtype="int16", fill_value=FILL)
    for patch, box in sampler:
        aggregator.append(spotted(patch), box)
    for _ in range(2):
        found, told = said(aggregator.get_output)
        assert (found == expected()).all()
        assert len(told) == 1


def test_workers_tell_their_client() -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    )
    with cluster, distributed.Client(cluster):
        found, told = said(integers(reuse="recompute").compute)
    assert (found == expected()).all()
    assert len(told) == 1


# -- inf and the largest floats ---------------------------------------------------------------------------

MAPS: tuple[Any, ...] = (
    "average", "linear", "hann", "gaussian", np.full((16, 16), 2.5), np.full((16, 16), 1e-9),
)  # fmt: skip
IDS = ("average", "linear", "hann", "gaussian", "map", "small map")


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("blend", MAPS, ids=IDS)
@pytest.mark.parametrize("masked", [False, True])
def test_complex_inf_stays_inf(blend: Any, dtype: str, masked: bool) -> None:
    image = np.zeros((40, 40), dtype)
    image[20, 20], image[30, 9] = complex(np.inf, 1), complex(2, -np.inf)
    mask = np.ones((40, 40), bool)
    mask[:5] = not masked
    out = tw.tiled_map(lambda c: c, image, 16, stride=8, blend=blend, dtype=dtype, mask=mask).compute()
    assert out[20, 20].real == np.inf
    assert out[30, 9].imag == -np.inf
    assert np.isclose(out[20, 20].imag, 1)
    assert np.isclose(out[30, 9].real, 2)
    assert np.isfinite(out).sum() == 40 * 40 - 2


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("blend", MAPS, ids=IDS)
@pytest.mark.parametrize(
    "more", [{}, {"reuse": "recompute", "chunks": 16}, {"mask": np.arange(40) > 20}], ids=str
)
def test_an_average_of_the_largest_float_is_finite(blend: Any, dtype: str, more: dict[str, Any]) -> None:
    info = np.finfo(dtype)
    most = complex(info.max, -info.max) if np.dtype(dtype).kind == "c" else info.max
    more = {k: np.broadcast_to(v[:, None], (40, 40)) if k == "mask" else v for k, v in more.items()}
    for stride in (5, 8):
        with np.errstate(over="raise"):
            out = tw.tiled_map(
                constant(most), np.zeros((40, 40), dtype), 16, stride=stride, blend=blend, dtype=dtype, **more
            ).compute(scheduler="sync")
        ran = out[out != 0]
        assert ran.size
        assert np.isfinite(ran).all()
        assert np.allclose(ran / info.max, most / info.max, rtol=4 * info.eps, atol=0)


def test_the_largest_float_next_to_inf() -> None:
    image = np.full(40, np.finfo("float64").max)
    image[[7, 20]] = np.inf, -np.inf
    out = tw.tiled_map(lambda c: c, image, 16, stride=3, blend="hann", dtype="float64").compute()
    assert np.flatnonzero(np.isinf(out)).tolist() == [7, 20]
    assert out[7] > 0 > out[20]
    with np.errstate(over="ignore"):
        total = tw.tiled_map(lambda c: c, image, 16, stride=8, blend="sum", dtype="float64").compute(
            scheduler="sync"
        )
    assert np.isinf(total).sum() > 2  # a sum is no average


# -- into arrays that are there ---------------------------------------------------------------------------


def test_accumulating_aggregators_stay_at_the_end() -> None:
    output = np.full(40, 250, np.uint8)
    sampler = tw.GridSampler(np.full(40, 10, np.uint8), (40,), (16,), (16,))
    aggregator = tw.Aggregator(sampler, output=output, accumulate=True)
    for patch, box in sampler:
        aggregator.append(patch, box)
    assert set(np.unique(aggregator.get_output())) == {255}


@pytest.mark.parametrize("value", [300, -1, np.nan, np.inf, np.uint16(256)])
@pytest.mark.parametrize("chunked", [False, True])
def test_writers_refuse_values_that_the_array_cannot_hold(value: Any, chunked: bool) -> None:
    import zarr

    out: Any = zarr.zeros((8,), chunks=(4,), dtype="uint8") if chunked else np.zeros(8, np.uint8)
    slicer = tw.Slicer(np.zeros(8), crop_size=4, overlap=0)
    with slicer.writer(out) as writer:
        writer[0:4] = np.full(4, 254.5)
        with pytest.raises(tw.ContractError, match="uint8"):
            writer[4:8] = np.full(4, value, float if not isinstance(value, np.uint16) else "uint16")
        writer[4:8] = np.arange(4.0)
    assert out[:].tolist() == [254] * 4 + [0, 1, 2, 3]
