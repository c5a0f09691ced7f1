"""E5, E6, E7: what must not matter does not, axes may be exchanged, and blocks are as declared."""

from __future__ import annotations

import uuid
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any
from unittest import mock

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.array.utils import assert_eq
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import LAYOUTS, PerTile
from tests.laws.engine_strategies import (
    ALL,
    EXTREMES,
    Case,
    assert_close,
    assert_same_bits,
    cases,
    masks,
    picture,
    runs,
    tiled,
)
from tests.sampling import share
from tilework.engine import block, canvas

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")

FILL = -777
SCALES = (1, 2, Fraction(1, 2), Fraction(3, 2))
new_canvas = canvas._canvas
layouts = st.sampled_from(LAYOUTS)


class Rough:
    """Results with all bits in use, so that another order of summation shows."""

    def __init__(self, case: Case, layout: str, dtype: str = "float32") -> None:
        self.fn, self.dtype = PerTile(case, layout), dtype

    def __call__(self, crop: np.ndarray, number: int) -> np.ndarray:
        return np.cbrt(self.fn(crop, number)).astype(self.dtype)

    def output(self) -> tw.Output:
        return tw.Output(self.dtype, **self.fn.declared)


def dull(crop: np.ndarray) -> bool:
    return int(crop.sum()) % 3 == 0


# ------------------------------------------------------------------------------------------ sources


KINDS = ("numpy", "fortran", "zarr", "zarr in memory", "dask", "uneven dask", "sliceable")


@st.composite
def sources(draw: Any, image: np.ndarray, folder: Path) -> Any:
    """Draw another holder of the same samples, in storage chunks of any shape."""
    kind = draw(st.sampled_from(KINDS))
    chunks = tuple(draw(st.integers(1, n)) for n in image.shape)
    if kind == "numpy":
        return image
    if kind == "fortran":
        return np.asfortranarray(image)
    if kind.startswith("zarr"):
        store = zarr.storage.MemoryStore() if kind.endswith("memory") else folder / uuid.uuid4().hex
        array = zarr.create_array(store, shape=image.shape, chunks=chunks, dtype=image.dtype)
        array[...] = image
        return array
    if kind == "sliceable":
        return Sliceable(image)
    lazy = da.from_array(image, chunks=chunks)
    if kind == "uneven dask":
        cuts = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=3))}) for n in image.shape]
        lazy = lazy.rechunk(tuple(tuple(np.diff(c).tolist()) for c in cuts))
    return lazy


class Sliceable:
    """The least that a source must have."""

    def __init__(self, image: np.ndarray) -> None:
        self._image, self.shape, self.dtype = image, image.shape, image.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        return self._image[key]


# -------------------------------------------------------------------------------------- E5: the run


@given(
    case=cases(words=ALL, margins=True, multiples=(1, 2), share=True), layout=layouts,
    masked=st.booleans(), skips=st.booleans(), data=st.data(),
)  # fmt: skip
def test_E5_with_fixed_blocks_nothing_changes_a_bit(
    case: Case, layout: str, masked: bool, skips: bool, data: Any, tmp_path: Path
) -> None:
    fn = Rough(case, layout)
    options = {"numbered": True, "output": fn.output(), "fill_value": FILL}
    options |= {"skip": dull if skips else None} | (data.draw(masks(case)) if masked else {})
    first = tiled(case, fn, **options, reuse="share", batch_size=None).compute()
    for reuse in ("share", "recompute"):
        batch_size = data.draw(st.sampled_from((None, 1, 2, 3, 100)))
        image = data.draw(sources(case.image, tmp_path))
        out = tiled(case, fn, **options, reuse=reuse, batch_size=batch_size, image=image)
        with dask.config.set(scheduler=data.draw(st.sampled_from(("sync", "threads")))):
            assert_same_bits(out.compute(), first)


def poisoned(*args: Any, clear: bool) -> Any:
    """Return a canvas that holds what no result holds, unless it is to be cleared."""
    made = new_canvas(*args, clear=clear)
    if not clear:
        made[...] = np.frombuffer(b"\xfb" * made.dtype.itemsize, made.dtype)[0]
    return made


@given(
    case=cases(words=ALL, margins=True, scales=SCALES, multiples=(1, 2)), layout=layouts,
    gaps=st.sampled_from(("none", "skipped", "failed")), into=st.booleans(),
)  # fmt: skip
def test_E5_what_memory_held_before_does_not_show(case: Case, layout: str, gaps: str, into: bool) -> None:
    """Canvases are cleared row of tiles by row of tiles; here against those that are cleared at once."""
    fn = Rough(case, layout)

    def failing(crop: np.ndarray, number: int) -> np.ndarray:
        if gaps == "failed" and dull(crop):
            raise ValueError("dull")
        return fn(crop, number)

    options = {"numbered": True, "output": fn.output(), "fill_value": FILL}
    out = tiled(case, failing, **options, skip=dull if gaps == "skipped" else None)

    def run() -> np.ndarray:
        if not into and gaps != "failed":
            return out.compute()
        array = np.full(out.shape, np.nan, out.dtype)
        tw.to_zarr(out, array, on_error="fill", progress=False)
        return array

    with mock.patch.object(block, "in_raster_order", return_value=False):
        expected = run()
    with mock.patch.object(canvas, "_canvas", poisoned):
        assert_same_bits(run(), expected)


@pytest.mark.sample(1, whole=16)
@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.parametrize("edge", ["shift", "squeeze", "clip", "pad"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("skip", [None, lambda crop: int(100 * crop.sum()) % 3 == 0], ids=["all", "skip"])
def test_E5_where_many_blocks_meet_their_sums_are_added_in_one_order(
    skip: Any, dims: int, edge: Any, blend: str
) -> None:
    """At a corner 4 or 8 partial sums meet, and float32 addition is not associative."""
    crop, stride, chunks = ((12, 4, 13), (6, 2, 7))[dims - 2]
    image = np.cbrt(picture([29, 31] if dims == 2 else [15, 14, 16])).astype("float32")
    results = []
    for options in ({"reuse": "share"}, {"reuse": "recompute"}, {"reuse": "share", "batch_size": 7}):
        out = tw.tiled_map(
            lambda crop: crop + crop.mean(tuple(range(-dims, 0)), keepdims=True), image, crop,
            stride=stride, edge=edge, blend=blend, chunks=chunks, dtype="float32", skip=skip,
            **options,
        )  # fmt: skip
        results += [out.compute(scheduler="sync"), out.compute(scheduler="threads", num_workers=4)]
    for result in results[1:]:
        assert_same_bits(result, results[0])


@settings(max_examples=share(10))
@given(case=cases(words=ALL, dims=(2,), share=True), chunks=st.integers(1, 9), shards=st.integers(1, 3))
def test_E5_files_and_shards(case: Case, chunks: int, shards: int, tmp_path: Path) -> None:
    fn = Rough(case, "same")
    first = tiled(case, fn, numbered=True, output=fn.output(), batch_size=None).compute()
    path = tmp_path / "image.zarr"
    array = zarr.create_array(
        path, shape=case.image.shape, dtype=case.image.dtype, overwrite=True,
        chunks=(chunks,) * case.image.ndim, shards=(chunks * shards,) * case.image.ndim,
    )  # fmt: skip
    array[...] = case.image
    with dask.config.set(scheduler="threads"):
        out = tiled(case, fn, numbered=True, output=fn.output(), batch_size=None, image=str(path))
        assert_same_bits(out.compute(), first)


def rough(crop: np.ndarray, tile: Any) -> np.ndarray:
    return np.cbrt(crop + 100 * tile.index)


@pytest.mark.parametrize("blend", ["trim", "gaussian"])
@pytest.mark.parametrize("reuse", ["share", "recompute"])
def test_E5_every_scheduler_gives_the_same_bits(
    scheduler: str, reuse: str, blend: str, tmp_path: Path
) -> None:
    image = picture([40, 33], "float32")
    path = tmp_path / "image.zarr"
    zarr.create_array(path, shape=image.shape, chunks=(7, 9), dtype="float32")[...] = image
    options: dict[str, Any] = {"stride": 6, "blend": blend, "chunks": 13, "dtype": "float32"}
    first = tw.tiled_map(rough, image, 12, **options, pass_tile=True).compute(scheduler="sync")
    assert scheduler
    for source in (image, str(path)):
        out = tw.tiled_map(rough, source, 12, **options, pass_tile=True, reuse=reuse)
        assert_same_bits(out.compute(), first)


@pytest.mark.parametrize("store", ["memory", "local"])
def test_E5_a_store_that_was_rewritten_is_read_anew(store: str, tmp_path: Path) -> None:
    """A slice leaves chunks in the cache, for which nobody comes back."""
    where = zarr.storage.MemoryStore() if store == "memory" else tmp_path / "image.zarr"
    array = zarr.create_array(where, shape=(64, 64), chunks=(16, 16), dtype="int64")
    for value in (1, 2):
        array[...] = value
        out = tw.tiled_map(lambda crop: crop, array, 16, 2, dtype="int64", chunks=12)
        assert (out.compute() == value).all()
        assert (out[:12].compute() == value).all()


@given(cases(words=ALL, margins=True, multiples=(1, 2)), layouts, st.data())
def test_E5_blocks_change_blends_by_rounding_and_nothing_else(case: Case, layout: str, data: Any) -> None:
    fn = Rough(case, layout, "float64")
    results = []
    for run in (case.run, data.draw(runs(case)), {"chunks": -1, "reuse": "auto"}):
        other = replace(case, run={"batch_size": None} | run)
        results.append(tiled(other, fn, numbered=True, output=fn.output()).compute())
    for result in results[1:]:
        if case.kind in ("trim", *EXTREMES):
            assert_same_bits(result, results[0])
        else:
            assert_close(result, results[0], 1e-13)


@settings(max_examples=share(25))
@given(cases(words=ALL, share=True), st.data())
def test_E5_parts_are_those_of_the_whole(case: Case, data: Any) -> None:
    fn = Rough(case, "same")
    out = tiled(case, fn, numbered=True, output=fn.output())
    key = []
    for n in out.shape:
        start = data.draw(st.integers(0, n - 1))
        key.append(slice(start, data.draw(st.integers(start + 1, n))))
    part = np.ascontiguousarray(out.compute()[tuple(key)])
    assert_same_bits(np.ascontiguousarray(out[tuple(key)].compute()), part)


# -------------------------------------------------------------------------------- E6: the axes


class Turned:
    """A function of a crop as it was before its axes were exchanged."""

    def __init__(self, fn: Any, order: tuple[int, ...]) -> None:
        self.fn, self.order, self.back = fn, order, tuple(int(i) for i in np.argsort(order))

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        return self.fn(crop.transpose(self.back)).transpose(self.order)


@given(cases(words=ALL, multiples=(1, 2), each=False), st.data())
def test_E6_transposed_arrays_give_the_transposed_result(case: Case, data: Any) -> None:
    fn = PerTile(case)
    plain = tiled(case, fn, dtype=float).compute()
    order = tuple(data.draw(st.permutations(range(case.image.ndim))))
    axes = tuple(order.index(a) for a in case.axes)
    other = replace(case, image=case.image.transpose(order), axes=axes)
    got = tiled(other, Turned(fn, order), dtype=float).compute()
    if case.kind in ("trim", *EXTREMES, "sum"):
        np.testing.assert_array_equal(got, plain.transpose(order))
    else:  # the product of the weights is rounded in the order of the axes
        assert_close(got, plain.transpose(order), 1e-13)


@given(cases(words=ALL, multiples=(1, 2), margins=True, dims=(2, 3)), st.data())
def test_E6_parameters_go_with_their_axes(case: Case, data: Any) -> None:
    fn = PerTile(case)
    options: dict[str, Any] = {"output": tw.Output(float, margin=case.margin)}
    plain = tiled(case, fn, **options).compute()
    order = data.draw(st.permutations(range(len(case.axes))))

    def permuted(value: Any) -> Any:
        return tuple(value[k] for k in order)

    grid = {k: permuted(v) if isinstance(v, tuple) else v for k, v in case.grid.items()}
    weights = {k: permuted(v) if isinstance(v, tuple) else v for k, v in case.weights.items()}
    if isinstance(weights["blend"], np.ndarray):
        weights["blend"] = weights["blend"].transpose(order)
    run = dict(case.run)
    if run["chunks"] != "auto":
        chunks = run["chunks"]
        run["chunks"] = chunks[: len(case.each)] + permuted(chunks[len(case.each) :])
    other = replace(case, axes=permuted(case.axes), grid=grid, weights=weights, run=run)
    options["output"] = tw.Output(float, margin=permuted(case.margin))
    assert_close(tiled(other, fn, **options).compute(), plain, 1e-13)


# ------------------------------------------------------------------------------- E7: the blocks


@given(cases(words=ALL, margins=True, scales=(1, 2), multiples=(1, 2)), layouts, st.data())
def test_E7_blocks_have_the_declared_shape_and_dtype(case: Case, layout: str, data: Any) -> None:
    dtype = data.draw(st.sampled_from(("float32", "float64", "complex64")))
    dtype = "float64" if case.kind in EXTREMES else dtype
    fn = Rough(case, layout, dtype)
    mask = data.draw(masks(case)) if data.draw(st.booleans()) else {}
    out = tiled(case, fn, numbered=True, output=fn.output(), **mask)
    assert out.dtype == dtype
    assert_eq(out, out.compute(scheduler="sync"))
    lead = [case.image.shape[a] for a in case.each]
    crop = fn(np.zeros([n for a, n in enumerate(case.image.shape) if a not in case.each]), 0)
    assert out.ndim == len(lead) + crop.ndim
    for a, n in enumerate(out.shape):
        if a < len(lead):
            assert n == lead[a]
        elif a - len(lead) in fn.fn.axes:
            assert n == case.result_extents[fn.fn.axes.index(a - len(lead))]
        else:
            assert out.numblocks[a] == 1, "untiled axes are one chunk"
    if case.run["chunks"] != "auto":
        assert prod(out.numblocks) == prod(
            -(-n // min(b, n)) for n, b in zip((*lead, *case.extents), case.run["chunks"], strict=True)
        )
