"""Random calls of `tiled_map` that the oracle can repeat, and functions to call it with.

`cases()` draws a `Case`. `tiled` runs it through the package, `oracle` through `tests.reference`,
and `untiled` applies the function to the whole image, as the master law says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, lcm, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

import tilework as tw
from tests.laws.engine_functions import Called
from tests.reference import reference, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EDGES = ("shift", "squeeze", "clip", "pad", "drop")
BOUNDARIES = ("reflect", "symmetric", "edge", "wrap", "constant")
WINDOWS = ("average", "linear", "hann", "gaussian")
OWN = ("callable", "arrays", "map")
EXTREMES = ("max", "min")
EXACT = ("trim", *EXTREMES)
ALL = (*EXACT, *WINDOWS, *OWN, "sum")
TILES = 200  # at most: the oracle needs about 0.1 ms for each
SAMPLES = 100_000  # in all crops together, so that an example takes some 10 ms


def picture(shape: Sequence[int], dtype: Any = np.float64) -> np.ndarray:
    """Return whole numbers, distinct up to 1009 samples, in no simple order.

    A linear ramp would hide what is misplaced by the same distance to both sides.
    """
    return (np.arange(prod(shape)) * 389 % 1009).reshape(shape).astype(dtype)


# ------------------------------------------------------------------------------------------- draws


@dataclass(frozen=True, slots=True)
class Case:
    """One draw; per-axis tuples are in the order of `axes`."""

    image: np.ndarray
    axes: tuple[int, ...]
    each: tuple[int, ...]
    grid: dict[str, Any]
    """crop; overlap, stride or starts; edge, boundary, cval, pad_side, multiple: as both take them."""
    weights: dict[str, Any]
    """blend, rim, sigma_scale: as both, too."""
    margin: tuple[tuple[int, int], ...]
    scale: tuple[Fraction, ...]
    run: dict[str, Any]
    """chunks, reuse, batch_size: what must not matter."""

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple(self.image.shape[a] for a in self.axes)

    @property
    def strides(self) -> tuple[int, ...]:
        if "stride" in self.grid:
            return self.grid["stride"]
        if "starts" in self.grid:
            return tuple(int(max(np.diff(s), default=1)) for s in self.grid["starts"])
        return tuple(c - 2 * o for c, o in zip(self.crops, self.grid["overlap"], strict=True))

    @property
    def crops(self) -> tuple[int, ...]:
        return self.grid["crop"]

    @property
    def overlaps(self) -> tuple[int, ...]:
        halves = [(c - s) // 2 for c, s in zip(self.crops, self.strides, strict=True)]
        if "starts" not in self.grid:
            return tuple(halves)
        # The cuts between crops of a coarser result lie between its samples.
        columns = zip(halves, self.margin, self.multiples, strict=True)
        return tuple(lo + (o - lo) // m * m for o, (lo, _), m in columns)

    @property
    def multiples(self) -> tuple[int, ...]:
        """Distances between the places that a crop may start at."""
        return tuple(lcm(m, f.denominator) for m, f in zip(self.grid["multiple"], self.scale, strict=True))

    @property
    def crop_axes(self) -> tuple[int, ...]:
        """Where the tiled axes stand in a crop."""
        kept = [a for a in range(self.image.ndim) if a not in self.each]
        return tuple(kept.index(a) for a in self.axes)

    @property
    def walks(self) -> list[tuple[Any, ...]]:
        """Parameters of the oracle's `walk`, per tiled axis."""
        edge, side, trim = self.grid["edge"], self.grid["pad_side"], self.kind == "trim"
        starts = self.grid.get("starts", [None] * len(self.axes))
        columns = zip(
            self.extents, self.crops, self.strides, self.multiples, self.scale, self.margin, starts,
            strict=True,
        )  # fmt: skip
        return [(n, c, s, m, f.denominator, *lh, edge, trim, side, own) for n, c, s, m, f, lh, own in columns]

    def padding(self, k: int) -> tuple[int, int]:
        """Samples that whole crops need before and after the image, along an axis."""
        length = self.extents[k] + sum(self.margin[k])
        if self.grid["edge"] not in ("shift", "squeeze"):
            return 0, 0
        missing = max(self.crops[k], length) - length
        missing += (self.crops[k] - length - missing) % self.multiples[k]
        before = missing // 2 if self.grid["pad_side"] == "both" else 0
        return before, missing - before

    @property
    def kind(self) -> str:
        blend = self.weights["blend"]
        return blend if isinstance(blend, str) else "own"

    @property
    def result_crop(self) -> tuple[int, ...]:
        return tuple(
            int((c - lo - hi) * f) for c, (lo, hi), f in zip(self.crops, self.margin, self.scale, strict=True)
        )

    @property
    def result_extents(self) -> tuple[int, ...]:
        return tuple(ceil(n * f) for n, f in zip(self.extents, self.scale, strict=True))


@dataclass(frozen=True, slots=True)
class Axis:
    """The draw of one axis."""

    extent: int
    crop: int
    stride: int
    overlap: int
    multiple: int
    margin: tuple[int, int]
    scale: Fraction
    rim: int


# Along one of d tiled axes: largest extent; stride and overlap over what they must be, in multiples.
_SIZES = {1: (60, 5, 4), 2: (24, 4, 3), 3: (12, 3, 2), 4: (7, 2, 1), 5: (5, 2, 1)}


@st.composite
def _axis(
    draw: Any, dims: int, *, scale: Fraction, margins: bool, multiples: Sequence[int],
    rims: tuple[int, int],
) -> Axis:  # fmt: skip
    largest, most_stride, most_overlap = _SIZES[dims]
    multiple, q = draw(st.sampled_from(multiples)), scale.denominator
    m = lcm(multiple, q)
    lo = draw(st.integers(0, 2)) if margins else 0
    hi = draw(st.integers(0, 3)) if margins else 0
    hi += (lo - hi) % q
    margin = (lo, hi)
    rim = q * draw(st.integers(-(-rims[0] // q), -(-rims[1] // q)))
    # Overlap less the margin in front is a multiple of m, and holds the rim.
    fewest = -(-(max(margin) - lo + rim) // m)
    overlap = lo + m * draw(st.integers(fewest, fewest + most_overlap))
    stride = m * draw(st.integers(1, most_stride))
    odd = m == 1 and draw(st.booleans())
    crop = stride + 2 * overlap + odd
    near = [n for n in (1, crop - 1, crop, crop + 1, crop + stride) if n > 0]
    large = st.integers(crop + 1, max(largest, 3 * crop))
    extent = draw(large | st.integers(1, max(largest, crop)) | st.sampled_from(near) | large)
    return Axis(extent, crop, stride, overlap, multiple, margin, scale, rim)


def _shorten(axes: list[Axis], others: Sequence[int], n_each: int) -> list[Axis]:
    """Cut the longest axes until there are at most `TILES` tiles, or `SAMPLES` in them."""
    axes = list(axes)
    samples = prod(a.crop for a in axes) * prod(others)
    most = max(1, min(TILES // prod(others[:n_each]), SAMPLES // samples))
    while prod(-(-a.extent // a.stride) for a in axes) > most:
        k = max(range(len(axes)), key=lambda d: axes[d].extent / axes[d].stride)
        axes[k] = replace(axes[k], extent=axes[k].extent - axes[k].stride)
    return axes


def slanted(length: int) -> np.ndarray:
    """Return weights that no mirror leaves alone."""
    return 1.0 + np.arange(length) ** 2 % 7


@st.composite
def blends(draw: Any, words: Sequence[str], lengths: tuple[int, ...]) -> Any:
    """Draw a blend, own weights made for a result of `lengths`."""
    word = draw(st.sampled_from(words))
    if word == "callable":
        return slanted
    if word == "arrays":
        return tuple(slanted(n)[::-1] + k for k, n in enumerate(lengths))
    if word == "map":
        return 1.0 + picture(lengths) % 5
    return word


@st.composite
def cases(
    draw: Any, *, words: Sequence[str] = ("trim",), edges: Sequence[str] = EDGES,
    dims: Sequence[int] = (1, 2, 3), margins: bool = False,
    scales: Sequence[Fraction | int] = (1,), multiples: Sequence[int] = (1,), rim: int = 0,
    untiled: bool = True, each: bool = True, sorted_axes: bool = False, share: bool = False,
    ends: bool = False, dtype: Any = np.float64,
) -> Case:  # fmt: skip
    """Draw a valid call.

    `rim` is the least rim of a blend; `share`: blocks at least as long as a crop, so that tiles
    may be shared. `ends`: no given starts, and padding only at the end.
    """
    d = draw(st.sampled_from(dims))
    word = draw(st.sampled_from(words))
    trim = word == "trim"
    scale = [Fraction(draw(st.sampled_from(scales))) for _ in range(d)]
    axes = [
        draw(
            _axis(
                d, scale=scale[k], margins=margins, multiples=multiples,
                rims=(0, 0) if trim else (rim, rim + 1),
            )
        )
        for k in range(d)
    ]  # fmt: skip
    # Where the axes stand: tiled, each and untiled ones in any order.
    n_each = draw(st.integers(0, 2)) if each else 0
    n_untiled = draw(st.integers(0, 2 if d < 3 else 1)) if untiled else 0
    most = 3 if n_each + n_untiled < 3 else 2
    others = [draw(st.integers(1, most)) for _ in range(n_each + n_untiled)]
    axes = _shorten(axes, others, n_each)
    roles = ["t"] * d + ["e"] * n_each + ["u"] * n_untiled
    roles = draw(st.permutations(roles)) if len(set(roles)) > 1 else roles
    places = [k for k, role in enumerate(roles) if role == "t"]
    if not sorted_axes:
        places = draw(st.permutations(places)) if d > 1 else places
    sizes = iter(others)
    extent = {k: next(sizes) for role in "eu" for k, r in enumerate(roles) if r == role}
    extent |= dict(zip(places, (a.extent for a in axes), strict=True))
    shape = [extent[k] for k in range(len(roles))]
    each_axes = tuple(k for k, role in enumerate(roles) if role == "e")

    grid: dict[str, Any] = {
        "crop": tuple(a.crop for a in axes),
        "edge": draw(st.sampled_from(edges)),
        "boundary": draw(st.sampled_from(BOUNDARIES)),
        "cval": draw(st.sampled_from((0, 5))),
        "multiple": tuple(a.multiple for a in axes),
        "pad_side": "end",
    }
    if any(a.crop - 2 * a.overlap != a.stride for a in axes) or draw(st.booleans()):
        grid["stride"] = tuple(a.stride for a in axes)
    else:
        grid["overlap"] = tuple(a.overlap for a in axes)
    case = Case(
        picture(shape, dtype), tuple(places), each_axes, grid, {},
        tuple(a.margin for a in axes), tuple(scale), {},
    )  # fmt: skip
    if not ends and grid["edge"] in ("shift", "squeeze") and draw(st.booleans()):
        grid["pad_side"] = "both"
        if any(case.padding(k)[0] % f.denominator for k, f in enumerate(scale)):
            grid["pad_side"] = "end"  # results would lie between samples
    if not ends and grid["edge"] == "shift" and draw(st.integers(0, 3)) == 0:
        slack = [
            n + sum(m) + sum(case.padding(k)) - c
            for k, (n, c, m) in enumerate(zip(case.extents, case.crops, case.margin, strict=True))
        ]
        steps = zip(slack, case.strides, case.multiples, strict=True)
        grid["starts"] = tuple(draw(rising(*step)) for step in steps)
        grid.pop("stride", grid.pop("overlap", None))
    weights = {
        "blend": draw(blends([word], case.result_crop)),
        "rim": tuple(a.rim for a in axes),
        "sigma_scale": draw(st.sampled_from((0.05, 0.125, 0.5))),
    }
    return replace(case, weights=weights, run=draw(runs(case, share=share)))


@st.composite
def rising(draw: Any, last: int, stride: int, m: int) -> tuple[int, ...]:
    """Draw starts from 0 to `last`, multiples of `m` at most `stride` apart."""
    starts = [0]
    while starts[-1] < last:
        starts.append(min(last, starts[-1] + m * draw(st.integers(-(-stride // m) // 2 or 1, stride // m))))
    return tuple(starts)


@st.composite
def runs(draw: Any, case: Case, *, share: bool = False) -> dict[str, Any]:
    """Draw how a case is computed; blocks are multiples of the scale's denominator."""
    batch_size = draw(st.sampled_from((None, None, 1, 2, 5)))
    wide = share or draw(st.booleans())
    if not wide and draw(st.integers(0, 3)) == 0:
        return {"chunks": "auto", "reuse": "auto", "batch_size": batch_size}
    chunks = [draw(st.integers(1, case.image.shape[a])) if draw(st.booleans()) else 1 for a in case.each]
    for n, c, f in zip(case.extents, case.crops, case.scale, strict=True):
        q = f.denominator
        # Blocks of single samples run every tile as often as it has samples.
        low, high = (c, 2 * c) if wide else (1 if len(case.axes) == 1 else -(-c // 3), c)
        chunks.append(n if low >= n else q * draw(st.integers(-(-low // q), -(-high // q))))
    reuse = draw(st.sampled_from(("share", "share", "recompute", "auto")[0 if wide else 2 :]))
    return {"chunks": tuple(chunks), "reuse": reuse, "batch_size": batch_size}


# ------------------------------------------------------------------------------------------- calls


def tiled(case: Case, one: Callable[..., Any], *, numbered: bool = False, **options: Any) -> Any:
    """Return the lazy result of `tiled_map` for `one`, a function of one crop (and a number)."""
    given = {"axes": case.axes, "each": case.each, **case.grid, **case.weights, **case.run}
    given |= {"pass_tile": numbered, **options}
    image = given.pop("image", case.image)
    fn = Called(one, given["batch_size"] is not None, numbered)
    return tw.tiled_map(fn, image, **given)


def oracle(case: Case, one: Callable[..., Any], *, numbered: bool = False, **options: Any) -> Any:
    """Return what the oracle makes of each index of the `each` axes, these in front."""
    image = np.moveaxis(case.image, case.each, range(len(case.each)))
    lead = image.shape[: len(case.each)]
    given = {"axes": case.crop_axes, "margin": case.margin, "scale": case.scale}
    given |= {**case.grid, **case.weights, **options}
    count = tiles_per_image(case)
    results = []
    for number, index in enumerate(np.ndindex(*lead)):
        fn = (lambda crop, i, at=number * count: one(crop, at + i)) if numbered else one
        results.append(reference(fn, image[index], pass_tile=numbered, **given))
    return np.stack(results).reshape(*lead, *results[0].shape) if case.each else results[0]


def tiles_per_image(case: Case) -> int:
    """Return how many tiles the oracle makes of one image."""
    return prod(len(walk(*own)) for own in case.walks)


def untiled(case: Case, one: Callable[..., Any], *, out_axes: tuple[int, ...]) -> np.ndarray:
    """Return `one` applied to whole images: padded as `pad_side` says, `pad` on both sides.

    The results' tiled axes stand at `out_axes`, behind the `each` axes.
    """
    image = np.moveaxis(case.image, case.each, range(len(case.each)))
    widths, starts = [(0, 0)] * (image.ndim - len(case.each)), []
    for k, (c, (lo, hi)) in enumerate(zip(case.crops, case.margin, strict=True)):
        before, after = lo, hi
        if case.grid["edge"] == "pad":
            before = case.overlaps[k]
            after = c + before
        else:
            before, after = (a + b for a, b in zip((lo, hi), case.padding(k), strict=True))
        widths[case.crop_axes[k]] = (before, after)
        starts.append(int((before - lo) * case.scale[k]))
    kept = {
        a: slice(start, start + n) for a, start, n in zip(out_axes, starts, case.result_extents, strict=True)
    }
    extra = {"constant_values": case.grid["cval"]} if case.grid["boundary"] == "constant" else {}
    lead = image.shape[: len(case.each)]
    results = []
    for index in np.ndindex(*lead):
        whole = one(np.pad(image[index], widths, case.grid["boundary"], **extra))
        results.append(whole[tuple(kept.get(a, slice(None)) for a in range(whole.ndim))])
    return np.stack(results).reshape(*lead, *results[0].shape) if case.each else results[0]


def covered(case: Case) -> tuple[slice, ...]:
    """Return the part of the result, along the tiled axes, that `drop` computes."""
    ends = []
    for k, (n, c, s, (lo, hi)) in enumerate(
        zip(case.extents, case.crops, case.strides, case.margin, strict=True)
    ):
        stop, length, q = c, n + lo + hi, case.scale[k].denominator
        if case.grid["edge"] != "drop":
            ends.append(n)
            continue
        while stop + s <= length:
            stop += s
        cut = lo + case.overlaps[k] if case.kind == "trim" else lo + hi + case.weights["rim"][k]
        inside = n if stop == length else (stop - cut) // q * q
        ends.append(inside if c <= length else 0)
    if 0 in ends:
        ends = [0] * len(ends)
    return tuple(slice(0, ceil(e * f)) for e, f in zip(ends, case.scale, strict=True))


@st.composite
def masks(draw: Any, case: Case) -> dict[str, Any]:
    """Draw a mask finer or coarser than the image, and its scale where the axes differ."""
    factors = [
        draw(st.sampled_from([Fraction(1, 2), *(f for f in (1, 2, 3) if n % f == 0)])) for n in case.extents
    ]
    shape = tuple(int(n / f) for n, f in zip(case.extents, factors, strict=True))
    if len(shape) == 1 and draw(st.booleans()):
        shape = (draw(st.integers(1, 2 * case.extents[0])),)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    mask = rng.random(shape) < draw(st.sampled_from((0.03, 0.2, 0.6)))
    options: dict[str, Any] = {"mask": mask}
    if len(set(factors)) > 1:
        options["mask_scale"] = tuple(map(float, factors))
    return options


# ------------------------------------------------------------------------------------- comparisons


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Assert equal shape, dtype and bytes, so that -0.0 and NaN count too."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    if got.tobytes() != expected.tobytes():
        np.testing.assert_array_equal(got, expected)
        raise AssertionError("equal values of different bits: -0.0 or another NaN")


def assert_close(got: np.ndarray, expected: np.ndarray, eps: float = 1e-12) -> None:
    """Assert equality but for rounding, relative to the largest value."""
    assert got.shape == expected.shape
    finite = np.abs(expected[np.isfinite(expected)])
    np.testing.assert_allclose(got, expected, rtol=eps, atol=eps * float(finite.max(initial=1)))
