"""The plan in a notebook: a table and drawings as HTML and SVG, written without a library.

Lines and letters have the colour of the surrounding text, and fills are translucent, so that the drawings
suit light and dark pages. Lengths of drawings are pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from tilework._checks import html_table
from tilework.grid.axis import AxisGrid
from tilework.grid.weights import WINDOWS, AxisWeights, profile
from tilework.plan.cost import rows

if TYPE_CHECKING:
    from tilework.plan.tables import BlockPlan

__all__ = ["axis_profiles", "html", "shown_samples", "svg"]

Point = tuple[float, float]
# Colours that are visible on white and on black.
CROP, BLOCK, CHUNK = "#10a37f", "#e07b00", "#4c8dff"
SIDE, THIN, GAP = 230.0, 46.0, 26.0
# Most lines along an axis; more would merge into grey, so they are left out and the legend says so.
LINES = 36
# If an axis has more than MANY tiles, only the first FEW are drawn, so that they can be told apart.
MANY, FEW = 30, 10
# Direction of the third axis: right and up, per drawn length.
SLANT = (0.42, 0.30)


def html(plan: BlockPlan) -> str:
    """Return the table of `explain` beside the drawings."""
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:28px;align-items:flex-start;color:inherit">'
        f"{html_table('TilePlan', rows(plan))}<div>{svg(plan)}</div></div>"
    )


def svg(plan: BlockPlan) -> str:
    """Return the drawings: the image with its tiles, one tile enlarged, and the windows along one axis."""
    axes, names = plan.axes[plan.n_each :][-3:], plan.names[plan.n_each :][-3:]
    block = plan.block[plan.n_each :][-3:]
    chunks = next((s.chunks for s in plan.sources if s.chunks is not None), None)
    chunk = None if chunks is None else chunks[plan.n_each :][-3:]
    parts: list[str] = []
    lengths = _lengths([shown_samples(a) for a in axes])
    image = _Image(axes, names, lengths, block, chunk)
    parts += image.draw()
    width, height = image.size
    lower = list(_tile(axes[-2:], 0.0, height + GAP))
    parts += [part for part, _ in lower]
    bottom = max([height, *(y for _, y in lower)])
    windows = list(_windows(plan, 190.0, height + GAP))
    parts += [part for part, _ in windows]
    bottom = max([bottom, *(y for _, y in windows)]) + GAP
    legend = list(_legend(bottom, list(image.skipped), chunked=chunk is not None))
    parts += [part for part, _ in legend]
    width, height = max(width, 440.0), bottom + 18.0 * (1 + bool(image.skipped))
    return (
        f'<svg width="{width + 50:.0f}" height="{height + 20:.0f}" viewBox="-40 -14 {width + 50:.0f} '
        f'{height + 20:.0f}" style="color:inherit;max-width:100%" role="img" '
        f'aria-label="tiles of {escape(repr(plan))}" font-family="sans-serif" font-size="11" '
        f'stroke-linejoin="round" fill="currentColor">{"".join(parts)}</svg>'
    )


def _lengths(extents: Sequence[int]) -> list[float]:
    """Return drawn lengths per axis, pixels: to scale, except that no side is too thin to see."""
    longest = max(extents)
    lengths = [max(THIN, SIDE * n / longest) for n in extents]
    return [max(2 * THIN, lengths[0]), *lengths[1:]] if len(lengths) == 3 else lengths


def shown_samples(grid: AxisGrid) -> int:
    """Return the number of samples of an axis that are drawn, from its start."""
    return grid.extent if len(grid) <= MANY else min(grid.extent, grid.read(FEW)[1])


class _Image:
    """The image as a strip, rectangle or box, with lines where cores, blocks and storage chunks end."""

    def __init__(
        self,
        axes: Sequence[AxisGrid],
        names: Sequence[str],
        lengths: Sequence[float],
        block: Sequence[int],
        chunk: Sequence[int] | None,
    ) -> None:
        if len(axes) == 1:  # a strip: a second axis of one sample, which has no lines
            axes, block, lengths = (AxisGrid(1, 1, 0), *axes), (1, *block), (THIN, *lengths)
            names, chunk = ("", *names), None if chunk is None else (1, *chunk)
        self._axes, self._names, self._block, self._chunk = axes, names, block, chunk
        self._shown = [shown_samples(a) for a in axes]
        # Kinds of lines that are too many to draw, in the order of drawing; a dict keeps each once.
        self.skipped: dict[str, None] = {}
        x, y = lengths[-1], lengths[-2]
        self._x, self._y = x, y
        self._deep = (SLANT[0] * lengths[0], SLANT[1] * lengths[0]) if len(axes) == 3 else (0.0, 0.0)
        self.size = (x + self._deep[0], y + self._deep[1] + 16)

    def _at(self, *place: float) -> Point:
        """Return the pixel of a place, given in shares of the axes; the first of three axes is slanted."""
        z = place[-3] if len(place) == 3 else 0.0
        x, y = place[-1] * self._x, place[-2] * self._y
        return x + z * self._deep[0], (y + self._deep[1]) - z * self._deep[1]

    def _faces(self) -> list[tuple[int, int, tuple[float, ...]]]:
        """Return the visible faces: the two axes that span each, and its position along all axes."""
        if len(self._axes) == 2:
            return [(0, 1, (0.0, 0.0))]
        return [(1, 2, (0.0, 0.0, 0.0)), (0, 2, (0.0, 0.0, 0.0)), (0, 1, (0.0, 0.0, 1.0))]

    def _patch(self, face: tuple[int, int, tuple[float, ...]], spans: Sequence[tuple[float, float]]) -> str:
        """Return the corners of the part of a face within ``spans``, shares per axis."""
        p, q, base = face
        points = []
        for i, j in ((0, 0), (0, 1), (1, 1), (1, 0)):
            place = list(base)
            place[p], place[q] = spans[p][i], spans[q][j]
            points.append(self._at(*place))
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)

    def _lines(self, face: tuple[int, int, tuple[float, ...]], axis: int, cuts: Sequence[float]) -> str:
        """Return a path across a face at every cut of one of its axes."""
        p, q, base = face
        steps = []
        for cut in cuts:
            ends = []
            for other in (0.0, 1.0):
                place = list(base)
                place[axis], place[q if axis == p else p] = cut, other
                ends.append(self._at(*place))
            (x1, y1), (x2, y2) = ends
            steps.append(f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}")
        return "".join(steps)

    def _cuts(self, axis: int, what: str) -> list[float]:
        grid = self._axes[axis]
        if what == "core":
            cuts = [grid.core(i)[0] for i in range(1, min(len(grid), max(MANY, FEW + 2)))]
        else:
            lengths = self._block if what == "block" else self._chunk
            cuts = [] if lengths is None else list(range(lengths[axis], self._shown[axis], lengths[axis]))
        if len(cuts) > LINES:
            self.skipped[{"core": "tiles", "block": "blocks", "chunk": "chunks"}[what]] = None
            return []
        return [c / self._shown[axis] for c in cuts if c < self._shown[axis]]

    def draw(self) -> list[str]:
        """Return the image, its lines, and one tile with its core."""
        faces = self._faces()
        parts: list[str] = []
        whole = [(0.0, 1.0)] * len(self._axes)
        parts += [
            f'<polygon points="{self._patch(face, whole)}" fill="currentColor" fill-opacity="0.06"/>'
            for face in faces
        ]
        styles = (
            ("core", 'stroke="currentColor" stroke-opacity="0.38" stroke-width="0.7"'),
            ("block", f'stroke="{BLOCK}" stroke-width="1.6"'),
            ("chunk", f'stroke="{CHUNK}" stroke-width="1.2" stroke-dasharray="3 3"'),
        )
        for what, style in styles:
            path = ""
            for face in faces:
                for axis in set(face[:2]):
                    path += self._lines(face, axis, self._cuts(axis, what))
            if path:
                parts.append(f'<path d="{path}" fill="none" {style}/>')
        crop, core = self._shown_tile()
        for spans, opacity in ((crop, 0.30), (core, 0.55)):
            parts += [
                f'<polygon points="{self._patch(face, spans)}" fill="{CROP}" fill-opacity="{opacity}" '
                f'stroke="{CROP}" stroke-width="1"/>'
                for face in faces
                if all(spans[k][0] <= at <= spans[k][1] for k, at in enumerate(face[2]) if k not in face[:2])
                or len(self._axes) < 3
            ]
        parts += [
            f'<polygon points="{self._patch(face, whole)}" fill="none" stroke="currentColor"/>'
            for face in faces
        ]
        return [*parts, *self._labels()]

    def _shown_tile(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """Return crop and core of one tile, shares per axis: in the middle, or at the visible corner."""
        crop: list[tuple[float, float]] = []
        core: list[tuple[float, float]] = []
        for k, grid in enumerate(self._axes):
            n = len(grid)
            if not n:
                return [(0.0, 0.0)] * len(self._axes), [(0.0, 0.0)] * len(self._axes)
            last = n - 1 if n <= MANY else FEW
            i = (last + 1) // 2 if len(self._axes) < 3 else last if k == 2 else 0
            for found, (a, b) in ((crop, grid.read(i)), (core, grid.core(i))):
                m = self._shown[k]
                found.append((max(0, a) / m, min(b, m) / m))
        return crop, core

    def _label(self, k: int) -> str:
        name, shown, n = self._names[k], self._shown[k], self._axes[k].extent
        return f"{'axis ' * name.isdigit()}{name}: {f'first {shown} of ' * (shown < n)}{n}"

    def _labels(self) -> Iterator[str]:
        x, y = self._x, self._y
        bottom = y + self._deep[1] + 14
        yield _text(x / 2, bottom, self._label(-1), "middle")
        if self._names[-2]:
            middle = self._deep[1] + y / 2
            label = self._label(-2)
            yield (
                f'<text x="-8" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 -8 {middle:.1f})">'
                f"{escape(label)}</text>"
            )
        if len(self._axes) == 3:
            label = self._label(0)
            yield _text(self._deep[0] / 2 - 6, self._deep[1] / 2 - 4, label, "end")


def _tile(axes: Sequence[AxisGrid], left: float, top: float) -> Iterator[tuple[str, float]]:
    """Yield the parts of one tile enlarged, labelled with crop, overlap and stride, each with its bottom."""
    longest = max(a.crop for a in axes)
    width = max(34.0, 110 * axes[-1].crop / longest)
    height = max(34.0, 110 * axes[0].crop / longest) if len(axes) > 1 else 34.0
    top += 14
    yield _text(left, top - 4, "one tile", "start"), top
    yield _rect(left, top, width, height, CROP, 0.30), top + height
    x = [o * width / axes[-1].crop for o in (axes[-1].overlap, axes[-1].overlap + axes[-1].stride)]
    y = [o * height / axes[0].crop for o in (axes[0].overlap, axes[0].overlap + axes[0].stride)]
    y = y if len(axes) > 1 else [0.0, height]
    yield _rect(left + x[0], top + y[0], x[1] - x[0], y[1] - y[0], CROP, 0.55), top + height
    lines = []
    for what in ("crop", "overlap", "stride"):
        numbers = dict.fromkeys(getattr(a, what) for a in axes)
        lines.append(f"{what} {' × '.join(map(str, numbers))}")
    for k, line in enumerate(lines):
        yield _text(left, top + height + 14 + 13 * k, line, "start"), top + height + 14 + 13 * k


def axis_profiles(plan: BlockPlan, axis: int = -1) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return positions and normalised weights of up to four neighbouring tiles along one axis.

    Parameters
    ----------
    axis : int
        Number of an axis of the plan.

    Returns
    -------
    list of (1-D array, 1-D array)
        Image samples, and weights of the first output, from 0 to 1.
    """
    grid, output = plan.axes[axis], plan.outputs[0]
    rim = None if output.rim is None else output.rim[axis]
    n = len(grid)
    first = max(0, min(n // 2 - 2, n - 4))
    window = None
    if output.blend in WINDOWS and rim is not None:
        window = profile(output.blend, grid.crop - sum(grid.margin), rim, output.sigma_scale)
    weights = AxisWeights(grid, window, rim)
    found = []
    for i in range(first, min(n, first + 4)):
        start, stop = weights.support(i)
        values = np.ones(stop - start) if window is None else weights.weights(i)
        found.append((np.arange(start, stop), np.asarray(values)))
    return found


def _windows(plan: BlockPlan, left: float, top: float) -> Iterator[tuple[str, float]]:
    """Yield the parts of the window profiles along the last axis, each with its bottom."""
    profiles = axis_profiles(plan)
    if not profiles:
        return
    width, height, top = 230.0, 84.0, top + 14
    name = plan.names[-1]
    low, high = int(profiles[0][0][0]), int(profiles[-1][0][-1]) + 1
    yield (
        _text(
            left, top - 4, f"weights along {'axis ' * name.isdigit()}{name}: {plan.outputs[0].blend}", "start"
        ),
        top,
    )
    for k, (x, weights) in enumerate(profiles):
        keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), 90)).astype(int))
        steps = [
            (left + (float(x[i]) + 0.5 - low) * width / (high - low), top + height * (1 - float(weights[i])))
            for i in keep
        ]
        ends = [(left + (float(e) - low) * width / (high - low), top + height) for e in (x[0], x[-1] + 1)]
        inner = [(ends[0][0], steps[0][1]), *steps, (ends[1][0], steps[-1][1])]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in (ends[0], *inner, ends[1]))
        opacity = 0.40 if k % 2 else 0.20
        yield (
            f'<polygon points="{points}" fill="{CROP}" fill-opacity="{opacity}" stroke="{CROP}"/>',
            top + height,
        )
    base = top + height
    yield f'<path d="M{left} {base}h{width}" stroke="currentColor" stroke-width="1"/>', base
    yield _text(left, base + 13, str(low), "start"), base + 13
    yield _text(left + width, base + 13, str(high), "end"), base + 13


def _legend(top: float, skipped: Sequence[str], *, chunked: bool) -> Iterator[tuple[str, float]]:
    """Yield the parts of the legend (colours, and lines that were left out), each with its bottom."""
    x, items = 0.0, [("tile (light: overlap)", CROP), ("blocks of the result", BLOCK)]
    items += [("storage chunks", CHUNK)] if chunked else []
    for label, colour in items:
        yield _rect(x, top - 8, 9, 9, colour, 0.6), top
        yield _text(x + 13, top, label, "start"), top
        x += 6.1 * len(label) + 32
    if skipped:
        text = f"too many to draw along an axis: {', '.join(skipped)}"
        yield _text(0, top + 16, text, "start"), top + 16


def _rect(x: float, y: float, width: float, height: float, colour: str, opacity: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" '
        f'fill-opacity="{opacity}" stroke="{colour}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
