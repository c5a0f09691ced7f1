"""What probing a function found, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tilework.function.output import Output
from tilework.probing.blackbox import size_of
from tilework.probing.reach import largest

if TYPE_CHECKING:
    from tilework.probing.search import Probing


from dataclasses import dataclass
from fractions import Fraction

from tilework._checks import report
from tilework.function.output import Outputs

__all__ = ["ProbeReport", "report_of"]

# Noise between equal calls, as a share of the largest result, that still is rounding (sums in any order).
STEADY = 1e-4

Lengths = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, repr=False)
class ProbeReport:
    """What `probe` found of a function; prints as a table, and never claims more than was seen."""

    names: tuple[str, ...]
    """Names or numbers of the tiled axes."""
    crop: Lengths
    """Samples per tiled axis of the crops that the function was called with."""
    overlap: Lengths
    """Samples per side, for `tiled_map`: the smallest exact overlap where `exact`, else a quarter of the
    crop, for blending."""
    sides: Pairs
    """Samples before and behind an output sample on which it depends, per axis: the largest seen."""
    borders: Pairs
    """Samples at the start and end of a crop whose results its border changes, per axis: padding inside the
    function may reach farther than any input, and then decides the overlap."""
    multiple: Lengths
    """Samples by which the function commutes with translation, per axis."""
    scale: tuple[Fraction, ...]
    """Result samples per image sample, per axis (of the first result)."""
    margin: Pairs
    """Image samples before and behind for which there is no result, per axis."""
    output: Outputs
    """Declaration of what the function returns, for ``tiled_map(output=...)``."""
    bounded: bool
    """Whether changes stopped short of the crop's border: False for global normalisation, squeeze-excite,
    instance norm, and a radius too large for the crop (`notes` say which)."""
    commutes: bool
    """Whether some translation was found that moves the result and changes nothing else."""
    wraps: tuple[str, ...]
    """Names of the axes on which one end of a crop changes the other, as circular filters do."""
    deterministic: bool
    """Whether two calls on one crop gave the same bits."""
    noise: float
    """Largest difference between those two, as a share of the largest result."""
    responds: bool
    """Whether results changed with their inputs, at least 2 % of them: a function that is asleep on the
    inputs that it got (a detector that finds nothing) shows nothing."""
    calls: int
    """Calls of the function, one crop each."""
    draws: int
    """Perturbed crops compared with unperturbed ones."""
    positions: int
    """Places, per axis and side, where a reach was read off."""
    amplitude: float
    """Largest perturbation, in ranges of the values."""
    tolerance: float
    """Largest change that counted as none, as a share of the largest result."""
    nan_sides: Pairs | None
    """As ``sides`` for NaN, which also passes through weights of 0; None where NaN is not passed on."""
    notes: tuple[str, ...]
    """What else was seen, and what to do."""

    @property
    def exact(self) -> bool:
        """Whether trimming with ``overlap`` and ``multiple`` gives ``fn(image)``, as far as seen."""
        return self.bounded and self.commutes and self.responds and not self.wraps and self.noise <= STEADY

    @property
    def rim(self) -> Lengths:
        """Samples per side of a result that a blend must leave without weight to be exact, per axis."""
        columns = zip(self.sides, self.borders, self.margin, strict=True)
        return tuple(max(0, *(max(a, b) - m for a, b, m in zip(*axis, strict=True))) for axis in columns)

    def __str__(self) -> str:
        rows: list[tuple[str, Sequence[object]]] = [
            ("axis", self.names),
            ("crop", self.crop),
            ("overlap", self.overlap),
            ("before", [a for a, _ in self.sides] if self.bounded else ["-"] * len(self.crop)),
            ("behind", [b for _, b in self.sides] if self.bounded else ["-"] * len(self.crop)),
            ("multiple", self.multiple if self.commutes else ["-"] * len(self.crop)),
            ("scale", self.scale),
        ]
        if self.bounded and self.borders != self.sides:
            rows.insert(5, ("border", [f"{a}, {b}" for a, b in self.borders]))
        if any(map(any, self.margin)):
            rows.append(("margin", [f"{a}+{b}" for a, b in self.margin]))
        sure = (
            f"{self.calls} calls, {self.draws} draws, {self.positions} places, amplitude "
            f"{self.amplitude:g} ranges, tolerance {self.tolerance:.0e}{self._nan()}"
        )
        width = max(8, *(len(str(v)) for _, values in rows for v in values))
        return report(
            [
                *((name, " ".join(f"{v!s:>{width}}" for v in values)) for name, values in rows),
                ("verdict", self.verdict),
                ("sure?", sure),
                *(("note", note) for note in self.notes),
            ]
        )

    __repr__ = __str__

    @property
    def verdict(self) -> str:
        """What to think of an overlap, in a sentence."""
        repeats = "" if self.deterministic else "; not deterministic"
        if self.exact:
            return "exact with this overlap and multiple: nothing from beyond was seen" + repeats
        if not self.responds:
            return "nothing is known: the function hardly answers to these inputs" + repeats
        if self.bounded and not self.commutes:
            return "no translation was found that commutes: no tiling is known to be exact" + repeats
        if self.bounded and self.wraps:
            return (
                f"exact but for the image's border, across which it wraps: axis {', '.join(self.wraps)}"
                + repeats
            )
        if self.bounded:
            return f"two equal calls differ by {self.noise:.0e} of the largest result: no tiling is exact"
        return "no overlap is exact, blend" + repeats

    def _nan(self) -> str:
        if self.nan_sides is None or not self.bounded:
            return ""
        if all(
            a <= max(0, b)
            for p, q in zip(self.nan_sides, self.sides, strict=True)
            for a, b in zip(p, q, strict=True)
        ):
            return "; NaN reaches no farther"
        return f"; NaN reaches {self.nan_sides}"


# Share of results that must change where their inputs do, or the function was asleep all the time.
ANSWERS = 0.02


def report_of(p: Probing, multiple: Sequence[int], *, commutes: bool) -> ProbeReport:
    """Return what was found, in the words of `tiled_map`."""
    n, crop = len(p.crops.crop), p.crops.crop
    sides, margin, overlap, borders = [], [], [], []
    for d in range(n):
        lost, m = max(r.lost[d] for r in p.results), multiple[d]
        before, behind = (largest(p.edges, d, side) for side in (0, 1))
        lo = lost // 2
        if lost and p.bounded and (before is not None or behind is not None):
            # A side without a change in the gap stands beyond it.
            lo = min(max(((behind or 0) - (-lost if before is None else before)) // 2, 0), lost)
        # Cores start and end on the grid of translations: only what reaches over a cell counts.
        need = max(_cells(p, d, 0, m) + lo, _cells(p, d, 1, m) - lo, lo, lost - lo)
        border = [
            max((e.cells for e in p.borders if (e.axis, e.side) == (d, side)), default=0) for side in (0, 1)
        ]
        need = max(need, border[0] + lo, border[1] - lo)
        if not p.bounded:
            need = max(crop[d] // 4, lo, lost - lo)
        overlap.append(lo + -(-(need - lo) // m) * m)
        margin.append((lo, lost - lo))
        borders.append((max(0, border[0] + lo * bool(border[0])), max(0, border[1] - lo)))
        sides.append((max(0, (before or 0) + lo), max(0, (behind or 0) - lo)))
    nan = None
    if p.nan:
        nan = tuple(
            (max(0, (largest(p.nan, d, 0) or 0) + lo), max(0, (largest(p.nan, d, 1) or 0) - lo))
            for d, (lo, _) in enumerate(margin)
        )
    return ProbeReport(
        p.crops.names, crop, tuple(overlap), tuple(sides), tuple(borders), tuple(multiple),
        tuple(p.results[0].scale), tuple(margin), p.box.outputs(_declared(p, margin)),
        p.bounded, commutes, tuple(p.crops.names[d] for d in sorted(p.wraps)), p.noise == 0, p.noise,
        p.response >= ANSWERS, p.box.calls, p.draws, p.places, p.amplitude,
        max((p.limit(k) / size_of(b) for k, b in enumerate(p.bases[0][1])), default=0.0),
        nan, tuple(_notes(p)),
    )  # fmt: skip


def _cells(p: Probing, axis: int, side: int, multiple: int) -> int:
    """Return the largest reach from walls that stand where crops start or stop."""
    origin = p.crops.crop[axis] if side else 0
    own = [e for e in p.edges if (e.axis, e.side) == (axis, side) and (e.at - origin) % multiple == 0]
    return max((e.cells for e in own), default=0)


def _declared(p: Probing, margin: Sequence[tuple[int, int]]) -> list[Output]:
    shape, tiled = p.crops.shapes[0], p.crops.tiled[0]
    untiled = [m for a, m in enumerate(shape) if a not in tiled]
    found = []
    for r in p.results:
        own = [m for a, m in enumerate(r.shape) if a not in r.axes]
        more: dict[str, Any] = {}
        if r.axes != tiled or own != untiled:
            more = {"shape": r.shape, "axes": r.axes}
            if len(own) == 1 and r.axes == tuple(sorted(r.axes)):
                channel = next(a for a in range(len(r.shape)) if a not in r.axes)
                more = {"channels": own[0], "channel_axis": channel}
            elif not own and r.axes == tuple(range(len(r.axes))):
                more = {"channels": 0}
        if any(s != 1 for s in r.scale):
            whole = len(set(r.scale)) == 1
            scales = tuple(int(s) if s.denominator == 1 else s for s in r.scale)
            more["scale"] = scales[0] if whole else scales
        if any(map(any, margin)):
            more["margin"] = tuple(margin)
        found.append(Output(r.dtype.name if r.dtype.isnative else r.dtype, **more))
    return found


def _notes(p: Probing) -> list[str]:
    notes = [
        text.replace("{axis}", f"axis {', '.join(p.crops.names[d] for d in axes)}")
        for text, axes in p.notes.items()
    ]
    if p.response < ANSWERS:
        notes.append(
            f"at most {p.response:.1%} of results changed with their inputs: give values= or array= that "
            "wake the function"
        )
    if p.wraps:
        notes.append('one end of a crop changes the other: edge="pad", boundary="wrap" tiles that exactly')
    if p.noise:
        notes.append(f"two calls on one crop differ by {p.noise:.1e} of the largest result")
    elif p.bounded and p.rounding and p.tolerance is None:
        notes.append(f"changes up to {p.rounding:.1e} of the largest result counted as rounding")
    return notes
