"""`Coordinate`: values along axes of an image, or one value of the whole image."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._checks import brief, of_type, sequence
from tilework._derived import Holder, derived
from tilework._types import Array
from tilework.errors import TilingError
from tilework.formats.equality import equal, facts_of

__all__ = ["Coordinate", "coordinates_of"]

# Values of a uniform coordinate may be off by this fraction of a step: the rounding of float32 coordinates.
UNIFORM = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Coordinate(Holder):
    """Values along one or several axes, or one value of the whole image."""

    dims: tuple[str, ...]
    """Names of the axes along which the values vary; empty for one value of the whole image."""
    values: Array
    """The values, one per sample of these axes. They must not change: what is derived from them is held."""
    attributes: Mapping[Hashable, Any] = field(default_factory=dict)
    """Attributes of the coordinate."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coordinate) and equal(facts_of(self), facts_of(other))

    __hash__ = None  # type: ignore[assignment]

    @derived
    def step(self) -> float | None:
        """Distance of neighbouring values, of times in their own unit; None if there is no single one."""
        values = self.values
        if values.ndim != 1 or len(values) < 2 or values.dtype.kind not in "iufmM":
            return None
        if values.dtype.kind in "mM":
            if np.isnat(values[[0, -1]]).any():  # the smallest integer
                return None
            values = (values - values[0]).view(np.int64)
        first, last = float(values[0]), float(values[-1])
        step = (last - first) / (len(values) - 1)
        if not math.isfinite(step) or not step:
            return None
        # In place: there may be a million samples.
        off = np.arange(len(values), dtype=np.float64)
        off *= step
        off += first
        with np.errstate(invalid="ignore"):  # infinities
            np.subtract(values, off, out=off, casting="same_kind")
        return step if float(np.abs(off, out=off).max()) <= UNIFORM * abs(step) else None

    @derived
    def is_text(self) -> bool:
        """Whether these are texts along one axis."""
        values = self.values
        if values.ndim != 1 or values.dtype.kind not in "UTO":
            return False
        return values.dtype.kind != "O" or all(issubclass(kind, str) for kind in set(map(type, values)))

    @property
    def unit(self) -> np.timedelta64:
        """The unit in which times are counted."""
        difference: np.timedelta64 = np.ones(1, np.int64).view((self.values[:1] - self.values[:1]).dtype)[0]
        return difference

    def binned(self, scale: Fraction, length: int) -> Coordinate | None:
        """Return the centres of the result samples at ``scale``; None if the values are not uniform."""
        step = self.step
        if step is None:
            return None
        return self.once(
            ("binned", scale, length),
            lambda: Coordinate(self.dims, self._centres(step, scale, length), self.attributes),
        )

    def sliced(self, parts: Mapping[str, slice | int]) -> Coordinate:
        """Return the values in a part of the image, given by a slice or number per axis."""
        own = tuple(parts[dim] for dim in self.dims)
        dims = tuple(dim for dim, part in zip(self.dims, own, strict=True) if isinstance(part, slice))
        if all(part == slice(None) for part in own):
            return self
        return Coordinate(dims, self.values[own], self.attributes)

    def _centres(self, step: float, scale: Fraction, length: int) -> Array:
        centres = np.arange(length, dtype=np.float64)
        centres += 0.5
        centres /= float(scale)
        centres -= 0.5
        centres *= step
        if self.values.dtype.kind in "mM":
            return np.asarray(self.values[0] + np.rint(centres).astype(np.int64) * self.unit)
        centres += float(self.values[0])
        return centres.astype(self.values.dtype, copy=False) if self.values.dtype.kind == "f" else centres


def _coordinate(name: str, dims: Any, values: Any, attributes: Any = None) -> Coordinate:
    own = (dims,) if isinstance(dims, str) else dims
    if not sequence(own) or not all(isinstance(dim, str) for dim in own) or len(set(own)) < len(own):
        raise TypeError(
            f"the dims of coordinate {name!r} must be the name of an axis, or several that differ; got "
            f"{brief(dims)}. A coordinate is (dims, values)."
        )
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TilingError(f"the values of coordinate {name!r} are no array: {error}") from error
    what = f"the attributes of coordinate {name!r}"
    return Coordinate(tuple(own), array, dict(of_type(what, attributes or {}, Mapping, "a dict")))


def coordinates_of(given: Mapping[str, Any], axes: Sequence[str]) -> dict[str, Coordinate]:
    """Return coordinates by name, as they were given or as (dims, values, attributes)."""
    found = {}
    for name, value in of_type("coordinates", given, Mapping, "a dict").items():
        if isinstance(value, Coordinate):
            coordinate = value
        elif isinstance(value, tuple | list) and len(value) in (2, 3):
            coordinate = _coordinate(str(name), *value)
        else:
            raise TypeError(
                f"a coordinate must be (dims, values) or (dims, values, attributes); got {brief(value)} for "
                f"{name!r}."
            )
        for dim in coordinate.dims:
            if dim not in axes:
                raise TilingError(f"coordinate {name!r} lies along {dim!r}; the axes are {', '.join(axes)}.")
        if coordinate.values.ndim != len(coordinate.dims):
            raise TilingError(
                f"coordinate {name!r} has {coordinate.values.ndim} axes of values and dims {coordinate.dims}."
            )
        found[str(name)] = coordinate
    return found
