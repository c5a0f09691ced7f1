"""E2 and E3 with real networks on real photographs: exact at their receptive field, and not below."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest

import tilework as tw
from tests.networks import (
    deepcr,
    deepcr_module,
    dncnn,
    dncnn_module,
    hubble,
    kodim23,
    noisy,
    realesr_x2,
)

pytestmark = pytest.mark.peers

edges = pytest.mark.parametrize("edge", ["shift", "squeeze", "clip"])


def worst(lazy: Any, expected: np.ndarray) -> float:
    """Return the largest difference; NaN, which no comparison passes, where a tile is missing."""
    with dask.config.set(scheduler="threads", num_workers=2):
        result = lazy.compute()
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    return float(np.abs(result - expected).max())


def photo() -> np.ndarray:
    return noisy(kodim23())[200:360, 300:477]


def counts() -> np.ndarray:
    """Return galaxies with cosmic rays: lines of one pixel, the brightest things there."""
    image = hubble()[300:460, 300:446].copy()
    for k in range(12):
        start = (11 * k + 3) % 120
        image[start + np.arange(20), (37 * k) % 120 + np.arange(20)] += 2000
    return image


@edges
@pytest.mark.parametrize("reuse", ["share", "recompute"])
def test_E2_dncnn_is_exact_at_overlap_6_and_not_at_4(edge: str, reuse: str) -> None:
    net, image = dncnn("6M"), photo()
    whole = net(image)

    def denoised(overlap: int) -> Any:
        return tw.tiled_map(
            net, image, 60, overlap, edge=edge, dtype="float32", reuse=reuse, chunks=72,
            fill_value=np.nan,
        )  # fmt: skip

    assert worst(denoised(6), whole) < 1e-5
    assert worst(denoised(4), whole) > 1e-3


@edges
def test_E3_dncnn_is_exact_with_a_rim_of_6(edge: str) -> None:
    net, image = dncnn("6M"), photo()

    def denoised(rim: int) -> Any:
        return tw.tiled_map(net, image, 64, stride=44, blend="gaussian", rim=rim, edge=edge, dtype="float32")

    whole = net(image)
    assert worst(denoised(6), whole) < 1e-5
    assert worst(denoised(0), whole) > 1e-4


@edges
def test_E2_realesr_is_exact_at_overlap_20_and_twice_the_size(edge: str) -> None:
    net, image = realesr_x2(), kodim23(rgb=True)[:, 200:328, 300:413]
    out = tw.tiled_map(net, image, (80, 80), 20, edge=edge, output=tw.Output("float32", scale=2), chunks=80)
    assert worst(out, net(image)) < 1e-4


@edges
def test_E2_deepcr_is_exact_at_overlap_10_from_even_starts(edge: str) -> None:
    net, image = deepcr(), counts()
    whole = net(image)
    assert whole.max() > 0.9
    options: dict[str, Any] = {"edge": edge, "dtype": "float32"}
    assert worst(tw.tiled_map(net, image, 64, 10, multiple=2, **options), whole) < 1e-5
    if edge != "squeeze":  # which has more context here than it is asked for
        assert worst(tw.tiled_map(net, image, 64, 4, multiple=2, **options), whole) > 1e-3


def test_E2_deepcr_is_not_exact_from_odd_starts() -> None:
    net, image = deepcr(), counts()
    out = tw.tiled_map(net, image, 64, stride=43, dtype="float32")
    assert worst(out, net(image)) > 1e-3
    with pytest.raises(tw.GridError, match="multiples of 2"):
        tw.tiled_map(net, image, (64, 64), 11, multiple=2, dtype="float32")


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("by", ["module", "factory"])
def test_E2_from_torch_is_the_network(by: str, batch_size: int | None) -> None:
    image = photo()
    noise = image - dncnn("6M")(image)
    fn = tw.from_torch(dncnn_module("6M") if by == "module" else dncnn_module, device="cpu")
    out = tw.tiled_map(fn, image, 60, 6, batch_size=batch_size)  # its output is found by one call
    assert out.dtype == "float32"
    assert worst(out, noise) < 1e-5


def test_E2_from_torch_with_channels_and_a_multiple() -> None:
    image = counts()
    whole = deepcr()(image)
    stack = np.stack([image, image[::-1]])[:, None]  # (sample, channel, y, x)
    out = tw.tiled_map(
        tw.from_torch(deepcr_module, device="cpu"), stack, (64, 64), 10, each=0, multiple=2,
        batch_size=3, output=tw.Output("float32", channels=1),
    )  # fmt: skip
    assert out.shape == stack.shape
    flipped = deepcr()(np.ascontiguousarray(image[::-1]))
    assert worst(out, np.stack([whole, flipped])[:, None]) < 1e-5
