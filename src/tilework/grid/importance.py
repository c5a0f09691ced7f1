"""N-D importance maps: the weights of a crop that are no product of one window per axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from tilework._types import Bits, Floats
from tilework.errors import GridError
from tilework.grid.weights import AxisWeights, Blend, own_weights

__all__ = ["importance_map"]

# Samples of an importance map that are looked at together for holes; a byte each.
MAP_PART = 2**24


def importance_map(blend: Blend, weights: Sequence[AxisWeights], names: Sequence[str]) -> Floats:
    """Return N-D weights of a full crop's result, with zeros on the rim.

    Parameters
    ----------
    blend : array, shape of the result's crop
    weights : sequence of AxisWeights
        Places of the crops along each tiled axis.
    names : sequence of str
        Names of these axes, for messages.

    Raises
    ------
    TypeError, GridError
        For what is no array of numbers, another shape, negative weights, or a sample of the result that no
        crop gives a weight.
    """
    values = own_weights(blend)
    shape = tuple(w.length for w in weights)
    if values.shape != shape:
        raise GridError(
            f"an importance map must have the shape of the result's crop, {shape}; got {values.shape}."
        )
    rims = [w.scaled(w.rim or 0) for w in weights]
    inner = tuple(slice(r, n - r) for r, n in zip(rims, shape, strict=True))
    kept = np.zeros_like(values)
    kept[inner] = values[inner]
    if not values[inner].all():
        _refuse_hole(kept > 0, weights, names)
    return kept


def _refuse_hole(positive: Bits, weights: Sequence[AxisWeights], names: Sequence[str]) -> None:
    """Raise a `GridError` if a sample of the result has weight 0 in every crop on it."""
    # The last entry along each axis, which -1 names, stands for no crop.
    positive = np.pad(positive, [(0, 1)] * positive.ndim)
    kinds, samples = zip(*(w.offsets() for w in weights), strict=True)
    rest = math.prod(map(len, kinds[1:]))
    step = max(1, MAP_PART // max(1, rest))
    for first in range(0, len(kinds[0]), step):
        part = (kinds[0][first : first + step], *kinds[1:])
        covered = np.zeros([len(k) for k in part], bool)
        for columns in itertools.product(*(range(k.shape[1]) for k in part)):
            covered |= positive[np.ix_(*(k[:, c] for k, c in zip(part, columns, strict=True)))]
        if not covered.all():
            index = np.unravel_index(int(covered.argmin()), covered.shape)
            at = [int(x[i]) for x, i in zip(samples, (first + index[0], *index[1:]), strict=True)]
            where = ", ".join(f"{x} on axis {name}" for x, name in zip(at, names, strict=True))
            raise GridError(
                f"every sample needs a positive weight from some crop; sample {where} has none in the "
                "importance map. Use more overlap, a smaller rim or a map that is positive there."
            )
