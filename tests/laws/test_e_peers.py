"""E1: where dask, numpy and Ryomen define a result too, it is the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import moved
from tests.laws.engine_strategies import BOUNDARIES, picture
from tests.networks import require


@dataclass(frozen=True)
class Blocks:
    """An image in blocks, with context on each side of a block."""

    image: np.ndarray
    block: tuple[int, ...]
    depth: tuple[int, ...]

    @property
    def crop(self) -> tuple[int, ...]:
        return tuple(b + 2 * o for b, o in zip(self.block, self.depth, strict=True))


@st.composite
def blocked(draw: Any, *, least_block: int = 1, fits: bool = False) -> Blocks:
    """Draw blocks; with `fits`, the image is at least as large as a crop."""
    dims = draw(st.integers(1, 3))
    largest = {1: 60, 2: 20, 3: 9}[dims]
    block, depth, shape = [], [], []
    for _ in range(dims):
        block.append(draw(st.integers(least_block, {1: 12, 2: 7, 3: 4}[dims])))
        depth.append(draw(st.integers(0, min(3, block[-1]))))
        # dask and numpy's reflection need more samples than they invent.
        least = block[-1] + 2 * depth[-1] if fits else depth[-1] + 1
        shape.append(draw(st.integers(least, max(least, largest))))
    return Blocks(picture(shape), tuple(block), tuple(depth))


@st.composite
def shifts(draw: Any, case: Blocks) -> Any:
    """Draw a function that adds samples from as far as the depth allows."""
    far = tuple(draw(st.sampled_from((-o, o))) for o in case.depth)
    near = tuple(draw(st.integers(-o, o)) for o in case.depth)

    def fn(crop: np.ndarray) -> np.ndarray:
        parts = []
        for offsets in (far, near):
            part = crop
            for axis, offset in enumerate(offsets):
                part = moved(part, offset, axis - part.ndim, 0)
            parts.append(part)
        return crop + 2 * parts[0] + 3 * parts[1]

    return fn


@given(blocked(), st.data())
def test_E1_equals_dask_map_overlap_without_boundary(case: Blocks, data: Any) -> None:
    fn = data.draw(shifts(case))
    lazy = da.from_array(case.image, chunks=case.block)
    depth = dict(enumerate(case.depth))
    theirs = da.map_overlap(fn, lazy, depth=depth, boundary="none", dtype=float, meta=lazy._meta)
    ours = tw.tiled_map(fn, case.image, case.crop, case.depth, edge="clip", dtype=float)
    np.testing.assert_array_equal(ours.compute(), theirs.compute())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("reflect", "symmetric"), ("nearest", "edge"), ("periodic", "wrap"), (5, "constant")],
    ids=["reflect", "nearest", "periodic", "constant"],
)
@given(case=blocked(), data=st.data())
def test_E1_equals_dask_map_overlap(theirs: Any, ours: Any, case: Blocks, data: Any) -> None:
    fn = data.draw(shifts(case))
    lazy = da.from_array(case.image, chunks=case.block)
    depth = dict(enumerate(case.depth))
    expected = da.map_overlap(fn, lazy, depth=depth, boundary=theirs, dtype=float, meta=lazy._meta)
    got = tw.tiled_map(fn, case.image, case.crop, case.depth, edge="pad", boundary=ours, cval=5, dtype=float)
    np.testing.assert_array_equal(got.compute(), expected.compute())


@given(blocked(least_block=4))
def test_E1_crops_are_those_of_dask_map_overlap(case: Blocks) -> None:
    """For a function of all that it sees, where no block is so short that its crop holds nothing new."""
    shape = [
        n - n % b if n % b <= o and n > b else n
        for n, b, o in zip(case.image.shape, case.block, case.depth, strict=True)
    ]
    image = picture(shape)

    def fn(crop: np.ndarray) -> np.ndarray:
        return crop + crop.max() * 2000 + crop.shape[0]

    lazy = da.from_array(image, chunks=case.block)
    depth = dict(enumerate(case.depth))
    theirs = da.map_overlap(
        fn, lazy, depth=depth, boundary="none", dtype=float, meta=lazy._meta, allow_rechunk=False
    )
    ours = tw.tiled_map(fn, image, case.crop, case.depth, edge="clip", dtype=float)
    np.testing.assert_array_equal(ours.compute(), theirs.compute())


@given(blocked())
def test_E1_equals_dask_map_blocks_without_overlap(case: Blocks) -> None:
    def fn(crop: np.ndarray) -> np.ndarray:
        return crop + crop.max() * 2000 + crop.shape[0]

    lazy = da.from_array(case.image, chunks=case.block)
    theirs = da.map_blocks(fn, lazy, dtype=float, meta=lazy._meta)
    ours = tw.tiled_map(fn, case.image, case.block, 0, edge="clip", dtype=float, chunks=case.block)
    assert ours.chunks == theirs.chunks
    np.testing.assert_array_equal(ours.compute(), theirs.compute())


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@given(extent=st.integers(1, 30), stride=st.integers(1, 9), overlap=st.integers(0, 40))
def test_E1_pad_shows_what_numpy_pad_invents(
    boundary: Any, side: int, extent: int, stride: int, overlap: int
) -> None:
    image = picture([extent])
    crop = stride + 2 * overlap

    def fn(values: np.ndarray) -> np.ndarray:
        return moved(values, side * overlap, -1, -1)

    extra = {"constant_values": 5} if boundary == "constant" else {}
    padded = np.pad(image, overlap, boundary, **extra)
    out = tw.tiled_map(fn, image, crop, overlap, edge="pad", boundary=boundary, cval=5, dtype=float).compute()
    start = overlap * (1 + side)
    np.testing.assert_array_equal(out, padded[start : start + extent])


@pytest.mark.peers
@given(case=blocked(fits=True), lead=st.integers(0, 2), data=st.data())
def test_E1_equals_ryomens_own_loop(case: Blocks, lead: int, data: Any) -> None:
    slicer = require("ryomen").Slicer
    fn = data.draw(shifts(case))
    dims = case.image.ndim
    image = np.stack([case.image, -case.image])[(None,) * (lead - 1)] if lead else case.image
    theirs = np.zeros_like(image)
    # Its crops share one buffer: each is used up before the next one is made.
    for crop, source, destination in slicer(image, case.crop, case.depth):
        theirs[destination] = local(fn, crop, dims)[source]
    ours = tw.tiled_map(
        lambda crop: local(fn, crop, dims), image, case.crop, case.depth, edge="pad", dtype=float,
        axes=tuple(range(image.ndim - dims, image.ndim)),
    )  # fmt: skip
    np.testing.assert_array_equal(ours.compute(), theirs)


def local(fn: Any, crop: np.ndarray, dims: int) -> np.ndarray:
    """Return `fn` of each part of a crop along its leading axes."""
    lead = crop.shape[: crop.ndim - dims]
    return np.stack([fn(crop[i]) for i in np.ndindex(*lead)]).reshape(crop.shape)
