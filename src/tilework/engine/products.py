"""Products of weights that tiles share, and values that are multiplied by them and added to a canvas."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilework._types import Array
from tilework.engine.sums import plus, real_dtype, times
from tilework.function import device_array
from tilework.function.bound import BoundOutput, spread
from tilework.function.device_array import DeviceArray, Weights
from tilework.grid.weights import AxisWeights
from tilework.plan.output_plan import PRODUCT, PRODUCTS

__all__ = ["AnyArray", "Products", "Profile", "rows_of"]

# Samples multiplied and added at a time: a piece of the result, its weights and the product stay in the
# processor's cache, so that memory is read once. Half as many took 4 % longer in one thread and 4 to 12 % in
# two, which then waited for one another more often.
PIECE = 2**17
# Number of tiles along an axis whose weights a result keeps by number. Tiles inside the image share their
# weights, so few products serve all.
NUMBERED = 2**14

AnyArray = Any
"""An array of numpy, or a `DeviceArray`."""
Profile = tuple[Array, slice]
"""Weights along one axis of a whole support, and the part of them that is meant."""


class Products:
    """Adds values times weights, piece by piece, with products of weights that the tiles of a result share.

    Threads may use it at the same time. Weights are found by identity, so nothing of it is pickled.
    """

    def __init__(self) -> None:
        self._held: dict[Any, tuple[Array, bool, list[Array]]] = {}
        self._bytes = 0
        """Bytes of the products that are held."""
        self._ready: dict[Any, tuple[Array, bool, int, Sequence[Profile]]] = {}
        """Parts of products that tiles need, with the first axis of the product."""
        self._profiles: dict[tuple[int, int], tuple[Array, AxisWeights]] = {}
        self._parts: dict[tuple[int, int, int], Profile] = {}
        self._there: dict[Any, tuple[Weights, Any]] = {}
        """Weights on devices, with what must live as long as their keys."""
        self._bytes_there = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Products, ()

    def profile(self, axis: AxisWeights, i: int, part: slice) -> Profile:
        """Return the weights of tile ``i`` along an axis, and a part of them; tiles that are alike share it.

        To find out which tiles are alike takes long.
        """
        found = self._profiles.get((id(axis), i))
        if found is None:
            if len(self._profiles) >= NUMBERED:
                self._profiles, self._parts = {}, {}
            # The axis is kept with its weights, so that no other one gets its id.
            found = self._profiles[id(axis), i] = axis.weights(i), axis
        return self._parts.setdefault((id(found[0]), part.start, part.stop), (found[0], part))

    def add_separable(
        self,
        output: BoundOutput,
        target: tuple[AnyArray, AnyArray | None],
        values: AnyArray,
        weights: Sequence[Profile],
    ) -> None:
        """Add ``values`` times the outer product of ``weights``.

        Only the shape of the full crop decides which axes are multiplied as a product and which as scalars,
        so that a part of a result gets the same bits as the whole.
        """
        if isinstance(target[0], DeviceArray):
            self._add_separable_there(output, target, values, weights)
            return
        key = (target[0].dtype, output.shape, output.axes, *map(id, weights))
        if (ready := self._ready.get(key)) is None:
            ready = self._make_ready(key, output, weights)
        product, positive, split, _ = ready
        if split == 0 and values.size <= PIECE:
            self.add(target, values, product, positive)
            return
        if split == 0:
            for rows in rows_of(values.shape, 0):
                part = product[rows] if product.shape[0] > 1 else product
                self.add(_at(target, rows), values[rows], part, positive)
        else:
            by_axis = dict(zip(output.axes, weights, strict=True))
            ndim, real = len(output.shape), product.dtype
            along = _chosen(by_axis[split - 1]) if split - 1 in by_axis else np.ones(values.shape[split - 1])
            outer = {a: _chosen(by_axis[a]) for a in range(split - 1) if a in by_axis}
            for index in np.ndindex(*values.shape[: split - 1]):
                factors = (float(outer[a][i]) for a, i in enumerate(index) if a in outer)
                scalars = (math.prod(factors, start=1.0) * along).astype(real)
                scalars = scalars.reshape((-1,) + (1,) * (ndim - split))
                for rows in rows_of(values.shape, split - 1):
                    here = (*index, rows)
                    self.add(_at(target, here), values[here], product, positive, scalars[rows])

    def _make_ready(
        self, key: Any, output: BoundOutput, weights: Sequence[Profile]
    ) -> tuple[Array, bool, int, Sequence[Profile]]:
        """Return what `add_separable` needs to add with ``weights``, and keep it."""
        ndim, split = len(output.shape), _split(output)
        by_axis = dict(zip(output.axes, weights, strict=True))
        product, positive = self._outer(by_axis, range(split, ndim), real_dtype(key[0]))
        if len(self._ready) >= NUMBERED:
            self._ready = {}
        ready = self._ready[key] = product, positive, split, weights
        return ready

    def _add_separable_there(
        self,
        output: BoundOutput,
        target: tuple[DeviceArray, DeviceArray | None],
        values: DeviceArray,
        weights: Sequence[Profile],
    ) -> None:
        """Do the same on a device, with the same products and scalars."""
        sums, lost = target
        ndim, split = len(output.shape), _split(output)
        by_axis = dict(zip(output.axes, weights, strict=True))
        key = (sums.dtype, output.shape, output.axes, *(id(profile) for profile, _ in weights))
        if (found := self._there.get(key)) is None:
            whole = {a: (profile, slice(None)) for a, (profile, _) in by_axis.items()}
            product, positive = self._outer(whole, range(split, ndim), sums.dtype)
            scalars = None
            if split:
                scalars = np.ones((1,) * split)
                for a in range(split):
                    if a in by_axis:
                        scalars = scalars * by_axis[a][0].reshape((-1,) + (1,) * (split - a - 1))
                scalars = scalars.astype(sums.dtype).reshape(*scalars.shape, *(1,) * (ndim - split))
            factors = Weights(product.reshape((1,) * split + product.shape), positive, scalars)
            found = self._hold_there(key, factors, [profile for profile, _ in weights])
        part = [by_axis[a][1] if a in by_axis else slice(None) for a in range(ndim)]
        device_array.add_weighted(sums, values, found[0], part, lost)

    def _hold_there(self, key: Any, weights: Weights, alive: Any) -> tuple[Weights, Any]:
        """Keep weights for devices."""
        if self._bytes_there + weights.nbytes > PRODUCTS or len(self._there) >= NUMBERED:
            self._there, self._bytes_there = {}, 0
        found = self._there[key] = weights, alive
        self._bytes_there += weights.nbytes
        return found

    def add_map(
        self,
        output: BoundOutput,
        target: tuple[AnyArray, AnyArray | None],
        values: AnyArray,
        weights: Array,
        index: tuple[slice, ...],
    ) -> None:
        """Add ``values`` times a part, ``index``, of N-D weights over the tiled axes of a full crop."""
        real = real_dtype(target[0].dtype)
        key = real, id(weights)
        found = self._held.get(key) or self._hold(key, weights.astype(real), [weights])
        if isinstance(target[0], DeviceArray):
            if (there := self._there.get(key)) is None:
                whole = spread(found[0], output.axes, values.ndim)
                there = self._hold_there(key, Weights(whole, found[1]), weights)
            by_axis = dict(zip(output.axes, index, strict=True))
            places = [by_axis.get(a, slice(None)) for a in range(values.ndim)]
            device_array.add_weighted(target[0], values, there[0], places, target[1])
            return
        product, positive = spread(found[0][index], output.axes, values.ndim), found[1]
        for rows in rows_of(values.shape, 0):
            part = product[rows] if product.shape[0] > 1 else product
            self.add(_at(target, rows), values[rows], part, positive)

    def _outer(self, by_axis: dict[int, Profile], axes: range, real: np.dtype[Any]) -> tuple[Array, bool]:
        """Return the outer product of the weights along ``axes``, and False if some may be 0."""
        used = [(a, *by_axis[a]) for a in axes if a in by_axis]
        key = (real, *((a, id(profile)) for a, profile, _ in used))
        found = self._held.get(key)
        if found is None:
            product = np.ones((1,) * len(axes))
            for a, profile, _ in used:
                product = product * profile.reshape((-1,) + (1,) * (axes.stop - a - 1))
            found = self._hold(key, product.astype(real), [profile for _, profile, _ in used])
        parts = [slice(None)] * len(axes)
        for a, _, part in used:
            parts[a - axes.start] = part
        return found[0][tuple(parts)], found[1]

    def _hold(self, key: Any, product: Array, weights: list[Array]) -> tuple[Array, bool, list[Array]]:
        """Keep a product, whether it has no 0, and its weights, so that no other array gets their id."""
        found = product, bool(product.min() > 0), weights
        if self._bytes + product.nbytes > PRODUCTS:
            self._held, self._ready, self._bytes = {}, {}, 0
        self._held[key] = found
        self._bytes += product.nbytes
        return found

    def add(
        self,
        target: tuple[Array, Array | None],
        values: Array,
        weights: Array,
        positive: bool,
        scalars: Array | None = None,
    ) -> None:
        """Add ``values * weights * scalars``; samples of weight 0 are left out, because 0 * inf is NaN.

        ``positive`` means that no weight is 0; testing this here would take as long as multiplying.
        """
        shape = values.shape
        same = values.dtype == weights.dtype
        piece = self._piece(shape, weights.dtype if same else np.result_type(values, weights))
        where: Any = True
        if not (positive and (scalars is None or scalars.min() > 0)):
            where = weights > 0 if scalars is None else (weights > 0) & (scalars > 0)
            where = np.broadcast_to(where, shape)
            piece[...] = 0
        times(values, weights, piece, where)
        if scalars is not None:
            times(piece, scalars, piece, where)
        plus(target, piece, average=True)

    def _piece(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return scratch memory of a shape, the thread's own: fresh pages cost more than the arithmetic."""
        size = math.prod(shape)
        if size > PIECE:
            return np.empty(shape, dtype)
        scratch: Array | None = getattr(_SCRATCH, "piece", None)
        if scratch is None or scratch.dtype != dtype or scratch.size < size:
            scratch = _SCRATCH.piece = np.empty(PIECE, dtype)
        return scratch[:size].reshape(shape)


_SCRATCH = threading.local()


def _split(output: BoundOutput) -> int:
    """Return the first axis of the product of weights; those before it are multiplied as scalars."""
    ndim = len(output.shape)
    return next(a for a in range(ndim) if a == ndim - 1 or math.prod(output.shape[a:]) <= PRODUCT)


def _chosen(weights: Profile) -> Array:
    profile, part = weights
    return profile[part]


def _at(target: tuple[Array, Array | None], index: Any) -> tuple[Array, Array | None]:
    sums, lost = target
    return sums[index], None if lost is None else lost[index]


def rows_of(shape: Sequence[int], axis: int) -> Iterator[slice]:
    """Yield slices along ``axis`` of pieces of about `PIECE` samples."""
    rows = max(1, PIECE // max(1, math.prod(shape[axis + 1 :])))
    return (slice(a, a + rows) for a in range(0, shape[axis], rows))
