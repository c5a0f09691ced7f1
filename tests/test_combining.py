"""`augmented` and `ensemble` in everything that results go through: calls, memory, stores, refusals."""

from __future__ import annotations

import functools
import json
import pickle
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.function.combining import predictions_of
from tilework.graph.build import find_spec, plan_of

RNG = np.random.default_rng(0)
IMAGE = RNG.random((40, 44)).astype(np.float32)


def lopsided(x: np.ndarray) -> np.ndarray:
    """Look one sample back along each of the last two axes."""
    y = x.astype(np.result_type(x, np.float32))
    y[..., 1:, :] += 2 * x[..., :-1, :]
    y[..., 1:] += 3 * x[..., :-1]
    return y


def of_batches(x: np.ndarray) -> np.ndarray:
    return lopsided(x)


def mirrored(fn: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return the mean over both mirrors of the last two axes, by slices."""
    ways = [(slice(None, None, a), slice(None, None, b)) for a in (1, -1) for b in (1, -1)]
    return np.mean([fn(x[(..., *w)].copy())[(..., *w)].astype(float) for w in ways], axis=0)


# -- calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "flips", "rotations", "calls"),
    [(None, (0,), None, 2), (None, "all", None, 4), (None, (), (0, 1), 4), (None, "all", (0, 1), 8),
     (None, (1,), (0, 1), 8), (4, "all", (0, 1), None), (1, "all", None, None)],
)  # fmt: skip
@pytest.mark.sample(7)
def test_calls_are_counted_and_known(
    counting: Any, batch_size: int | None, flips: Any, rotations: Any, calls: int | None
) -> None:
    sizes = []

    def fn(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x) if batch_size else 1)
        return lopsided(x)

    counted = counting(fn)
    out = tw.tiled_map(
        tw.augmented(counted, flips, rotations), IMAGE, 12, 2, batch_size=batch_size, chunks=(16, 24)
    )
    assert counted.calls == 1  # on zeros, of the function alone
    counted.reset()
    sizes.clear()
    out.compute(scheduler="sync")
    plan = plan_of(out)
    crops, text = plan.calls(), str(tw.explain(out)).replace("\n", " ")
    k = plan.predictions
    assert sum(sizes) == crops * k
    assert re.search(rf"{crops} crops.*, {k} predictions each: {crops * k}, {max(sizes)} in a call", text)
    if calls is not None:
        assert (k, counted.calls) == (calls, crops * calls)
    else:
        assert max(sizes) == plan.together * batch_size == k * batch_size
        assert counted.calls < crops * k / batch_size
    assert plan == tw.TilePlan.from_json(plan.to_json())
    # Names of other results, and what stores hold, stay as they are.
    assert not {"predictions", "together", "waiting"} & set(
        json.loads(tw.plan_tiles(IMAGE.shape, 12, 2).to_json())
    )


def test_a_declared_function_is_not_called_when_built(counting: Any) -> None:
    fn = counting(lopsided)
    out = tw.tiled_map(tw.augmented(fn), IMAGE, 12, 2, dtype="float32")
    assert fn.calls == 0
    np.testing.assert_allclose(out, mirrored(lopsided, IMAGE), rtol=1e-6)


def test_each_function_of_an_ensemble_is_called_once_per_crop(counting: Any) -> None:
    fns = [counting(lopsided), counting(np.sqrt), counting(tw.augmented)]
    fns[2].fn = np.abs
    out = tw.tiled_map(tw.ensemble(fns), IMAGE, 12, 2, dtype="float32")
    got = out.compute()
    assert [fn.calls for fn in fns] == [plan_of(out).calls()] * 3
    expected = np.mean([lopsided(IMAGE), np.sqrt(IMAGE), np.abs(IMAGE)], axis=0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_memory_holds_few_results() -> None:
    """Of eight variants, one by one: the result, and a sum of each power of two."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def fn(x: np.ndarray) -> np.ndarray:
        nonlocal most
        result = lopsided(x)
        alive.append(weakref.ref(result))
        most = max(most, sum(r() is not None for r in alive))
        return result

    out = tw.tiled_map(tw.augmented(fn, "all", (0, 1)), IMAGE, 12, 2, dtype="float32")
    out.compute(scheduler="sync")
    assert len(alive) == 8 * plan_of(out).calls()
    assert most <= 2


def test_memory_of_a_plan_knows_the_variants() -> None:
    def peak(fn: Any, **options: Any) -> int:
        from tilework.plan.memory import peak_bytes

        out = tw.tiled_map(
            fn, np.zeros((900, 900), "float32"), 300, 0, dtype="float32", chunks=300, **options
        )
        return peak_bytes(plan_of(out))

    crop = 300 * 300 * 4
    threads = plan_of(tw.tiled_map(np.abs, IMAGE, 12, 0)).threads
    one = peak(lopsided)
    # The crop that stays, and 3 sums of pairs.
    assert peak(tw.augmented(lopsided)) - one == threads * crop * (1 + 3)
    assert peak(tw.augmented(of_batches), batch_size=1) - peak(of_batches, batch_size=1) == threads * crop * (
        4 + 3 + 3
    )
    assert peak(tw.augmented(lopsided, reduce=lambda s: s[0])) - one == threads * crop * (1 + 4)


def test_functions_get_their_own_memory() -> None:
    """One that writes into its crop, or returns the same array again and again, changes no other."""
    room = np.zeros((12, 12), np.float32)

    def writes(x: np.ndarray) -> np.ndarray:
        assert x.flags.c_contiguous
        assert x.flags.writeable
        np.copyto(room, lopsided(x))
        x[:] = np.nan
        return room

    def run(fn: Any) -> np.ndarray:
        return tw.tiled_map(fn, IMAGE, 12, 2, dtype="float32").compute(scheduler="sync")

    for reduce in ("mean", "max", "gmean", functools.partial(np.median, axis=0)):
        clean, got = (run(tw.augmented(fn, "all", (0, 1), reduce=reduce)) for fn in (lopsided, writes))
        np.testing.assert_array_equal(got, clean)
    np.testing.assert_allclose(run(tw.ensemble([writes, writes, lopsided])), lopsided(IMAGE), rtol=1e-6)


# -- results ----------------------------------------------------------------------------------------------


def test_several_sources_and_outputs() -> None:
    other = RNG.random((40, 44, 3)).astype(np.float32)

    def fn(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        return {"a": lopsided(x) + y[..., 0], "b": np.moveaxis(y * x[..., None], -1, 0)[:2]}

    out = tw.tiled_map(tw.augmented(fn), (IMAGE, other), 12, 2, axes=(0, 1))
    got = dask.compute(out)[0]
    assert list(got) == ["a", "b"]
    np.testing.assert_allclose(got["a"], mirrored(lopsided, IMAGE) + other[..., 0], rtol=1e-5)
    np.testing.assert_allclose(got["b"], np.moveaxis(other * IMAGE[..., None], -1, 0)[:2], rtol=1e-6)


def test_each_index_and_the_tile_itself() -> None:
    stack = RNG.random((3, 40, 44)).astype(np.float32)
    seen = []

    def fn(x: np.ndarray, tile: tw.Tile) -> np.ndarray:
        seen.append(tile.index)
        return lopsided(x) + tile.index

    def batches(x: np.ndarray, tiles: tuple[tw.Tile, ...]) -> np.ndarray:
        assert len(tiles) == len(x)
        return lopsided(x) + np.array([t.index for t in tiles]).reshape(-1, 1, 1)

    options: dict[str, Any] = {"each": 0, "pass_tile": True, "dtype": "float32"}
    out = tw.tiled_map(tw.augmented(fn, (1,)), stack, 12, 2, **options)
    got = out.compute(scheduler="sync")
    assert seen == [t for t in range(len(plan_of(out))) for _ in range(2)] or len(set(seen)) == len(
        plan_of(out)
    )
    again = tw.tiled_map(tw.augmented(batches, (1,)), stack, 12, 2, batch_size=3, **options)
    np.testing.assert_allclose(again, got, rtol=1e-6)
    with pytest.raises(TypeError, match="no argument 'tile'"):
        tw.tiled_map(tw.augmented(lopsided), stack, 12, 2, **options)


def test_integers_are_rounded_once() -> None:
    """Where the result is a float, or is reduced later, means keep their fractions."""
    image = RNG.integers(0, 255, (24, 24)).astype(np.uint8)

    def first(x: np.ndarray) -> np.ndarray:
        return x - x % 2

    both = tw.ensemble([first, np.copy])
    exact = (image.astype(float) + first(image)) / 2
    whole = tw.tiled_map(both, image, 10, 1)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, np.rint(exact))
    out = tw.tiled_map(both, image, 10, 1, dtype="float32")
    np.testing.assert_array_equal(out, exact)
    as_float = tw.tiled_map(both, image, 10, 1, output=tw.Output("float32", channels=0))
    assert plan_of(as_float).outputs == plan_of(out).outputs
    scores = [lambda x, k=k: np.stack([x * 0 + 10, x % 2 * k + 9]) for k in (2, 1)]
    out = tw.tiled_map(tw.ensemble(scores), image, 10, 1, output=tw.Output(channels=2, reduce="argmax"))
    np.testing.assert_array_equal(out, image % 2)  # 10 and 10.5
    found = tw.tiled_map(tw.ensemble(scores), image, 10, 1, output=tw.Output(reduce="argmax"))
    np.testing.assert_array_equal(found, image % 2)
    assert [o.sample_bytes for o in plan_of(found).outputs] == [2 * 4]  # not of the bytes that fn returns


@pytest.mark.parametrize("reduce", ["mean", "max", "min", "gmean", functools.partial(np.median, axis=0)])
@pytest.mark.sample(5)
def test_reduces(reduce: Any) -> None:
    fns = [np.sqrt, np.abs, lopsided]
    got = tw.tiled_map(tw.ensemble(fns, reduce=reduce), IMAGE, 12, 1).compute()
    stack = np.stack([fn(IMAGE).astype(float) for fn in fns])
    how: Any = {"mean": np.mean, "max": np.max, "min": np.min}.get(str(reduce), np.median)
    expected = np.exp(np.log(stack).mean(axis=0)) if reduce == "gmean" else how(stack, axis=0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_nested_in_each_other() -> None:
    both = tw.ensemble([tw.augmented(lopsided), np.sqrt])
    expected = (mirrored(lopsided, IMAGE) + np.sqrt(IMAGE)) / 2
    np.testing.assert_allclose(tw.tiled_map(both, IMAGE, 12, 2), expected, rtol=1e-5)
    turned = tw.augmented(tw.ensemble([lopsided, np.sqrt]))
    for batch_size in (None, 3):
        out = tw.tiled_map(turned, IMAGE, 12, 2, batch_size=batch_size)
        np.testing.assert_allclose(out, expected, rtol=1e-5)
        assert plan_of(out).predictions == 8
        assert plan_of(out).together == (1 if batch_size is None else 4)


def test_a_batch_of_what_is_not_square() -> None:
    """The whole image, on which `check` may call the function, is turned too."""
    fn = tw.augmented(lopsided, "all", (0, 1))
    bound = find_spec(tw.tiled_map(fn, IMAGE, 12, 2, batch_size=2)).spec.fn
    alone = find_spec(tw.tiled_map(fn, IMAGE, 12, 2)).spec.fn(IMAGE)
    for batch in (np.stack([IMAGE, -IMAGE]), IMAGE[None]):
        found = bound(batch)
        assert found.shape == batch.shape
        np.testing.assert_allclose(found[0], alone, rtol=1e-6)


class Workspace:
    """A function that returns the same memory in every call."""

    def __init__(self, batched: bool) -> None:
        self.__tilework_batched__ = batched
        self.memory = np.empty(2**16, "f4")

    def __call__(self, x: Any) -> Any:
        found = self.memory[: x.size].reshape(x.shape)
        found[...] = 2 * x
        return found


@pytest.mark.parametrize("order", [1, -1])
def test_functions_may_return_the_same_memory_in_every_call(order: int) -> None:
    image = RNG.normal(size=(20, 24)).astype("f4")
    members = [Workspace(batched=False), Workspace(batched=True)][::order]
    out = tw.tiled_map(tw.augmented(tw.ensemble(members)), image, 8, 2, dtype="f4")
    np.testing.assert_allclose(out.compute(scheduler="synchronous"), 2 * image, rtol=1e-6)


def test_memory_that_calls_for_crops_of_two_shapes_share() -> None:
    fn = tw.augmented(Workspace(batched=True), (), (0, 1))
    bound = find_spec(tw.tiled_map(fn, IMAGE, 12, 2, dtype="f4")).spec.fn
    np.testing.assert_allclose(bound(IMAGE[None])[0], 2 * IMAGE, rtol=1e-6)


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.sample(8)
def test_values_are_sorted_whatever_their_number(count: int) -> None:
    from tilework.function.folding import _ascending

    rows = [RNG.permutation(np.repeat(np.arange(30.0), 4)) for _ in range(count)]
    np.testing.assert_array_equal(_ascending(rows[::-1]), np.sort(rows, axis=0))


class Network:
    """A function that always takes batches, as those of `from_torch` do."""

    __tilework_batched__ = True

    def __call__(self, batch: np.ndarray, tiles: tuple[tw.Tile, ...] = ()) -> np.ndarray:
        assert batch.ndim == 3
        return lopsided(batch) + len(tiles)


def test_functions_with_and_without_batches_together() -> None:
    """Without `batch_size`, only networks get batches: of all variants of a crop."""

    def single(x: np.ndarray, tile: tw.Tile | None = None) -> np.ndarray:
        assert x.ndim == 2
        return np.sqrt(x) + (tile is not None)

    both = tw.ensemble([single, Network()])
    out = tw.tiled_map(both, IMAGE, 12, 2)
    np.testing.assert_allclose(out, (np.sqrt(IMAGE) + lopsided(IMAGE)) / 2, rtol=1e-6)
    out = tw.tiled_map(tw.augmented(both, (0,)), IMAGE, 12, 2)  # two crops, in two batches of one
    ways = [lopsided(IMAGE), lopsided(IMAGE[::-1])[::-1]]
    np.testing.assert_allclose(out, np.sqrt(IMAGE) / 2 + sum(ways) / 4, rtol=1e-5)
    out = tw.tiled_map(tw.ensemble([single, tw.augmented(Network(), (0,))]), IMAGE, 12, 2, pass_tile=True)
    np.testing.assert_allclose(out, (np.sqrt(IMAGE) + 1 + sum(ways) / 2 + 2) / 2, rtol=1e-5)
    assert tw.probe(both, (24, 24)).overlap == (1, 1)
    _, deviation = tw.tiled_map(both, IMAGE, 12, 2, disagreement=True)
    np.testing.assert_allclose(deviation, np.abs(np.sqrt(IMAGE) - lopsided(IMAGE)) / 2, rtol=1e-4, atol=1e-6)


def test_masks_and_nodata_are_those_of_the_image() -> None:
    image = IMAGE.copy()
    image[:, :20] = -1
    out = tw.tiled_map(
        tw.augmented(lopsided, "all", (0, 1)), image, 12, 2, nodata=-1, nodata_fill=0, fill_value=7
    ).compute()
    seen = np.where(image == -1, 0, image)
    expected = tw.tiled_map(tw.augmented(lopsided, "all", (0, 1)), seen, 12, 2).compute()
    np.testing.assert_array_equal(out[:, 20:], expected[:, 20:])
    assert (out[:, :20] == 7).all()
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    part = tw.tiled_map(tw.augmented(lopsided), IMAGE, 12, 2, mask=mask, fill_value=7).compute()
    whole = tw.tiled_map(tw.augmented(lopsided), IMAGE, 12, 2).compute()
    inside = (slice(10, 20), slice(22, 33))
    np.testing.assert_array_equal(part[inside], whole[inside])
    assert (part == 7).any()


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
@pytest.mark.sample(0)
def test_schedulers_and_stores_agree(scheduler: str, tmp_path: Path) -> None:
    fn = tw.augmented(tw.ensemble([lopsided, np.sqrt, np.abs]), "all", (0, 1))
    out = tw.tiled_map(fn, IMAGE, 12, 2, blend="gaussian")
    expected = out.compute(scheduler="sync")
    with dask.config.set(scheduler=scheduler):
        np.testing.assert_array_equal(out.compute(), expected)
        stored = tw.to_zarr(out, tmp_path / "x.zarr", progress=False)
    np.testing.assert_array_equal(stored[:], expected)
    np.testing.assert_array_equal(tw.view(out)[5:20, 7:31], expected[5:20, 7:31])
    again = pickle.loads(pickle.dumps(find_spec(out).spec.fn))
    assert again.parts().keys() == find_spec(out).spec.fn.parts().keys()


@pytest.mark.distributed
def test_on_a_cluster(tmp_path: Path) -> None:
    from distributed import Client

    nets = [tw.load_once(functools.partial, (np.multiply, np.float32(k))) for k in (2, 3)]
    with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"):
        out = tw.tiled_map(tw.augmented(tw.ensemble(nets)), IMAGE, 12, 2)
        stored = tw.to_zarr(out, tmp_path / "x.zarr", progress=False)
        np.testing.assert_allclose(stored[:], IMAGE * 2.5, rtol=1e-6)
        assert tw.probe(tw.ensemble(nets), (24, 24)).overlap == (0, 0)


# -- disagreement -----------------------------------------------------------------------------------------


def test_disagreement_of_variants_needs_no_overlap() -> None:
    for overlap, blend in ((0, "trim"), (2, "trim"), (0, "average")):
        out, deviation = tw.tiled_map(
            tw.ensemble([np.sqrt, np.abs, np.square]), IMAGE, 12, overlap, blend=blend, disagreement=True
        )
        got, seen = dask.compute(out, deviation)
        stack = np.stack([np.sqrt(IMAGE), IMAGE, np.square(IMAGE)]).astype(float)
        np.testing.assert_allclose(got, stack.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(seen, stack.std(axis=0), atol=1e-6)
    with pytest.raises(tw.TilingError, match="side by side"):
        tw.tiled_map(np.sqrt, IMAGE, 12, 0, blend="average", disagreement=True)
    with pytest.raises(tw.TilingError, match='blend="trim"'):
        tw.tiled_map(tw.augmented(np.sqrt, ()), IMAGE, 12, 2, disagreement=True)
    with pytest.raises(tw.TilingError, match='blend="max"'):
        tw.tiled_map(tw.augmented(np.sqrt), IMAGE, 12, 2, blend="max", disagreement=True)


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_disagreement_counts_every_prediction(reduce: str, batch_size: int | None) -> None:
    """Of tiles and variants together, with the weights of the blend, whatever is made of the variants."""

    def by_crop(x: np.ndarray) -> np.ndarray:
        ramp = np.arange(x.shape[-1], dtype=np.float32)
        return x + ramp * x.mean(axis=(-2, -1), keepdims=True)

    fn = tw.augmented(by_crop, (1,), reduce=reduce)
    options: dict[str, Any] = {"stride": 8, "blend": "linear", "dtype": "float32", "batch_size": batch_size}
    out, deviation = tw.tiled_map(fn, IMAGE, 12, disagreement=True, **options)
    got, seen = dask.compute(out, deviation)
    np.testing.assert_array_equal(got, tw.tiled_map(fn, IMAGE, 12, **options).compute())
    sums = np.zeros((3, *IMAGE.shape))
    for tile in plan_of(out):
        box, crop = tile.read.slices, IMAGE[tile.read.slices]
        weight = np.minimum(np.arange(12) + 1, 12 - np.arange(12))
        for value in (by_crop(crop), by_crop(crop[:, ::-1])[:, ::-1]):
            for k in range(3):
                sums[k][box] += np.multiply.outer(weight, weight) * value.astype(float) ** k
    expected = np.sqrt(np.maximum(sums[2] / sums[0] - (sums[1] / sums[0]) ** 2, 0))
    np.testing.assert_allclose(seen, expected, atol=2e-5)
    assert expected.max() > 1


def test_disagreement_of_nested_predictions_has_the_weights_of_the_mean() -> None:
    def flow(x: np.ndarray) -> np.ndarray:
        ahead = np.zeros_like(x)
        ahead[:, :-1] = x[:, 1:]
        return np.stack([x, ahead - x])

    inverse = functools.partial(_turned_back, axis=-3)
    for whole in (
        tw.ensemble([np.negative, tw.augmented(np.negative)]),
        tw.augmented(tw.ensemble([np.negative, tw.ensemble([np.negative])])),
    ):
        _, deviation = tw.tiled_map(whole, IMAGE, 12, 2, disagreement=True)
        assert not deviation.compute().any()
    inner = tw.augmented(flow, (1,), inverse=inverse)
    out, deviation = tw.tiled_map(
        tw.ensemble([inner, flow]), IMAGE, 12, 2, disagreement=True, output=tw.Output("float32", channels=2)
    )
    got, seen = dask.compute(out, deviation)
    mirrored_ = flow(IMAGE[:, ::-1])[..., ::-1] * np.array([1, -1]).reshape(2, 1, 1)
    stack = np.stack([flow(IMAGE), mirrored_, flow(IMAGE), flow(IMAGE)]).astype(float)  # a half, and a half
    np.testing.assert_allclose(got, stack.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(seen, stack.std(axis=0), atol=1e-6)
    turned = tw.augmented(tw.ensemble([flow, flow]), (1,), inverse=inverse)
    _, deviation = tw.tiled_map(
        turned, IMAGE, 12, 2, disagreement=True, output=tw.Output("float32", channels=2)
    )
    stack = np.stack([flow(IMAGE), mirrored_]).astype(float)
    np.testing.assert_allclose(deviation, stack.std(axis=0), atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_disagreement_of_predictions_three_deep_has_the_weights_of_the_mean(batch_size: int | None) -> None:
    inner = tw.ensemble([np.negative, np.square, np.sqrt])
    whole = tw.augmented(tw.ensemble([inner, np.exp]), (1,))
    out, deviation = tw.tiled_map(whole, IMAGE, 12, 2, disagreement=True, batch_size=batch_size)
    wide = IMAGE.astype(float)
    stack, weights = np.stack([-wide, wide**2, wide**0.5, np.exp(wide)]), np.array([1, 1, 1, 3]) / 6
    mean, square = (np.tensordot(weights, s, 1) for s in (stack, stack**2))
    got, seen = dask.compute(out, deviation)
    np.testing.assert_allclose(got, mean, atol=1e-6)
    np.testing.assert_allclose(seen, np.sqrt(square - mean**2), atol=1e-6)


def test_what_waits_is_counted_for_all_variants_of_what_is_inside() -> None:
    fn = tw.augmented(tw.ensemble([np.negative, np.square, np.sqrt]))
    # Sums of 4 variants; three results that are sorted, of one crop or of the 4 that are in a batch.
    assert predictions_of(fn, 2, batches=False) == (12, 1, 3 + 3)
    assert predictions_of(fn, 2, batches=True) == (12, 4, 3 + 4 * 3)


def _turned_back(result: np.ndarray, variant: tw.Variant, axis: int) -> np.ndarray:
    found = variant.vectors(result, axis)
    result[:] = np.nan  # it is its own
    return found


def test_crops_at_given_starts_may_be_turned() -> None:
    fn = tw.augmented(lopsided, rotations=(0, 1))
    last = [n - 12 for n in IMAGE.shape]
    starts = tuple(tuple(sorted({*range(0, n, step), n})) for n, step in zip(last, (5, 7), strict=True))
    got = tw.tiled_map(fn, IMAGE, 12, starts=starts).compute()
    np.testing.assert_array_equal(got, tiled(fn).compute())
    blended = tw.tiled_map(fn, IMAGE, **tw.nnunet_options(IMAGE.shape, (12, 12))).compute()
    assert blended.shape == got.shape


@pytest.mark.parametrize(
    ("axis", "count", "told"),
    [(0, 2, "counts from the end"), (-4, 2, "counts from the end"), (-1, 2, "2 tiled axes.* has 12")]
    + [(-3, count, rf"2 tiled axes.* has {count}") for count in (1, 3)],
)
def test_a_vector_has_a_component_for_each_tiled_axis(axis: int, count: int, told: str) -> None:
    def flow(x: np.ndarray) -> np.ndarray:
        return np.zeros((count, *x.shape))

    fn = tw.augmented(flow, (1,), inverse=lambda result, variant: variant.vectors(result, axis))
    with pytest.raises(tw.TilingError, match=told):
        tiled(fn, output=tw.Output("f4", channels=count)).compute()


def test_a_vector_of_a_variant_alone_reaches_the_axes_that_change() -> None:
    variant = tw.Variant(flips=(1,))
    assert variant.vectors(np.ones(3), -1).tolist() == [1, -1, 1]  # of how many axes is not known
    for axis, shape in ((0, (2,)), (-1, (1,))):
        with pytest.raises(tw.TilingError, match=r"counts from the end|2 tiled axes"):
            variant.vectors(np.ones(shape), axis)


# -- identity ---------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[], Any]] = {
    "plain": lambda: lopsided,
    "flips": lambda: tw.augmented(lopsided),
    "one flip": lambda: tw.augmented(lopsided, (1,)),
    "turns": lambda: tw.augmented(lopsided, (), (0, 1)),
    "max": lambda: tw.augmented(lopsided, reduce="max"),
    "callable": lambda: tw.augmented(lopsided, reduce=functools.partial(np.median, axis=0)),
    "inverse": lambda: tw.augmented(lopsided, inverse=_same),
    "other": lambda: tw.augmented(np.sqrt),
    "ensemble": lambda: tw.ensemble([lopsided, np.sqrt]),
    "more": lambda: tw.ensemble([lopsided, np.sqrt, np.sqrt]),
    "of max": lambda: tw.ensemble([lopsided, np.sqrt], reduce="max"),
}


def _same(result: np.ndarray, variant: tw.Variant) -> np.ndarray:
    return result


def test_names_and_fingerprints_tell_what_is_combined() -> None:
    store = zarr.storage.MemoryStore()
    names = {}
    for way, make in WAYS.items():
        out = tw.tiled_map(make(), IMAGE, 12, 2, dtype="float32")
        assert out.name == tw.tiled_map(make(), IMAGE, 12, 2, dtype="float32").name
        names[way] = out.name
    assert len(set(names.values())) == len(WAYS)
    tw.to_zarr(tw.tiled_map(WAYS["flips"](), IMAGE, 12, 2, dtype="float32"), store, progress=False)
    for way, make in WAYS.items():
        out = tw.tiled_map(make(), IMAGE, 12, 2, dtype="float32")
        if way == "flips":
            tw.to_zarr(out, store, progress=False)
            continue
        with pytest.raises(tw.TilingError, match=r"changed: .*fn"):
            tw.to_zarr(out, store, progress=False)
    with pytest.raises(tw.TilingError, match=re.escape("fn flips: '(0, 1)' -> '(1,)'")):
        tw.to_zarr(tw.tiled_map(WAYS["one flip"](), IMAGE, 12, 2, dtype="float32"), store, progress=False)
    same = tw.tiled_map(tw.augmented(lopsided, (1, 0)), IMAGE, 12, 2, dtype="float32")
    assert same.name == names["flips"]
    tw.to_zarr(same, store, progress=False)


def test_a_resumed_run_runs_what_is_missing(counting: Any) -> None:
    fn = counting(lopsided)
    store = zarr.storage.MemoryStore()

    class Named:
        def __call__(self, x: np.ndarray) -> np.ndarray:
            return fn(x)

        def __dask_tokenize__(self) -> str:
            return "named"

    out = tw.tiled_map(tw.augmented(Named(), (0,)), IMAGE, 12, 2, dtype="float32")
    stored = tw.to_zarr(out, store, chunks=(8, 8), progress=False, version="1")
    first = fn.calls
    assert first == 2 * plan_of(out).calls()
    fn.reset()
    again = tw.to_zarr(out, store, chunks=(8, 8), progress=False, version="1")
    assert fn.calls == 0
    np.testing.assert_array_equal(again[:], stored[:])


# -- auto and check ---------------------------------------------------------------------------------------


def test_auto_finds_the_overlap_of_all() -> None:
    out = tw.tiled_map(tw.augmented(lopsided, "all", (0, 1)), IMAGE, 16, "auto")
    assert [a.overlap for a in plan_of(out).axes] == [1, 1]
    report = tw.check(out)
    assert report.ok, report
    declared = tw.tiled_map(tw.augmented(lopsided), IMAGE, 16, "auto", dtype="float32")
    np.testing.assert_allclose(declared, mirrored(lopsided, IMAGE), rtol=1e-6)
    median = tw.tiled_map(
        tw.augmented(lopsided, reduce=functools.partial(np.median, axis=0)), IMAGE, 16, "auto"
    )
    assert (median.dtype, [a.overlap for a in plan_of(median).axes]) == (np.float32, [1, 1])


def test_check_takes_a_combined_function() -> None:
    out = tw.tiled_map(tw.augmented(lopsided), IMAGE, 16, 1, batch_size=2)
    assert tw.check(out, fn=tw.augmented(lopsided, (1, 0))).ok
    assert not tw.check(out, fn=tw.augmented(lopsided, (0,))).ok


def test_explain_of_writing_counts_predictions() -> None:
    out = tw.tiled_map(tw.augmented(lopsided), IMAGE, 16, 1)
    assert "4 predictions each" in str(tw.explain(out, writing={"chunks": 8}))
    assert "4 predictions each" in str(tw.explain(out, measure=True))


def test_numbers_of_any_dtype_that_blends_take() -> None:
    image = RNG.integers(0, 100, (20, 20)).astype(np.int32)
    out = tw.tiled_map(tw.ensemble([np.copy, np.negative, np.copy]), image, 10, 1, dtype="int32")
    np.testing.assert_array_equal(out, np.rint(image / 3))
    most = tw.tiled_map(tw.ensemble([np.copy, np.negative], reduce="max"), image, 10, 1)
    np.testing.assert_array_equal(most, image)  # as of the image, so no labels
    mask = tw.tiled_map(tw.ensemble([lambda x: x > 50, lambda x: x < 10], reduce="max"), image, 10, 1)
    np.testing.assert_array_equal(mask, (image > 50) | (image < 10))


@pytest.mark.parametrize("extent", [80, 82])
def test_check_knows_that_variants_keep_the_multiple(extent: int) -> None:
    def pools(x: np.ndarray) -> np.ndarray:
        n, m = x.shape
        even = np.pad(x, ((0, n % 4 and 4 - n % 4), (0, 0)), "edge")
        return even.reshape(-1, 4, m).max(1).repeat(4, 0)[:n]

    image = RNG.random((extent, 70)).astype(np.float32)
    out = tw.tiled_map(tw.augmented(pools), image, 32, "auto")
    assert [a.multiple for a in plan_of(out).axes] == [4, 1]
    report = tw.check(out)
    assert report.ok, report


# -- refusals ---------------------------------------------------------------------------------------------


def pad(x: np.ndarray) -> np.ndarray:
    return x[1:-3]


def tiled(fn: Any, crop: Any = 12, overlap: Any = 2, **options: Any) -> Any:
    return tw.tiled_map(fn, IMAGE, crop, overlap, **options)


TURNED = tw.augmented(lopsided, (), (0, 1))
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "fn": (lambda: tw.augmented(3), "fn must be callable"),  # type: ignore[arg-type]
    "names": (lambda: tw.augmented(lopsided, "yx"), 'numbers of tiled axes.*"all"; got .yx.'),  # type: ignore[arg-type]
    "a list of names": (lambda: tw.augmented(lopsided, (), ("y", "x")), "numbers of tiled axes"),  # type: ignore[arg-type]
    "a number": (lambda: tw.augmented(lopsided, 0), "flips must be a tuple"),  # type: ignore[arg-type]
    "twice": (lambda: tw.augmented(lopsided, (0, 0)), "different tiled axes"),
    "negative": (lambda: tw.augmented(lopsided, (-1,)), "counted from 0"),
    "a fraction": (lambda: tw.augmented(lopsided, (0.5,)), "whole number"),  # type: ignore[arg-type]
    "one axis": (lambda: tw.augmented(lopsided, (), (0,)), "two tiled axes"),
    "reduce": (lambda: tw.augmented(lopsided, reduce="median"), "one of 'mean'"),  # type: ignore[arg-type]
    "inverse": (lambda: tw.augmented(lopsided, inverse=lambda r: r), "inverse is called"),  # type: ignore[arg-type,misc]
    "none": (lambda: tw.ensemble([]), "at least one function"),
    "not a list": (lambda: tw.ensemble(lopsided), "sequence of functions"),  # type: ignore[arg-type]
    "member": (lambda: tw.ensemble([lopsided, 3]), "fn must be callable"),  # type: ignore[list-item]
    "called": (lambda: tw.augmented(lopsided)(IMAGE), "outside tiled_map"),
    "wrapped": (lambda: tiled(functools.partial(tw.augmented(lopsided))), "outside tiled_map"),
    "no such axis": (lambda: tiled(tw.augmented(lopsided, (2,))), "0 to 1; got 2"),
    "crop": (lambda: tiled(TURNED, (12, 16)), "crop must be equal .* 12 on axis 0 and 16 on axis 1"),
    "overlap": (lambda: tiled(TURNED, 12, (2, 3)), "overlap must be equal"),
    "stride": (lambda: tiled(TURNED, 12, None, stride=(8, 7)), "stride must be equal"),
    "multiple": (lambda: tiled(TURNED, multiple=(2, 1)), "multiple must be equal"),
    "rim": (lambda: tiled(TURNED, blend="average", rim=(1, 2)), "rim must be equal"),
    "margins of axes": (
        lambda: tiled(TURNED, 12, 4, output=tw.Output("f4", margin=((1, 1), (2, 2)))),
        "margin must be equal",
    ),
    "scale": (lambda: tiled(TURNED, output=tw.Output("f4", scale=(1, 2))), "scale must be equal"),
    "clip": (lambda: tiled(TURNED, edge="clip"), 'edge="shift"'),
    "clip and multiple": (
        lambda: tiled(tw.augmented(lopsided), 24, 8, edge="clip", multiple=8),
        "crops of 24 .* 44 samples on axis 1.*multiple 8",
    ),
    "clip and a short axis": (
        lambda: tw.tiled_map(tw.augmented(np.copy), IMAGE[0, :5], 6, 2, edge="clip", multiple=2),
        "crops of 6 .* 5 samples on axis 0.*multiple 2",
    ),
    "margin": (
        lambda: tiled(tw.augmented(pad, (0,)), 12, 4, output=tw.Output("f4", margin=((1, 3), 0))),
        "margin .1, 3. on axis 0 .* margin=3 .* 2 more at the start and 0 more at the end",
    ),
    "labels": (
        lambda: tiled(tw.augmented(lopsided), output=tw.Output("uint32", labels="own")),
        "cannot be combined",
    ),
    "bool": (lambda: tiled(tw.augmented(lambda x: x > 0.5)), "dtype bool.*reduce=.max"),
    "int64": (lambda: tiled(tw.augmented(lambda x: x.astype("int64"))), "dtype int64"),
    "int32": (lambda: tiled(tw.augmented(lambda x: x.astype("int32"))), "labels must not.*dtype=.int32"),
    "int32 max": (lambda: tiled(tw.augmented(lambda x: x.astype("int32"), reduce="max")), "labels must not"),
    "complex": (lambda: tiled(tw.augmented(lambda x: x * 1j, reduce="gmean")), "complex"),
    "callable": (lambda: tiled(tw.augmented(lopsided, reduce=np.median)), "remove the first axis"),
    "shapes": (lambda: tiled(tw.ensemble([lopsided, lambda x: x[None]])), "function 0 .*function 1"),
    "arrays": (lambda: tiled(tw.ensemble([lopsided, lambda x: (x, x)])), "one array, function 1 tuple"),
    "probe crop": (lambda: tw.probe(TURNED, (24, 32)), "crop must be equal"),
    "probe margin": (lambda: tw.probe(tw.augmented(pad), (32, 32)), "margin .1, 3. on axis 0"),
    "probe members": (lambda: tw.probe(tw.ensemble([pad, lopsided]), (32, 32)), "must have one margin"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.sample(40)
def test_refusals_name_the_cure(what: str) -> None:
    call, said = REFUSED[what]
    with pytest.raises((tw.TilingError, TypeError), match=said):
        call()


def test_errors_while_running_name_the_tile() -> None:
    out = tw.tiled_map(tw.augmented(np.negative, reduce="gmean"), IMAGE, 12, 2)
    with pytest.raises(tw.TilingError, match=r"gmean.*not negative; got -0") as error:
        out[:5, :5].compute()
    assert "raised by fn on tile 0" in error.value.__notes__[-1]
    out = tw.tiled_map(tw.augmented(lambda x: x[:1], (0,)), IMAGE, 12, 2, dtype="float32")
    with pytest.raises(tw.ContractError, match="tile 0"):
        out[:5, :5].compute()
    out = tw.tiled_map(tw.augmented(lambda x: x[0], (0,)), IMAGE, 12, 2, dtype="float32")
    with pytest.raises(tw.ContractError, match="its tiled axes must be"):
        out[:5, :5].compute()
    out = tw.tiled_map(tw.augmented(lambda x: x[:3], (0,)), IMAGE, 12, 2, dtype="float32", batch_size=2)
    with pytest.raises(tw.ContractError, match="batch of 4 crops, 2 variants of 2"):
        out.compute()
