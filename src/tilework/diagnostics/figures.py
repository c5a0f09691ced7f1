"""Figures with matplotlib: plans, windows, discontinuities at cuts, and comparisons with untiled results.

Every function draws into the axes that it is given, or into a new figure of pyplot, and returns the axes:
one `matplotlib.axes.Axes`, or a 1-D array of them if it draws several. So a notebook shows the figure once,
whatever the cell ends with, ``plt.show()`` shows it in a script, and ``ax.figure.savefig(path)`` writes it.
Like every figure of pyplot, it is kept until ``plt.close()``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilework._checks import at_least, attribute, brief, has, whole, wholes
from tilework._types import Array
from tilework.diagnostics.viewing import view
from tilework.errors import TilingError
from tilework.graph.build import find_spec
from tilework.plan.picture import BLOCK, CHUNK, CROP, axis_profiles, shown_samples
from tilework.plan.tile_plan import TilePlan
from tilework.probing.blackbox import difference

__all__ = [
    "LOOK", "check_array", "check_axes", "compare", "contrast", "draw_cuts", "look", "new_figure",
    "plane_axes", "plot_plan", "plot_seams", "plot_window", "show",
]  # fmt: skip

# Most lines along an axis; more would merge into grey.
LINES = 60
_LINES: dict[str, dict[str, Any]] = {
    "cores": {"color": "0.6", "lw": 0.6},
    "blocks of the result": {"color": BLOCK, "lw": 1.5},
    "storage chunks": {"color": CHUNK, "lw": 1.0, "ls": (0, (3, 3))},
}
# Default length of the part of an image that a figure shows, samples.
LOOK = 512


def new_figure(width: float, height: float) -> Any:
    """Return a new, empty figure of pyplot of a size in inches."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f'{error}; figures need pip install "tilework[plots]".') from error
    # A loop over many plans is no mistake that pyplot has to warn of.
    with plt.rc_context({"figure.max_open_warning": 0}):
        return plt.figure(figsize=(width, height), layout="constrained")


def _given(axes: Any, count: int) -> Array:
    """Return the axes that a caller gave, as a 1-D array."""
    found = np.ravel(np.asarray(axes, dtype=object))
    if found.size != count or not all(has(ax, "imshow") for ax in found):
        raise TilingError(f"axes must be {count} axes of matplotlib; got {axes!r}.")
    return found


def _several(axes: Sequence[Any]) -> Array:
    """Return axes as a 1-D array, as ``plt.subplots`` does."""
    found = np.empty(len(axes), object)
    found[:] = axes
    return found


def _named(name: str) -> str:
    """Return the name of an axis for labels: "axis 0" for a number."""
    return f"axis {name}" if name.isdigit() else name


def _legend(ax: Any, columns: int) -> None:
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False, fontsize="small")


def plot_plan(plan: TilePlan, ax: Any = None) -> Any:
    """Draw the tiles of a plan over the image, and its windows; the same as ``plan.plot()``.

    Parameters
    ----------
    plan : TilePlan
        The plan, from `plan_tiles`.
    ax : matplotlib.axes.Axes, optional
        Axes for the tiles; the windows are then not drawn. Default: a new figure of both.

    Returns
    -------
    matplotlib.axes.Axes, or 1-D array of two
        ``ax``, or the axes of a new figure of pyplot: tiles and windows.

    Examples
    --------
    >>> from tilework import plan_tiles
    >>> axes = plan_tiles((2000, 3000), 512, 64, blend="hann").plot()
    >>> [ax.get_title() for ax in axes]
    ['40 crops in 4 blocks (share)', 'weights along axis 1: hann']
    """
    plan = _plan(plan)
    if ax is not None:
        check_axes(ax)
        _draw_tiles(plan, ax)
        return ax
    left, right = new_figure(10, 4.6).subplots(1, 2, width_ratios=(1.15, 1))
    _draw_tiles(plan, left)
    _draw_window(plan, right, -1)
    return _several([left, right])


def _draw_tiles(plan: TilePlan, ax: Any) -> None:
    """Draw cores, blocks, storage chunks and one tile over the last two axes."""
    x = len(plan.axes) - 1
    y = None if len(plan.axes) - plan.n_each < 2 else x - 1
    width, height = shown_samples(plan.axes[x]), 1 if y is None else shown_samples(plan.axes[y])
    _draw_lines(plan, x, ax.axvline)
    if y is not None:
        _draw_lines(plan, y, ax.axhline)
    if plan.n_tiles:
        _draw_one_tile(plan, ax, x, y)
    for label, style in _LINES.items():
        if label != "storage chunks" or _chunks(plan) is not None:
            ax.plot([], [], label=label, **style)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_xlabel(f"{_named(plan.names[x])} (samples)")
    if y is None:
        ax.set_yticks([])
    else:
        ax.set_aspect("equal" if 0.2 < height / width < 5 else "auto")
        ax.set_ylabel(f"{_named(plan.names[y])} (samples)")
    blocks = math.prod(plan.blocks)
    ax.set_title(f"{plan.n_tiles} crops in {blocks} {'block' if blocks == 1 else 'blocks'} ({plan.reuse})")
    _legend(ax, 3)


def _chunks(plan: TilePlan) -> Sequence[int] | None:
    """Return the storage chunks of the first source that has any, samples per grid axis."""
    return next((s.chunks for s in plan.sources if s.chunks is not None), None)


def _draw_lines(plan: TilePlan, axis: int, draw: Callable[..., Any]) -> None:
    """Draw the ends of cores, blocks and storage chunks along an axis, with ``draw``."""
    stop, chunks = shown_samples(plan.axes[axis]), _chunks(plan)
    cores = [int(c) for c in plan.axes[axis].supports(None)[0][1:] if c < stop]
    blocks = range(plan.block[axis], stop, plan.block[axis])
    stored = () if chunks is None else range(chunks[axis], stop, chunks[axis])
    for cuts, style in zip((cores, blocks, stored), _LINES.values(), strict=True):
        for cut in cuts if len(cuts) <= LINES else ():
            draw(cut, **style)


def _draw_one_tile(plan: TilePlan, ax: Any, x: int, y: int | None) -> None:
    """Draw crop and core of the tile in the middle of the drawing."""
    from matplotlib.patches import Rectangle

    tile = plan.grid.tile(tuple(a.owner(min(a.covered - 1, shown_samples(a) // 2)) for a in plan.axes))
    for box, alpha, label in ((tile.read, 0.3, "crop"), (tile.core, 0.6, "core")):
        low, length = (0, 1) if y is None else (box.start[y], box.shape[y])
        options: dict[str, Any] = {"color": CROP, "alpha": alpha, "lw": 1, "label": f"{label} of one tile"}
        ax.add_patch(Rectangle((box.start[x], low), box.shape[x], length, **options))


def plot_window(plan: Any, axis: int = -1, ax: Any = None) -> Any:
    """Draw the normalised weights of neighbouring tiles along one axis.

    Parameters
    ----------
    plan : TilePlan or dask.array.Array
        A plan, or an unmodified result of `tiled_map`.
    axis : int
        Number of an axis of the plan; negative numbers count from the end.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        ``ax``, or the axes of a new figure of pyplot.

    Raises
    ------
    TilingError
        For an axis that the plan does not have, or an array without a plan.

    Examples
    --------
    >>> from tilework import plan_tiles
    >>> plot_window(plan_tiles((300,), 64, 16, blend="linear")).get_ylabel()
    'normalised weight'
    """
    plan = _plan(plan)
    number = whole("axis", axis)
    if not -len(plan.axes) <= number < len(plan.axes):
        raise TilingError(f"axis {axis} is out of range for a plan of {len(plan.axes)} axes.")
    if ax is None:
        ax = new_figure(6.4, 3.6).subplots()
    else:
        check_axes(ax)
    _draw_window(plan, ax, number)
    return ax


def _draw_window(plan: TilePlan, ax: Any, axis: int) -> None:
    """Draw the weights of neighbouring tiles along an axis, and their sum."""
    profiles = axis_profiles(plan, axis)
    for k, (x, weights) in enumerate(profiles):
        edge = np.concatenate((x, [x[-1] + 1]))
        ax.stairs(weights, edge, fill=True, color=CROP, alpha=0.45 if k % 2 else 0.25)
        ax.stairs(weights, edge, color=CROP, lw=1.2, label="weight of one tile" if not k else None)
    if profiles:
        low, high = profiles[0][0][0], profiles[-1][0][-1] + 1
        total = np.zeros(high - low)
        for x, weights in profiles:
            total[x - low] += weights
        # At both ends, tiles that are not drawn also have weight.
        ax.stairs(total, np.arange(low, high + 1), color="0.35", lw=1, ls=":", label="sum of those drawn")
        ax.set_xlim(low, high)
    name = _named(plan.names[axis])
    ax.set_ylim(0, 1.08)
    ax.set_xlabel(f"{name} (samples)")
    ax.set_ylabel("normalised weight")
    ax.set_title(f"weights along {name}: {plan.outputs[0].blend}")
    if profiles:
        _legend(ax, 2)


def check_axes(ax: Any) -> None:
    """Raise a `TypeError` unless ``ax`` can be drawn into."""
    if not has(ax, "figure", "axvline", "stairs"):
        raise TypeError(f"ax must be axes of matplotlib; got {brief(ax)}.")


def check_array(what: str, array: Any) -> None:
    """Raise a `TypeError` unless ``array`` can be shown."""
    if not (isinstance(attribute(array, "shape"), tuple) and has(array, "dtype")):
        hint = " Open it first: tw.open_image(path)." if isinstance(array, str | os.PathLike) else ""
        raise TypeError(f"{what} must be an array; got {brief(array)}.{hint}")


def _plan(given: Any) -> TilePlan:
    """Return the given plan, or the plan of the given result."""
    if isinstance(given, TilePlan):
        return given
    found = find_spec(given)
    if found is None:
        raise TilingError(
            "plan must be a TilePlan, or an unmodified result of tiled_map, which has one; got "
            f"{brief(given)}."
        )
    return found.spec.plan


# -- images -----------------------------------------------------------------------------------------------


def draw_cuts(
    ax: Any, out: Any, part: Array, starts: Sequence[int], axes: Sequence[int], **style: Any
) -> list[list[int]]:
    """Draw the cuts between cores in a part of a result; return them, result samples per axis of the part."""
    found = [_cuts(out, axis, a, a + n) for axis, a, n in zip(axes, starts, part.shape, strict=True)]
    for cuts, draw in zip(found, (ax.axhline, ax.axvline), strict=True):
        for cut in cuts:
            draw(cut, **style)
    return found


def _cuts(out: Any, axis: int, start: int, stop: int) -> list[int]:
    """Return the cuts between cores along an axis of a result, result samples; none for other arrays."""
    found = find_spec(out)
    if found is None:
        return []
    output = found.output
    axes = output.grid_axes
    if axis not in axes:
        return []
    weights = output.weights[axes.index(axis)]
    cuts = (weights.scaled(int(c)) for c in weights.grid.supports(None)[0][1:])
    return [c for c in cuts if start < c < stop]


def plane_axes(array: Any) -> tuple[int, int]:
    """Return the two axes to show: the last two tiled ones, or the two longest."""
    found = find_spec(array)
    if found is not None:
        output = found.output
        tiled = sorted(output.n_each + a for a in output.reduced_axes)
        if len(tiled) > 1:
            return tiled[-2], tiled[-1]
    if len(array.shape) < 2:
        raise TilingError(f"a picture needs two axes; got an array of shape {tuple(array.shape)}.")
    longest = sorted(sorted(range(len(array.shape)), key=lambda a: -array.shape[a])[:2])
    return longest[0], longest[1]


def look(
    array: Any, axes: tuple[int, int], centre: Any, size: int, *, colours: bool = False
) -> tuple[Array, tuple[int, int]]:
    """Return a square of at most ``size`` samples per side around ``centre``, and its start.

    With ``colours``, the last axis is taken whole.
    """
    index: list[Any] = [n // 2 for n in array.shape]
    if colours:
        index[-1] = slice(None)
    middle = [array.shape[a] // 2 for a in axes] if centre is None else list(wholes("centre", centre))
    if len(middle) != len(axes):
        raise TilingError(f"centre needs one sample for each of axes {axes}; got {brief(centre)}.")
    starts = []
    for a, m in zip(axes, middle, strict=True):
        n = array.shape[a]
        start = min(max(0, m - size // 2), max(0, n - size))
        starts.append(start)
        index[a] = slice(start, min(n, start + size))
    shown = view(array, verbose=False) if find_spec(array) is not None else array
    part = np.asarray(shown[tuple(index)])
    if part.dtype.kind not in "biufcmM":
        raise TilingError(
            f"a picture shows numbers; got an array of dtype {part.dtype}. tw.check compares any; of "
            "records, give one field."
        )
    return part, (starts[0], starts[1])


def plot_seams(out: Any, *, centre: Any = None, size: int = LOOK, axes: Any = None) -> Any:
    """Draw whether a tiled result has seams: discontinuities at cuts between tiles.

    Left: a part of the result with its cuts. Right: the mean step between neighbouring samples along both
    axes. If it is larger at the cuts than elsewhere, the result is discontinuous there.

    Parameters
    ----------
    out : dask.array.Array
        Unmodified result of `tiled_map`; only the tiles of the part run.
    centre : tuple of int, result samples, optional
        Middle of the part along the two axes that are shown. Default: the middle of the result.
    size : int, result samples
        Length of the part along both axes.
    axes : sequence of three matplotlib.axes.Axes, optional
        Axes to draw into: the part, and the steps along its two axes. Default: a new figure.

    Returns
    -------
    1-D array of three matplotlib.axes.Axes
        ``axes``, or those of a new figure of pyplot.

    Raises
    ------
    TilingError
        If ``out`` is not an unmodified result of `tiled_map` with two axes or more.

    Examples
    --------
    >>> from tilework import tiled_map
    >>> image = np.random.default_rng(0).random((200, 200))
    >>> plot_seams(tiled_map(lambda x: x - x.mean(), image, 64, 8))[0].get_title()
    'part of the result, cuts between tiles'
    """
    if find_spec(out) is None:
        raise TilingError(
            f"out must be what tiled_map returned, which knows its cuts, not computed or changed; got "
            f"{brief(out)}."
        )
    drawn = None if axes is None else _given(axes, 3)
    plane = plane_axes(out)
    part, starts = look(out, plane, centre, at_least("size", size, 1))
    if drawn is None:
        figure = new_figure(9.6, 4.6)
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.25))
        drawn = _several([figure.add_subplot(grid[place]) for place in (np.s_[:, 0], (0, 1), (1, 1))])
    low, high = contrast(part)
    show(drawn[0], part, starts, plane, vmin=low, vmax=high)
    cuts = draw_cuts(drawn[0], out, part, starts, plane, color=BLOCK, lw=0.6, alpha=0.7)
    for k, axis in enumerate(plane):
        _draw_steps(drawn[1 + k], part, k, starts[k], cuts[k], axis)
    drawn[0].set_title("part of the result, cuts between tiles")
    return drawn


def _draw_steps(ax: Any, part: Array, k: int, start: int, cuts: Sequence[int], axis: int) -> None:
    """Draw the mean step between neighbours along axis ``k`` of a part, ``axis`` of the result."""
    wide = part.astype(np.complex128 if part.dtype.kind == "c" else np.float64)
    with np.errstate(all="ignore"):
        steps = np.abs(np.diff(np.moveaxis(wide, k, 0), axis=0))
    at = np.arange(start + 1, start + part.shape[k])
    means = np.array([_finite_mean(row) for row in steps])
    ax.plot(at, means, color="0.35", lw=0.9)
    cut = np.isin(at, cuts)
    ax.plot(at[cut], means[cut], "o", color=BLOCK, ms=4, label="at cuts")
    if cut.any() and (~cut).any():
        at_cuts, elsewhere = _finite_mean(steps[cut]), _finite_mean(steps[~cut])
        times = f", {at_cuts / elsewhere:.2f} times" if elsewhere and np.isfinite(at_cuts / elsewhere) else ""
        said = [f"{m:.3g}" if np.isfinite(m) else "nothing finite" for m in (at_cuts, elsewhere)]
        ax.set_title(f"mean step {said[0]} at cuts, {said[1]} elsewhere{times}", fontsize="medium")
        ax.legend(loc="upper right", frameon=False, fontsize="small")
    ax.set_ylim(0, None)
    ax.set_xlabel(f"axis {axis} (samples)")
    ax.set_ylabel("mean step")


def _finite_mean(values: Array) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _drawn(part: Array) -> Array:
    """Return ``part`` as real numbers: complex numbers as their modulus."""
    return (np.abs(part) if part.dtype.kind == "c" else part).astype(np.float64)


def show(ax: Any, part: Array, starts: tuple[int, int], axes: tuple[int, int], **options: Any) -> Any:
    """Draw a part of an array in gray where it lies, and return matplotlib's image."""
    extent = (starts[1], starts[1] + part.shape[1], starts[0] + part.shape[0], starts[0])
    options = {"cmap": "gray", "interpolation": "nearest"} | options
    shown = ax.imshow(_drawn(part), extent=extent, **options)
    ax.set_xlabel(f"axis {axes[1]} (samples)")
    ax.set_ylabel(f"axis {axes[0]} (samples)")
    return shown


def contrast(part: Array) -> tuple[float, float]:
    """Return the values of black and white: percentiles, so that few bright samples do not hide the rest."""
    values = _drawn(part)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, (0.5, 99.5))
    return (float(low), float(high)) if high > low else (float(finite.min()), float(finite.max()))


def compare(whole_result: Any, tiled: Any, *, centre: Any = None, size: int = LOOK, axes: Any = None) -> Any:
    r"""Draw an untiled and a tiled result side by side, and their difference.

    Complex results are shown as their modulus and compared as complex numbers.

    Parameters
    ----------
    whole_result, tiled : array, of equal shape
        numpy, dask or anything sliceable. For a result of `tiled_map`, only the tiles of the shown part run.
    centre : tuple of int, result samples, optional
        Middle of the shown part, along its two axes. Default: the middle of the result.
    size : int, result samples
        Length of that part along both axes.
    axes : sequence of three matplotlib.axes.Axes, optional
        Axes to draw into: untiled, tiled, difference. Default: a new figure.

    Returns
    -------
    1-D array of three matplotlib.axes.Axes
        ``axes``, or those of a new figure of pyplot.

    Raises
    ------
    TilingError
        If the shapes differ, or have fewer than two axes.

    Examples
    --------
    >>> image = np.arange(900.0).reshape(30, 30)
    >>> compare(image, image)[2].get_title()
    'difference: 0 at most,\n0 on average'
    """
    check_array("whole_result", whole_result)
    check_array("tiled", tiled)
    size = at_least("size", size, 1)
    if tuple(whole_result.shape) != tuple(tiled.shape):
        raise TilingError(
            f"whole_result and tiled must have one shape; got {tuple(whole_result.shape)} and "
            f"{tuple(tiled.shape)}."
        )
    drawn = None if axes is None else _given(axes, 3)
    plane = plane_axes(tiled)
    a, starts = look(whole_result, plane, centre, size)
    b, _ = look(tiled, plane, centre, size)
    times = {part.dtype.kind for part in (a, b)}
    if len(times) > 1 and times & {"m", "M"}:
        raise TilingError(f"dtypes {a.dtype} and {b.dtype} cannot be compared; give times or numbers twice.")
    a, b = (part.astype(np.result_type(a, b)) for part in (a, b))
    gap = difference(a, b)
    if drawn is None:
        drawn = new_figure(9.6, 3.8).subplots(1, 3, sharex=True, sharey=True)
    left, middle, right = drawn
    low, high = contrast(a)
    for ax, part, word in ((left, a, "untiled"), (middle, b, "tiled")):
        shown = show(ax, part, starts, plane, vmin=low, vmax=high)
        ax.set_title(word)
    value = "modulus" if a.dtype.kind == "c" else "value"
    left.figure.colorbar(shown, ax=[left, middle], shrink=0.75, label=value)
    finite = gap[np.isfinite(gap)]
    top, odd = float(finite.max(initial=0.0)), gap.size - finite.size
    # Infinite differences remain white in the picture; the title counts them.
    shown = show(right, gap, starts, plane, cmap="magma", vmin=0, vmax=top or 1.0)
    right.figure.colorbar(shown, ax=right, shrink=0.75, label="absolute difference")
    title = f"{top:.2g} at most,\n{finite.mean():.2g} on average" if finite.size else ""
    right.set_title(f"difference: {title}" + (f"\nNaN or infinite in just one: {odd} samples" if odd else ""))
    middle.set_ylabel("")
    right.set_ylabel("")
    draw_cuts(right, tiled, a, starts, plane, color="white", lw=0.4, alpha=0.5)
    return drawn
