"""The report on a function that combines predictions, from the reports on the functions that it calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tilework._types import Index, Span
from tilework.errors import TilingError
from tilework.function.calling import in_structure
from tilework.function.combining import Combined
from tilework.function.output import Output, Outputs, named
from tilework.plan.placing import check_both_ends, check_equal
from tilework.probing.report import ProbeReport

__all__ = ["merged_report"]

Pairs = tuple[Span, ...]


def merged_report(fn: Combined, reports: Sequence[ProbeReport]) -> ProbeReport:
    """Return the report on ``fn``, from one report for each of its functions.

    What a variant sees is what its function sees, turned and mirrored: so the reach to each side is the
    largest of all functions and of the sides that variants exchange, and the multiple the least common one.

    Raises
    ------
    TilingError
        If the functions return arrays of different kinds, or variants do not fit.
    """
    report = _of_all(fn, reports)
    variants = fn.variants(len(report.crop))
    if fn.plane is not None:
        for what in ("crop", "margin", "scale"):
            check_equal(what, fn.plane, report.names, getattr(report, what))
    for axis in sorted({axis for v in variants for axis in (*v.flips, *(v.plane or ()))}):
        check_both_ends(report.names[axis], report.margin[axis])
    # Axes that turns exchange have all in common.
    alike = [{d, *(fn.plane if fn.plane and d in fn.plane else ())} for d in range(len(report.crop))]
    both = {axis for v in variants for axis in (*v.flips, *(v.plane or ()))}

    def sides(pairs: Pairs) -> Pairs:
        found = []
        for d, own in enumerate(alike):
            low, high = (max(pairs[e][side] for e in own) for side in (0, 1))
            found.append((max(low, high),) * 2 if d in both else (low, high))
        return tuple(found)

    multiple = tuple(math.lcm(*(report.multiple[e] for e in own)) for own in alike)
    return replace(
        report,
        overlap=_rounded([max(report.overlap[e] for e in own) for own in alike], report.margin, multiple),
        sides=sides(report.sides),
        borders=sides(report.borders),
        multiple=multiple,
        wraps=tuple(n for own, n in zip(alike, report.names, strict=True) if _any(report, own)),
        nan_sides=None if report.nan_sides is None else sides(report.nan_sides),
        output=_with_dtypes(fn, report.output, [r.output for r in reports]),
    )


def _any(report: ProbeReport, axes: Iterable[int]) -> bool:
    return any(report.names[e] in report.wraps for e in axes)


def _of_all(fn: Combined, reports: Sequence[ProbeReport]) -> ProbeReport:
    """Return what holds for all functions together."""
    first = reports[0]
    for number, other in enumerate(reports):
        for what in ("scale", "margin"):
            if getattr(other, what) != getattr(first, what):
                raise TilingError(
                    f"the functions of an ensemble must have one {what}; function 0 has "
                    f"{getattr(first, what)}, function {number} {getattr(other, what)}."
                )
        if _layouts(other.output) != _layouts(first.output):
            raise TilingError(
                f"the functions of an ensemble must return the same arrays; function 0 returns "
                f"{first.output}, function {number} {other.output}."
            )
    if len(reports) == 1:
        return first
    axes = range(len(first.crop))
    multiple = tuple(math.lcm(*(r.multiple[d] for r in reports)) for d in axes)
    nan = [r.nan_sides for r in reports if r.nan_sides is not None]
    kept = [set.intersection(*(set(r.lengths[d]) for r in reports)) for d in axes]
    return replace(
        first,
        overlap=_rounded([max(r.overlap[d] for r in reports) for d in axes], first.margin, multiple),
        sides=_largest([r.sides for r in reports]),
        borders=_largest([r.borders for r in reports]),
        multiple=multiple,
        bounded=all(r.bounded for r in reports),
        commutes=all(r.commutes for r in reports),
        wraps=tuple(n for n in first.names if any(n in r.wraps for r in reports)),
        deterministic=all(r.deterministic for r in reports),
        noise=max(r.noise for r in reports),
        responds=all(r.responds for r in reports),
        calls=sum(r.calls for r in reports),
        draws=min(r.draws for r in reports),
        positions=min(r.positions for r in reports),
        amplitude=min(r.amplitude for r in reports),
        tolerance=max(r.tolerance for r in reports),
        nan_sides=_largest(nan) if nan else None,
        lengths=tuple(tuple(sorted(k)) or f for k, f in zip(kept, first.lengths, strict=True)),
        doubts=_texts(reports, lambda r: r.doubts),
        notes=_texts(reports, lambda r: r.notes),
    )


def _largest(several: Sequence[Pairs]) -> Pairs:
    """Return the largest reach to each side."""
    columns = zip(*several, strict=True)
    return tuple((max(a for a, _ in pairs), max(b for _, b in pairs)) for pairs in columns)


def _rounded(overlap: Sequence[int], margin: Pairs, multiple: Index) -> Index:
    """Return overlaps that are the margin and whole multiples, at least ``overlap``."""
    columns = zip(overlap, margin, multiple, strict=True)
    return tuple(lo + -(-(o - lo) // m) * m for o, (lo, _), m in columns)


def _texts(reports: Sequence[ProbeReport], of: Callable[[ProbeReport], Iterable[str]]) -> tuple[str, ...]:
    """Return the texts of all reports; one that not all have says of which function it is."""
    found = dict.fromkeys(text for r in reports for text in of(r))
    texts = []
    for text in found:
        having = [k for k, r in enumerate(reports) if text in of(r)]
        who = "" if len(having) == len(reports) else f"function {', '.join(map(str, having))}: "
        texts.append(who + text)
    return tuple(texts)


def _layouts(outputs: Outputs) -> list[Any]:
    """Return what must be equal in declarations: all but the dtypes."""
    return [(key, replace(output, dtype=None)) for key, output in named(outputs)]


def _with_dtypes(fn: Combined, outputs: Outputs, all_of: Sequence[Outputs]) -> Outputs:
    """Return declarations with the dtypes of combined results; those that a callable decides stay open."""
    found: list[Output] = []
    for number, (_, output) in enumerate(named(outputs)):
        dtypes = [np.dtype(named(own)[number][1].dtype) for own in all_of]
        dtype = np.result_type(*dtypes)
        known = not callable(fn.reduce) and (len(dtypes) > 1 or output.dtype is not None)
        found.append(replace(output, dtype=dtype.name if known else None))
    return in_structure(outputs, found) if not isinstance(outputs, Output) else found[0]
