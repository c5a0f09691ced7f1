"""Labels are recognised where they are blended, probed and checked, and other integers are not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as ndi

import tilework as tw
from tilework.labels.hints import renumbered

RNG = np.random.default_rng(0)
IMAGE = (RNG.random((200, 180)) * 255).astype(np.uint8)


def numbered(x: np.ndarray) -> np.ndarray:
    return ndi.label(x > 200)[0]


@pytest.mark.parametrize("blend", ["max", "min"])
@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("declared", [True, False])
def test_a_blend_of_what_may_be_labels_warns(blend: str, dtype: str, declared: bool) -> None:
    with pytest.warns(
        tw.TilingWarning, match=f'fn returns {dtype}.*blend="{blend}".*Output\\(labels="own"\\)'
    ) as told:
        tw.tiled_map(
            lambda x: numbered(x).astype(dtype), IMAGE, 64, stride=32, blend=blend,
            dtype=dtype if declared else None,
        )  # fmt: skip
    assert [one.filename for one in told] == [__file__]


@pytest.mark.parametrize("blend", ["average", "hann", "gaussian", lambda n: np.ones(n)])
@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64"])
def test_an_average_of_what_may_be_labels_is_refused(blend: Any, dtype: str) -> None:
    with pytest.raises(tw.TilingError, match=r"labels.*must not be averaged"):
        tw.tiled_map(lambda x: numbered(x).astype(dtype), IMAGE, 64, stride=32, blend=blend)


def test_the_output_is_named() -> None:
    with pytest.warns(tw.TilingWarning, match="for output 'ids'"):
        tw.tiled_map(lambda x: {"ids": numbered(x), "image": x}, IMAGE, 64, stride=32, blend="max")


@pytest.mark.parametrize(
    ("fn", "image", "options"),
    [
        (lambda x: ndi.median_filter(x, 3), IMAGE, {"blend": "max"}),
        (lambda x: ndi.median_filter(x, 3), IMAGE.astype(np.uint16), {"blend": "hann"}),
        (lambda x: ndi.median_filter(x, 3), IMAGE.astype(np.int32), {"blend": "max"}),
        (lambda x: ndi.median_filter(x, 3), IMAGE.astype(np.int64), {"blend": "min"}),
        (numbered, IMAGE, {}),
        (lambda x: numbered(x) * 0 + 1, IMAGE, {"blend": "sum"}),
        (lambda x: x > 3, IMAGE, {"blend": "max"}),
        (lambda x: x.astype(np.int32), IMAGE, {"blend": "average", "dtype": "int32"}),
        (lambda x: x / 255, IMAGE, {"blend": "max"}),
    ],
    ids=["uint8", "uint16", "int32", "int64", "trimmed", "counts", "mask", "declared", "float"],
)
def test_other_results_do_not_warn(fn: Any, image: np.ndarray, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tw.tiled_map(fn, image, 64, stride=32, **options)


def test_probe_does_not_advise_a_blend_of_labels() -> None:
    def first(x: np.ndarray) -> np.ndarray:
        """Numbers that depend on the whole crop."""
        return (np.cumsum(x).reshape(x.shape) % 1000).astype(np.int32)

    report = tw.probe(first, (32, 32), dtype="uint8")
    assert not report.exact
    assert report.labels
    assert 'Output(labels="own")' in report.verdict
    assert ", blend" not in report.verdict
    amounts = tw.probe(lambda x: x - x.mean(), (32, 32))
    assert not amounts.labels


@given(
    ids=st.lists(st.integers(1, 10**6), min_size=3, max_size=30, unique=True), seed=st.integers(0, 99),
    size=st.integers(3, 6),
)  # fmt: skip
def test_objects_under_other_ids_are_recognised(ids: list[int], seed: int, size: int) -> None:
    """Any permutation that leaves the background alone; equal results are not renumbered."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, len(ids) + 1, (8, 8))
    table = np.array([0, *ids])
    one = table[blocks].repeat(size, 0).repeat(size, 1)
    moved = np.array([0, *np.roll(ids, 1)])
    other = moved[blocks].repeat(size, 0).repeat(size, 1)
    several = np.unique(blocks[blocks > 0]).size > 1
    assert renumbered(one, other) == several
    assert renumbered(other, one) == several
    assert not renumbered(one, one)
    # An offset, a factor of noise, another image.
    assert not renumbered(rng.integers(1, 200, (40, 40)), rng.integers(1, 200, (40, 40)))
    noise = rng.integers(1, 200, (40, 40))
    assert not renumbered(noise, noise + 3)
    assert not renumbered(noise, noise * 2)
