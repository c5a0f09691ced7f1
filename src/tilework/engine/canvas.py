"""Canvases: arrays to which the results of one block's tiles are added; merged and finished to a block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._types import Array
from tilework.errors import ContractError
from tilework.function.output import BoundOutput, spread
from tilework.grid.tiles import Box

__all__ = ["Partial", "Products", "add", "allocate", "check_dtype", "combine", "finish"]


# Samples multiplied and added at a time: a piece of the result, its weights and the product stay in the
# processor's cache, so that memory is read once.
PIECE = 2**16
# Most samples of weights that are kept as one product; larger crops use further axes as scalars.
PRODUCT = 2**18
# Products of weights cached while one block runs; its tiles need few.
HELD = 32


@dataclass(slots=True)
class Partial:
    """The sum of the results of some tiles over one box, before normalising."""

    box: Box
    """Place of the array, result samples per grid axis."""
    array: Array | None = None
    """The sum; None until the first result shows its dtype."""

    def view(self, output: BoundOutput, box: Box) -> Array:
        """Return the part of the array in ``box``."""
        assert self.array is not None
        inner = box.shift([-a for a in self.box.start])
        return self.array[output.index(inner.slices)]

    def crop(self, output: BoundOutput, box: Box) -> Partial:
        """Return a copy of the part in ``box``: a view would keep the whole canvas alive."""
        box = self.box.intersect(box)
        if self.array is None or not box.size:
            return Partial(box)
        return Partial(box, self.view(output, box).copy())


def allocate(output: BoundOutput, box: Box, values: np.dtype[Any]) -> Array:
    """Return a canvas over ``box`` with the neutral value of the output's blend."""
    dtype = output.dtype if output.kind == "trim" and output.reduce is None else output.accumulator(values)
    shape = output.layout(box.shape)
    if output.kind not in ("max", "min"):
        return np.zeros(shape, dtype)
    sign = -1 if output.kind == "max" else 1
    if dtype.kind == "b":
        return np.full(shape, sign > 0)
    if dtype.kind == "f":
        return np.full(shape, sign * np.inf, dtype)
    info = np.iinfo(dtype)
    return np.full(shape, info.max if sign > 0 else info.min, dtype)


def check_dtype(output: BoundOutput, values: Array) -> None:
    """Raise a `ContractError` if results cannot be cast to the declared dtype without a change of meaning."""
    have, want = values.dtype, output.dtype
    if output.reduce is not None or have == want:
        return
    if output.kind == "trim" and have.kind in "iu" and want.kind in "iu" and not np.can_cast(have, want):
        info = np.iinfo(want)
        if values.size and (values.min() < info.min or values.max() > info.max):
            raise ContractError(
                f"the function returned {have} values from {values.min()} to {values.max()}; the declared "
                f"dtype {want} cannot hold them."
            )
        return
    allowed = np.can_cast(have, want, "same_kind")
    if output.kind != "trim":
        allowed = allowed or (have.kind in "iuf" and want.kind in "iuf")
    if not allowed:
        raise ContractError(
            f"the function returned dtype {have}; the declared dtype is {want}. Declare dtype={str(have)!r}, "
            "or convert inside the function."
        )


def add(
    output: BoundOutput,
    target: Array,
    values: Array,
    weights: Sequence[Array] | Array | None,
    products: Products,
) -> None:
    """Add ``values`` to ``target`` as the output's blend says; both in the layout of the function's result.

    Parameters
    ----------
    weights : one 1-D array per tiled axis, or one N-D array over the tiled axes, or None
    products : Products
        Caches that are shared by tiles that are added one after the other.
    """
    kind = output.kind
    if kind == "trim":
        np.copyto(target, values, casting="unsafe")
    elif kind in ("max", "min"):
        pick = np.maximum if kind == "max" else np.minimum
        pick(target, values, out=target, casting="unsafe")
    elif kind == "sum":
        np.add(target, values, out=target, casting="unsafe")
    elif isinstance(weights, np.ndarray):
        product = spread(weights.astype(_real(target.dtype)), output.axes, values.ndim)
        products.add(target, values, product, bool(product.min() > 0))
    else:
        assert weights is not None
        products.add_separable(output, target, values, weights)


def _real(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.empty(0, dtype).real.dtype


class Products:
    """Adds values times weights, piece by piece, with caches that neighbouring tiles share.

    It caches outer products of weights, and scratch memory for their products with values, because fresh
    pages cost more than the arithmetic.
    """

    def __init__(self) -> None:
        self._held: dict[Any, tuple[Array, bool, list[Array]]] = {}
        self._scratch: Array | None = None

    def add_separable(
        self, output: BoundOutput, target: Array, values: Array, weights: Sequence[Array]
    ) -> None:
        """Add ``values`` times the outer product of ``weights``.

        Only the shape of the full crop decides which axes are multiplied as a product and which as scalars,
        so that a part of a result gets the same bits as the whole.
        """
        by_axis = dict(zip(output.axes, weights, strict=True))
        ndim = len(output.shape)
        split = next(a for a in range(ndim) if a == ndim - 1 or math.prod(output.shape[a:]) <= PRODUCT)
        real = _real(target.dtype)
        product, positive = self._outer(by_axis, range(split, ndim), ndim, real)
        if split == 0 and values.size <= PIECE:
            self.add(target, values, product, positive)
        elif split == 0:
            for rows in _rows(values.shape, 0):
                part = product[rows] if product.shape[0] > 1 else product
                self.add(target[rows], values[rows], part, positive)
        else:
            along = by_axis.get(split - 1, np.ones(values.shape[split - 1]))
            for index in np.ndindex(*values.shape[: split - 1]):
                factors = (float(by_axis[a][i]) for a, i in enumerate(index) if a in by_axis)
                scalars = (math.prod(factors, start=1.0) * along).astype(real)
                scalars = scalars.reshape((-1,) + (1,) * (ndim - split))
                for rows in _rows(values.shape, split - 1):
                    self.add(target[index][rows], values[index][rows], product, positive, scalars[rows])

    def _outer(
        self, by_axis: dict[int, Array], axes: range, ndim: int, real: np.dtype[Any]
    ) -> tuple[Array, bool]:
        """Return the outer product of the weights along ``axes``, and whether none is 0."""
        weights = [by_axis[a] for a in axes if a in by_axis]
        key = (real, *map(id, weights))
        found = self._held.get(key)
        if found is None:
            if len(self._held) >= HELD:
                self._held.clear()
            product = np.ones((1,) * len(axes))
            for a in filter(by_axis.__contains__, axes):
                product = product * by_axis[a].reshape((-1,) + (1,) * (ndim - a - 1))
            product = product.astype(real)
            # The weights are kept with their product, so that no other array gets their id.
            found = self._held[key] = product, bool(product.min() > 0), weights
        return found[:2]

    def add(
        self, target: Array, values: Array, weights: Array, positive: bool, scalars: Array | None = None
    ) -> None:
        """Add ``values * weights * scalars``; samples of weight 0 are left out, because 0 * inf is NaN.

        ``positive`` means that no weight is 0; testing this here would take as long as multiplying.
        """
        piece = self._piece(target.shape, np.result_type(values, weights))
        where: Any = True
        if not (positive and (scalars is None or scalars.min() > 0)):
            where = weights > 0 if scalars is None else (weights > 0) & (scalars > 0)
            where = np.broadcast_to(where, target.shape)
            piece[...] = 0
        np.multiply(values, weights, out=piece, where=where)
        if scalars is not None:
            np.multiply(piece, scalars, out=piece, where=where)
        np.add(target, piece, out=target, casting="unsafe")

    def _piece(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return uninitialised scratch memory of a shape."""
        size = math.prod(shape)
        if size > PIECE:
            return np.empty(shape, dtype)
        if self._scratch is None or self._scratch.dtype != dtype:
            self._scratch = np.empty(PIECE, dtype)
        return self._scratch[:size].reshape(shape)


def _rows(shape: Sequence[int], axis: int) -> Iterator[slice]:
    """Yield slices along ``axis`` of pieces of about `PIECE` samples."""
    rows = max(1, PIECE // max(1, math.prod(shape[axis + 1 :])))
    return (slice(a, a + rows) for a in range(0, shape[axis], rows))


def combine(output: BoundOutput, box: Box, parts: Sequence[Partial]) -> Array | None:
    """Return the parts merged over ``box``, in their order; None if there are none."""
    parts = [p for p in parts if p.array is not None and box.intersect(p.box).size]
    if not parts:
        return None
    first = parts[0]
    assert first.array is not None
    if len(parts) == 1 and first.box == box:
        return first.array
    if first.box.intersect(box) == box:
        total = Partial(box, first.view(output, box).copy())
        parts = parts[1:]
    else:
        total = Partial(box, allocate(output, box, first.array.dtype))
    for part in parts:
        common = box.intersect(part.box)
        target, source = total.view(output, common), part.view(output, common)
        if output.kind == "trim":
            target[...] = source
        elif output.kind in ("max", "min"):
            (np.maximum if output.kind == "max" else np.minimum)(target, source, out=target)
        else:
            target += source
    return total.array


def finish(output: BoundOutput, total: Array, reached: Array | None, divisor: Array | None) -> Array:
    """Return a block of the returned array: normalised, reduced, filled and cast.

    Parameters
    ----------
    total : numpy.ndarray
        Merged results in the output's layout.
    reached : numpy.ndarray of bool over the grid axes, or None
        Where any tile ran; None: everywhere.
    divisor : numpy.ndarray of float over the grid axes, or None
        Sum of the weights that ran; None: 1 everywhere.
    """
    if divisor is not None:
        total = total / output.spread(np.where(divisor > 0, divisor, 1)).astype(_real(total.dtype))
    block = _reduce(output, total) if output.reduce is not None else total
    if block.dtype != output.dtype:
        block = _cast(block, output.dtype)
    if reached is not None and not reached.all():
        fill = np.asarray(output.fill_value, output.dtype)
        block = np.where(output.spread(reached, reduced=True), block, fill)
        block = block.astype(output.dtype, copy=False)  # np.where does not keep the byte order
    return block


def _reduce(output: BoundOutput, total: Array) -> Array:
    n = output.n_each
    if output.reduce == "argmax":
        assert output.channel_axis is not None
        return np.asarray(total.argmax(axis=n + output.channel_axis))
    assert callable(output.reduce)
    lead = total.shape[:n]
    blocks = [np.asarray(output.reduce(total[i])) for i in np.ndindex(*lead)]
    lengths = [total.shape[n + a] for a in output.axes]
    expected = output.layout([*lead, *lengths], reduced=True)[n:]
    for block in blocks:
        if block.shape != expected:
            raise ContractError(f"reduce returned shape {block.shape} for a block; expected {expected}.")
    return np.stack(blocks).reshape(*lead, *expected) if lead else blocks[0]


def _cast(block: Array, dtype: np.dtype[Any]) -> Array:
    """Return ``block`` as ``dtype``; integers are rounded half to even and clipped."""
    if dtype.kind not in "iu" or block.dtype.kind == "b":
        return block.astype(dtype)
    info = np.iinfo(dtype)
    if block.dtype.kind == "f":
        block = np.rint(block)
        # A float cannot hold the largest 64-bit integers: clip below them.
        high = np.nextafter(block.dtype.type(info.max), 0) if float(info.max) > info.max else info.max
        with np.errstate(invalid="ignore"):
            return np.clip(block, info.min, high).astype(dtype)
    return np.clip(block, info.min, info.max).astype(dtype)
