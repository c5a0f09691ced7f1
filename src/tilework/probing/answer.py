"""What a probe saw, in the words of `tiled_map`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tilework.function.output import Output
from tilework.probing.blackbox import size_of
from tilework.probing.reach import largest
from tilework.probing.report import ProbeReport

if TYPE_CHECKING:
    from tilework.probing.search import Probing

__all__ = ["report_of"]

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
