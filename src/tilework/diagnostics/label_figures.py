"""A figure of labels: objects in colours over their image, with the cuts between tiles."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np

from tilework._checks import at_least
from tilework._types import Array, Bits, Floats, Ints
from tilework.diagnostics.figures import (
    LOOK,
    check_array,
    check_axes,
    contrast,
    draw_cuts,
    look,
    new_figure,
    plane_axes,
    show,
)
from tilework.errors import TilingError
from tilework.formats.meta import ImageMeta
from tilework.graph.build import find_spec
from tilework.plan.picture import BLOCK

__all__ = ["plot_labels"]

# Number of colours: objects that touch get different ones.
COLOURS = 12
# Opacity of an object's inside, over an image and without one; outlines are opaque.
OVER, ALONE = 0.3, 0.75


def plot_labels(
    labels: Any, image: Any = None, *, centre: Any = None, size: int = LOOK, ax: Any = None
) -> Any:
    """Draw the objects of labels in colours, over their image, with the cuts between tiles.

    The colour of an object is made from its id; objects that touch get different colours. Of an array with
    more than two axes, the middle of the others is shown, and the title says which index that is.

    Parameters
    ----------
    labels : array of int or bool
        numpy, dask, Zarr or anything sliceable. For a result of `tiled_map`, only the tiles of the shown part
        run, and the cuts between its tiles are drawn.
    image : array, optional
        What lies under the objects: of the same shape, or with colours (3 or 4) along one more axis at the
        end.
    centre : tuple of int, samples, optional
        Middle of the shown part, along its two axes. Default: the middle of the labels.
    size : int, samples
        Length of that part along both axes.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        ``ax``, or the axes of a new figure of pyplot.

    Raises
    ------
    TilingError
        If ``labels`` are not integers or have fewer than two axes, or if ``image`` has another shape.

    Examples
    --------
    >>> labels = np.zeros((40, 40), int)
    >>> labels[5:10, 5:20], labels[20:30, 8:30] = 1, 2
    >>> plot_labels(labels).get_title()
    '2 objects'
    """
    check_array("labels", labels)
    if np.dtype(labels.dtype).kind not in "biu":
        raise TilingError(f"labels are integers, one id per object; got an array of dtype {labels.dtype}.")
    colours = image is not None and _has_colours(labels, image)
    if ax is not None:
        check_axes(ax)
    plane, size = plane_axes(labels), at_least("size", size, 1)
    part, starts = look(labels, plane, centre, size)
    under = None if image is None else look(image, plane, centre, size, colours=colours)[0]
    if ax is None:
        ax = new_figure(6.0, 6.0).subplots()
    if under is not None and colours:
        ax.imshow(_colours(under), extent=_extent(part, starts), interpolation="nearest")
    elif under is not None:
        low, high = contrast(under)
        show(ax, under, starts, plane, vmin=low, vmax=high)
    ids, numbers = np.unique(part, return_inverse=True)
    numbers = numbers.reshape(part.shape)
    painted = _painted(ids, numbers, ALONE if under is None else OVER)
    ax.imshow(painted, extent=_extent(part, starts), interpolation="nearest")
    names = _names(labels)
    ax.set_xlabel(f"{names[plane[1]]} (samples)")
    ax.set_ylabel(f"{names[plane[0]]} (samples)")
    count = int(np.count_nonzero(ids))
    others = [f"{names[a]} = {n // 2}" for a, n in enumerate(labels.shape) if a not in plane]
    title = f"{count} {'object' if count == 1 else 'objects'}{' at ' * bool(others)}{', '.join(others)}"
    if find_spec(labels) is not None:
        draw_cuts(ax, labels, part, starts, plane, color=BLOCK, lw=0.7, alpha=0.8)
        title += ", cuts between tiles"
    ax.set_title(title)
    return ax


def _names(labels: Any) -> list[str]:
    """Return the names of all axes, "axis 0" where they have none."""
    found = find_spec(labels)
    meta = getattr(labels, "meta", None) if found is None else found.meta
    if isinstance(meta, ImageMeta):
        return list(meta.axes)
    return list(getattr(labels, "dims", ())) or [f"axis {a}" for a in range(len(labels.shape))]


def _has_colours(labels: Any, image: Any) -> bool:
    """Return whether an image has an axis of colours; raise unless it fits the labels."""
    check_array("image", image)
    shape, own = tuple(image.shape), tuple(labels.shape)
    if shape == own:
        return False
    if shape[:-1] == own and shape[-1] in (3, 4):
        return True
    raise TilingError(
        f"image must have the shape of the labels, {own}, or colours along one more axis at the end; got "
        f"{shape}. Give one channel of it."
    )


def _extent(part: Array, starts: tuple[int, int]) -> tuple[int, int, int, int]:
    return starts[1], starts[1] + part.shape[1], starts[0] + part.shape[0], starts[0]


def _colours(part: Array) -> Floats:
    """Return colours as numbers from 0 to 1."""
    if part.dtype == np.uint8:
        return part / 255
    low, high = contrast(part[..., :3])
    return np.clip((part.astype(np.float64) - low) / (high - low or 1), 0, 1)


def _painted(ids: Array, numbers: Ints, inside: float) -> Floats:
    """Return colours and opacity of all samples; ``numbers`` are those of their ids in ``ids``."""
    palette = np.array([colorsys.hsv_to_rgb(k / COLOURS, 0.75, 0.95) for k in range(COLOURS)])
    table = np.zeros((len(ids), 4))
    table[:, :3] = palette[_chosen(ids, numbers)]
    table[:, 3] = np.where(ids != 0, inside, 0.0)
    painted = table[numbers]
    edge = _outlines(numbers) & (ids != 0)[numbers]
    painted[edge, 3] = 1.0
    return np.asarray(painted)


def _outlines(numbers: Ints) -> Bits:
    """Return the samples that have a neighbour of another id."""
    edge = np.zeros(numbers.shape, bool)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        other = numbers[a] != numbers[b]
        edge[a] |= other
        edge[b] |= other
    return edge


def _chosen(ids: Array, numbers: Ints) -> Ints:
    """Return the number of a colour for each id: that of its hash, or the next that no neighbour has."""
    # Samples at distances of 1 and 2: a thin gap does not separate two objects for the eye.
    pairs = []
    for step in (1, 2):
        for a, b in ((np.s_[step:], np.s_[:-step]), (np.s_[:, step:], np.s_[:, :-step])):
            one, two = numbers[a].ravel(), numbers[b].ravel()
            met = (one != two) & (ids[one] != 0) & (ids[two] != 0)
            pairs.append(np.stack((np.maximum(one[met], two[met]), np.minimum(one[met], two[met]))))
    touching = np.unique(np.concatenate(pairs, axis=1), axis=1)
    first = np.searchsorted(touching[0], np.arange(len(ids) + 1))
    # Fibonacci hashing: neighbours in number are far apart in colour.
    hashed = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    chosen = (hashed % np.uint64(COLOURS)).astype(np.int64)
    for k in np.flatnonzero(np.diff(first)).tolist():
        taken = set(chosen[touching[1, first[k] : first[k + 1]]].tolist())
        free = (c % COLOURS for c in range(int(chosen[k]), int(chosen[k]) + COLOURS))
        chosen[k] = next((c for c in free if c not in taken), chosen[k])
    return chosen
