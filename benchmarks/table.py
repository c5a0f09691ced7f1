"""From samples to one table and one JSON document."""

from __future__ import annotations

import os
import platform
import subprocess
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import CORES, ROOT, Bar, Case, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEADER = (
    "case", "what", "runs", "wall s", "CPU s", "peak MB", "max |diff|",
    "ratio", "min..max", "bar", "met", "notes",
)  # fmt: skip
LEFT = {0, 1, 9, 10, 11}
"""Columns of words; the others are flush right."""
PACKAGES = (
    "tilework", "numpy", "dask", "distributed", "zarr", "scikit-image", "patchly", "ryomen", "monai", "tiler",
    "torchio", "torch", "cubed",
)  # fmt: skip

Row = tuple[str, ...]


def rows(outcome: Outcome) -> list[Row]:
    """Return one row per contestant, then one per bar."""
    case = outcome.case
    lines = []
    for contestant in case.contestants:
        name = contestant.name
        if name in outcome.failures:
            lines.append((case.name, name, *[""] * 8, "failed", outcome.failures[name]))
        elif name in outcome.samples:
            lines.append(_contestant_row(outcome, name, contestant.peer))
    return lines + [_bar_row(outcome, judged) for judged in judge(outcome)]


def _contestant_row(outcome: Outcome, name: str, peer: str | None) -> Row:
    case, median = outcome.case, outcome.median(name)
    times, span = "", ""
    if spread := ratio(outcome, name, peer):
        times, span = f"{spread[0]:.2f}", f"{spread[1]:.2f}..{spread[2]:.2f}"
    notes = [f"{key} {median[key]:.4g}" for key in case.notes if key in median]
    error = "" if case.tolerance is None else f"{median['error']:.1e}"
    right = outcome.right(name)
    return (
        case.name, name, str(len(outcome.samples[name])), f"{median['wall_s']:.3g}", f"{median['cpu_s']:.3g}",
        f"{median['peak_mb']:.0f}", error, times, span, "",
        "" if right else "WRONG", ", ".join(notes),
    )  # fmt: skip


def ratio(outcome: Outcome, name: str, peer: str | None) -> tuple[float, float, float] | None:
    """Return the wall time over that of a peer that ran, and its least and greatest value in one turn."""
    if peer not in outcome.samples:
        return None
    return _spread(outcome, Bar("wall", "wall_s", name, None, peer), name)


def _bar_row(outcome: Outcome, judged: dict[str, Any]) -> Row:
    low, high = judged["range"]
    return (
        outcome.case.name, judged["what"], "", "", "", "", "", f"{judged['value']:.3g}",
        f"{low:.3g}..{high:.3g}", judged["bar"], judged["met"], judged["who"],
    )  # fmt: skip


def judge(outcome: Outcome) -> list[dict[str, Any]]:
    """Return every bar with its value; a contestant that was wrong meets none."""
    judged = []
    for bar in outcome.case.bars:
        names = [n for n in outcome.samples if fnmatchcase(n, bar.ours)]
        names = [n for n in names if bar.figure in outcome.samples[n][0]]
        if not names or (bar.peer is not None and bar.peer not in outcome.samples):
            continue
        spreads = {name: _spread(outcome, bar, name) for name in names}
        worst = (min if bar.at_least else max)(names, key=lambda name: spreads[name][0])
        value, low, high = spreads[worst]
        met = bar.met(value) and all(outcome.right(name) for name in names)
        judged.append({
            "what": bar.what, "value": value, "range": (low, high), "bar": str(bar),
            "met": "" if bar.limit is None else "yes" if met else "no",
            "who": f"worst: {worst}" if len(names) > 1 else "",
        })  # fmt: skip
    return judged


def _spread(outcome: Outcome, bar: Bar, name: str) -> tuple[float, float, float]:
    """Return the ratio of medians, and the least and the greatest ratio of one turn."""
    ours = outcome.samples[name]
    peers = [None] * len(ours) if bar.peer is None else outcome.samples[bar.peer]
    # The slower of two took part in fewer turns: the first ones, in which both did.
    turns = [bar.value(mine, theirs) for mine, theirs in zip(ours, peers, strict=False)]
    peer = None if bar.peer is None else outcome.median(bar.peer)
    return bar.value(outcome.median(name), peer), min(turns), max(turns)


def text(lines: Sequence[Row]) -> str:
    """Return the rows under a header, in columns."""
    table = [HEADER, *lines]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    return "\n".join(_line(row, widths) for row in [HEADER, tuple("-" * w for w in widths), *lines])


def _line(row: Row, widths: Iterable[int]) -> str:
    cells = [
        cell.ljust(width) if i in LEFT else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return everything that was measured, and on what."""
    cases = [
        {"case": o.case.name, "scale": o.scale, "workload": repr(o.case.workload.scaled(o.scale)),
         "samples": o.samples, "failures": o.failures, "bars": judge(o)}
        for o in outcomes
    ]  # fmt: skip
    return {"machine": machine(), "cases": cases}


def outcomes_of(found: dict[str, Any], cases: dict[str, Case]) -> list[Outcome]:
    """Return the outcomes of a document."""
    return [
        Outcome(cases[one["case"]], one["scale"], one["samples"], one["failures"])
        for one in found["cases"]
        if one["case"] in cases
    ]


def machine() -> dict[str, Any]:
    """Return processor, versions and commit."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "processor": _processor(), "cores": os.cpu_count(), "cores_used": CORES, "memory_gb": _memory(),
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
        "versions": versions, "commit": git.stdout.strip() if git.returncode == 0 else None,
    }  # fmt: skip


def _memory() -> float | None:
    """Return the memory of the machine, GB of 10**9 bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, OSError, ValueError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
