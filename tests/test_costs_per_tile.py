"""What a tile or a block costs besides the function: calls of Python functions and bytes, which are exact."""

import sys
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tests.calls import calls_of
from tilework.engine import canvas, cover
from tilework.graph.build import plan_of
from tilework.grid.weights import AxisWeights

TILE = 8


def image(rows: int) -> np.ndarray:
    return np.random.default_rng(0).random((TILE * rows, TILE * 16), np.float32)


def same(crop: np.ndarray) -> np.ndarray:
    return crop


def mapped(rows: int, **options: Any) -> Callable[[], Any]:
    """Return the computation of 16 tiles per row, in one block."""
    options = {"stride": TILE, "blend": "gaussian", "dtype": "float32", "chunks": (-1, -1), **options}
    out = tw.tiled_map(same, image(rows), TILE, **options)
    return lambda: out.compute(scheduler="sync")


def merged(rows: int) -> Callable[[], Any]:
    def loop() -> Any:
        pixels = image(rows)
        sampler = tw.GridSampler(pixels, pixels.shape, (TILE, TILE), (TILE, TILE))
        aggregator = tw.Aggregator(sampler, output_size=pixels.shape, weights="gaussian")
        for patch, box in sampler:
            aggregator.append(same(patch), box)
        return aggregator.get_output()

    return loop


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        pytest.param(mapped, 43, id="tiled_map"),
        pytest.param(lambda rows: mapped(rows, blend="trim", stride=None, overlap=0), 35, id="trim"),
        pytest.param(lambda rows: mapped(rows, batch_size=4), 45, id="batched"),
        pytest.param(merged, 56, id="Aggregator"),
    ],
)
def test_a_tile_costs_few_calls(kind: Callable[[int], Callable[[], Any]], most: int) -> None:
    """Of the difference of two runs, so that the fixed cost of a run does not count."""
    few, many = (kind(rows) for rows in (8, 24))
    few(), many()  # what is found out once is found out now
    per_tile = (calls_of(many, "call") - calls_of(few, "call")) / (16 * 16)
    assert per_tile <= most


def test_a_crop_is_used_and_dropped_before_the_next_one_is_cut() -> None:
    """So the next one gets its memory, which is in the processor's cache."""
    seen: list[tuple[str, int]] = []
    crops: list[weakref.ref[np.ndarray]] = []

    def skip(crop: np.ndarray) -> bool:
        crops.append(weakref.ref(crop))
        seen.append(("cut", sum(crop() is not None for crop in crops)))
        return False

    def called(crop: np.ndarray) -> np.ndarray:
        seen.append(("called", sum(crop() is not None for crop in crops)))
        return crop

    out = tw.tiled_map(called, image(1), TILE, stride=TILE, blend="gaussian", dtype="float32", skip=skip)
    out.compute(scheduler="sync")
    assert seen == [("cut", 1), ("called", 1)] * 16


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_largest_channel_is_found_without_a_copy_of_the_sums(axis: int) -> None:
    sums = np.random.default_rng(0).random((8, 512, 512), np.float32)
    sums[0, 3:5], sums[2, 4, 5] = np.inf, np.nan
    sums = np.moveaxis(sums, 0, axis)
    tracemalloc.start()
    try:
        found = canvas._largest(sums, axis % 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, sums.argmax(axis), strict=True)
    assert peak < found.nbytes + sums.nbytes / 4


@pytest.mark.skipif(sys.platform != "linux", reason="pages of Linux")
@pytest.mark.parametrize(
    ("blend", "dtype", "side"),
    [
        ("trim", "f4", 1024),
        ("trim", "c8", 725),
        ("trim", "u1", 2048),
        ("gaussian", "f4", 1025),
        ("gaussian", "c8", 800),
        ("gaussian", "u1", 2048),
        ("max", "u1", 2050),
        ("max", "f8", 800),
    ],
)
def test_large_blocks_begin_with_a_page(blend: str, dtype: str, side: int) -> None:
    """Half of the pages of a block of 4 MB were small."""
    data = np.random.default_rng(0).integers(0, 99, (side, side + 7)).astype(dtype)
    out = tw.tiled_map(same, data, 256, 16, blend=blend, dtype=dtype, chunks=(side, side))
    large: list[int] = []

    def look(block: np.ndarray) -> np.ndarray:
        if block.nbytes >= canvas.LARGE:
            large.append(block.ctypes.data % canvas.PAGE)
        assert block.flags.c_contiguous
        return block

    found = out.map_blocks(look, meta=data[:0, :0]).compute(scheduler="sync")
    np.testing.assert_allclose(found, data, rtol=1e-5)
    # A blend of integers is summed in floats, and cast to a block of its own.
    assert large == [0] or (blend, dtype) == ("gaussian", "u1")


def test_objects_and_small_blocks_lie_anywhere() -> None:
    for shape, dtype in (((1024, 1024), np.dtype(object)), ((1024, 1023), np.dtype("f4"))):
        assert canvas._fresh(np.zeros, shape, dtype).base is None
    huge = canvas._fresh(np.zeros, (1024, 1024), np.dtype([("a", "u1"), ("b", "<f8"), ("c", "U3")]))
    assert huge.ctypes.data % canvas.PAGE == 0
    assert not huge["b"].any()


@pytest.mark.parametrize("blend", ["gaussian", "map"])
def test_places_that_were_left_out_of_a_long_block_are_looked_at_one_by_one(
    monkeypatch: pytest.MonkeyPatch, blend: str
) -> None:
    """Each place looked at all tiles of the block: one of 80 000 tiles took minutes."""
    name = "_uneven_products" if blend == "gaussian" else "_uneven_maps"
    looks, function = [], getattr(cover, name)

    def counted(*args: Any) -> Any:
        looks.append(len(next(a for a in args if isinstance(a, list) and isinstance(a[0], range))[-1]))
        return function(*args)

    monkeypatch.setattr(cover, name, counted)
    # Sums of maps are not looked up by their kind.
    monkeypatch.setattr(cover, "FEW", 0)
    monkeypatch.setattr(cover, "_work", lambda axes: 1 << 60)
    keys: list[int] = []
    key = AxisWeights._key
    monkeypatch.setattr(AxisWeights, "_key", lambda self, i: (keys.append(i), key(self, i))[1])
    tiles = 3000
    mask = np.random.default_rng(0).random(tiles + 1) < 0.4
    reached = np.repeat(np.convolve(mask[1:] | mask[:-1], [1, 1]) > 0, TILE)
    data = np.random.default_rng(1).random(TILE * (tiles + 1), np.float32)
    crop: Any = 2 * TILE
    stride: Any = TILE
    window: Any = "gaussian"
    left_out: dict[str, Any] = {"mask": mask}
    if blend == "map":
        data, left_out = data[None].repeat(2, 0), {"mask": mask[None], "mask_scale": (2, TILE)}
        crop, stride, window = (2, crop), (2, stride), np.hanning(crop + 2)[None, 1:-1].repeat(2, 0)
    out = tw.tiled_map(same, data, crop, stride=stride, blend=window, dtype="f4", chunks=-1, **left_out)
    found = out.compute(scheduler="sync")
    np.testing.assert_allclose(found[..., reached], data[..., reached], rtol=1e-5)
    assert not found[..., ~reached].any()
    assert len(looks) > tiles / 20
    assert sum(looks) < 2 * tiles
    assert len(keys) < 50


@pytest.mark.sample(0)
@pytest.mark.parametrize("left_out", [None, "mask", "skip"])
def test_the_tiles_of_a_block_are_not_all_there_at_a_time(left_out: str | None) -> None:
    """A tile takes 700 bytes: 15 000 took 10 MB, more than all else, and a quarter of the time."""
    image = np.ones((500, 500), np.uint8)
    options: dict[str, Any] = {"mask": ~np.eye(500, dtype=bool)} if left_out == "mask" else {}
    if left_out == "skip":
        options["skip"] = lambda crop: False
    out = tw.tiled_map(np.copy, image, 6, 1, dtype="u1", chunks=500, **options)
    assert len(plan_of(out)) > 15_000
    tw.compute(out)  # what is loaded at first use
    tracemalloc.start()
    try:
        tw.compute(out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000
