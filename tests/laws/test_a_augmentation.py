"""A1 to A8: combined predictions, against loops over the variants that share no code with the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import LAYOUTS, Called, PerTile, local_functions, moved, part
from tests.laws.engine_strategies import (
    ALL,
    Case,
    assert_close,
    assert_same_bits,
    cases,
    covered,
    picture,
    untiled,
)

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")

FILL = -777
Turn = tuple[tuple[int, int], ...]
"""For each axis of the turned array, the axis of the crop that lies along it, and its direction."""


# ------------------------------------------------------------------------------------------ oracle


def turns_of(n: int, flips: Sequence[int], plane: Sequence[int] | None) -> set[Turn]:
    """Return all that mirrors and quarter turns make of n axes, by repeating them until nothing is new."""
    still: Turn = tuple((d, 1) for d in range(n))
    steps: list[dict[int, tuple[int, int]]] = [{f: (f, -1)} for f in flips]
    if plane is not None:
        p, q = plane
        steps.append({p: (q, 1), q: (p, -1)})
    found, new = {still}, [still]
    while new:
        turn = new.pop()
        for step in steps:
            after = tuple(
                (turn[step.get(d, (d, 1))[0]][0], turn[step.get(d, (d, 1))[0]][1] * step.get(d, (d, 1))[1])
                for d in range(n)
            )
            if after not in found:
                found.add(after)
                new.append(after)
    return found


def turned(x: np.ndarray, axes: Sequence[int], turn: Turn) -> np.ndarray:
    """Return x as `turn` says, its tiled axes at `axes`."""
    order = list(range(x.ndim))
    for axis, (of, _) in zip(axes, turn, strict=True):
        order[axis] = axes[of]
    index: list[slice] = [slice(None)] * x.ndim
    for axis, (_, sign) in zip(axes, turn, strict=True):
        index[axis] = slice(None, None, sign)
    return x.transpose(order)[tuple(index)]


def back(turn: Turn) -> Turn:
    """Return what undoes a turn."""
    found = [(0, 1)] * len(turn)
    for d, (of, sign) in enumerate(turn):
        found[of] = (d, sign)
    return tuple(found)


@dataclass(frozen=True)
class Oracle:
    """The mean of a function over all turns, by the book; exact for whole numbers."""

    one: Callable[..., np.ndarray]
    turns: frozenset[Turn]
    axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    how: Callable[..., Any] = np.mean

    def __call__(self, crop: np.ndarray, *number: int) -> np.ndarray:
        results = [
            turned(
                self.one(np.ascontiguousarray(turned(crop, self.axes, t)), *number), self.out_axes, back(t)
            )
            for t in sorted(self.turns)
        ]
        return self.how(np.stack(results), axis=0)


def test_the_oracle_knows_the_groups() -> None:
    assert [len(turns_of(2, f, p)) for f, p in [((), None), ((0,), None), ((0, 1), None)]] == [1, 2, 4]
    assert [len(turns_of(2, f, (0, 1))) for f in [(), (0,), (0, 1)]] == [4, 8, 8]
    assert len(turns_of(3, (0, 1, 2), (1, 2))) == 16


# --------------------------------------------------------------------------------------- the calls


def mirrors(case: Case, data: Any) -> tuple[int, ...]:
    """Draw tiled axes that may be mirrored."""
    n = len(case.axes)
    fits = [k for k in range(n) if case.margin[k][0] == case.margin[k][1]]
    if case.grid["edge"] == "clip":
        lengths = [n + sum(m) for n, m in zip(case.extents, case.margin, strict=True)]
        fits = [k for k in fits if not (lengths[k] - case.crops[k]) % case.multiples[k]]
    return tuple(data.draw(st.sets(st.sampled_from(fits)))) if fits else ()


def square(case: Case, plane: tuple[int, int]) -> Case:
    """Return a case with equal crops and all else on the axes of a plane."""
    p, q = plane

    def same(values: Any) -> Any:
        found = list(values)
        found[q] = found[p]
        return tuple(found)

    grid = {k: same(v) if isinstance(v, tuple) else v for k, v in case.grid.items()}
    weights = case.weights | {"rim": same(case.weights["rim"])}
    return replace(
        case, grid=grid, weights=weights, margin=same(case.margin), scale=same(case.scale),
        run=case.run | {"chunks": "auto", "reuse": "auto"},
    )  # fmt: skip


def combined(case: Case, one: Any, flips: Any, plane: Any, *, numbered: bool = False, **options: Any) -> Any:
    """Return the lazy result of `tiled_map` for `one`, augmented."""
    reduce = options.pop("combine", "mean")
    given = {"axes": case.axes, "each": case.each, **case.grid, **case.weights, **case.run, **options}
    called = Called(one, given["batch_size"] is not None, numbered)
    fn = tw.augmented(called, flips, plane, reduce=reduce)
    return tw.tiled_map(fn, case.image, pass_tile=numbered, **given)


def plain(case: Case, one: Any, *, numbered: bool = False, **options: Any) -> Any:
    given = {"axes": case.axes, "each": case.each, **case.grid, **case.weights, **case.run, **options}
    called = Called(one, given["batch_size"] is not None, numbered)
    return tw.tiled_map(called, case.image, pass_tile=numbered, **given)


def planes(case: Case, data: Any) -> tuple[Case, tuple[int, int] | None]:
    """Draw the axes of turns, if there may be any, and make them alike.

    Given starts fit the crop, multiple and margin of their own axis, so these cannot be exchanged.
    """
    fixed = case.grid["edge"] == "clip" or "starts" in case.grid
    if len(case.axes) < 2 or fixed or data.draw(st.booleans()):
        return case, None
    pair = data.draw(st.sampled_from(list(permutations(range(len(case.axes)), 2))))
    low, high = case.margin[pair[0]]
    return (square(case, pair), pair) if low == high else (case, None)


# -------------------------------------------------------------------------------------------- laws


@given(
    cases(words=ALL, margins=True, scales=(1, 1, 2, Fraction(1, 2)), multiples=(1, 2)),
    st.sampled_from(LAYOUTS), st.sampled_from(("mean", "max", "min")), st.data(),
)  # fmt: skip
def test_A1_tiles_are_combined_as_the_function_by_hand(case: Case, layout: str, how: str, data: Any) -> None:
    """In any layout of crops and results, batch and blend: the loop over variants inside fn is the same."""
    case, plane = planes(case, data)
    assume(case.kind != "own" or plane is None)  # their weights are made for the crop as it was drawn
    one = PerTile(case, layout)
    flips = mirrors(case, data)
    output = tw.Output("float64", **one.declared)
    oracle = Oracle(
        one, frozenset(turns_of(len(case.axes), flips, plane)), case.crop_axes, one.axes, getattr(np, how)
    )
    got = combined(case, one, flips, plane, numbered=True, output=output, fill_value=FILL, combine=how)
    expected = plain(case, oracle, numbered=True, output=output, fill_value=FILL)
    assert_close(got.compute(), expected.compute())


@given(cases(scales=(1, 1, 2, Fraction(1, 2)), edges=("shift", "squeeze", "drop", "pad", "clip")), st.data())
def test_A2_trimmed_crops_equal_the_whole(case: Case, data: Any) -> None:
    assert_whole(case, data)


@given(
    cases(multiples=(1, 2, 3, 4), scales=(1, 1, Fraction(2, 3)), edges=("shift", "squeeze")), st.data()
)  # fmt: skip
def test_A2_with_functions_that_pool_the_padded_whole(case: Case, data: Any) -> None:
    assert_whole(case, data)


def assert_whole(case: Case, data: Any) -> None:
    """Assert that tiles give what the whole image gives, augmented by hand, to the bit."""
    case, plane = planes(case, data)
    fn = data.draw(local_functions(case))
    flips = mirrors(case, data)
    if case.grid["edge"] in ("pad", "drop") and max(case.multiples) > 1:
        flips, plane = (), None  # the whole that is compared does not end where their crops do
    output = tw.Output("float64", margin=case.margin, scale=case.scale)
    got = combined(case, fn, flips, plane, output=output, fill_value=FILL).compute()
    turns = frozenset(turns_of(len(case.axes), flips, plane))
    whole = untiled(case, Oracle(fn, turns, case.crop_axes, case.crop_axes), out_axes=case.crop_axes)
    expected = np.full_like(whole, FILL)
    inside = part(case.crop_axes, covered(case), whole.ndim, len(case.each))
    expected[inside] = whole[inside]
    np.testing.assert_array_equal(got, expected)


@given(
    st.integers(1, 3), st.sampled_from(("float16", "float32", "float64", "uint8", "complex64")),
    st.booleans(), st.sampled_from((None, 1, 3)),
)  # fmt: skip
@example(dims=2, dtype="complex64", turns=True, batch_size=None)
def test_A3_an_equivariant_function_stays_as_it_is(
    dims: int, dtype: str, turns: bool, batch_size: int | None
) -> None:
    """To the bit: the mean of equal values rounds nothing, as their number is a power of two."""
    rng = np.random.default_rng(dims)
    image = (rng.standard_normal((13, 11, 9)[:dims]) * 10 ** rng.uniform(0, 4, (13, 11, 9)[:dims])).astype(
        dtype
    )
    plane = (0, 1) if turns and dims > 1 else None
    fn = tw.augmented(np.negative, "all", plane)
    got = tw.tiled_map(fn, image, crop=6, overlap=1, batch_size=batch_size)
    assert_same_bits(got.compute(), np.negative(image))


@given(cases(words=("trim", "average"), margins=True), st.sampled_from(("mean", "max", "gmean", len)))
def test_A4_an_ensemble_of_one_is_its_function(case: Case, how: Any) -> None:
    one = PerTile(case)
    fn = Called(one, case.run["batch_size"] is not None, True)
    given_ = {"axes": case.axes, "each": case.each, **case.grid, **case.weights, **case.run}
    given_ |= {"pass_tile": True, "output": tw.Output("float64", margin=case.margin)}
    got = tw.tiled_map(tw.ensemble([fn], reduce=how), case.image, **given_)
    assert_same_bits(got.compute(), tw.tiled_map(fn, case.image, **given_).compute())


class Scaled:
    """x times a factor, plus an offset: values that no sum adds up exactly."""

    def __init__(self, factor: float, dtype: str) -> None:
        self.factor, self.dtype = factor, dtype

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x * self.factor).astype(self.dtype)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=7), st.randoms(use_true_random=False),
    st.sampled_from(("mean", "max", "min")),
    st.sampled_from((("float32",), ("float32", "float64"), ("float16",))),
)  # fmt: skip
def test_A5_the_order_of_functions_changes_no_bit(
    factors: list[float], random: Any, how: str, dtypes: tuple[str, ...]
) -> None:
    fns = [Scaled(f, dtypes[k % len(dtypes)]) for k, f in enumerate(factors)]
    image = np.random.default_rng(1).standard_normal((12, 8)).astype("float32")
    image[0, :3] = 0.0, -0.0, np.nan
    shuffled = fns.copy()
    random.shuffle(shuffled)
    with np.errstate(all="ignore"):
        got = [tw.tiled_map(tw.ensemble(own, reduce=how), image, 5, 1).compute() for own in (fns, shuffled)]
        expected = getattr(np, how)(np.stack([fn(image).astype("float64") for fn in fns]), axis=0)
    assert_same_bits(*(np.where(np.isnan(g), 7, g) for g in got))  # a NaN has many bits
    np.testing.assert_array_equal(*map(np.isnan, got))
    eps = 4e-3 if dtypes == ("float16",) else 1e-6
    scale = max(1.0, np.nanmax(np.abs(expected[np.isfinite(expected)])))
    if np.isfinite(expected[1:]).all():
        np.testing.assert_allclose(got[0], expected, rtol=eps, atol=eps * scale)


@given(st.permutations((0, 1, 2)), st.sampled_from(((0, 1), (2, 1))))
def test_A5_nor_does_that_of_axes(flips: list[int], plane: tuple[int, int]) -> None:
    image = np.random.default_rng(2).standard_normal((6, 6, 6)).astype("float32")

    def lopsided(x: np.ndarray) -> np.ndarray:
        return x + x[:1] * np.float32(0.3) - x[:, :1] * np.float32(7.7) + x[..., -1:]

    got = [
        tw.tiled_map(tw.augmented(lopsided, f, p), image, 5, 1).compute()
        for f, p in ((flips, plane), (sorted(flips), sorted(plane)))
    ]
    assert_same_bits(*got)


# --------------------------------------------------------------------------------------- directions


@dataclass(frozen=True)
class Gradient:
    """Central differences along each tiled axis, as vectors: they turn with the image."""

    axes: tuple[int, ...]
    first: bool
    skew: int = 0
    """Weight of a term that only looks ahead, which variants do not agree on."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        found = []
        for a in self.axes:
            k = a - x.ndim
            ahead = moved(x, 1, k, 0)
            found.append(ahead - moved(x, -1, k, 0) + self.skew * (ahead - x))
        return np.stack(found, 0 if self.first else -1)


def back_in_place(axis: int) -> Callable[[np.ndarray, tw.Variant], np.ndarray]:
    return lambda result, variant: variant.vectors(result, axis)


@given(
    st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from((None, 2)),
    st.sampled_from((0, 3)), st.data(),
)  # fmt: skip
def test_A6_vectors_are_turned_back(
    dims: int, first: bool, turns: bool, batch_size: int | None, skew: int, data: Any
) -> None:
    image = picture((10, 12, 7)[:dims])
    flips = tuple(data.draw(st.sets(st.integers(0, dims - 1))))
    plane = data.draw(st.sampled_from(list(permutations(range(dims), 2)))) if turns and dims > 1 else None
    one = Gradient(tuple(range(dims)), first, skew)
    inverse = back_in_place(-dims - 1 if first else -1)
    fn = tw.augmented(Called(one, batch_size is not None), flips, plane, inverse=inverse)
    output = tw.Output("float64", channels=dims, channel_axis=0 if first else -1)
    got = tw.tiled_map(fn, image, 6, 2, batch_size=batch_size, output=output).compute()
    # The term that looks ahead is a mean over directions: by hand, from signed differences.
    expected = np.zeros_like(got)
    turned_ = turns_of(dims, flips, plane)
    axes = tuple(range(1, dims + 1)) if first else tuple(range(dims))
    for turn in turned_:
        field = turned(one(np.ascontiguousarray(turned(image, range(dims), turn))), axes, back(turn))
        parts = np.moveaxis(field, 0 if first else -1, 0)
        own = [np.zeros_like(image)] * dims
        for d, (of, sign) in enumerate(turn):
            own[of] = sign * parts[d]
        expected += np.stack(own, 0 if first else -1)
    np.testing.assert_array_equal(got, expected / len(turned_))
    if not skew:
        np.testing.assert_array_equal(got, one(image))


# -------------------------------------------------------------------------------------------- probe


@dataclass(frozen=True)
class ByHand:
    """The same as a plain function, for `probe` to see nothing of how it is made."""

    oracle: Oracle

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        return self.oracle(crop)


@pytest.mark.parametrize(
    ("reach", "flips", "plane", "pool"),
    [((3, 0), (0,), None, 1), ((3, 0), (), (0, 1), 1), ((0, 2), (0, 1), None, 2), ((1, 0), (1,), (0, 1), 2)],
    ids=["mirrored", "turned", "pooled", "both"],
)
@pytest.mark.sample(2)
def test_A7_probe_finds_what_it_finds_of_the_loop_by_hand(
    reach: tuple[int, int], flips: tuple[int, ...], plane: Any, pool: int
) -> None:
    def one(x: np.ndarray) -> np.ndarray:
        if pool > 1:
            x = x.reshape(x.shape[0] // pool, pool, x.shape[1]).max(1).repeat(pool, 0)
        return x + 2 * moved(x, -reach[0], -2, 0) + 3 * moved(x, reach[1], -1, 0)

    oracle = Oracle(one, frozenset(turns_of(2, flips, plane)), (0, 1), (0, 1))
    got = tw.probe(tw.augmented(one, flips, plane), (48, 48))
    expected = tw.probe(ByHand(oracle), (48, 48))
    assert (got.sides, got.overlap, got.multiple, got.exact) == (
        expected.sides, expected.overlap, expected.multiple, expected.exact,
    )  # fmt: skip


def test_A8_probe_takes_the_largest_of_an_ensemble() -> None:
    def near(x: np.ndarray) -> np.ndarray:
        return x + moved(x, 1, -2, 0)

    def far(x: np.ndarray) -> np.ndarray:
        return x + moved(x, -4, -1, 0)

    def pools(x: np.ndarray) -> np.ndarray:
        return x.reshape(x.shape[0] // 3, 3, x.shape[1]).max(1).repeat(3, 0)

    report = tw.probe(tw.ensemble([near, tw.augmented(far, (1,)), pools]), (48, 48))
    assert report.sides == ((2, 2), (4, 4))
    assert (report.multiple, report.overlap, report.exact) == ((3, 1), (3, 4), True)
