"""From samples to the page of the docs, with its drawings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.table import judge, ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benchmarks.measure import Curves, Outcome

INTRODUCTION = """# Benchmarks

This page is written by `python -m benchmarks all --docs docs/benchmarks.md`; no figure on it is typed by
hand.

Each row is one way to do the work of its case, and runs in a process of its own, on two cores. The rows
of a case take turns, so that a change of load meets all of them, and the figures are medians over the
turns. A row that has used its share of time takes part in no further turn, and *runs* says how many it
had. In a turn, quick work is done several times: peak memory is that of the first time, and seconds are
medians of the others.

* *wall* and *CPU* are seconds. CPU is the time of all threads and child processes; on a machine that
  others use, it is the figure to trust.
* *peak* is the highest resident memory above what was resident when the imports were done and the input
  existed, in MB of 10^6 bytes.
* *error* is the largest difference from the exact answer. The function is the identity if nothing else is
  said, so the exact answer is the image.
* *time* is wall time divided by that of the row in the last column.
* *over_wall* and *over_cpu* are times divided by those of other work, which ran just before in the same
  process: numpy's multiply-add, MONAI, or the same image without coarser levels, as the bars say. Both met
  the same load, and the same memory. A machine that is a guest of another pays for memory that it has not
  used for seconds, so it is touched before a run. With *memory kept*, the allocator of the process gives
  nothing back, so that only the first run fetches memory: the difference is what fresh memory costs.
* A *limit* is no peer: it does less than the work, and shows how fast the machine is.
* A row without figures says why it has none.
* A *bar* is a figure that tilework has to reach. *range* holds the least and the greatest value in one
  turn: where they are far apart, the machine was not quiet.

What can be counted exactly (calls, tasks, bytes and decoded chunks) is asserted by the tests and is not
on this page.
"""


def write_page(page: Path, found: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write the page, and the drawings into the folder ``images`` beside it."""
    images = page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    parts = [INTRODUCTION, _machine(found["machine"])]
    for outcome in outcomes:
        parts.append(
            f"## {outcome.case.name}\n\n{outcome.case.why} `{outcome.case.workload.scaled(outcome.scale)}`\n"
        )
        if outcome.scale != 1:
            parts.append(f"Extents are scaled by {outcome.scale:g}: these figures are of no use.\n")
        if outcome.case.curves:
            file = images / f"benchmark-{outcome.case.name}.svg"
            if draw(outcome, file):
                titles = "; ".join(curves.title for curves in outcome.case.curves)
                parts.append(f"![{titles}](images/{file.name})\n")
        parts += [_contestants(outcome), _bars(outcome)]
    page.write_text("\n".join(filter(None, parts)))


def _machine(machine: dict[str, Any]) -> str:
    memory = f", {machine['memory_gb']:.0f} GB of memory" if machine["memory_gb"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores of which {machine['cores_used']} are used"
        f"{memory}, {machine['system']}. Python {machine['python']}, {versions}.\n"
    )


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is words."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (header, ruler, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def _contestants(outcome: Outcome) -> str:
    notes = outcome.case.notes
    header = ["", "runs", "wall", "CPU", "peak", "error", *notes, "time", "of"]
    lines = []
    for contestant in outcome.case.contestants:
        name = contestant.name
        if name in outcome.failures:
            lines.append([f"{name}: {outcome.failures[name]}", *[""] * (len(header) - 1)])
        elif name in outcome.samples:
            median = outcome.median(name)
            error = "" if outcome.case.tolerance is None else f"{median['error']:.1e}"
            if not outcome.right(name):
                error = f"**{error}**"
            value = ratio(outcome, name, contestant.peer)
            lines.append([
                name, str(len(outcome.samples[name])),
                f"{median['wall_s']:.3g}", f"{median['cpu_s']:.3g}", f"{median['peak_mb']:.0f}",
                error, *(f"{median[n]:.4g}" if n in median else "" for n in notes),
                f"{value[0]:.2f}" if value else "", contestant.peer if value else "",
            ])  # fmt: skip
    return _table(header, lines)


def _bars(outcome: Outcome) -> str:
    judged = judge(outcome)
    if not judged:
        return ""
    lines = [
        [
            f"{one['what']} ({one['who']})" if one["who"] else one["what"], f"{one['value']:.3g}",
            f"{one['range'][0]:.3g} to {one['range'][1]:.3g}", one["bar"], one["met"],
        ]
        for one in judged
    ]  # fmt: skip
    return _table(["bar", "figure", "range", "has to be", "met"], lines)


# ------------------------------------------------------------------------------------- drawings

INK = "#808080"
"""Text and axes: as far from a white page as from a black one."""
COLOURS = ("#0a84d0", "#e0761a", "#189a6c", "#c06aa4", "#9a8600", "#d0453c", "#7a6ee0", "#3c97a8")
"""The same for lines, in an order in which neighbours differ for the colour-blind."""
MARKS = "osD^vP*X"
WIDTH, HEIGHT = 4.4, 3.6


def draw(outcome: Outcome, file: Path) -> bool:
    """Draw the curves of a case side by side, as SVG without a background; return whether there are any."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = [(curves, _lines(outcome, curves)) for curves in outcome.case.curves]
    drawn = [(curves, lines) for curves, lines in drawn if lines]
    if not drawn:
        return False
    # Text stays text and ids do not change from run to run, so that a new drawing is a small difference.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tilework", "font.size": 9}):
        figure = Figure(figsize=(WIDTH * len(drawn), HEIGHT), layout="constrained")
        panels = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (curves, lines) in zip(panels, drawn, strict=True):
            _panel(axes, curves, lines, [c.line for c in outcome.case.contestants])
        handles = {
            label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)),
            frameon=False, labelcolor=INK,
        )  # fmt: skip
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return True


def _lines(outcome: Outcome, curves: Curves) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for contestant in outcome.case.contestants:
        if contestant.line and contestant.name in outcome.samples:
            median = outcome.median(contestant.name)
            if curves.x in median and median.get(curves.y, math.nan) > 0:
                found.setdefault(contestant.line, []).append((median[curves.x], median[curves.y]))
    return found


def _panel(
    axes: Any, curves: Curves, lines: dict[str, list[tuple[float, float]]], names: Sequence[str]
) -> None:
    from matplotlib.ticker import NullFormatter

    order = list(dict.fromkeys(filter(None, names)))  # a line has one colour in all panels
    for line, points in lines.items():
        place = order.index(line) % len(COLOURS)
        axes.loglog(
            *zip(*sorted(points), strict=True), color=COLOURS[place], marker=MARKS[place], ms=5, label=line
        )
    axes.set_facecolor("none")
    for axis in (axes.xaxis, axes.yaxis):  # over less than a decade numbers would lie on each other
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(curves.title, color=INK, fontsize=10)
    axes.set_xlabel(curves.right, color=INK)
    axes.set_ylabel(curves.up, color=INK)
    axes.tick_params(which="both", colors=INK)
    axes.grid(visible=True, color=INK, alpha=0.3, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_color(INK)
