"""A2 with real networks: augmented tiles equal the augmented photograph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tests.networks import deepcr, dncnn, dncnn_module, hubble, kodim23, noisy, realesr_x2
from tilework.graph.build import plan_of

pytestmark = pytest.mark.peers


def by_hand(fn: Callable[[np.ndarray], np.ndarray], image: np.ndarray, *, turns: bool) -> np.ndarray:
    """Return the mean over mirrors, and transposes, of the last two axes: all eight without turns."""
    results = []
    for swap in (False, True)[: 1 + turns]:
        for rows in (1, -1):
            for columns in (1, -1):
                way = (..., slice(None, None, rows), slice(None, None, columns))
                crop = np.swapaxes(image, -1, -2)[way] if swap else image[way]
                result = fn(np.ascontiguousarray(crop))[way]
                results.append(np.swapaxes(result, -1, -2) if swap else result)
    return np.mean(results, axis=0, dtype=np.float64).astype(np.float32)


def worst(out: Any, expected: np.ndarray) -> float:
    assert out.shape == expected.shape
    return float(np.abs(out.compute() - expected).max())


@pytest.mark.parametrize("batch_size", [None, 3])
def test_A2_dncnn_with_eight_variants_is_exact_at_overlap_6(batch_size: int | None) -> None:
    image = noisy(kodim23())[200:300, 300:411]
    whole = by_hand(dncnn("6M"), image, turns=True)
    net = tw.from_torch(functools.partial(dncnn_module, "6M"), device="cpu")
    fn = tw.augmented(net, "all", (0, 1))
    out = tw.tiled_map(fn, image, 60, 6, dtype="float32", batch_size=batch_size)
    assert plan_of(out).together == 8
    assert worst(out, image - whole) < 1e-5
    assert np.abs(image - whole).max() > 1e-2
    too_little = tw.tiled_map(fn, image, 60, 3, dtype="float32", batch_size=batch_size)
    assert worst(too_little, image - whole) > 1e-4


def test_A2_realesr_is_exact_at_twice_the_size() -> None:
    net, image = realesr_x2(), kodim23(rgb=True)[:, 200:297, 300:380]
    output = tw.Output("float32", scale=2)
    out = tw.tiled_map(tw.augmented(net, (1,)), image, (80, 80), 20, output=output)
    expected = (net(image) + net(np.ascontiguousarray(image[..., ::-1]))[..., ::-1]) / 2
    assert worst(out, expected) < 1e-4


def test_A2_deepcr_keeps_its_multiple() -> None:
    """It pools by 2: an odd axis is mirrored with its padding."""
    net, image = deepcr(), hubble()[300:401, 300:390]
    padded = np.pad(image, ((0, 1), (0, 0)), "reflect")
    out = tw.tiled_map(tw.augmented(net), image, 60, 12, multiple=2, dtype="float32")
    assert worst(out, by_hand(net, padded, turns=False)[:101]) < 1e-5
