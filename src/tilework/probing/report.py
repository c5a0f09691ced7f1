"""What probing a function found, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tilework._checks import report
from tilework.function.output import Outputs

__all__ = ["ProbeReport"]

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
