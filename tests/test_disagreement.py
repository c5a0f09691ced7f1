"""`disagreement=True`: the weighted deviation of overlapping predictions, from the calls made anyway."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr

import tilework as tw

IMAGE = np.random.default_rng(0).random((70, 54)).astype(np.float32)


def by_crop(x: np.ndarray) -> np.ndarray:
    """A prediction that depends on the whole crop, so that neighbours disagree."""
    return x - x.mean() + np.arange(x.shape[-1], dtype=x.dtype) / 100


def truth(image: np.ndarray, plan: Any, weight: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return the weighted deviation by its definition, sample by sample over all tiles."""
    sums = np.zeros((3, *image.shape))
    for position in itertools.product(*map(range, plan.grid_shape)):
        box = plan.grid.tile(position).read
        value = by_crop(image[box.slices]).astype(float)
        weights = np.multiply.outer(*(weight(n) for n in box.shape))
        for k, part in enumerate((weights, weights * value, weights * value**2)):
            sums[k][box.slices] += part
    mean = sums[1] / sums[0]
    return np.sqrt(np.maximum(0, sums[2] / sums[0] - mean**2))


@pytest.mark.parametrize("blend", ["average", "linear"])
def test_is_the_weighted_deviation(blend: str) -> None:
    from tilework.graph.build import plan_of

    out, deviation = tw.tiled_map(by_crop, IMAGE, 24, stride=10, blend=blend, disagreement=True)
    plain = tw.tiled_map(by_crop, IMAGE, 24, stride=10, blend=blend)
    got, seen = dask.compute(out, deviation)
    np.testing.assert_array_equal(got, plain.compute())
    weight = {"average": np.ones, "linear": lambda n: np.minimum(np.arange(n) + 1, n - np.arange(n))}[blend]
    expected = truth(IMAGE, plan_of(out), weight)
    assert (seen.dtype, seen.shape) == (np.float32, IMAGE.shape)
    assert expected.max() > 1e-3
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_costs_no_further_call(counting: Callable[..., Any]) -> None:
    fn = counting(by_crop)
    options: dict[str, Any] = {"stride": 10, "blend": "gaussian", "dtype": "float32", "reuse": "share"}
    pair = tw.tiled_map(fn, IMAGE, 24, disagreement=True, **options)
    assert fn.calls == 0
    dask.compute(*pair)
    together = fn.calls
    fn.reset()
    tw.tiled_map(fn, IMAGE, 24, **options).compute()
    assert together == fn.calls


def test_is_0_where_all_agree_and_where_one_tile_stands_alone() -> None:
    _, deviation = tw.tiled_map(np.sqrt, IMAGE, 24, stride=10, blend="gaussian", disagreement=True)
    assert not deviation.compute().any()
    _, alone = tw.tiled_map(by_crop, IMAGE, 24, stride=20, blend="average", disagreement=True)
    assert not alone.compute()[4:20, 4:20].any()
    assert alone.compute()[20:24, 20:24].all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_is_nan_where_a_prediction_is_none(blend: str, value: float) -> None:
    image = IMAGE.copy()
    image[11, 17] = value
    out, deviation = tw.tiled_map(np.copy, image, 24, stride=10, blend=blend, disagreement=True)
    got, seen = dask.compute(out, deviation)
    assert not np.isfinite(got[11, 17])
    assert np.isnan(seen[11, 17])
    seen[11, 17] = 0
    assert not seen.any()


@pytest.mark.parametrize("fill_value", [0, -1, np.nan], ids=str)
@pytest.mark.parametrize("kind", ["mask", "skip", "drop", "chunk"])
def test_is_nan_where_no_tile_ran(kind: str, fill_value: float, tmp_path: Path) -> None:
    options: dict[str, Any] = {"stride": 10, "blend": "average", "fill_value": fill_value}
    if kind == "mask":
        options["mask"] = np.indices(IMAGE.shape)[0] < 20
    if kind == "chunk":  # nothing runs in most of them
        options |= {"mask": np.indices(IMAGE.shape)[0] < 20, "chunks": 10}
    if kind == "skip":
        options["skip"] = lambda crop: crop[0, 0] != IMAGE[0, 0]
    if kind == "drop":
        options["edge"] = "drop"
    ran, _ = tw.tiled_map(np.ones_like, IMAGE, 24, **options | {"fill_value": 0}, disagreement=True)
    pair = tw.tiled_map(by_crop, IMAGE, 24, **options, disagreement=True)
    result, deviation = dask.compute(*pair)
    none = ran.compute() == 0
    assert none.any()
    assert not none.all()
    np.testing.assert_array_equal(np.isnan(deviation), none)
    np.testing.assert_array_equal(result[none], np.full(none.sum(), fill_value, np.float32))
    np.testing.assert_array_equal(tw.view(pair, verbose=False)[1][...], deviation)
    tw.to_zarr(pair, tmp_path / "pair.zarr", progress=False)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "pair.zarr", mode="r")["1"][:], deviation)


def test_of_scores_before_they_are_reduced_in_batches_over_each() -> None:
    def scores(batch: np.ndarray) -> np.ndarray:
        return np.stack([batch, 1 - batch, batch * 0 + batch.mean()], axis=1)

    stack = np.stack([IMAGE, IMAGE[::-1]])
    classes = tw.Output(channels=3, reduce="argmax")
    labels, deviation = tw.tiled_map(
        scores,
        stack,
        (24, 24),
        stride=(12, 12),
        each=0,
        batch_size=3,
        blend="hann",
        output=classes,
        disagreement=True,
    )
    got, seen = dask.compute(labels, deviation)
    assert (got.shape, seen.shape) == ((2, 70, 54), (2, 3, 70, 54))
    assert not seen[:, :2].any()
    assert seen[:, 2].any()


def test_scale_and_store(tmp_path: Path) -> None:
    def double(x: np.ndarray) -> np.ndarray:
        return by_crop(x).repeat(2, 0).repeat(2, 1)

    pair = tw.tiled_map(
        double, IMAGE, 24, stride=12, blend="hann", output=tw.Output("float32", scale=2), disagreement=True
    )
    assert [a.shape for a in pair] == [(140, 108)] * 2
    tw.to_zarr(pair, tmp_path / "pair.zarr", progress=False)
    group = zarr.open_group(tmp_path / "pair.zarr", mode="r")
    np.testing.assert_array_equal(group["1"][:], pair[1].compute())
    np.testing.assert_array_equal(tw.view(pair, verbose=False)[1][10:99], pair[1].compute()[10:99])


def test_names_are_deterministic() -> None:
    one, two = (
        tw.tiled_map(by_crop, IMAGE, 24, stride=10, blend="hann", disagreement=True) for _ in range(2)
    )
    assert [a.name for a in one] == [a.name for a in two]


def test_what_it_cannot_compare() -> None:
    with pytest.raises(tw.TilingError, match='blend="gaussian"'):
        tw.tiled_map(np.sqrt, IMAGE, 24, 4, disagreement=True)
    two = (tw.Output("f4"), tw.Output("f4"))
    with pytest.raises(tw.TilingError, match="one result"):
        tw.tiled_map(lambda x: (x, x), IMAGE, 24, 4, blend="hann", output=two, disagreement=True)
    with pytest.raises(tw.TilingError, match="real numbers"):
        tw.tiled_map(lambda x: x * 1j, IMAGE, 24, 4, blend="hann", disagreement=True)
    with pytest.raises(tw.TilingError, match="predictions that overlap; got crops side by side"):
        tw.tiled_map(np.sqrt, IMAGE, 24, stride=24, blend="hann", disagreement=True)
    with pytest.raises(TypeError, match="disagreement must be True or False"):
        tw.tiled_map(np.sqrt, IMAGE, 24, 4, blend="hann", disagreement="yes")


def test_a_function_that_always_takes_a_batch_is_still_called_with_one() -> None:
    class Batched:
        __tilework_batched__ = True

        def __call__(self, batch: np.ndarray) -> np.ndarray:
            assert batch.ndim == 3
            return np.sqrt(batch)

    out, deviation = tw.tiled_map(Batched(), IMAGE, 24, stride=10, blend="hann", disagreement=True)
    np.testing.assert_allclose(out.compute(), np.sqrt(IMAGE), rtol=1e-6)
    assert not deviation.compute().any()
