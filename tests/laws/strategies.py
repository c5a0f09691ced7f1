"""Draws of what the laws quantify over: grids along one axis, whole calls, blocks.

Every draw is a valid one: what the package refuses is the matter of law F1.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from fractions import Fraction
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from tilework import Output, plan_tiles
from tilework.errors import TilingWarning
from tilework.grid.axis import EDGES, AxisGrid
from tilework.plan.axis_table import Spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilework import TilePlan

WINDOWS = ("average", "linear", "hann", "gaussian")
MODES = ("reflect", "symmetric", "edge", "wrap", "constant")
MARGINS = ((0, 0), (0, 0), (0, 0), (1, 1), (2, 0), (0, 3), (3, 2))

# Arithmetic alone is cheap: so many more draws than where arrays are cut and computed.
many = settings(max_examples=8 * settings().max_examples)
# For the long variants, behind --runslow.
endless = settings(max_examples=min(20_000, 100 * settings().max_examples))


def arange(shape: Sequence[int], dtype: Any = float) -> np.ndarray[Any, Any]:
    """Return an image in which a misplaced sample shows."""
    return np.arange(1, np.prod(shape, dtype=int) + 1).reshape(shape).astype(dtype)


class Axis(NamedTuple):
    """One axis of a call, as its user would give it, and the grid that it must become."""

    grid: AxisGrid
    rim: int
    scale: Fraction
    """Result samples per image sample; its denominator is the grid's quantum."""
    multiple: int
    """As given, before the denominator of the scale joins it."""


@st.composite
def lengths(draw: Any, crop: int, stride: int, margin: tuple[int, int], tiles: int) -> int:
    """Draw an extent: very often one at which something changes."""
    valid = crop - sum(margin)
    pinned = {1, valid - 1, valid, valid + 1, crop - 1, crop, crop + 1, crop + stride}
    some = st.integers(1, crop + (tiles - 2) * stride)
    return draw(st.one_of(st.sampled_from(sorted(n for n in pinned if n > 0)), some))


def before(grid: AxisGrid) -> int:
    """Return the samples before the image where it is padded on both sides."""
    missing = max(0, grid.crop - grid.extent - sum(grid.margin))
    missing += (grid.crop - grid.extent - sum(grid.margin) - missing) % grid.multiple
    return missing // 2


def pads_on_both(grid: AxisGrid) -> bool:
    """Return whether the grid may be padded on both sides: results must not lie between samples."""
    return grid.edge in ("shift", "squeeze") and before(grid) % grid.quantum == 0


@st.composite
def axes(
    draw: Any,
    *,
    edge: str | None = None,
    trims: bool | None = None,
    plain: bool = False,
    scaled: bool = True,
    multiples: Sequence[int] = (1, 1, 1, 2, 3),
    most: int = 5,
    tiles: int = 7,
) -> Axis:
    """Draw one axis; ``plain`` means no margin and no scale, ``most`` bounds stride and overlap."""
    edge = draw(st.sampled_from(EDGES)) if edge is None else edge
    trims = draw(st.booleans()) if trims is None else trims
    scaled = scaled and not plain
    quantum = draw(st.sampled_from((1, 1, 1, 2, 3, 4))) if scaled else 1
    given = draw(st.sampled_from(multiples))
    multiple = int(np.lcm(given, quantum))
    lo, hi = (0, 0) if plain else draw(st.sampled_from(MARGINS))
    stride = multiple * draw(st.integers(1, most))
    fewest = max(0, -((lo - hi) // multiple))
    overlap = lo + multiple * draw(st.integers(fewest, fewest + most))
    # What is left of the crop when only the stride is given: odd, or not a whole multiple.
    rest = range(2 * multiple)
    fits = [r for r in rest if (stride + 2 * overlap + r - lo - hi) % quantum == 0]
    crop = stride + 2 * overlap + draw(st.sampled_from(fits))
    extent = draw(lengths(crop, stride, (lo, hi), tiles))
    rim = quantum * draw(st.integers(0, (overlap - max(lo, hi)) // quantum))
    ups = [k for k in (1, 2, 3, 5) if gcd(k, quantum) == 1] if scaled else [1]
    scale = Fraction(draw(st.sampled_from(ups)), quantum)
    side = draw(st.sampled_from(("end", "both")))
    grid = AxisGrid(extent, crop, overlap, stride, edge, trims, multiple, (lo, hi), quantum)
    if side == "both" and pads_on_both(grid):
        grid = replace(grid, pad_side="both")
    return Axis(grid, rim, scale, given)


def grids(**fixed: Any) -> st.SearchStrategy[AxisGrid]:
    """Draw the grid of one axis; keywords as in `axes`."""
    return axes(**fixed).map(lambda axis: axis.grid)


class Call(NamedTuple):
    """Extents of an image and the arguments of `tiled_map` that say how it is cut."""

    shape: tuple[int, ...]
    crop: tuple[int, ...]
    options: dict[str, Any]
    axes: tuple[Axis, ...]


@st.composite
def calls(
    draw: Any,
    *,
    edge: str | None = None,
    trims: bool = True,
    ndim: int = 3,
    most: int = 3,
    **fixed: Any,
) -> Call:
    """Draw a call in 1 to ``ndim`` dimensions; without ``trims`` there is a rim for a blend."""
    edge = draw(st.sampled_from(EDGES)) if edge is None else edge
    each = axes(edge=edge, trims=trims, most=most, multiples=(1, 1, 1, 2), **fixed)
    drawn = draw(st.lists(each, min_size=1, max_size=ndim))
    side = drawn[0].grid.pad_side
    if side == "both" and not all(pads_on_both(a.grid) for a in drawn):
        side = "end"
    drawn = [a._replace(grid=replace(a.grid, pad_side=side)) for a in drawn]
    options = {
        "pad_side": side,
        "stride": tuple(a.grid.stride for a in drawn),
        "multiple": tuple(a.multiple for a in drawn),
        "edge": edge,
    }
    return Call(
        tuple(a.grid.extent for a in drawn),
        tuple(a.grid.crop for a in drawn),
        options if trims else options | {"rim": tuple(a.rim for a in drawn)},
        tuple(drawn),
    )


@st.composite
def blocks(draw: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Draw a block shape with few blocks along each axis."""
    return tuple(-(-n // draw(st.integers(1, min(3, n)))) for n in shape)


@st.composite
def coarse(draw: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Draw bits of a shape, of which neighbours are often equal, in whole rows too."""
    share, seed = draw(st.floats(0, 1)), draw(st.integers(0, 99))
    groups = [np.arange(n) // draw(st.integers(1, max(1, n))) for n in shape]
    bits = np.random.default_rng(seed).random([len(set(g.tolist())) for g in groups]) < share
    return bits[np.ix_(*groups)]


@st.composite
def spans(draw: Any, n: int) -> Spans:
    """Draw ranges of ``n`` entries, some of which are empty."""
    pair = st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted)
    return Spans(*np.array(draw(st.lists(pair, max_size=5)), np.int64).reshape(-1, 2).T)


@st.composite
def plans(draw: Any, *, masks: bool | None = None) -> TilePlan:
    """Draw a plan with all that can be in one: an `each` axis, a mask, a batch, several outputs."""
    trims = draw(st.booleans())
    call = draw(calls(trims=trims))
    shape, n = call.shape, len(call.shape)
    margin = tuple(a.grid.margin for a in call.axes)
    outputs = [
        Output("float32", channels=c, scale=tuple(a.scale for a in call.axes), margin=margin)
        for c in draw(st.lists(st.integers(0, 3), min_size=1, max_size=2))
    ]
    lead = draw(st.sampled_from((0, 0, 2)))
    mask = None
    if draw(st.booleans()) if masks is None else masks:
        mask = np.zeros(shape, bool)
        for _ in range(draw(st.integers(1, 3))):
            mask[tuple(draw(st.integers(0, e - 1)) for e in shape)] = True
    chunks: Any = "auto"
    if draw(st.booleans()):
        chunks = tuple(a.grid.quantum * draw(st.integers(1, 12)) for a in call.axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TilingWarning)  # `drop` may leave the mask without a tile
        return plan_tiles(
            (lead,) * bool(lead) + shape,
            call.crop,
            **call.options,
            each=(0,) if lead else (),
            axes=tuple(range(bool(lead), n + bool(lead))),
            blend="trim" if trims else draw(st.sampled_from((*WINDOWS, "max", "sum"))),
            output=tuple(outputs),
            mask=mask,
            batch_size=draw(st.sampled_from((None, 1, 4))),
            chunks=chunks,
            source_chunks=draw(st.sampled_from((None, (4,) * (n + bool(lead))))),
            reuse=draw(st.sampled_from(("auto", "recompute"))),
        )
