"""`GridSampler`, `Aggregator` and `Slicer` in code written for Patchly and Ryomen: results and exceptions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tilework import Aggregator, GridSampler, Slicer, TilingError


def stored(kind: str, tmp_path: Path, shape: tuple[int, ...], dtype: str = "f4") -> Any:
    """Return an empty output of a library that stores arrays."""
    if kind == "h5py":
        file = pytest.importorskip("h5py").File(tmp_path / "out.h5", "w")
        return file.create_dataset("out", shape=shape, dtype=dtype, chunks=(4,) * len(shape))
    if kind == "h5py contiguous":
        return pytest.importorskip("h5py").File(tmp_path / "out.h5", "w").create_dataset("out", shape, dtype)
    return zarr.create_array(
        tmp_path / "out.zarr", shape=shape, dtype=dtype, chunks=(4,) * len(shape), zarr_format=int(kind[-1])
    )


@pytest.mark.parametrize("kind", ["zarr 2", "zarr 3", "h5py", "h5py contiguous"])
@pytest.mark.parametrize("weights", ["avg", "gaussian"])
def test_the_result_of_a_stored_output_can_be_computed_with(kind: str, weights: str, tmp_path: Path) -> None:
    """Without chunks, as Patchly returns it; with chunks, and in place, it is the output."""
    image = np.random.default_rng(0).random((16, 16)).astype("f4")
    for chunks, inplace, own in ((None, False, False), (None, True, True), ((8, 8), False, True)):
        (tmp_path / f"{chunks}{inplace}").mkdir()
        output = stored(kind, tmp_path / f"{chunks}{inplace}", (16, 16))
        sampler = GridSampler(image, (16, 16), (4, 4), (2, 2), chunk_size=chunks)
        aggregator = Aggregator(sampler, output=output, weights=weights)
        for patch, box in sampler:
            aggregator.append(patch, box)
        got = aggregator.get_output(inplace=inplace)
        np.testing.assert_allclose(output[...], image, rtol=1e-5)
        if own:
            assert got is output
        else:
            assert isinstance(got, np.ndarray)
            np.testing.assert_allclose(
                (got > 0.5) * 2 + got.mean(), (image > 0.5) * 2 + image.mean(), rtol=1e-4
            )


def test_classes_of_a_stored_output_can_be_computed_with(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((3, 16, 16)).astype("f4")
    sampler = GridSampler(image, (16, 16), (4, 4), (2, 2), spatial_first=False)
    for shape, dtype in (((16, 16), "u1"), ((3, 16, 16), "f4")):
        output = stored("zarr 3", tmp_path / str(len(shape)), shape, dtype)
        aggregator = Aggregator(sampler, output=output, softmax_dim=0, spatial_first=False)
        for patch, box in sampler:
            aggregator.append(patch, box)
        np.testing.assert_array_equal(aggregator.get_output() + 1, image.argmax(0) + 1)


GIVEN = np.zeros((16, 16), "f4")
SAMPLER_ERRORS: dict[str, tuple[Any, ...]] = {
    "another size": (GIVEN, (16, 17), (4, 4)),
    "too many axes": (GIVEN, (16, 16, 16), (4, 4, 4)),
    "patch of other axes": (GIVEN, (16, 16), (4, 4, 4)),
    "step over patch": (GIVEN, (16, 16), (4, 4), (5, 5)),
    "step of other axes": (GIVEN, (16, 16), (4, 4), (2, 2, 2)),
    "chunk under patch": (GIVEN, (16, 16), (4, 4), (2, 2), (3, 3)),
    "chunk of other axes": (GIVEN, (16, 16), (4, 4), (2, 2), (8, 8, 8)),
    "no array": (object(), (16, 16), (4, 4)),
    "no step": (GIVEN, (16, 16), (4, 4), (0, 0)),
}


@pytest.mark.parametrize("arguments", SAMPLER_ERRORS.values(), ids=SAMPLER_ERRORS)
def test_errors_of_a_sampler_are_caught_by_what_is_written_for_patchly(arguments: Any) -> None:
    with pytest.raises(RuntimeError) as error:
        GridSampler(*arguments)
    assert isinstance(error.value, TilingError | TypeError)
    assert isinstance(error.value, ValueError)
    assert error.value.__suppress_context__
    again = pickle.loads(pickle.dumps(error.value))
    assert (type(again), str(again)) == (type(error.value), str(error.value))


def test_an_unknown_mode_is_not_implemented() -> None:
    with pytest.raises(NotImplementedError, match="did you mean 'sample_edge'") as error:
        GridSampler(GIVEN, (16, 16), (4, 4), mode="sample_edges")
    assert isinstance(error.value, TilingError)


AGGREGATOR_ERRORS: dict[str, dict[str, Any]] = {
    "no output": {},
    "two sizes": {"output": GIVEN, "output_size": (16, 17)},
    "another size": {"output_size": (16, 18)},
    "another output": {"output": np.zeros((15, 16))},
    "no array": {"output": object()},
    "weights": {"output_size": (16, 16), "weights": 3 + 4j},
    "weights of a word": {"output_size": (16, 16), "weights": "gaussians"},
    "postprocessing": {"output_size": (16, 16), "chunk_postprocess_func": 3},
}


@pytest.mark.parametrize("options", AGGREGATOR_ERRORS.values(), ids=AGGREGATOR_ERRORS)
def test_errors_of_an_aggregator_are_caught_by_what_is_written_for_patchly(options: Any) -> None:
    sampler = GridSampler(GIVEN, (16, 16), (4, 4))
    with pytest.raises(RuntimeError) as error:
        Aggregator(sampler, **options)
    assert isinstance(error.value, TilingError | TypeError)


def test_errors_while_appending_are_caught_too() -> None:
    sampler = GridSampler(GIVEN, (16, 16), (4, 4))
    aggregator = Aggregator(sampler, output_size=(16, 16), missing="error")
    for patch, box in ((np.zeros((3, 4)), sampler.get_bbox(0)), (np.zeros((4, 4)), [[1, 5], [0, 4]])):
        for kind in (RuntimeError, ValueError, TilingError):
            with pytest.raises(kind):
                aggregator.append(patch, box)
    with pytest.raises(RuntimeError, match="did not come"):
        aggregator.get_output()


def test_errors_of_the_function_keep_their_type() -> None:
    class Own(TilingError):
        pass

    for kind in (TypeError, KeyError, Own):

        def fails(chunk: Any, kind: Any = kind) -> Any:
            raise kind("mine")

        sampler = GridSampler(GIVEN, (16, 16), (8, 8), chunk_size=(8, 8))
        aggregator = Aggregator(sampler, output=np.zeros((16, 16)), chunk_postprocess_func=fails)
        patch, box = sampler[0]
        with pytest.raises(kind, match="mine") as error:
            aggregator.append(patch, box)
        assert type(error.value) is kind


@pytest.mark.parametrize("arguments", [
    {"crop_size": (5, 5), "overlap": (3, 3)}, {"crop_size": (5, 5, 5), "overlap": (1, 1, 1)},
    {"crop_size": (5, 5), "overlap": (1, 1, 1)}, {"crop_size": (5, 5), "overlap": (-1, -1)},
    {"crop_size": (0, 5), "overlap": (0, 0)}, {"crop_size": (5, 5), "overlap": (1, 1), "batch_size": 0},
    {"crop_size": (5, 5), "overlap": (1, 1), "stride_offset": -3}, {"image": 3},
])  # fmt: skip
def test_errors_of_a_slicer_are_caught_by_what_is_written_for_ryomen(arguments: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError) as error:
        Slicer(**({"image": GIVEN, "crop_size": (5, 5), "overlap": (1, 1)} | arguments))
    assert isinstance(error.value, ValueError)


def test_the_originals_raise_what_is_caught_here() -> None:
    """Where both refuse, each error is an instance of the original's type."""
    patchly, ryomen = pytest.importorskip("patchly"), pytest.importorskip("ryomen")
    compared = 0
    for arguments in SAMPLER_ERRORS.values():
        try:
            patchly.GridSampler(*arguments)
        except RuntimeError as error:
            with pytest.raises(type(error)):
                GridSampler(*arguments)
            compared += 1
        except Exception:
            pass  # an accident, such as a missing attribute
    for options in AGGREGATOR_ERRORS.values():
        try:
            patchly.Aggregator(patchly.GridSampler(GIVEN, (16, 16), (4, 4)), **options)
        except RuntimeError as error:
            with pytest.raises(type(error)):
                Aggregator(GridSampler(GIVEN, (16, 16), (4, 4)), **options)
            compared += 1
        except Exception:
            pass
    for crop, overlap, kind in (((5, 5), (3, 3), ValueError), ((5.0, 5), (1, 1), TypeError)):
        for slicer in (ryomen.Slicer, Slicer):
            with pytest.raises(kind):
                slicer(GIVEN, crop_size=crop, overlap=overlap)
    assert compared >= 8
