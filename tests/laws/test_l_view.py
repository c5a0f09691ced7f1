"""L2b: a view runs exactly the tiles that touch the box and gives the bits of the whole."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import LAYOUTS
from tests.laws.engine_strategies import (
    ALL,
    Case,
    assert_same_bits,
    cases,
    masks,
    tiled,
)
from tests.laws.test_e_invariance import Rough, dull
from tests.sampling import share
from tilework.graph.build import find_spec, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")


def smoothed(crop: np.ndarray) -> np.ndarray:
    return crop + np.roll(crop, 1, 0) / 3


def touching(plan: Any, spans: list[tuple[int, int]]) -> int:
    """Return how many running tiles have weight in a box, by asking each of them; scale 1 only."""
    runs = plan.runs
    count = 0
    for position in itertools.product(*map(range, plan.grid_shape)):
        supports = (
            axis.support(i, None if plan.outputs[0].rim is None else plan.outputs[0].rim[d])
            for d, (axis, i) in enumerate(zip(plan.axes, position, strict=True))
        )
        met = all(a < q and b > p for (a, b), (p, q) in zip(supports, spans, strict=True))
        count += met and (runs is None or bool(runs[position]))
    return count


@settings(max_examples=share(40))
@given(
    case=cases(words=ALL, margins=True, multiples=(1, 2), share=True), masked=st.booleans(),
    skips=st.booleans(), layout=st.sampled_from(LAYOUTS), reuse=st.sampled_from(("share", "recompute")),
    data=st.data(),
)  # fmt: skip
def test_L2b_any_box_has_the_bits_of_the_whole(
    case: Case, masked: bool, skips: bool, layout: str, reuse: str, data: Any
) -> None:
    fn = Rough(case, layout)
    options: dict[str, Any] = {"numbered": True, "output": fn.output(), "fill_value": -777, "reuse": reuse}
    options |= {"skip": dull if skips else None} | (data.draw(masks(case)) if masked else {})
    out = tiled(case, fn, **options)
    whole, view = out.compute(), tw.view(out, verbose=False)
    for _ in range(2):
        key = []
        for n in out.shape:
            start = data.draw(st.integers(0, n - 1))
            key.append(slice(start, data.draw(st.integers(start + 1, n))))
        part = view[tuple(key)]
        assert_same_bits(np.ascontiguousarray(part), np.ascontiguousarray(whole[tuple(key)]))


@given(case=cases(words=ALL, multiples=(1, 2), share=True), masked=st.booleans(), data=st.data())
def test_L2b_runs_exactly_the_tiles_that_touch_the_box(case: Case, masked: bool, data: Any) -> None:
    if any(s != Fraction(1) for s in case.scale):
        return
    fn = Rough(case, "same")
    mask = data.draw(masks(case)) if masked else {}
    out = tiled(case, fn, numbered=True, output=fn.output(), **mask)
    plan, view, key, spans = plan_of(out), tw.view(out, verbose=False), [], {}
    for axis, n in enumerate(out.shape):
        start = data.draw(st.integers(0, n - 1))
        stop = data.draw(st.integers(start + 1, n))
        key.append(slice(start, stop))
        spans[axis] = (start, stop)
    view[tuple(key)]
    # `each` axes come first, then the layout of the crop: tiled axes where the image has them.
    left = [a for a in range(case.image.ndim) if a not in case.each]
    order = [*range(len(case.each)), *(len(case.each) + left.index(a) for a in case.axes)]
    assert view.ran == touching(plan, [spans[a] for a in order])
    before = view.ran
    view[tuple(key)]
    assert view.ran == before  # kept


@st.composite
def keys(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Draw any index that numpy takes; lists fit together."""
    length = draw(st.integers(1, 4))
    key: list[Any] = []
    for n in shape:
        kind = draw(st.sampled_from(("number", "slice", "slice", "list", "all")))
        if kind == "number":
            key.append(draw(st.integers(-n, n - 1)))
        if kind == "slice":
            key.append(draw(st.slices(n)))
        if kind == "list":
            key.append(draw(st.lists(st.integers(-n, n - 1), min_size=length, max_size=length)))
        if kind == "all":
            key.append(slice(None))
        if draw(st.integers(0, 5)) == 0:
            key.append(None)
    if draw(st.booleans()):
        a = draw(st.integers(0, len(shape) - 1))
        mask = np.array(draw(st.lists(st.booleans(), min_size=shape[a], max_size=shape[a])), bool)
        key = [*[slice(None)] * a, mask, ...]
    return tuple(key)


def needed(spec: Any, number: int, axes: list[int], key: Any, shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Return the running tiles whose support contains a chosen sample, by asking each of them."""
    places = [
        np.broadcast_to(np.arange(n).reshape([-1 if a == k else 1 for k in range(len(shape))]), shape)[key]
        for a, n in enumerate(shape)
    ]
    found = set()
    for position in itertools.product(*map(range, spec.plan.grid_shape)):
        inside = np.ones(np.shape(places[0]), bool)
        for d, weights in enumerate(spec.outputs[number].weights):
            rim = weights.rim
            low, high = (math.ceil(x * weights.scale) for x in weights.grid.support(position[d], rim))
            inside &= (places[axes[d]] >= low) & (places[axes[d]] < high)
        if inside.any() and (spec.plan.runs is None or spec.plan.runs[position]):
            found.add(position)
    return found


@settings(max_examples=share(80))
@given(
    case=cases(
        words=ALL, margins=True, multiples=(1, 2), scales=(1, 1, 2, Fraction(1, 2), Fraction(3, 2)),
        share=True,
    ),
    masked=st.booleans(), layout=st.sampled_from(LAYOUTS), one_block=st.booleans(), data=st.data(),
)  # fmt: skip
def test_L2b_any_index_runs_the_tiles_of_the_chosen_samples_only(
    case: Case, masked: bool, layout: str, one_block: bool, data: Any
) -> None:
    fn = Rough(case, layout)
    options = data.draw(masks(case)) if masked else {}
    if one_block:  # blocks of few tiles have none between the chosen samples
        options["chunks"] = case.extents
    out = tiled(case, fn, numbered=True, output=fn.output(), fill_value=-777, **options)
    spec = find_spec(out)[0]
    output = spec.outputs[0]
    axes = [*range(output.n_each), *(output.n_each + a for a in output.reduced_axes)]
    view, key = tw.view(out, verbose=False), data.draw(keys(out.shape))
    expected = out.compute()[key]
    assert_same_bits(np.ascontiguousarray(view[key]), np.ascontiguousarray(expected))
    assert view.ran == len(needed(spec, 0, axes, key, out.shape))
    assert_same_bits(
        np.ascontiguousarray(tw.view(out, cache=0, verbose=False)[key]), np.ascontiguousarray(expected)
    )


@pytest.mark.parametrize(
    ("key", "crop", "count"),
    [
        ([0, 255], 32, 16), (slice(None, None, 64), 32, 32), ((slice(None, None, 64),) * 2, 16, 16),
        (([0, 255, 0], [0, 255, 9]), 32, 2), ((slice(255, None, -85), [255, 0]), 32, 8),
    ],
    ids=str,
)  # fmt: skip
def test_L2b_tiles_between_the_chosen_samples_do_not_run(key: Any, crop: int, count: int) -> None:
    image = np.arange(256.0 * 256).reshape(256, 256)
    view = tw.view(tw.tiled_map(lambda x: x, image, crop, 0), verbose=False)
    np.testing.assert_array_equal(view[key], image[key])
    assert view.ran == count


def test_L2b_a_thumbnail_takes_memory_for_itself_and_a_few_tiles() -> None:
    image = np.lib.stride_tricks.as_strided(np.ones(1), (50_000, 50_000), (0, 0))
    out = tw.tiled_map(lambda x: x, image, 64, 0, dtype="float64", chunks=(6400, 6400))
    view = tw.view(out, cache=0, verbose=False)
    tracemalloc.start()
    try:
        assert view[::10_000, ::10_000].sum() == 25
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert view.ran == 25
    assert most < 2**22  # a block is 312 MiB


def test_L2b_without_a_cache_nothing_is_kept(counting: Callable[..., Any]) -> None:
    fn = counting(np.sqrt)
    out = tw.tiled_map(
        fn, picture(), 32, stride=16, blend="hann", dtype="float32", skip=lambda x: x[0, 0] < 0.5, chunks=90
    )
    view = tw.view(out, cache=0, verbose=False)
    view[::2, ::2]
    once = fn.calls
    assert once == view.ran < view.crops  # each but once, though many pieces need it
    assert not view.tiles.held()
    view[::2, ::2]
    assert fn.calls == 2 * once
    with pytest.raises(tw.TilingError, match="at least one byte"):
        tw.view(out, cache=-1)


def counted(image: np.ndarray) -> tuple[da.Array, list[int]]:
    """Return a dask array of four blocks, and a list that gets an entry for each that is computed."""
    computed: list[int] = []

    def read(block: np.ndarray) -> np.ndarray:
        computed.append(1)
        return block

    lazy = da.from_array(image, (45, 35)).map_blocks(read, meta=np.empty((0, 0), np.float32))
    return lazy, computed


def test_L2b_blocks_of_dask_are_computed_once_for_all_pieces() -> None:
    image = picture()
    lazy, computed = counted(image)
    out = tw.tiled_map(lambda x: x, lazy, 8, 0, dtype="float32", chunks=(90, 70))
    computed.clear()
    view = tw.view(out, verbose=False)
    np.testing.assert_array_equal(view[::15, ::15], image[::15, ::15])
    assert len(computed) == 4


@pytest.mark.parametrize("cache", [0, "1MiB"])
def test_L2b_blocks_of_dask_below_a_result_are_computed_once_for_a_block(cache: Any) -> None:
    image = picture()
    lazy, computed = counted(image)
    below = tw.tiled_map(lambda x: x, lazy, 8, 0, dtype="float32", chunks=(9, 7))
    out = tw.tiled_map(lambda x: x, below, 8, 0, dtype="float32", chunks=(90, 70))
    view = tw.view(out, cache=cache, verbose=False)
    for key in ((slice(None), slice(None)), (slice(None, None, 15), slice(None, None, 15))):
        computed.clear()
        np.testing.assert_array_equal(view[key], image[key])
        assert len(computed) == (4 if cache == 0 or key[0].step is None else 0)


def picture() -> np.ndarray:
    return np.random.default_rng(0).random((90, 70)).astype(np.float32)


@pytest.mark.parametrize(
    "key",
    [
        (), ..., 5, -1, (3, 4), (slice(None, None, -2), 7), (..., slice(10, 20)), slice(80, 10, -3),
        (None, 4), np.array([3, 60, -1]), ([5, 9], [6, 1]), (slice(4, 4), 0), np.int64(3),
        np.uint8(5), np.array([-1, 2], np.int8), (np.array([1], np.uint64), [2]),
        (np.arange(360) % 7 == 0, slice(2)), (slice(-9, None), None, slice(1)), [], ([], slice(3)),
        (None, [[4, 80], [4, 0]]), ([3, 3, 1], None, 5), (0, None, [5, 1]), (0, [5, 1], None),
        ([[1], [80]], [2, 60, 9]), (slice(None, None, -7), [60, 2, 2]), ([80, 5, 5], slice(69, None, -13)),
    ],
    ids=lambda key: repr(key)[:40],
)  # fmt: skip
def test_L2b_indexes_as_numpy_does(key: Any) -> None:
    # Longer than the numbers of a byte.
    image = np.tile(picture(), (4, 4))
    view = tw.view(tw.tiled_map(np.sqrt, image, 32, 4, dtype="float32"), verbose=False)
    np.testing.assert_array_equal(view[key], np.sqrt(image)[key])


@pytest.mark.parametrize(
    "key", [(1, 2, 3), 90, -91, "a", 1.5, (np.ones(3, bool),), ([1, 2], [1, 2, 3]), (..., ...)], ids=str
)
def test_L2b_refuses_what_numpy_refuses(key: Any) -> None:
    view = tw.view(tw.tiled_map(np.sqrt, picture(), 32, 4, dtype="float32"), verbose=False)
    with pytest.raises(IndexError):
        view[key]


def test_L2b_sums_of_many_blocks_are_added_in_one_order() -> None:
    out = tw.tiled_map(
        lambda x: np.cbrt(x - x.mean()),
        picture(),
        30,
        stride=5,
        blend="gaussian",
        chunks=15,
        reuse="recompute",
    )
    view = tw.view(out, verbose=False)
    assert_same_bits(np.ascontiguousarray(view[31:60, 20:50]), out.compute()[31:60, 20:50].copy())


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_L2b_every_source(kind: str, tmp_path: Path) -> None:
    image = source = picture()
    if kind == "dask":
        source = da.from_array(image, (17, 33))
    if kind == "zarr":
        source = zarr.create_array(tmp_path / "a.zarr", data=image, chunks=(16, 16))
    out = tw.tiled_map(smoothed, source, 32, stride=20, blend="gaussian", dtype="float32")
    assert_same_bits(tw.view(out, verbose=False)[20:61, 5:30].copy(), out.compute()[20:61, 5:30].copy())


def test_L2b_views_of_one_call_share_tiles(counting: Callable[..., Any]) -> None:
    fn = counting(lambda x: {"a": x, "b": x > 0.5})
    out = tw.tiled_map(fn, picture(), 32, 4, output={"a": tw.Output("float32"), "b": tw.Output(bool)})
    views = tw.view(out, verbose=False)
    assert views["a"][0, 0] == picture()[0, 0]
    assert views["b"][0, 0] == (picture()[0, 0] > 0.5)
    assert fn.calls == 1


def test_L2b_the_cache_is_bounded(counting: Callable[..., Any]) -> None:
    fn = counting(np.sqrt)
    out = tw.tiled_map(fn, picture(), 32, 4, dtype="float32")
    view = tw.view(out, cache=2 * 32 * 32 * 4, verbose=False)
    np.testing.assert_array_equal(np.asarray(view), np.sqrt(picture()))
    assert view.ran == view.crops == fn.calls
    assert len(view.tiles.held()) <= 2
    view[0, 0]
    assert fn.calls == view.crops + 1


def test_L2b_says_how_many_crops_ran(capsys: pytest.CaptureFixture[str]) -> None:
    view = tw.view(tw.tiled_map(np.sqrt, picture(), 32, 4, dtype="float32"))
    view[:10, :10]
    assert capsys.readouterr().out == "1 of 12 crops ran, 1 so far\n"
    view[:10, :10]
    assert capsys.readouterr().out == ""
    assert repr(view) == "<View: (90, 70) float32, 1 of 12 crops ran>"


def test_L2b_is_what_napari_asks_for() -> None:
    view = tw.view(tw.tiled_map(np.sqrt, picture(), 32, 4, dtype="float32"), verbose=False)
    assert (view.shape, view.ndim, view.dtype, view.size, len(view)) == ((90, 70), 2, np.float32, 6300, 90)
    assert view.nbytes == 25200
    assert np.asarray(view, dtype="float64").dtype == np.float64
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(view, copy=False)


def test_L2b_only_of_unmodified_results() -> None:
    out = tw.tiled_map(np.sqrt, picture(), 32, 4, dtype="float32")
    with pytest.raises(tw.TilingError, match="unmodified"):
        tw.view(out > 0.5)
    with pytest.raises(tw.TilingError, match="unmodified"):
        tw.view(np.zeros(3))


# -- results below ----------------------------------------------------------------------------------------


@settings(max_examples=share(40))
@given(
    case=cases(words=ALL, margins=True, multiples=(1, 2), share=True), masked=st.booleans(),
    layout=st.sampled_from(LAYOUTS), crop=st.integers(3, 9), blend=st.sampled_from(("trim", "hann")),
    cache=st.sampled_from((0, 300, "1MiB")), data=st.data(),
)  # fmt: skip
def test_L2b_a_view_of_a_result_of_a_result_has_the_bits_of_the_whole(
    case: Case, masked: bool, layout: str, crop: int, blend: str, cache: Any, data: Any
) -> None:
    fn = Rough(case, layout)
    options = data.draw(masks(case)) if masked else {}
    below = tiled(case, fn, numbered=True, output=fn.output(), fill_value=-777, **options)
    crops = [min(crop, n) for n in below.shape]
    overlap = [data.draw(st.integers(0, (c - 1) // 2)) for c in crops]
    out = tw.tiled_map(
        lambda a, b: smoothed(a) - b, (below, below), crops, overlap, blend=blend, dtype=below.dtype
    )
    whole, view, key = out.compute(), tw.view(out, cache=cache, verbose=False), []
    for n in out.shape:
        start = data.draw(st.integers(0, n - 1))
        key.append(slice(start, data.draw(st.integers(start + 1, n))))
    assert_same_bits(np.ascontiguousarray(view[tuple(key)]), np.ascontiguousarray(whole[tuple(key)]))


@pytest.mark.parametrize("both", [False, True])
def test_L2b_only_the_tiles_of_results_below_that_are_needed_run(
    both: bool, counting: Callable[..., Any]
) -> None:
    image = picture()
    first, second, third = (counting(f) for f in (lambda x: {"a": x, "b": -x}, np.sqrt, lambda *x: sum(x)))
    outputs = {"a": tw.Output("float32"), "b": tw.Output("float32")}
    one = tw.tiled_map(first, image, 16, 2, output=outputs)
    two = tw.tiled_map(second, one["a"], 16, 2, dtype="float32")
    out = tw.tiled_map(third, (two, one["b"]) if both else two, 16, 2, dtype="float32")
    view = tw.view(out, verbose=False)
    expected = np.sqrt(image) - image * both
    np.testing.assert_array_equal(view[20:22, 20:22], expected[20:22, 20:22])
    # A tile reads [10, 26) along each axis, which lies in the cores of 3 tiles; these read [0, 38), in 4.
    assert (third.calls, second.calls, first.calls) == (1, 9, 16)
    view[20:22, 20:22]
    assert (third.calls, second.calls, first.calls) == (1, 9, 16)


def test_L2b_one_cache_holds_tiles_of_all_results(counting: Callable[..., Any]) -> None:
    below, above = counting(np.sqrt), counting(np.square)
    one = tw.tiled_map(below, picture(), 32, 4, dtype="float32")
    out = tw.tiled_map(above, one, 32, 4, dtype="float32")
    view = tw.view(out, cache=5 * 32 * 32 * 4, verbose=False)
    view[10, 10]
    assert (above.calls, below.calls) == (1, 4)
    view[10, 10]
    assert (above.calls, below.calls) == (1, 4)
    view[60, 60]  # drops the tiles of the first place
    view[10, 10]
    assert above.calls == 3
    assert below.calls > 8


@pytest.mark.parametrize(("where", "most"), [("random", 100), ("extremes", 9000)])
def test_L2b_check_runs_only_tiles_that_it_reads(where: str, most: int, counting: Callable[..., Any]) -> None:
    below = counting(np.sqrt)
    image = np.random.default_rng(0).random((5000, 5000), "float32")
    one = tw.tiled_map(below, image, 16, 2, dtype="float32")
    out = tw.tiled_map(np.square, one, 32, 4, dtype="float32")
    assert tw.check(out, where=where, places=2).ok
    assert below.calls < most  # a block has 173 889; unusual places are looked for in 16 parts of 2**18 bytes
