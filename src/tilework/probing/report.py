"""The report of `probe`: its findings and their evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._checks import Report
from tilework._types import Index, Span
from tilework.function.output import Output, Outputs, named
from tilework.labels.hints import may_be_labels
from tilework.probing.blackbox import size_of
from tilework.probing.experiment import STEADY, Experiment, Findings
from tilework.probing.reach import Edge, largest

__all__ = ["ProbeReport", "report_of"]

# Smallest fraction of results that must change with their inputs; with fewer, the function hardly responded.
RESPONDS = 0.02

Pairs = tuple[Span, ...]


@dataclass(frozen=True, slots=True, repr=False)
class ProbeReport(Report):
    """The findings of `probe` on a function; prints as a table, and claims no more than was seen."""

    names: tuple[str, ...]
    """Names or numbers of the tiled axes."""
    crop: Index
    """Samples per tiled axis of the crops that the function was called with."""
    overlap: Index
    """Samples per side, for `tiled_map`: the smallest exact overlap if `exact`, otherwise a quarter of the
    crop, for blending."""
    sides: Pairs
    """Samples before and after an output sample that were seen to change it, per axis."""
    borders: Pairs
    """Number of samples at the start and end of a crop whose results depend on its border, per axis. Padding
    inside the function may reach farther than any input; then it decides the overlap."""
    multiple: Index
    """Samples by which the function commutes with translation, per axis."""
    scale: tuple[Fraction, ...]
    """Result samples per image sample, per axis (of the first result)."""
    margin: Pairs
    """Image samples at the start and end of a crop for which there is no result, per axis."""
    output: Outputs
    """Declaration of what the function returns, for ``tiled_map(output=...)``."""
    bounded: bool
    """Whether all changes ended before the crop's border: False for global normalisation, squeeze-excite,
    instance norm, and a radius too large for the crop (see `notes`)."""
    commutes: bool
    """Whether a translation was found that moves the result and changes nothing else."""
    wraps: tuple[str, ...]
    """Names of the axes on which one end of a crop changes the other, as circular filters do."""
    deterministic: bool
    """Whether two calls on one crop returned the same bits."""
    noise: float
    """Largest difference between these two, as a fraction of the largest result."""
    responds: bool
    """Whether at least 2 % of results changed with their inputs. If not, nothing is known: a detector may
    have found nothing in these inputs."""
    calls: int
    """Number of calls of the function, one crop each."""
    draws: int
    """Number of perturbed crops that were compared with unperturbed ones."""
    positions: int
    """Number of gaps in which reaches were measured."""
    values: tuple[tuple[float, float], ...]
    """Lowest and highest value of the range of inputs, per image."""
    amplitude: float
    """Largest perturbation, in ranges of the values."""
    tolerance: float
    """Largest change that was ignored, as a fraction of the largest result."""
    nan_sides: Pairs | None
    """As ``sides``, for NaN, which also passes through weights of 0; None if no NaN is passed on."""
    doubts: tuple[str, ...]
    """Reasons to expect a larger reach in other images, although none was seen in the crops."""
    lengths: tuple[Index, ...]
    """Lengths of the crops whose results were compared, samples, per axis."""
    notes: tuple[str, ...]
    """Further observations, and what to do."""

    @property
    def exact(self) -> bool:
        """Whether trimming with ``overlap`` and ``multiple`` gives ``fn(image)``, as far as observed."""
        known = self.bounded and self.commutes and self.responds and not self.wraps
        return known and not self.doubts and self.noise <= STEADY

    @property
    def rim(self) -> Index:
        """Samples per side that must get no weight for a blend to be exact, per axis."""
        columns = zip(self.sides, self.borders, self.margin, strict=True)
        return tuple(max(0, *(max(a, b) - m for a, b, m in zip(*axis, strict=True))) for axis in columns)

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values."""
        unknown = ["-"] * len(self.crop)
        rows: list[tuple[str, Sequence[object]]] = [
            ("axis", self.names),
            ("crop", self.crop),
            ("overlap", self.overlap),
            ("before", [a for a, _ in self.sides] if self.bounded else unknown),
            ("after", [b for _, b in self.sides] if self.bounded else unknown),
            ("multiple", self.multiple if self.commutes else unknown),
            ("scale", self.scale),
        ]
        if self.bounded and self.borders != self.sides:
            rows.insert(5, ("border", [f"{a}, {b}" for a, b in self.borders]))
        if any(map(any, self.margin)):
            rows.append(("margin", [f"{a}+{b}" for a, b in self.margin]))
        evidence = (
            f"{self.calls} calls, {self.draws} draws, {self.positions} places, values "
            f"{', '.join(f'{low:g} to {high:g}' for low, high in self.values)}, amplitude "
            f"{self.amplitude:g} ranges, tolerance {self.tolerance:.0e}{self._nan()}"
        )
        width = max(8, *(len(str(v)) for _, values in rows for v in values))
        return [
            *((name, " ".join(f"{v!s:>{width}}" for v in values)) for name, values in rows),
            ("verdict", self.verdict),
            ("evidence", evidence),
            *(("doubt", doubt) for doubt in self.doubts),
            *(("note", note) for note in self.notes),
        ]

    @property
    def verdict(self) -> str:
        """The conclusion for this function, in a sentence."""
        repeats = "" if self.deterministic else "; not deterministic"
        if self.exact:
            return (
                "exact with this overlap and multiple: nothing from beyond was seen in noise, shapes, lines "
                f"and flat images, in crops of {self._lengths()} samples" + repeats
            )
        if not self.responds:
            return "nothing is known: the function hardly answers to these inputs" + repeats
        if self.bounded and not self.commutes:
            return "no translation was found that commutes: no tiling is known to be exact" + repeats
        if self.bounded and self.wraps:
            return (
                f"exact but for the image's border, across which it wraps: axis {', '.join(self.wraps)}"
                + repeats
            )
        if self.doubts and self.noise <= STEADY:
            return "bounded as far as seen: run tw.check on your image" + repeats
        if self.bounded:
            return f"two equal calls differ by {self.noise:.0e} of the largest result: no tiling is exact"
        if self.labels:
            return f'no overlap is exact; if its integers are labels, use Output(labels="own"){repeats}'
        return "no overlap is exact, blend" + repeats

    @property
    def labels(self) -> bool:
        """Whether the function may return labels, which must not be blended: integers of 32 or 64 bits."""
        return any(may_be_labels(np.dtype(o.dtype)) for _, o in named(self.output) if o.reduce is None)

    def _lengths(self) -> str:
        """Return the lengths of the crops that were compared, in words."""
        ranges = [f"{own[0]} to {own[-1]}" if len(own) > 1 else f"{own[0]}" for own in self.lengths]
        return ranges[0] if len(set(ranges)) == 1 else " and ".join(ranges)

    def _nan(self) -> str:
        """Return the reach of NaN, as the end of the row "evidence"."""
        if self.nan_sides is None or not self.bounded:
            return ""
        pairs = zip(self.nan_sides, self.sides, strict=True)
        if all(a <= max(0, b) for nan, own in pairs for a, b in zip(nan, own, strict=True)):
            return "; NaN reaches no farther"
        return f"; NaN reaches {self.nan_sides}"


def report_of(experiment: Experiment) -> ProbeReport:
    """Return the report of an experiment, in the terms of `tiled_map`."""
    seen, crops, results = experiment.seen, experiment.crops, experiment.results
    axes = range(len(crops.crop))
    margin = seen.margin or tuple((0, max(r.lost[d] for r in results)) for d in axes)
    nan = tuple(_sides(seen.nan, d, lo) for d, (lo, _) in enumerate(margin))
    limits = [experiment.limit(k) / size_of(result) for k, result in enumerate(experiment.bases[0][1])]
    return ProbeReport(
        names=crops.names,
        crop=crops.crop,
        overlap=tuple(_overlap(experiment, d, margin[d]) for d in axes),
        sides=tuple(_sides(seen.every, d, lo) for d, (lo, _) in enumerate(margin)),
        borders=tuple(_border(seen, d, lo) for d, (lo, _) in enumerate(margin)),
        multiple=seen.multiple,
        scale=results[0].scale,
        margin=margin,
        output=experiment.box.outputs(_declared(experiment, margin)),
        bounded=seen.bounded,
        commutes=seen.commutes,
        wraps=tuple(crops.names[d] for d in sorted(seen.wraps)),
        deterministic=seen.noise == 0,
        noise=seen.noise,
        responds=seen.response >= RESPONDS,
        calls=experiment.box.calls,
        draws=seen.draws,
        positions=seen.places,
        values=tuple((float(low), float(high)) for low, high in experiment.inputs.values),
        amplitude=seen.amplitude,
        tolerance=max(limits, default=0.0),
        nan_sides=nan if seen.nan else None,
        doubts=tuple(_texts(seen.doubts, crops.names)),
        lengths=tuple(tuple(sorted(found)) for found in seen.lengths),
        notes=tuple(_notes(experiment)),
    )


def _sides(edges: Sequence[Edge], axis: int, lo: int) -> Span:
    """Return the reach before and after a sample if results start ``lo`` samples after their crop."""
    before, after = (largest(edges, axis, side) or 0 for side in (0, 1))
    return max(0, before + lo), max(0, after - lo)


def _border(seen: Findings, axis: int, lo: int) -> Span:
    """Return the numbers of samples at the start and the end of a crop that its border changes."""
    before, after = (_cells(seen.borders, axis, side) for side in (0, 1))
    return max(0, before + lo * bool(before)), max(0, after - lo)


def _overlap(experiment: Experiment, axis: int, margin: Span) -> int:
    """Return the smallest exact overlap, or a quarter of the crop if there is none."""
    seen, crop, (lo, hi) = experiment.seen, experiment.crops.crop[axis], margin
    multiple = seen.multiple[axis]
    need = max(lo, hi)
    if seen.bounded:
        # Cores start and end on the grid of translations, so only reaches from walls on that grid count.
        before = max(_cells(seen.every, axis, 0, 0, multiple), _cells(seen.borders, axis, 0))
        after = max(_cells(seen.every, axis, 1, crop, multiple), _cells(seen.borders, axis, 1))
        need = max(need, before + lo, after - lo)
    else:
        need = max(need, crop // 4)
    return lo + -(-(need - lo) // multiple) * multiple


def _cells(edges: Sequence[Edge], axis: int, side: int, origin: int = 0, multiple: int = 1) -> int:
    """Return the largest reach, in whole cells, from walls at ``origin`` plus multiples of ``multiple``."""
    own = [e for e in edges if (e.axis, e.side) == (axis, side) and (e.at - origin) % multiple == 0]
    return max((e.cells for e in own), default=0)


def _declared(experiment: Experiment, margin: Pairs) -> list[Output]:
    """Return the declaration of each result, in its shortest form."""
    shape, tiled = experiment.crops.shapes[0], experiment.crops.tiled[0]
    untiled = [m for a, m in enumerate(shape) if a not in tiled]
    found = []
    for r in experiment.results:
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
            scales = tuple(int(s) if s.denominator == 1 else s for s in r.scale)
            more["scale"] = scales[0] if len(set(r.scale)) == 1 else scales
        if any(map(any, margin)):
            more["margin"] = margin
        found.append(Output(r.dtype.name if r.dtype.isnative else r.dtype, **more))
    return found


def _texts(texts: dict[str, list[int]], names: Sequence[str]) -> list[str]:
    """Return texts with the axes in place."""
    return [
        text.replace("{axis}", f"axis {', '.join(names[d] for d in axes)}") for text, axes in texts.items()
    ]


def _notes(experiment: Experiment) -> list[str]:
    """Return further observations and advice, in sentences."""
    seen, names = experiment.seen, experiment.crops.names
    notes = _texts(seen.notes, names)
    if seen.response < RESPONDS:
        notes.append(
            f"at most {seen.response:.1%} of results changed with their inputs: give values= or array= to "
            "which the function responds"
        )
    if seen.wraps:
        notes.append('one end of a crop changes the other: edge="pad", boundary="wrap" tiles that exactly')
    if seen.noise:
        notes.append(f"two calls on one crop differ by {seen.noise:.1e} of the largest result")
    elif seen.bounded and seen.rounding and experiment.tolerance is None:
        notes.append(f"changes up to {seen.rounding:.1e} of the largest result counted as rounding")
    return notes
