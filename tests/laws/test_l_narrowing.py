"""L3: slices of results have the bits of the whole, and run only the tiles that they need."""

from __future__ import annotations

import functools
import math
import tracemalloc
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import LAYOUTS
from tests.laws.engine_strategies import ALL, Case, assert_same_bits, cases, masks, tiled
from tests.laws.test_e_invariance import Rough
from tests.sampling import share
from tilework.engine import canvas
from tilework.graph import narrowing
from tilework.graph.build import plan_of
from tilework.graph.narrowing import tasks_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")


@st.composite
def cuts(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Draw an index of slices, numbers, new axes and lists, of which something is left."""
    key: list[Any] = []
    for n in shape:
        kind = draw(st.sampled_from(("box", "box", "box", "number", "step", "back", "all", "new", "list")))
        start = draw(st.integers(0, n - 1))
        stop = draw(st.integers(start + 1, n))
        step = draw(st.integers(1, 3))
        if kind == "list" and any(isinstance(k, list) for k in key):
            kind = "box"
        key += {
            "box": [slice(start, stop)], "number": [start], "step": [slice(start, stop, step)],
            "back": [slice(n - 1, start - 1 if start else None, -step)], "all": [slice(None)],
            "new": [None, slice(start, stop)], "list": [[start, stop - 1]],
        }[kind]  # fmt: skip
    return tuple(key)


@settings(max_examples=share(60))
@given(
    case=cases(words=ALL, margins=True, multiples=(1, 2), share=True), masked=st.booleans(),
    layout=st.sampled_from(LAYOUTS), data=st.data(),
)  # fmt: skip
def test_L3_slices_have_the_bits_of_the_whole(case: Case, masked: bool, layout: str, data: Any) -> None:
    fn = Rough(case, layout)
    options = data.draw(masks(case)) if masked else {}
    out = tiled(case, fn, numbered=True, output=fn.output(), fill_value=-777, **options)
    whole, lazy = out.compute(), out
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(cuts(lazy.shape))
        whole, lazy = np.ascontiguousarray(whole[key]), lazy[key]
    assert_same_bits(tw.compute(lazy), whole)
    if lazy.ndim and data.draw(st.booleans()):
        other = lazy[::-1]
        assert_same_bits(tw.compute(lazy.astype(float) - other), whole.astype(float) - whole[::-1])


UNARY = (
    lambda a: a > 0.5, lambda a: a * 2 + 1, np.sqrt, lambda a: a.clip(0.2, 0.6), abs, lambda a: ~(a > 0.5),
    lambda a: a.astype("f2"), lambda a: a.round(1), lambda a: 1 - a, np.isfinite, lambda a: a**2,
    lambda a: np.where(a > 0.5, a, 0),
)  # fmt: skip
BINARY = (lambda a, b: a * 1 - b * 1, np.maximum, lambda a, b: (a > 0.5) & (b > 0.3), np.hypot)


@settings(max_examples=share(60))
@given(data=st.data())
def test_L3_slices_of_expressions_run_the_tiles_of_slices(data: Any) -> None:
    """What is computed sample by sample costs no more sliced at its end than at its begin."""
    image, calls = picture(60), [0]

    def root(crop: np.ndarray) -> np.ndarray:
        calls[0] += 1
        return np.sqrt(crop)

    shape = data.draw(st.sampled_from(((60, 60), (60, 1), (1, 60), (4, 15, 60))))
    image = image.ravel()[: np.prod(shape)].reshape(shape)
    chunks = tuple(min(n, data.draw(st.sampled_from((15, 30, 60)))) for n in shape)
    crop = tuple(min(n, 8) for n in shape)
    out = tw.tiled_map(root, image, crop, [min(2, (c - 1) // 2) for c in crop], dtype="f4", chunks=chunks)
    key, turned = data.draw(cuts(shape)), False
    expressions = [(out, np.sqrt(image))]
    for _ in range(data.draw(st.integers(1, 4))):
        lazy, eager = expressions[-1]
        if data.draw(st.booleans()):
            f = data.draw(st.sampled_from(UNARY))
            expressions.append((f(lazy), f(eager)))
        else:
            f, (other, plain) = data.draw(st.sampled_from(BINARY)), data.draw(st.sampled_from(expressions))
            if len({*shape}) == 1 and data.draw(st.booleans()):
                other, plain, turned = other.T, plain.T, True
            expressions.append((f(lazy, other), f(eager, plain)))
    lazy, eager = expressions[-1]
    found = tw.compute(lazy[key])
    np.testing.assert_array_equal(found, eager[key])
    assert found.dtype == lazy.dtype
    calls[0], several = 0, calls[0]
    tw.compute(out[key])
    listed = any(isinstance(item, list) for item in key)
    assert turned or listed or several == calls[0]


def test_L3_numbers_have_the_bits_and_warnings_of_arrays() -> None:
    """numpy computes single numbers another way: ``u1`` that overflows warns, ``abs`` of ``c8`` differs."""
    out = tw.tiled_map(np.sqrt, picture(60), 16, 2, dtype="f4", chunks=30)
    bytes_, numbers = (out * 255).astype("u1"), out * (1 + 2j)
    with np.errstate(all="raise"):
        for lazy in (bytes_ * np.uint8(7), -bytes_, abs(numbers), (numbers * numbers).T, out.T * 2):
            whole = lazy.compute()
            for key in ((3, 4), (3, slice(4, 9)), (slice(None), -1), (slice(3, 40, 2), None, 5)):
                assert_same_bits(tw.compute(lazy[key]), whole[key])


def test_L3_keys_of_parts_have_one_value() -> None:
    """Two runs on a cluster share what has one key, and one of them may have arrays that are there."""
    out = tw.tiled_map(np.sqrt, picture(60), 16, 2, dtype="f4", chunks=30)
    more = out + 1
    lazy = ((more * 2 + out)[3:50] * 3)[2, 4:12]
    made = more.persist(scheduler="synchronous")
    layers = {**lazy.dask.layers, more.name: made.dask.layers[more.name]}
    graph = HighLevelGraph(layers, {**lazy.dask.dependencies, more.name: set()})
    again = da.Array(graph, lazy.name, lazy.chunks, meta=lazy._meta)
    found = []
    for array in (lazy, again):
        tasks = tasks_of([array], {lazy.name: [(lazy.name, 0)]})
        found.append(dict(zip(tasks, dask.get(tasks, [*tasks]), strict=True)))
    shared = [key for key in found[0].keys() & found[1].keys() if key[0].startswith("getitem")]
    assert shared
    for key in shared:
        np.testing.assert_array_equal(found[0][key], found[1][key])


@pytest.mark.parametrize(
    "cut",
    [
        "o[10:60, 15:60][10:12, 5:7]", "o[::-1][:2]", "da.stack([o, o])[0, 20:22]", "o.rechunk(30)[:1, :2]",
        "da.concatenate([o, o])[20:22, 20:22]", "o[[5, 60]][:1, :2]", "o[::2][:2][1:] + o[::2][20:21]",
        "((o[10:60] * 2)[3:40].T > 1)[20:22, 7:9]", "da.stack([o[3:], o[2:-1]], 1)[1:][:2, 0, 20:22][:, 1]",
        "o.vindex[[20, 50, 20], [20, 50, 21]][:1]", "o[20:60][:2].rechunk(1)[:, 3]", "o[:, None][:, 0][:2]",
        "above(o + 1)[20:22, 5:7]", "above((o * 2)[3:] + 1)[20:22][:, 5]",
        "(o + 1)[9:10] + above(o + 1)[9:10]",
    ],
)  # fmt: skip
def test_L3_keys_of_dask_have_the_values_that_dask_computes(cut: str) -> None:
    """On a cluster, what others compute under these keys would be samples outside of what was wanted."""
    out = tw.tiled_map(np.sqrt, picture(), 16, 2, dtype="f4", chunks=60)
    above = functools.partial(tw.tiled_map, np.square, crop=16, overlap=2, dtype="f4", chunks=60)
    lazy = eval(cut, {"o": out, "da": da, "above": above})
    tasks = tasks_of([lazy], {lazy.name: [*dask.core.flatten(lazy.__dask_keys__())]})
    graph = dict(lazy.__dask_graph__())
    assert not any(key in graph for key in tasks if isinstance(key, tuple) and key[0] == out.name)
    shared = [key for key in tasks if key in graph and isinstance(key, tuple)]
    assert shared
    found = zip(dask.get(tasks, shared), dask.get(graph, shared), strict=True)
    for one, other in found:
        np.testing.assert_array_equal(one, other)


BLOCKWISE: tuple[Any, ...] = (
    lambda o: da.blockwise(np.add, "ij", o, "ji", o, "ij", dtype="f4"),
    lambda o: da.blockwise(np.add, "ij", o[0], "i", o, "ij", dtype="f4"),
    lambda o: o.map_blocks(np.transpose, dtype="f4"),
    lambda o: o.map_blocks(np.transpose, axes=(-1, 0), dtype="f4"),
    lambda o: da.blockwise(np.transpose, "ji", o, "ij", axes=(1, 0), dtype="f4"),
    lambda o: o.map_blocks(np.swapaxes, axis1=0, axis2=1, dtype="f4"),
    lambda o: da.blockwise(np.swapaxes, "ij", o, "ij", axis1=0, axis2=-1, dtype="f4"),
    lambda o: o.map_blocks(functools.partial(np.transpose, axes=(1, 0)), dtype="f4"),
    lambda o: da.blockwise(functools.partial(np.transpose), "ji", o, "ij", dtype="f4"),
    lambda o: o.map_blocks(functools.partial(np.where, np.eye(30) > 0), 0, dtype="f4"),
    lambda o: o[:30, :30].map_blocks(
        functools.partial(np.clip, a_min=np.eye(30, dtype="f4"), a_max=2), dtype="f4"
    ),
)


@pytest.mark.parametrize("number", range(len(BLOCKWISE)))
def test_L3_blocks_that_are_not_where_their_samples_are_stay_whole(number: int) -> None:
    """Functions that work sample by sample may take square blocks of dask from other places."""
    lazy = BLOCKWISE[number](tw.tiled_map(np.sqrt, picture(60), 16, 2, dtype="f4", chunks=30))
    whole = lazy.compute()
    for key in ((slice(3, 9), slice(4, 12)), (3, 4), (slice(28, 33), slice(1, 9)), (slice(1, -1), -1)):
        assert_same_bits(tw.compute(lazy[key]), whole[key])


@pytest.mark.parametrize("stop", [3, None])
def test_L3_slices_that_need_all_tiles_share_an_expression(stop: int | None) -> None:
    """Differences of neighbours compute it once; only where fewer tiles run, once per slice."""
    expression = np.exp(tw.tiled_map(np.sqrt, picture(60), 16, 2, dtype="f4", chunks=60))
    lazy = expression[2:][:stop] - expression[:-2][:stop]
    tasks = tasks_of([lazy], {lazy.name: [(lazy.name, 0, 0)]})
    parts = [key for key in tasks if isinstance(key, tuple) and key[0].endswith("-parts")]
    assert len(parts) == (0 if stop is None else 2)


def picture(n: int = 100) -> np.ndarray:
    return np.random.default_rng(0).random((n, n)).astype("f4")


@pytest.mark.parametrize(
    ("cut", "tiles"),
    [
        ("o[20:22, 20:22]", 1), ("o[20, 20]", 1), ("o[23:25, 20:22]", 2), ("o[23:25, 23:25]", 4), ("o[5]", 9),
        ("o[:, 5:6]", 9), ("o[20:22, 20:22] * 2 + 1", 1), ("o[10:60, 15:60][10:12, 5:7]", 1),
        ("o[10:60:2, 15:60:3][5:6, 2:3]", 1), ("o[None, 20, 20:22]", 1), ("o[20:22, 20:22].sum()", 1),
        ("da.concatenate([o[20:22], o[80:82]])[:, 20:22]", 2), ("o[20:22, 20:22].rechunk(1)", 1),
        ("da.concatenate([o, o])[20:22, 20:22]", 1), ("o.blocks[0, 0][20:22, 20:22]", 1),
        ("(o > 0.5)[20:22, 20:22]", 1), ("(o * 2 + 1)[10:60][5:30, 20]", 3), ("o.T[20:22, 5]", 1),
        ("da.where(o > 0.5, o, o.T)[20:22, 50:52]", 2), ("np.sqrt(o)[None, 20, 20:22]", 1),
        ("(o > 0.5)[20:22, 20:22].sum()", 1), ("(o - o.T + 1)[20, 50:52]", 2),
        ("o[20:22, 20:22] + o[70:72, 20:22]", 2), ("o[20:22, 20:22] + o[26:28, 20:22]", 2),
        ("(o[10:60] * 2)[10:12, 20:22]", 1), ("np.sqrt((o * 2)[3:40] + 1)[17:19, 20]", 1),
        ("((o[10:60] * 2)[3:40].T > 1)[20:22, 7:9]", 1), ("(o[::2] * 3)[10:11, 20:22]", 1),
        # dask counts backwards from the end of a block, and the rest of a slice from its begin.
        ("o[::-1][:2]", 9), ("o[::-1][75:77, 20]", 2), ("o[::-1, ::-1][78:80, 78:80]", 1),
        ("o[::-3][26, 78:2:-2][1:3]", 1), ("(o > 0.5)[::-1][78:80, 20:22]", 1),
        ("da.flip(o, 0)[78, ::-1][78]", 1), ("o[-80:-78, -80]", 1),
        # Lists, in any order, and twice what is there once; single samples.
        ("o[[20, 21], 20:22]", 1), ("o[[21, 90, 20]][:, 20:22]", 7), ("o[:, [21, 20, 21]][20]", 1),
        ("o[[95, 20, 21]][1:, 20:22]", 1), ("o[np.arange(100) == 20][:, 20:22]", 1), ("o[[99]][0, [0]]", 1),
        ("o[[5, 20]][:, [50, 21, 20]]", 8), ("o[20:40][[1]][:, 20:22]", 1), ("o[::-1][[79]][:, [20]]", 1),
        ("o.vindex[[20, 90, 20], [20, 90, 21]]", 2), ("o.vindex[[[5]], [20]] + o[5, 20]", 1),
        ("o.vindex[[20, 90], :][:, :2]", 18),
        # Other ways to say the same.
        ("da.stack([o, o + 1])[0, 20:22, 20:22]", 1), ("da.stack([o, o], axis=1)[20:22, :, 20:22]", 1),
        ("da.stack([o, o.T], axis=-1)[20, 50:52]", 2), ("da.stack([o > 0.5, o < 0.2])[:, 20:22, 20:22]", 1),
        ("da.stack([o * 2, o])[0, 20, 20:22]", 1), ("da.stack([o, o * 2], 1)[20:22, [1, 0]][:, 0, 20:22]", 9),
        ("o.swapaxes(0, 1)[20:22, 5]", 1), ("(o - o.swapaxes(-1, 0))[20, 50:52]", 2),
        ("da.around(o, 1)[20:22, 20:22]", 1), ("da.isclose(o, 0.5, atol=0.2)[20:22, 20:22]", 1),
        # Nobody knows which of these have one sample, and are repeated.
        ("(o[10:60] - o[:50])[10:12, 20:22]", 45), ("(o[10:60, :1] * o[10:60])[10:12, 20:22]", 45),
        # Nearly all, and what asks for whole blocks besides.
        ("o[:90]", 81), ("o[20:22, 20:22] + o.max()", 81), ("o[::-1][::-1][:2, :2]", 9),
        ("o.T.vindex[[20, 90], [20, 70]]", 81),
    ],
)  # fmt: skip
def test_L3_only_the_tiles_of_slices_run(cut: str, tiles: int, counting: Callable[..., Any]) -> None:
    fn, image = counting(np.sqrt), picture()
    # Cores end at 12, 24, 36, ...
    out = tw.tiled_map(fn, image, 16, 2, dtype="f4", chunks=1000)
    assert plan_of(out).n_runs == 81
    lazy = eval(cut, {"o": out, "da": da, "np": np})
    expected = eval(cut, {"o": da.from_array(np.sqrt(image), chunks=1000), "da": da, "np": np}).compute()
    np.testing.assert_array_equal(tw.compute(lazy), expected)
    assert fn.calls == tiles


def test_L3_lists_are_joined_of_blocks_in_another_order(counting: Callable[..., Any]) -> None:
    fn, image = counting(np.sqrt), picture()
    out = tw.tiled_map(fn, image, 16, 2, dtype="f4", chunks=50)
    lazy = out[[26, 20, 90]][:1, 20:22]
    np.testing.assert_array_equal(tw.compute(lazy), np.sqrt(image)[26:27, 20:22])
    assert fn.calls == 3  # those of all three, because dask joins them first


def test_L3_of_many_slices_the_needed_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many as blocks, and an image of 10^6 x 10^6 has 30 000: making them took 0.5 s."""
    renamed, made = narrowing._renamed, list[Any]()

    def counted(node: Any, *rest: Any) -> Any:
        made.append(node)
        return renamed(node, *rest)

    monkeypatch.setattr(narrowing, "_renamed", counted)
    image = picture()
    out = tw.tiled_map(np.sqrt, image, 4, 1, dtype="f4", chunks=8)
    cuts = (
        "o[::2, ::2][20:22, 9]", "o[::-1][20:22, 9]", "o[20:22].rechunk(9)[:, 9]", "o[[41, 20]][:, 9]",
    )  # fmt: skip
    for cut in cuts:
        made.clear()
        found = tw.compute(eval(cut, {"o": out}))
        array = da.from_array(np.sqrt(image), chunks=8)
        np.testing.assert_array_equal(found, eval(cut, {"o": array}).compute())
        assert 0 < len(made) < 10


@pytest.mark.parametrize(("named", "read"), [(True, False), (False, True), (True, True)])
def test_L3_names_that_were_given_by_hand_change_nothing(
    named: bool, read: bool, counting: Callable[..., Any]
) -> None:
    fn, image = counting(np.sqrt), picture()
    array = da.from_array(image, chunks=30, name="image" if read else None)
    out = tw.tiled_map(fn, array, 16, 2, dtype="f4", chunks=1000, name="mine" if named else None)
    np.testing.assert_array_equal(tw.compute(out[20:22, 20:22] * 2), 2 * np.sqrt(image)[20:22, 20:22])
    assert fn.calls == 1


def test_L3_outputs_of_one_call_share_tiles(counting: Callable[..., Any]) -> None:
    image, fn = picture(), counting(lambda x: {"a": x, "b": -x})
    out = tw.tiled_map(fn, image, 16, 2, output={"a": tw.Output("f4"), "b": tw.Output("f4")}, chunks=1000)
    cut = (slice(20, 22), slice(20, 22))
    np.testing.assert_array_equal(
        tw.compute(out["a"][cut] + 2 * out["b"][:2, :2]), image[cut] - 2 * image[:2, :2]
    )
    assert fn.calls == 2
    two = tw.tiled_map(lambda a, b: a * b, (out["a"][cut], out["b"][cut]), 2, 0, dtype="f4")
    np.testing.assert_array_equal(tw.compute(two), -(image[cut] ** 2))
    assert fn.calls == 3


def test_L3_results_below_run_the_tiles_that_are_needed(counting: Callable[..., Any]) -> None:
    image, below, above = picture(), counting(np.sqrt), counting(np.square)
    one = tw.tiled_map(below, image, 16, 2, dtype="f4", chunks=1000)
    two = tw.tiled_map(above, one, 16, 2, dtype="f4", chunks=1000)
    expected = np.square(np.sqrt(image))
    np.testing.assert_array_equal(tw.compute(two[20:22, 20:22]), expected[20:22, 20:22])
    assert (above.calls, below.calls) == (1, 9)  # it reads [10, 26) along each axis, in the cores of 3 tiles
    crops = tw.sample_crops(two, 2, 3, seed=0)
    assert above.calls <= 1 + 2 * 4
    assert below.calls <= 9 + 2 * 16
    assert crops.shape == (2, 3, 3)
    tw.image_statistics(two[20:22, 20:22])
    assert above.calls <= 1 + 2 * 4 + 1


@pytest.mark.parametrize("chunks", [1000, 50])
@pytest.mark.parametrize(
    ("middle", "tiles"),
    [
        ("o + 1", 9), ("o[3:97, 3:97]", 4), ("o.T", 9), ("o.astype('f8')", 9), ("da.stack([o, -o])[1]", 9),
        ("o.rechunk(40)", 9), ("np.log(o) > -1", 9), ("(o * 2)[3:97, 3:97] + 1", 4), ("o[::-1, ::-1] * 2", 4),
        ("(o > 0.5).rechunk(37)", 9), ("da.concatenate([o * 2, o]) + 1", 9), ("o - o.T", 9),
        ("da.where(o > 0.5, o, 0).rechunk(50)[:, 4:]", 6), ("da.roll(o, 7, 0)", 6), ("o[None, :][0]", 9),
        # Own functions and sums, which may need all.
        ("o.map_blocks(twice)", None), ("o / o.max()", None), ("o + o.map_blocks(twice)", None),
        ("(o > 0.5) * o.mean(axis=0)", None),
    ],
)  # fmt: skip
def test_L3_expressions_between_results_run_the_tiles_that_are_needed(
    middle: str, tiles: int | None, chunks: int, counting: Callable[..., Any]
) -> None:
    image, below, above = picture(), counting(np.sqrt), counting(np.square)
    names = {"da": da, "np": np, "twice": lambda block: 2 * block}
    out = tw.tiled_map(below, image, 16, 2, dtype="f4", chunks=chunks)
    lazy = eval(middle, {"o": out, **names})
    two = tw.tiled_map(above, lazy, 16, 2, dtype="f8", chunks=1000)
    found = tw.compute(two[20:22, 20:22])
    assert above.calls == 1
    whole = 81 if chunks == 1000 else 25
    # It reads [10, 26) along each axis, in the cores of 3 tiles; or of 2, where the expression is shifted.
    assert below.calls == tiles if tiles is not None else below.calls >= whole
    if tiles is not None and chunks == 50:  # dask makes layers of which all blocks are needed
        assert not any(a.is_materialized() for a in lazy.dask.layers.values() if type(a) is Blockwise)
    with dask.config.set(scheduler="synchronous"):
        assert_same_bits(found, two.compute()[20:22, 20:22])


def test_L3_expressions_in_chains_of_results(counting: Callable[..., Any]) -> None:
    image, fns = picture(), [counting(np.sqrt), counting(np.square), counting(np.negative)]
    options = {"crop": 16, "overlap": 2, "dtype": "f4", "chunks": 1000}
    one = tw.tiled_map(fns[0], image, **options)
    two = tw.tiled_map(fns[1], one + 1, **options)
    three = tw.tiled_map(fns[2], 2 * two - one, **options)
    root = np.sqrt(image)
    expected = -(2 * np.square(root + 1) - root)
    for fn in fns:
        fn.reset()
    assert_same_bits(tw.compute(three[44:46, 44:46]), expected[44:46, 44:46])
    # Tiles own [12 i, 12 i + 12) and read 2 more at each end.
    assert [fn.calls for fn in fns] == [5 * 5, 3 * 3, 1]
    found = tw.compute(three[20:22, 20:22] + three[80:82, 80:82] * 2)
    np.testing.assert_array_equal(found, expected[20:22, 20:22] + expected[80:82, 80:82] * 2)
    assert fns[2].calls == 1 + 2
    assert fns[0].calls == 25 + 4 * 4 + 5 * 5


def test_L3_expressions_of_two_results_that_several_read(
    counting: Callable[..., Any], tmp_path: Path
) -> None:
    image, below, other = picture(), counting(np.sqrt), counting(np.negative)
    options = {"crop": 16, "overlap": 2, "dtype": "f4", "chunks": 50}
    one, two = tw.tiled_map(below, image, **options), tw.tiled_map(other, image, **options)
    sums = one + two
    three, four = tw.tiled_map(np.abs, sums, **options), tw.tiled_map(np.square, sums * 2, **options)
    expected = np.sqrt(image) - image
    cut = (slice(20, 22), slice(20, 22))
    below.reset(), other.reset()
    assert_same_bits(tw.compute(three[cut] + four[cut]), (abs(expected) + np.square(2 * expected))[cut])
    assert (below.calls, other.calls) == (9, 9)
    found = tw.to_zarr(three[cut], tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(found[...], abs(expected)[cut])
    assert (below.calls, other.calls) == (18, 18)
    assert tw.sample_crops(three, 1, 2, seed=0).shape == (1, 2, 2)
    assert below.calls <= 18 + 4 * 16
    below.reset()
    tw.compute(three[cut] + sums.max())  # all of it is computed anyway
    assert below.calls == 81


def test_L3_what_is_there_of_an_expression_between_results_is_read(counting: Callable[..., Any]) -> None:
    image, below = picture(), counting(np.sqrt)
    options = {"crop": 16, "overlap": 2, "dtype": "f4", "chunks": 50}
    lazy = (tw.tiled_map(below, image, **options) + 1).persist(scheduler="synchronous")
    below.reset()
    found = tw.compute(tw.tiled_map(np.square, lazy * 2, **options)[20:22, 20:22])
    np.testing.assert_array_equal(found, np.square(2 * (np.sqrt(image) + 1))[20:22, 20:22])
    assert below.calls == 0


def test_L3_a_result_that_several_read_runs_each_tile_once(counting: Callable[..., Any]) -> None:
    image, below = picture(), counting(lambda x: {"a": np.sqrt(x), "b": -x})
    outputs = {"a": tw.Output("f4"), "b": tw.Output("f4")}
    one = tw.tiled_map(below, image, 16, 2, output=outputs, chunks=50)
    options = {"crop": 16, "overlap": 2, "dtype": "f4", "chunks": 30}
    two = tw.tiled_map(lambda a, b: a + b, (one["a"], one["b"]), **options)
    three = tw.tiled_map(np.square, one["a"], **options)
    root = np.sqrt(image)
    found = tw.compute(two[:60, 20:22] - three[:60, 20:22])
    np.testing.assert_array_equal(found, (root - image - root**2)[:60, 20:22])
    # Tiles own [12, 24) along the second axis and read [10, 26); the first 5 of the first axis read [0, 62).
    assert below.calls == 6 * 3
    below.reset()
    found = tw.compute(two[:60, 20:22] + one["b"].max())
    np.testing.assert_array_equal(found, (root - image)[:60, 20:22] + (-image).max())
    assert below.calls == 81  # all of it is read anyway


@pytest.mark.parametrize("cut", ["o[:0]", "o[12:12]", "o[24:24, 20:22]", "o[12:12, 3:3] + o[24:24, 9:9]"])
def test_L3_slices_without_samples_of_results_of_results(cut: str, counting: Callable[..., Any]) -> None:
    below, options = counting(np.sqrt), {"crop": 16, "overlap": 2, "dtype": "f4", "chunks": 50}
    out = tw.tiled_map(np.square, tw.tiled_map(below, picture(), **options), **options)
    lazy = eval(cut, {"o": out})
    np.testing.assert_array_equal(tw.compute(lazy), lazy.compute())


def test_L3_both_ends_of_an_axis_that_wraps_do_not_run_what_is_between(counting: Callable[..., Any]) -> None:
    below = counting(np.sqrt)
    options = {"crop": 16, "overlap": 2, "dtype": "f4", "chunks": 1000}
    options |= {"boundary": "wrap", "edge": "pad"}
    out = tw.tiled_map(np.square, tw.tiled_map(below, picture(96), **options), **options)
    np.testing.assert_array_equal(tw.compute(out[:2, :2]), np.square(np.sqrt(picture(96)))[:2, :2])
    assert below.calls == 9  # it reads [-2, 14) along each axis, in the cores of 3 tiles


def test_L3_crops_never_run_tiles_besides(counting: Callable[..., Any]) -> None:
    below, above = counting(np.sqrt), counting(np.square)
    options = {"crop": 10, "overlap": 0, "dtype": "f4", "chunks": 100}
    out = tw.tiled_map(above, tw.tiled_map(below, picture(20), **options), **options)
    where = np.zeros((20, 20), bool)
    where[5, [5, 15]] = where[15, 5] = True
    _, starts = tw.sample_crops(out, 9, 1, where=where, positions=True)
    needed = len(set(map(tuple, (starts // 10).tolist())))
    assert needed == 3  # of the 4 tiles, which is more than what is worth a mask for slices
    assert (above.calls, below.calls) == (needed, needed)


@pytest.mark.parametrize(
    ("cut", "tiles"),
    [
        ("(o + o)[5, 7]", 1), ("(o + o)[5][7]", 1), ("(o * o)[:, 5][3:50][2:4]", 1), ("(o + o)[-1, -1]", 1),
        ("(o + o.T)[5][7:9]", 1), ("(o > 3)[5][:, None][3:9]", 1),
        ("(o > 3)[5:7, None][:, -1][:, None, 3:9]", 1), ("((o + o)[2:50] * 3)[4:6, 7:9]", 1),
    ],
)  # fmt: skip
def test_L3_numbers_of_expressions_do_not_warn(cut: str, tiles: int, counting: Callable[..., Any]) -> None:
    """As numpy does of an overflow in a single number, and not in an array."""
    image = np.random.default_rng(0).integers(0, 255, (100, 100)).astype("u1")
    fn = counting(lambda crop: crop)
    found = tw.compute(eval(cut, {"o": tw.tiled_map(fn, image, 16, 2, dtype="u1", chunks=40)}))
    assert fn.calls == tiles
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, eval(cut, {"o": image}), strict=True)


def test_L3_what_reads_a_block_twice_is_not_computed_twice(counting: Callable[..., Any]) -> None:
    fn = counting(np.sqrt)
    out = tw.tiled_map(fn, picture(), 16, 2, dtype="f4", chunks=1000)
    tw.compute(out[20:22, 20:22] + out[:2, :2] + out.sum())
    assert fn.calls == 81


@pytest.mark.sample(1, whole=8)
@pytest.mark.parametrize("blend", ["trim", "hann", "max", "sum"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reuse", ["share", "recompute"])
def test_L3_canvases_are_as_large_as_what_tiles_reach(
    blend: str, masked: bool, reuse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, make = list[int](), canvas._canvas

    def counted(output: Any, box: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(box.size)
        return make(output, box, *rest, **options)

    image, mask = picture(1000), np.zeros((1000, 1000), bool)
    mask[495:505, 495:505] = True
    options = {"mask": mask, "fill_value": 7} if masked else {}
    out = tw.tiled_map(np.sqrt, image, 16, 6, blend=blend, dtype="f4", chunks=490, reuse=reuse, **options)
    # At the corners of four blocks, and inside of one.
    cuts = [(slice(485, 495),) * 2, (slice(500, 502),) * 2]
    whole = out.compute()
    monkeypatch.setattr(canvas, "_canvas", counted)
    for key in cuts:
        sizes.clear()
        assert_same_bits(tw.compute(out[key]), whole[key])
        assert sum(sizes) <= 20 * 16 * 16
    if masked:  # also of all blocks: the mask has four groups of tiles
        sizes.clear()
        out.compute()
        assert sum(sizes) <= 20 * 16 * 16


def test_L3_stores_get_slices(tmp_path: Path, counting: Callable[..., Any]) -> None:
    fn = counting(np.sqrt)
    out = tw.tiled_map(fn, picture(), 16, 2, dtype="f4", chunks=1000)
    for _ in range(2):  # the second run finds all done
        array = tw.to_zarr(out[20:22, 20:22], tmp_path / "a.zarr", progress=False)
        np.testing.assert_array_equal(array[...], np.sqrt(picture()[20:22, 20:22]))
        assert fn.calls == 1
    # What is compared when a run goes on is the result, and not which tiles ran.
    assert tw.to_zarr(out[20:22, 20:22], tmp_path / "b.zarr", progress=False)[0, 0] == array[0, 0]


def test_L3_expressions_of_dask_run_whole_blocks(counting: Callable[..., Any]) -> None:
    out = tw.tiled_map(np.sqrt, picture(), 16, 2, dtype="f4", chunks=50)
    part = out[20:22, 20:22]
    tasks = tasks_of([part], {part.name: set(dask.core.flatten(part.__dask_keys__()))})
    assert not any(isinstance(k, tuple) and k[0] == out.name for k in tasks)
    with dask.config.set({"optimization.fuse.active": False}):
        np.testing.assert_array_equal(part.compute(), np.sqrt(picture())[20:22, 20:22])


def test_L3_blocks_that_a_cluster_holds_are_used(client: Any) -> None:
    options = {"crop": 16, "overlap": 2, "dtype": "f4", "chunks": 50}
    one = tw.tiled_map(np.sqrt, picture(), **options)
    two = tw.tiled_map(np.square, one, **options)

    def takes(array: Any) -> bool:
        part = array[20:22, 20:22]
        return (one.name, 0, 0) in tasks_of([part], {part.name: set(dask.core.flatten(part.__dask_keys__()))})

    assert not takes(one)
    assert not takes(two)
    held = client.persist(one)  # not assigned to ``one``, but a cluster knows its blocks by their keys
    assert takes(one)
    assert takes(two)
    del held


@pytest.mark.parametrize(
    "middle", ["o[10:60]", "o + 1", "(o + 1)[10:60]", "da.stack([o, o])[0]", "o.rechunk(30)", "o.T[::-1]"]
)
def test_L3_what_a_cluster_holds_of_an_expression_is_used(
    middle: str, client: Any, counting: Callable[..., Any], tmp_path: Path
) -> None:
    fn = counting(np.sqrt)
    out = tw.tiled_map(fn, picture(), 16, 2, dtype="f4", chunks=50)
    lazy = eval(middle, {"o": out, "da": da})
    held = client.persist(lazy)  # not assigned to ``lazy``
    whole = held.compute()
    fn.reset()
    above = tw.tiled_map(np.abs, lazy * 1, 16, 2, dtype="f4", chunks=50)
    for number, part in enumerate((lazy[20:22, 20:22], (lazy * 2)[20:22, 20:22] / 2, above[20:22, 20:22])):
        found = tw.to_zarr(part, tmp_path / f"{number}.zarr", progress=False)
        np.testing.assert_array_equal(found[...], whole[20:22, 20:22])
    assert fn.calls == 0


def test_L3_chunks_of_a_slice_take_no_more_in_a_large_image() -> None:
    """An array of all its blocks, which has one number for each, took hundreds of megabytes."""
    image = zarr.create_array({}, shape=(20, 2 * 10**5, 2 * 10**5), chunks=(1, 512, 512), dtype="f4")
    out = tw.tiled_map(lambda x: x, image, 64, 16, dtype="f4", axes=(1, 2), each=(0,), chunks=512)
    assert math.prod(out.numblocks) > 3 * 10**6
    tw.compute(out[5:6, 5000:5100, 7000:7100])
    tracemalloc.start()
    try:
        found = tw.compute(out[5:6, 100_000:100_100, 7000:7100])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.shape == (1, 100, 100)
    assert peak < 30 * 10**6
