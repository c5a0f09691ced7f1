"""What a dask user does with a result out of habit: right, or refused with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

import tilework as tw

IMAGE = np.random.default_rng(0).random((64, 48)).astype("f4")


@pytest.fixture
def out() -> Any:
    """Give a lazy blended result in blocks of 16."""
    return tw.tiled_map(np.sqrt, IMAGE, 16, 4, blend="hann", dtype="f4", chunks=16)


ROOTS = np.sqrt(IMAGE)


def test_compute_persist_and_slices(out: Any) -> None:
    np.testing.assert_allclose(out.compute(), ROOTS, rtol=1e-6)
    np.testing.assert_allclose(out.persist()[3:40:2, -5:].compute(), ROOTS[3:40:2, -5:], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(out[10]), ROOTS[10], rtol=1e-6)
    one, two = dask.compute(out[:8], out[8:].sum())
    np.testing.assert_allclose(one.sum() + two, ROOTS.sum(), rtol=1e-5)


def test_what_is_made_from_a_result_is_written_as_safely(out: Any, tmp_path: Path) -> None:
    """One task per dask chunk; done-marks and all."""
    made = {"above": out > 0.5, "sum": out + out, "persisted": out.persist(), "half": out[:32]}
    for name, array in made.items():
        written = tw.to_zarr(array, tmp_path / f"{name}.zarr", progress=False)
        np.testing.assert_array_equal(written[...], array.compute())
        assert tw.status(written).complete
    assert zarr.open_array(str(tmp_path / "above.zarr")).dtype == bool


def test_what_is_made_from_a_result_is_gone_on_with(out: Any, tmp_path: Path) -> None:
    """By its dask name, or by ``version``; another one is refused."""
    first = tw.to_zarr(out > 0.5, tmp_path / "a.zarr", progress=False)
    from tilework.writing.ledger import Ledger

    done = Ledger(first).read()
    done[1, 1] = False
    Ledger(first).reset(done)
    seen: list[int] = []
    tw.to_zarr(out > 0.5, tmp_path / "a.zarr", progress=lambda n, total: seen.append(total))
    assert seen[-1] == 1
    with pytest.raises(tw.TilingError, match="changed: dask name"):
        tw.to_zarr(out > 0.6, tmp_path / "a.zarr", progress=False)
    tw.to_zarr(out > 0.5, tmp_path / "b.zarr", progress=False, version="1")
    tw.to_zarr(out > 0.6, tmp_path / "b.zarr", progress=False, version="1")


def test_slices_that_are_not_whole_units_are_refused(out: Any, tmp_path: Path) -> None:
    """Two tasks would write one chunk: dask does it, and loses samples."""
    with pytest.raises(tw.AlignmentError, match="axis 0"):
        tw.to_zarr(out[5:50], tmp_path / "a.zarr", chunks=(16, 16), progress=False)
    written = tw.to_zarr(out[5:50].rechunk(16), tmp_path / "a.zarr", progress=False)
    np.testing.assert_allclose(written[...], ROOTS[5:50], rtol=1e-6)


def test_other_chunks_than_those_that_are_there_are_refused(out: Any, tmp_path: Path) -> None:
    """For what is made from a result, too."""
    tw.to_zarr(out > 0.5, tmp_path / "a.zarr", chunks=16, progress=False)
    with pytest.raises(tw.AlignmentError, match=r"has chunks \(16, 16\); got chunks=\(8, 8\)"):
        tw.to_zarr(out > 0.5, tmp_path / "a.zarr", chunks=8, progress=False)


def test_dasks_own_writers_are_right_where_blocks_are_whole_units(out: Any, tmp_path: Path) -> None:
    """As `da.to_zarr` chooses chunks equal to the blocks; put ``tw.`` in front for any others."""
    da.to_zarr(out, str(tmp_path / "a.zarr"))
    np.testing.assert_allclose(zarr.open_array(str(tmp_path / "a.zarr"))[...], ROOTS, rtol=1e-6)
    target = np.zeros_like(IMAGE)
    da.store(out, target)
    np.testing.assert_allclose(target, ROOTS, rtol=1e-6)


def test_xarray_carries_a_result(out: Any) -> None:
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(out, dims=("y", "x"))
    np.testing.assert_allclose(array.isel(y=slice(3, 9)).values, ROOTS[3:9], rtol=1e-6)
