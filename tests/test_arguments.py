"""An argument that makes no sense is refused by the call, in words that name it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

import tilework as tw
from tests import fuzz_arguments
from tests.fuzz_arguments import ENTRIES, VALUES, elsewhere, fuzz, is_foreign

IMAGE = np.arange(120.0, dtype="f4").reshape(12, 10)
QUIET = pytest.mark.filterwarnings(
    # zarr leaves a coroutine behind where it refuses an argument.
    "ignore:coroutine:RuntimeWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def result(**options: Any) -> Any:
    return tw.tiled_map(np.sqrt, IMAGE, 6, 1, dtype="f4", chunks=6, **options)


@QUIET
@pytest.mark.parametrize("seed", [101, 202])
def test_random_arguments_end_in_an_error_of_ours(seed: int) -> None:
    with elsewhere():
        assert [str(found) for found in fuzz(400, seed)] == []


@QUIET
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twenty_thousand_random_calls(seed: int) -> None:
    with elsewhere():
        assert [str(found) for found in fuzz(20_000, seed)] == []


def test_the_fuzz_tells_errors_apart() -> None:
    def fails(make: Callable[[], Any]) -> BaseException:
        try:
            make()
        except Exception as error:
            return error
        raise AssertionError("nothing was raised")

    assert is_foreign(fails(lambda: np.zeros("x")))
    assert is_foreign(fails(lambda: tw.Box((0,), (3,)).shift(None))), "a TypeError of an operation"
    assert not is_foreign(fails(lambda: tw.plan_tiles((9,), "x", 0)))
    with elsewhere():
        assert isinstance(fuzz_arguments.call("plan_tiles", {"crop": "string"}), TypeError)
        assert fuzz_arguments.call("plan_tiles", {}) is None


def test_every_entry_works_with_its_own_arguments() -> None:
    with elsewhere():
        for name in ENTRIES:
            error = fuzz_arguments.call(name, {})
            assert error is None, (name, error)


MEMBERS: dict[str, tuple[Callable[[], Any], str]] = {
    "resources, a word": (lambda: tw.to_zarr(result(), store(), resources="x"), "resources must be a dict"),
    "resources, words": (lambda: tw.to_zarr(result(), store(), resources={"GPU": "x"}), "GPU.* must be a n"),
    "resources, an array": (lambda: tw.to_zarr(result(), store(), resources=IMAGE), "resources must be"),
    "version, a number": (lambda: tw.to_zarr(result(), store(), version=3), "version must be a string"),
    "version, bytes": (lambda: tw.to_zarr(result(), store(), version=b"3"), "version must be a string"),
    "version of load_once": (lambda: tw.load_once(dict, version=3), "version must be a string"),
    "scheduler, a word": (lambda: tw.to_zarr(result(), store(), scheduler="x"), "scheduler must be"),
    "scheduler, a list": (lambda: tw.to_zarr(result(), store(), scheduler=[1]), "scheduler must be"),
    "scheduler, a function": (
        lambda: tw.to_zarr(result(), store(), scheduler=lambda: 3),
        "scheduler is called with a graph",
    ),
    "priority": (lambda: tw.to_zarr(result(), store(), priority="high"), "priority must be a whole"),
    "path": (lambda: tw.to_zarr(result(), store(), path=3), "path must be a string"),
    "on_error": (lambda: tw.to_zarr(result(), store(), on_error=IMAGE), "on_error must be one of"),
    "a store that computes": (lambda: tw.to_zarr(result(), da.ones((12, 10))), "store must hold data"),
    "no store": (lambda: tw.to_zarr(result(), None), "store must be a path"),
    "a store of another dimension": (
        lambda: tw.to_zarr(result(), zarr.zeros(7, store=store())),
        r"has shape \(7,\); the result has \(12, 10\)",
    ),
    "a numpy array of another dimension": (
        lambda: tw.to_zarr(result(), np.zeros((2, 12, 10), "f4")),
        r"has shape \(2, 12, 10\); the result has",
    ),
    "an unknown option": (lambda: tw.to_zarr(result(), store(), colour=3), "refuses colour=3"),
    "an option of zarr": (lambda: tw.to_zarr(result(), store(), fill_value="x"), "refuses fill_value='x'"),
    "attributes": (lambda: tw.to_zarr(result(), store(), attributes=3), "attributes must be a dict"),
    "zarr_format": (lambda: tw.to_zarr(result(), store(), zarr_format="3"), "zarr_format must be 2 or 3"),
    "jobs": (lambda: tw.write_many(3), "jobs must be an iterable"),
    "options of a job": (
        lambda: tw.write_many([(result(), store(), 3)], on_error="raise"),
        "options of job 0 must be a dict",
    ),
    "a path of a job": (
        lambda: tw.write_many([(result(), store(), {"path": 3})], on_error="raise"),
        "path must be a string",
    ),
    "seed of probe": (lambda: tw.probe(np.sqrt, (12, 8), seed="x"), "seed must be a whole number"),
    "seed of check": (lambda: tw.check(result(), seed=-1), "seed must be a whole number, at least 0"),
    "context of check": (lambda: tw.check(result(), context=(1, 2, 3)), "context needs one number per tiled"),
    "no context of check": (lambda: tw.check(result(), context=()), "context needs one number per tiled"),
    "context of check below 0": (lambda: tw.check(result(), context=-1), "context must be a whole number"),
    "batch_size of probe": (lambda: tw.probe(np.sqrt, (12, 8), batch_size="nonsense"), "batch_size must be"),
    "values of probe": (lambda: tw.probe(np.sqrt, (12, 8), values=3), "values must be"),
    "where": (lambda: tw.check(result(), where=3), "where must be one of"),
    "a channel axis": (
        lambda: tw.tiled_map(np.sqrt, IMAGE, 6, 1, output=tw.Output("f4", channels=3, channel_axis=10**9)),
        "axes of a result|channel_axis",
    ),
    "channels": (lambda: tw.Output("f4", channels=10**400), "channels"),
    "a dtype that is a number": (lambda: tw.Output(np.float64("nan")), "dtype must be a numpy dtype"),
    "a dtype that is an image": (lambda: result_as(IMAGE), "dtype must be a numpy dtype"),
    "a scale": (lambda: tw.Output("f4", scale=10**30), "scale must be positive"),
    "a window of words": (lambda: result(blend=["x", "y"]), "blend must|a window of blend must"),
    "a duration as bytes": (
        lambda: result(memory_limit=np.timedelta64(3, "s")),
        "memory_limit must be bytes",
    ),
    "a fraction of a byte": (lambda: result(memory_limit="."), "memory_limit must be bytes"),
    "no plan": (lambda: tw.TilePlan.from_json("{}"), "text must be a plan"),
    "no JSON": (lambda: tw.TilePlan.from_json("x"), "text must be what to_json returned"),
    "half a plan": (lambda: tw.TilePlan.from_json('{"tilework_plan": 1, "axes": 3}'), "a part is missing"),
    "no box": (lambda: tw.plan_tiles((9,), 3, 0).calls((0, 3)), "box must be a Box"),
    "a box outside": (lambda: tw.plan_tiles((9,), 3, 0).calls(tw.Box((0,), (10,))), "box must lie in"),
    "no sampler": (lambda: tw.Aggregator(3, (12, 10)), "sampler must be"),
    "a ragged box": (lambda: sampler().position([[1], [1, 2]]), "bbox must be an array of numbers"),
    "no output": (lambda: tw.Slicer(IMAGE, 6, 1).writer(3), "output must have shape"),
    "a crop beyond memory": (lambda: tw.Slicer(IMAGE, 10**9, 1), "one crop of"),
    "options of numpy.pad": (lambda: sampler(mode="pad_end", pad_kwargs=3), "pad_kwargs must be a dict"),
    "arguments of a factory": (lambda: tw.load_once(dict, 3), "args must be a tuple"),
    "what cannot travel": (lambda: tw.load_once(dict, (i for i in range(3))), "args must be a tuple"),
    "progress": (lambda: tw.to_zarr(result(), store(), progress=lambda: 3), "progress is called with"),
}  # fmt: skip


def store() -> Any:
    return zarr.storage.MemoryStore()


def sampler(**options: Any) -> Any:
    return tw.GridSampler(IMAGE, (12, 10), (4, 4), **options)


def result_as(dtype: Any) -> Any:
    return tw.tiled_map(np.sqrt, IMAGE, 6, 1, dtype=dtype)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_message_names_the_argument(name: str) -> None:
    make, words = MEMBERS[name]
    with pytest.raises((tw.TilingError, TypeError), match=words) as caught:
        make()
    assert not is_foreign(caught.value)


@pytest.mark.parametrize("wrong", ["thread", 5, lambda: 3, Any, "distributed"])
def test_a_wrong_scheduler_in_the_configuration_is_named_with_its_value(wrong: Any) -> None:
    kinds, words = (tw.TilingError, TypeError), "^the scheduler in dask's configuration .*"
    with dask.config.set(scheduler=wrong), pytest.raises(kinds, match=words + re.escape(repr(wrong))):
        tw.compute(result())
    with pytest.raises(kinds, match="^scheduler .*" + re.escape(repr(wrong))):
        tw.compute(result(), scheduler=wrong)
    with dask.config.set(scheduler=wrong):
        tw.compute(result(), scheduler="sync")


def test_a_refused_option_deletes_nothing(tmp_path: Path) -> None:
    written = tw.to_zarr(result(), tmp_path / "a.zarr", progress=False)
    with pytest.raises(tw.TilingError, match="refuses colour"):
        tw.to_zarr(result(), tmp_path / "a.zarr", overwrite=True, progress=False, colour=3)
    np.testing.assert_array_equal(written[...], np.sqrt(IMAGE))
    assert tw.status(written).complete


@pytest.mark.parametrize("hook", ["output_transform", "collate", "window", "reduce", "progress", "post"])
def test_an_error_of_a_callers_function_is_kept_and_says_what_it_was_called_for(hook: str) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("mine")

    def append() -> None:
        aggregator = tw.Aggregator(sampler(), (12, 10), chunk_postprocess_func=broken)
        for patch, box in sampler():
            aggregator.append(patch, box)
        aggregator.get_output()

    calls: dict[str, tuple[Callable[[], Any], str]] = {
        "output_transform": (lambda: tw.Slicer(IMAGE, 6, 1, output_transform=broken)[0], "output_transform"),
        "collate": (lambda: tw.Slicer(IMAGE, 6, 1, collate=broken)[0], "collate"),
        "window": (lambda: result(blend=broken), "blend"),
        "reduce": (lambda: tw.tiled_map(np.sqrt, IMAGE, 6, 1, output=tw.Output("f4", reduce=broken)), "red"),
        "progress": (lambda: tw.to_zarr(result(), store(), progress=broken), "progress"),
        "post": (append, "chunk_postprocess_func"),
    }
    make, word = calls[hook]
    with pytest.raises(KeyError, match="mine") as caught:
        make()
    assert any(word in note for note in caught.value.__notes__)


def test_a_message_about_a_large_value_is_short() -> None:
    with pytest.raises(TypeError) as caught:
        tw.plan_tiles((100, 100), np.zeros((1000, 1000)), 0)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_an_object_whose_methods_fail_is_refused_without_them() -> None:
    for name in ("resources", "scheduler", "accept", "chunks", "version", "on_error", "memory_limit"):
        with pytest.raises((tw.TilingError, TypeError), match=name):
            tw.to_zarr(result(), store(), **{name: VALUES["broken object"]()})


@QUIET
@pytest.mark.parametrize("name", ["dimension_names", "chunk_key_encoding"])
def test_zarr_does_not_iterate_over_an_option_without_an_end(name: str) -> None:
    """It took all memory of the machine, in a thread that no error and no signal ends."""
    with elsewhere():
        error = fuzz_arguments.call("to_zarr", {name: "lying object"})
    assert f"refuses {name}=" in str(error)
    assert "no list or tuple" in str(error)
    tw.to_zarr(result(), zarr.storage.MemoryStore(), progress=False, fill_value=np.float32(2))


def test_chunks_of_more_samples_than_can_be_counted_are_refused() -> None:
    for n in (2**63, 10**30, 10**400):
        with pytest.raises(tw.GridError, match=r"source_chunks needs one positive length per axis"):
            tw.plan_tiles((12, 10), 6, 1, source_chunks=(n, 5))


def test_a_sampler_without_an_axis_is_refused() -> None:
    with pytest.raises(tw.GridError, match=r"no axis to tile in spatial_size=\(\)"):
        tw.GridSampler(IMAGE, spatial_size=(), patch_size=())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_fuzz_takes_no_memory_from_others() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with elsewhere(), pytest.raises(MemoryError):
        np.empty(2 * fuzz_arguments.MEMORY, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
