"""`Variant`: one of the ways, turned and mirrored, in which a function sees a crop."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field

import numpy as np

from tilework._types import Array, Index
from tilework.errors import TilingError

__all__ = ["Variant", "variants_of"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A way in which the function sees a crop: turned by quarter turns, then mirrored.

    Axes are numbers of tiled axes: 0 is the first one.

    Examples
    --------
    >>> variant = Variant(flips=(0,), turns=1, plane=(0, 1))
    >>> crop = np.array([[1, 2], [3, 4]])
    >>> variant.apply(crop, (0, 1))
    array([[1, 3],
           [2, 4]])
    >>> variant.undo(variant.apply(crop, (0, 1)), (0, 1))
    array([[1, 2],
           [3, 4]])
    """

    flips: tuple[int, ...] = ()
    """The tiled axes that are mirrored."""
    turns: int = 0
    """Number of quarter turns, 0 to 3."""
    plane: tuple[int, int] | None = None
    """The tiled axes of the turns, from the first towards the second as in `numpy.rot90`; None without."""
    n_axes: int | None = field(default=None, compare=False, repr=False)
    """Number of tiled axes, and so of the components of a vector; None: not known."""

    def apply(self, crop: Array, axes: Index) -> Array:
        """Return a view of a crop, turned and mirrored.

        Parameters
        ----------
        crop : numpy.ndarray
        axes : tuple of int
            Position of each tiled axis in the array.
        """
        if self.plane is not None:
            crop = np.rot90(crop, self.turns, (axes[self.plane[0]], axes[self.plane[1]]))
        return np.asarray(np.flip(crop, tuple(axes[f] for f in self.flips)))

    def undo(self, result: Array, axes: Index) -> Array:
        """Return a view of a result for the turned and mirrored crop, put back in place; see `apply`."""
        result = np.flip(result, tuple(axes[f] for f in self.flips))
        if self.plane is not None:
            result = np.rot90(result, -self.turns, (axes[self.plane[0]], axes[self.plane[1]]))
        return result

    def vectors(self, result: Array, axis: int) -> Array:
        """Return a result of vectors with their directions turned back too; a copy.

        Parameters
        ----------
        result : numpy.ndarray
            Vectors at their places in the image.
        axis : int
            The axis of the components, counted from the end: a batch has one more axis in front. There is
            one component for each tiled axis, in their order, such as (dy, dx).

        Returns
        -------
        numpy.ndarray

        Raises
        ------
        TilingError
            If the axis is counted from the front, or has another number of components.

        Examples
        --------
        >>> Variant(flips=(1,)).vectors(np.array([3.0, 4.0]), -1)
        array([ 3., -4.])
        """
        if not -result.ndim <= axis < 0:
            raise TilingError(
                "axis counts from the end of a result, because a batch has one more axis in front; got "
                f"{axis} for shape {result.shape}. Of (components, y, x), it is -3."
            )
        moved = (*self.flips, *(self.plane or ()))
        least = self.n_axes or max(moved, default=-1) + 1
        count = result.shape[axis]
        if count < least or count > (self.n_axes or count):
            raise TilingError(
                f"a vector has one component for each of the {least} tiled axes; axis {axis} of the result "
                f"of shape {result.shape} has {count}. Give the components alone: "
                f"variant.vectors(result[..., :{least}, :, :], axis=-3) for example."
            )
        parts = list(np.moveaxis(result, axis, 0))
        for f in self.flips:
            parts[f] = -parts[f]
        if self.plane is not None:
            p, q = self.plane
            for _ in range(self.turns):
                parts[p], parts[q] = parts[q], -parts[p]
        return np.stack(parts, axis)


@functools.cache  # every call on a tile asks, several times
def variants_of(n_axes: int, flips: Index, plane: tuple[int, int] | None) -> tuple[Variant, ...]:
    """Return the different ways to see a crop with ``n_axes`` tiled axes; the first one changes nothing.

    Parameters
    ----------
    n_axes : int
    flips : tuple of int
        The tiled axes that are mirrored, in all combinations.
    plane : (int, int) or None
        The tiled axes of quarter turns.

    Examples
    --------
    >>> [v.flips for v in variants_of(2, (0, 1), None)]
    [(), (1,), (0,), (0, 1)]
    >>> [len(variants_of(2, (), (0, 1))), len(variants_of(2, (0, 1), (0, 1)))]
    [4, 8]
    """
    found: dict[tuple[int, ...], Variant] = {}
    unit = np.arange(1, n_axes + 1)
    for turns in range(1 if plane is None else 4):
        for chosen in itertools.product((False, True), repeat=len(flips)):
            mirrored = tuple(f for f, on in zip(flips, chosen, strict=True) if on)
            variant = Variant(mirrored, turns, plane if turns else None, n_axes)
            # Two mirrors are a half turn: what happens to the axes tells which variants are the same.
            found.setdefault(tuple(map(int, variant.vectors(unit, -1))), variant)
    return tuple(found.values())
