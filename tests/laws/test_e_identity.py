"""E1: what goes in comes out, sample by sample and bit by bit, whatever the grid and the blocks."""

from __future__ import annotations

from math import prod
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_strategies import (
    EDGES,
    EXTREMES,
    OWN,
    WINDOWS,
    Case,
    assert_same_bits,
    cases,
    covered,
    picture,
    tiled,
)
from tests.sampling import share

pytestmark = [
    pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning"),
]

ANY_DTYPE = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64", "complex64", "complex128", "datetime64[ns]", "timedelta64[s]",
    ">f4", ">i2",
)  # fmt: skip
FLOATS = ("float16", "float32", "float64", "complex64", "complex128")


def identity(crop: np.ndarray) -> np.ndarray:
    return crop


def filled(case: Case, image: np.ndarray, fill: Any) -> np.ndarray:
    """Return the image, its tiled axes where they were and `each` axes in front, as `drop` has it."""
    moved = np.moveaxis(image, case.each, range(len(case.each)))
    kept = [slice(None)] * moved.ndim
    for a, span in zip(case.crop_axes, covered(case), strict=True):
        kept[len(case.each) + a] = span
    expected = np.full_like(moved, fill)
    expected[tuple(kept)] = moved[tuple(kept)]
    return expected


def special(dtype: Any, count: int, seed: int) -> np.ndarray:
    """Return `count` values with all that arithmetic would spoil among them."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.random.default_rng(seed).random(count) < 0.5
    values = picture([count], "int64").astype(dtype)
    if dtype.kind in "fc":
        extremes = [-0.0, 0.0, np.nan, np.inf, -np.inf, 1 / 3]
        extremes += [np.finfo(dtype).max, np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal]
        extremes += [complex(-0.0, np.nan), complex(np.inf, -0.0)] if dtype.kind == "c" else []
    elif dtype.kind in "mM":
        extremes = [np.array("NaT", dtype), np.array(2**63 - 1).astype(dtype)]
    else:
        extremes = [np.iinfo(dtype).min, np.iinfo(dtype).max, np.iinfo(dtype).max - 1]
    at = np.random.default_rng(seed).integers(0, count, len(extremes))
    for k, value in zip(at, extremes, strict=True):
        values[k] = value
    return values


@given(cases(), st.sampled_from(ANY_DTYPE), st.integers(0, 9))
def test_E1_trim_returns_every_dtype_to_the_bit(case: Case, dtype: str, seed: int) -> None:
    image = special(dtype, case.image.size, seed).reshape(case.image.shape)
    out = tiled(case, identity, image=image, dtype=dtype, cval=0)
    assert_same_bits(out.compute(), filled(case, image, np.zeros((), dtype)))


@given(cases(dims=(4, 5), untiled=False, each=False))
def test_E1_trim_in_four_and_five_dimensions(case: Case) -> None:
    out = tiled(case, identity, dtype=case.image.dtype)
    assert_same_bits(out.compute(), filled(case, case.image, 0))


@given(cases(words=(*WINDOWS, *OWN, *EXTREMES)), st.sampled_from(("uint8", "uint16", "int16")))
def test_E1_blends_return_integers_exactly(case: Case, dtype: str) -> None:
    info = np.iinfo(dtype)
    image = picture(case.image.shape, "int64") * 977 % (info.max - info.min + 1) + info.min
    image = image.astype(dtype)
    out = tiled(case, identity, image=image, dtype=dtype)
    assert_same_bits(out.compute(), filled(case, image, 0))


@given(cases(words=WINDOWS), st.sampled_from(("int32", "uint32", "int8")))
def test_E1_blends_return_integers_that_are_declared_exactly(case: Case, dtype: str) -> None:
    info = np.iinfo(dtype)
    image = picture(case.image.shape, "int64") * 123457 % (info.max - info.min + 1) + info.min
    image = image.astype(dtype)
    out = tiled(case, identity, image=image, dtype=dtype)
    assert_same_bits(out.compute(), filled(case, image, 0))


@given(cases(words=(*WINDOWS, *OWN)), st.sampled_from(FLOATS))
def test_E1_blends_return_floats_to_4_ulp(case: Case, dtype: str) -> None:
    image = np.cbrt(1 + picture(case.image.shape)).astype(dtype)
    if dtype.startswith("complex"):
        image = (image * (2 - 3j)).astype(dtype)
    result = tiled(case, identity, image=image, dtype=dtype).compute()
    expected = filled(case, image, 0)
    assert result.dtype == expected.dtype
    if dtype == "float16":  # sums are float32
        assert_same_bits(result, expected)
    # 4 ulp for up to 16 tiles over a sample; a sum of N parts may lose N / 4.
    tiles = prod(-(-c // s) for c, s in zip(case.crops, case.strides, strict=True))
    for part in ("real", "imag") if dtype.startswith("complex") else ("real",):
        got, want = getattr(result, part), getattr(expected, part)
        assert (np.abs(got - want) <= max(4, tiles / 4) * np.spacing(np.abs(want))).all()


@given(cases(words=EXTREMES), st.sampled_from(("bool", "int64", "uint64", "float16", "float64")))
def test_E1_max_and_min_return_any_ordered_dtype(case: Case, dtype: str) -> None:
    image = special(dtype, case.image.size, 0).reshape(case.image.shape)
    image = np.where(image == 0, 0, image).astype(dtype)  # which of -0.0 and 0.0 is larger is open
    result = tiled(case, identity, image=image, dtype=dtype, cval=0).compute()
    np.testing.assert_array_equal(result, filled(case, image, 0), strict=True)


@given(cases(dims=(4, 5), words=("gaussian", "average"), untiled=False, each=False))
def test_E1_blends_in_four_and_five_dimensions(case: Case) -> None:
    image = case.image.astype("uint16")
    out = tiled(case, identity, image=image, dtype="uint16")
    assert_same_bits(out.compute(), filled(case, image, 0))


@pytest.mark.parametrize("extent", [1, 7, 8, 9, 15, 16, 17])
@pytest.mark.parametrize("edge", [e for e in EDGES if e != "drop"])
@pytest.mark.parametrize("blend", ["trim", "gaussian"])
def test_E1_pinned_extents(blend: str, edge: str, extent: int) -> None:
    image = picture([extent, 3], "uint16")
    for axis in (0, 1):
        given_image = np.moveaxis(image, 0, axis)
        out = tw.tiled_map(
            identity, given_image, 8, 2, axes=(axis,), edge=edge, blend=blend, dtype="uint16",
            chunks=8,
        )  # fmt: skip
        assert_same_bits(out.compute(), np.ascontiguousarray(given_image))


@settings(max_examples=share(20))
@given(cases(words=("trim", *WINDOWS), dims=(1, 2)), st.sampled_from(("numpy", "zarr", "dask")))
def test_E1_a_crop_is_the_functions_own(case: Case, kind: str) -> None:
    """It may write into what it gets: neither the source nor a neighbour sees it."""

    def spoil(crop: np.ndarray) -> np.ndarray:
        result = crop + 1
        crop[...] = -1
        return result

    image = case.image.copy()
    if kind == "zarr":
        options: dict[str, Any] = {"chunks": image.shape, "dtype": image.dtype, "compressors": None}
        array = zarr.create_array(zarr.storage.MemoryStore(), shape=image.shape, **options)
        array[...] = image
        given_image: Any = array
    else:
        image.flags.writeable = False
        given_image = image if kind == "numpy" else da.from_array(image, chunks=-1)
    out = tiled(case, spoil, image=given_image, dtype="float64", fill_value=1)
    for _ in range(2):
        np.testing.assert_allclose(out.compute(), filled(case, case.image, 0) + 1, rtol=1e-12)
    np.testing.assert_array_equal(given_image[...], case.image)


@pytest.mark.parametrize("blend", ["trim", "average", "max"])
@pytest.mark.parametrize("dtype", [">f4", ">i2", "<f8"])
def test_E1_blocks_keep_the_byte_order(dtype: str, blend: str) -> None:
    """Also those that end in fill_value."""
    image = picture([21], dtype)
    out = tw.tiled_map(identity, image, 6, 1, edge="drop", blend=blend, dtype=dtype, chunks=6, fill_value=-1)
    for block in out.blocks:
        assert block.compute().dtype == out.dtype == np.dtype(dtype)
    result = out.compute()
    assert result[-1] == -1
    np.testing.assert_allclose(result[result >= 0], image[result >= 0], rtol=1e-6)
