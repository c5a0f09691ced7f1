"""Canvases: results of one block's tiles, weighted, added up, merged with their neighbours', finished."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework.errors import ContractError
from tilework.function.output import BoundOutput
from tilework.grid.tiles import Box
from tilework.grid.weights import AxisWeights

__all__ = ["Layer", "Partial", "add", "allocate", "combine", "finish"]

Array = np.ndarray[Any, Any]

# Samples multiplied and added at a time: a piece of the result, its weights and the product stay in the
# processor's cache, so that memory is crossed once.
PIECE = 2**16
# Samples of weights that are held as one product; longer crops take further axes as scalars.
PRODUCT = 2**18
# Products of weights kept while one block runs; its tiles need few, and each is at most a piece.
HELD = 32


@dataclass(slots=True)
class Layer:
    """One output with its weights: all that adding up its results needs."""

    bound: BoundOutput
    weights: tuple[AxisWeights, ...]
    """Per grid axis: where results stand; with a window where the blend is weighted and separable."""
    importance: Array | None
    """N-D weights over the tiled axes of a full crop's result; None where separable."""
    n_each: int
    """How many grid axes are ``each`` axes."""

    @property
    def weighted(self) -> bool:
        """Whether results are multiplied by weights."""
        return self.bound.kind not in ("trim", "max", "min", "sum")

    def region(self, box: Box) -> Box:
        """Return an image box in result samples."""
        return Box(
            tuple(w.scaled(a) for w, a in zip(self.weights, box.start, strict=True)),
            tuple(w.scaled(b) for w, b in zip(self.weights, box.stop, strict=True)),
        )

    def index(self, spans: Sequence[slice], axes: Sequence[int] | None = None) -> tuple[slice, ...]:
        """Return slices per grid axis as an index into an array of the output's layout."""
        axes = self.bound.axes if axes is None else axes
        index = [*spans[: self.n_each], *[slice(None)] * len(self.bound.shape)]
        for axis, span in zip(axes, spans[self.n_each :], strict=True):
            index[self.n_each + axis] = span
        return tuple(index)

    def layout(self, lengths: Sequence[int], *, reduced: bool = False) -> tuple[int, ...]:
        """Return the shape of an array of this output with ``lengths`` per grid axis."""
        bound = self.bound
        shape = list(bound.reduced_shape if reduced else bound.shape)
        for axis, n in zip(
            bound.reduced_axes if reduced else bound.axes, lengths[self.n_each :], strict=True
        ):
            shape[axis] = n
        return (*lengths[: self.n_each], *shape)

    def spread(self, flat: Array, *, reduced: bool = False) -> Array:
        """Return an array over the grid axes so that it broadcasts over the output's layout."""
        bound = self.bound
        axes, shape = (bound.reduced_axes, bound.reduced_shape) if reduced else (bound.axes, bound.shape)
        return spread(flat, axes, len(shape), self.n_each)


def spread(flat: Array, axes: Sequence[int], ndim: int, n_each: int = 0) -> Array:
    """Return ``flat`` (``each`` axes, tiled axes) with its tiled axes at ``axes`` of ``ndim`` others."""
    order = sorted(range(len(axes)), key=lambda t: axes[t])
    flat = flat.transpose([*range(n_each), *(n_each + t for t in order)])
    return np.expand_dims(flat, [n_each + a for a in range(ndim) if a not in axes])


@dataclass(slots=True)
class Partial:
    """The sum of some tiles' results over one box, not normalised with others' yet."""

    box: Box
    """Where it stands, result samples per grid axis."""
    array: Array | None = None
    """None until the first result tells the dtype."""

    def view(self, layer: Layer, box: Box) -> Array:
        """Return the part of the array in ``box``."""
        assert self.array is not None
        inner = box.shift([-a for a in self.box.start])
        return self.array[layer.index(inner.slices)]

    def crop(self, layer: Layer, box: Box) -> Partial:
        """Return a copy of the part in ``box``: a view would keep the whole canvas alive."""
        box = self.box.intersect(box)
        if self.array is None or not box.size:
            return Partial(box)
        return Partial(box, self.view(layer, box).copy())


def allocate(layer: Layer, box: Box, values: np.dtype[Any]) -> Array:
    """Return a canvas over ``box`` with the neutral value of the output's blend."""
    bound = layer.bound
    dtype = bound.dtype if bound.kind == "trim" and bound.reduce is None else bound.accumulator(values)
    shape = layer.layout(box.shape)
    if bound.kind not in ("max", "min"):
        return np.zeros(shape, dtype)
    sign = -1 if bound.kind == "max" else 1
    if dtype.kind == "b":
        return np.full(shape, sign > 0)
    if dtype.kind == "f":
        return np.full(shape, sign * np.inf, dtype)
    info = np.iinfo(dtype)
    return np.full(shape, info.max if sign > 0 else info.min, dtype)


def check_dtype(bound: BoundOutput, values: Array) -> None:
    """Raise a `ContractError` where results cannot become the declared dtype without changing meaning."""
    have, want = values.dtype, bound.dtype
    if bound.reduce is not None or have == want:
        return
    if bound.kind == "trim" and have.kind in "iu" and want.kind in "iu" and not np.can_cast(have, want):
        info = np.iinfo(want)
        if values.size and (values.min() < info.min or values.max() > info.max):
            raise ContractError(
                f"the function returned {have} values from {values.min()} to {values.max()}; the declared "
                f"dtype {want} "
                "cannot hold them."
            )
        return
    allowed = np.can_cast(have, want, "same_kind")
    if bound.kind != "trim":
        allowed = allowed or (have.kind in "iuf" and want.kind in "iuf")
    if not allowed:
        raise ContractError(
            f"the function returned dtype {have}; the declared dtype is {want}. Declare dtype={str(have)!r}, "
            "or "
            "convert inside the function."
        )


def add(
    layer: Layer,
    target: Array,
    values: Array,
    weights: Sequence[Array] | Array | None,
    held: dict[Any, Any],
) -> None:
    """Add ``values`` to ``target`` as the output's blend says; both in the layout of the function's result.

    Parameters
    ----------
    weights : one 1-D array per tiled axis, or one N-D array over the tiled axes, or None
    held : dict
        Products of weights that neighbouring tiles share.
    """
    kind = layer.bound.kind
    if kind == "trim":
        np.copyto(target, values, casting="unsafe")
    elif kind in ("max", "min"):
        pick = np.maximum if kind == "max" else np.minimum
        pick(target, values, out=target, casting="unsafe")
    elif kind == "sum":
        np.add(target, values, out=target, casting="unsafe")
    elif isinstance(weights, np.ndarray):
        product = spread(weights.astype(_real(target.dtype)), layer.bound.axes, values.ndim)
        _add_product(target, values, product, bool(product.min() > 0))
    else:
        assert weights is not None
        _add_separable(layer.bound, target, values, weights, held)


def _real(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.empty(0, dtype).real.dtype


def _add_separable(
    bound: BoundOutput,
    target: Array,
    values: Array,
    weights: Sequence[Array],
    held: dict[Any, Any],
) -> None:
    """Add ``values`` times the outer product of ``weights``, piece by piece.

    Which axes are multiplied as a product and which as scalars depends on the full crop's shape alone, so
    that a part of a result gets the same bits as the whole.
    """
    by_axis = dict(zip(bound.axes, weights, strict=True))
    ndim = len(bound.shape)
    split = next(a for a in range(ndim) if a == ndim - 1 or math.prod(bound.shape[a:]) <= PRODUCT)
    real = _real(target.dtype)
    product, positive = _product(by_axis, range(split, ndim), ndim, real, held)
    if split == 0 and values.size <= PIECE:
        _add_product(target, values, product, positive)
        return
    scratch = np.empty(PIECE, np.result_type(values, real))
    if split == 0:
        for rows in _slabs(values.shape, 0):
            part = product[rows] if product.shape[0] > 1 else product
            _add_product(target[rows], values[rows], part, positive, None, scratch)
        return
    along = by_axis.get(split - 1, np.ones(values.shape[split - 1]))
    for index in np.ndindex(*values.shape[: split - 1]):
        factor = math.prod((float(by_axis[a][i]) for a, i in enumerate(index) if a in by_axis), start=1.0)
        scalars = (factor * along).astype(real).reshape((-1,) + (1,) * (ndim - split))
        for rows in _slabs(values.shape, split - 1):
            _add_product(target[index][rows], values[index][rows], product, positive, scalars[rows], scratch)


def _product(
    by_axis: dict[int, Array], axes: range, ndim: int, real: np.dtype[Any], held: dict[Any, Any]
) -> tuple[Array, bool]:
    """Return the outer product of the weights along ``axes`` and whether none is 0.

    It is taken from ``held`` if neighbours had it too.
    """
    weights = [by_axis[a] for a in axes if a in by_axis]
    key = (real, *map(id, weights))
    found = held.get(key)
    if found is None:
        if len(held) >= HELD:
            held.clear()
        product = np.ones((1,) * len(axes))
        for a in filter(by_axis.__contains__, axes):
            product = product * by_axis[a].reshape((-1,) + (1,) * (ndim - a - 1))
        product = product.astype(real)
        # The weights are kept with their product: while they live no other array has their id.
        found = held[key] = product, bool(product.min() > 0), weights
    return found[:2]


def _slabs(shape: Sequence[int], axis: int) -> Iterator[slice]:
    """Yield slices along ``axis`` of pieces of about `PIECE` samples."""
    rows = max(1, PIECE // max(1, math.prod(shape[axis + 1 :])))
    return (slice(a, a + rows) for a in range(0, shape[axis], rows))


def _add_product(
    target: Array,
    values: Array,
    weights: Array,
    positive: bool,
    scalars: Array | None = None,
    scratch: Array | None = None,
) -> None:
    """Add ``values * weights * scalars``; what has weight 0 is left out, because 0 * inf is NaN.

    ``positive`` says that no weight is 0, which takes as long to find out as to multiply.

    Memory for the products is taken from ``scratch``, because fresh pages cost more than the arithmetic.
    """
    dtype = np.result_type(values, weights)
    if scratch is not None and scratch.dtype == dtype and scratch.size >= target.size:
        piece = scratch[: target.size].reshape(target.shape)
    else:
        piece = np.empty(target.shape, dtype)
    where: Any = True
    if not (positive and (scalars is None or scalars.min() > 0)):
        where = weights > 0 if scalars is None else (weights > 0) & (scalars > 0)
        where = np.broadcast_to(where, target.shape)
        piece[...] = 0
    np.multiply(values, weights, out=piece, where=where)
    if scalars is not None:
        np.multiply(piece, scalars, out=piece, where=where)
    np.add(target, piece, out=target, casting="unsafe")


def combine(layer: Layer, box: Box, parts: Sequence[Partial]) -> Array | None:
    """Return the parts merged over ``box``, in their order; None where there is none."""
    parts = [p for p in parts if p.array is not None and box.intersect(p.box).size]
    if not parts:
        return None
    first = parts[0]
    assert first.array is not None
    if len(parts) == 1 and first.box == box:
        return first.array
    if first.box.intersect(box) == box:
        total = Partial(box, first.view(layer, box).copy())
        parts = parts[1:]
    else:
        total = Partial(box, allocate(layer, box, first.array.dtype))
    for part in parts:
        common = box.intersect(part.box)
        target, source = total.view(layer, common), part.view(layer, common)
        if layer.bound.kind == "trim":
            target[...] = source
        elif layer.bound.kind in ("max", "min"):
            (np.maximum if layer.bound.kind == "max" else np.minimum)(target, source, out=target)
        else:
            target += source
    return total.array


def finish(layer: Layer, total: Array, reached: Array | None, divisor: Array | None) -> Array:
    """Return a block of the returned array: normalised, reduced, filled and cast.

    Parameters
    ----------
    total : numpy.ndarray
        Merged results in the output's layout.
    reached : numpy.ndarray of bool over the grid axes, or None
        Where some tile ran; None: everywhere.
    divisor : numpy.ndarray of float over the grid axes, or None
        Sum of the weights that ran; None: 1 everywhere.
    """
    bound = layer.bound
    if divisor is not None:
        total = total / layer.spread(np.where(divisor > 0, divisor, 1)).astype(_real(total.dtype))
    block = _reduce(layer, total) if bound.reduce is not None else total
    if block.dtype != bound.dtype:
        block = _cast(block, bound.dtype)
    if reached is not None and not reached.all():
        fill = np.asarray(bound.fill_value, bound.dtype)
        block = np.where(layer.spread(reached, reduced=True), block, fill)
        block = block.astype(bound.dtype, copy=False)  # np.where forgets the byte order
    return block


def _reduce(layer: Layer, total: Array) -> Array:
    bound, n = layer.bound, layer.n_each
    if bound.reduce == "argmax":
        assert bound.channel_axis is not None
        return np.asarray(total.argmax(axis=n + bound.channel_axis))
    assert callable(bound.reduce)
    lead = total.shape[:n]
    blocks = [np.asarray(bound.reduce(total[i])) for i in np.ndindex(*lead)]
    lengths = [total.shape[n + a] for a in bound.axes]
    expected = layer.layout([*lead, *lengths], reduced=True)[n:]
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
