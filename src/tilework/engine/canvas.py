"""Canvases: arrays to which the results of one block's tiles are added; merged and finished to a block."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._types import Array, Bits
from tilework.engine.products import AnyArray, Products, Profile, rows_of
from tilework.engine.sums import plus, quotient, real_dtype, real_parts
from tilework.errors import ContractError
from tilework.function import device_array
from tilework.function.bound import BoundOutput
from tilework.function.device_array import DeviceArray
from tilework.grid.tiles import Box
from tilework.labels.painting import NOTHING, combined
from tilework.labels.runs import check_ids

__all__ = ["Partial", "add", "check_dtype", "combine", "finish"]

# Bytes of a large page of Linux on most processors, and of an array from which on numpy asks for such pages.
PAGE, LARGE = 2**21, 2**22


@dataclass(slots=True)
class Partial:
    """The sum of the results of some tiles over one box, before normalising."""

    box: Box
    """Place of the array, result samples per grid axis."""
    array: AnyArray | None = None
    """The sum; None until the first result shows its dtype, and whether it is on a device."""
    lost: AnyArray | None = None
    """What rounding took from the sum so far, for an output whose sums are compensated; as ``array``."""
    merged: int = 0
    """Number of further parts that `combine` has added; a task that is tried again adds no part twice."""
    room: Array | None = None
    """Memory for the array, in the place where the finished block is wanted; its values mean nothing."""

    def prepare(self, output: BoundOutput, values: AnyArray, *, clear: bool = True) -> None:
        """Make the array, where ``values`` are, if there is none, and let it hold their dtype.

        Without ``clear``, its samples mean nothing before `clear`, unless it is on a device.
        """
        if self.array is not None and values.dtype == self.array.dtype:
            return
        dtype = output.accumulator(values.dtype)
        if output.kind == "trim" and output.reduce is None:
            dtype = output.dtype
        if self.array is None:
            self.array = _canvas(output, self.box, dtype, self.room, values, clear=clear)
            self._compensate(output)
        elif dtype != self.array.dtype and not np.can_cast(dtype, self.array.dtype):
            # A function may return integers for one crop and floats for the next.
            wider = np.result_type(dtype, self.array.dtype)
            # Without reduce, no result lies beyond the neutral value, the end of the declared type.
            if output.reduce and output.kind in ("max", "min") and self.array.dtype.kind != "f":
                raise ContractError(
                    f"the function returned {dtype} for one crop and {self.array.dtype} for another. With "
                    f"blend={output.kind!r} and reduce=, convert the results of all crops to {wider}."
                )
            self.array = _widened(self.array, wider)
            self.lost = None if self.lost is None else _widened(self.lost, wider)
            self._compensate(output)

    def clear(self, output: BoundOutput, index: tuple[slice, ...]) -> None:
        """Put the neutral value of the output's blend at ``index``, in an array on the host."""
        if isinstance(self.array, np.ndarray):
            self.array[index] = _neutral(output.kind, self.array.dtype)

    def _compensate(self, output: BoundOutput) -> None:
        """Make ``lost`` if the sums need it; those of integers are exact."""
        sums = self.array
        if self.lost is not None or sums is None or not output.compensated or sums.dtype.kind not in "fc":
            return
        if isinstance(sums, DeviceArray):
            self.lost = device_array.full(sums, sums.shape, sums.dtype, 0, output.held)
        else:
            self.lost = np.zeros_like(sums)

    def part(self, index: tuple[Any, ...]) -> tuple[AnyArray, AnyArray | None]:
        """Return views of the sum and of what rounding took from it."""
        assert self.array is not None
        return self.array[index], None if self.lost is None else self.lost[index]

    def view(self, output: BoundOutput, box: Box) -> tuple[AnyArray, AnyArray | None]:
        """Return `part` in ``box``."""
        return self.part(output.index(box.shift([-a for a in self.box.start]).slices))

    def crop(self, output: BoundOutput, box: Box) -> Partial:
        """Return the part in ``box``, on the host; its array is a view where it is there."""
        box = self.box.intersect(box)
        cut = self if box == self.box or self.array is None else Partial(box, *self.view(output, box))
        if not isinstance(cut.array, DeviceArray):
            return cut
        return Partial(box, cut.array.host(), device_array.as_host(cut.lost))

    @property
    def total(self) -> AnyArray:
        """The sum with what rounding took from it; may be the array."""
        assert self.array is not None
        if self.lost is None:
            return self.array
        if isinstance(self.array, DeviceArray):
            return device_array.restored(self.array, self.lost)
        total: Array = self.array.copy()
        # Inf and NaN have no remainder.
        for sums, lost in real_parts(total, self.lost):
            np.add(sums, lost, out=sums, where=np.isfinite(sums) & np.isfinite(lost))
        return total


def _widened(array: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """Return a canvas in another dtype; one on a device changes."""
    if isinstance(array, DeviceArray):
        array.widen(dtype)
        return array
    with np.errstate(invalid="ignore"):  # what was not cleared yet means nothing
        return array.astype(dtype)


def _canvas(
    output: BoundOutput,
    box: Box,
    dtype: np.dtype[Any],
    room: Array | None,
    values: AnyArray,
    *,
    clear: bool,
) -> AnyArray:
    """Return a canvas over ``box``, on the device of ``values``, or in ``room`` if it fits.

    It has the neutral value of the output's blend on a device, and elsewhere if ``clear``.
    """
    shape, neutral = output.layout(box.shape), _neutral(output.kind, dtype)
    if isinstance(values, DeviceArray):
        return device_array.full(values, shape, dtype, neutral, output.held)
    fits = room is not None and room.dtype == dtype and room.shape == shape and not output.compensated
    if fits and room is not None:
        canvas = room
    elif clear and output.kind == "trim":
        return _fresh(np.zeros, shape, dtype)  # written only: the system has such pages
    else:
        # Not np.zeros: a sum is read before it is written, so that each of its pages would be fetched twice.
        # 8 MB took 2.7 ms so, and 1.9 filled.
        canvas = _fresh(np.empty, shape, dtype)
    if clear:
        canvas[...] = neutral
    return canvas


def _fresh(make: Callable[..., Array], shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Return what `numpy.empty` or `numpy.zeros` makes, in as few pages of memory as can be.

    Large pages lie at multiples of their size. numpy asks for them, but its arrays begin anywhere: one of
    4 MB has one large page and 512 small ones, which are fetched one by one. Blocks of 1024 x 1024 float32,
    trimmed, took 159 ms of CPU for 8192 x 8192 samples, and 95 so. What lies before the array is not touched.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or dtype.hasobject or sys.platform != "linux":
        return make(shape, dtype)
    memory = make(PAGE + size, np.uint8)
    start = -memory.ctypes.data % PAGE
    canvas: Array = memory[start : start + size].view(dtype).reshape(shape)
    return canvas


def _neutral(kind: str, dtype: np.dtype[Any]) -> Any:
    """Return the neutral value of a blend."""
    if kind == "own":
        return NOTHING
    if kind not in ("max", "min"):
        return 0 if dtype.kind in "biufc" else np.zeros((), dtype)  # a record is no number
    sign = -1 if kind == "max" else 1
    if dtype.kind == "f":
        return sign * np.inf
    info = None if dtype.kind == "b" else np.iinfo(dtype)
    return sign > 0 if info is None else info.max if sign > 0 else info.min


def check_dtype(output: BoundOutput, values: Array) -> None:
    """Raise a `ContractError` if results cannot be cast to the declared dtype without a change of meaning."""
    if output.stored is not None:
        check_ids(values, "the function returned")
        return
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
    # The small floats of ml_dtypes are no floats to numpy, and take complex numbers.
    allowed = np.can_cast(have, want, "same_kind") and (have.kind != "c" or want.kind == "c")
    if output.kind != "trim":
        allowed = allowed or (have.kind in "iuf" and want.kind in "iuf")
    if not allowed:
        raise ContractError(
            f"the function returned dtype {have}; the declared dtype is {want}. Declare dtype={str(have)!r}, "
            "or convert inside the function."
        )


def add(
    output: BoundOutput,
    target: AnyArray,
    values: AnyArray,
    weights: Sequence[Profile] | None,
    products: Products,
    lost: AnyArray | None = None,
) -> None:
    """Add ``values`` to ``target`` as the output's blend says; both in the layout of the function's result.

    Parameters
    ----------
    weights : one `Profile` per tiled axis, or None
    products : Products
        Products of weights, which tiles share.
    lost : numpy.ndarray or DeviceArray, optional
        What rounding took from ``target``, which is added to.
    """
    kind = output.kind
    if isinstance(target, DeviceArray) and not output.weighted:
        _merge_there(output, target, values, lost)
    elif kind == "trim":
        np.copyto(target, values, casting="unsafe")
    elif kind in ("max", "min"):
        pick = np.maximum if kind == "max" else np.minimum
        pick(target, values, out=target, casting="unsafe")
    elif kind == "own":
        combined(target, values)
    elif kind == "sum":
        plus((target, lost), values, average=False)
    else:
        assert weights is not None
        products.add_separable(output, (target, lost), values, weights)


def _merge_there(
    output: BoundOutput, target: DeviceArray, values: AnyArray, lost: DeviceArray | None
) -> None:
    """Combine sums, or results of a blend without weights, on a device."""
    if output.kind == "trim":
        device_array.put(target, values)
    elif output.kind in ("max", "min"):
        device_array.choose(target, values, largest=output.kind == "max")
    else:
        device_array.plus(target, values, average=output.weighted, lost=lost)


def combine(output: BoundOutput, box: Box, parts: Sequence[Partial]) -> AnyArray | None:
    """Return the parts merged over ``box``, in their order; None if there are none.

    If the first part lies over ``box``, the others are added to it, and its array may be the result. It then
    counts them, so that another call with the same parts returns the same.
    """
    parts = [p for p in parts if p.array is not None and box.intersect(p.box).size]
    if not parts:
        return None
    total = Partial(box)
    if parts[0].box == box:
        total, parts = parts[0], parts[1:]
    for part in parts[total.merged :]:
        assert part.array is not None
        total.prepare(output, part.array)
        common = box.intersect(part.box)
        target, (source, lost) = total.view(output, common), part.view(output, common)
        sums = target[0]
        if isinstance(sums, DeviceArray):
            _merge_there(output, sums, source, target[1])
            if lost is not None and target[1] is not None:
                device_array.plus(target[1], lost, average=False)
            total.merged += 1
            continue
        source, lost = device_array.as_host(source), device_array.as_host(lost)
        if output.kind == "trim":
            sums[...] = source
        elif output.kind in ("max", "min"):
            (np.maximum if output.kind == "max" else np.minimum)(sums, source, out=sums)
        elif output.kind == "own":
            combined(sums, source)
        else:
            plus(target, source, average=output.weighted)
            if lost is not None and target[1] is not None:
                np.add(target[1], lost, out=target[1])
        total.merged += 1
    return total.total


def finish(
    output: BoundOutput, total: AnyArray, reached: Array | None, divisor: Array | None
) -> tuple[Array, int]:
    """Return a block of the returned array: normalised, reduced, filled and cast.

    Parameters
    ----------
    total : numpy.ndarray or DeviceArray
        Merged results in the output's layout.
    reached : numpy.ndarray of bool over the grid axes, or None
        Where any tile ran; None: everywhere.
    divisor : numpy.ndarray of float over the grid axes, or None
        Sum of the weights that ran; None: 1 everywhere.

    Returns
    -------
    numpy.ndarray, int
        The block, and the number of its samples that are ``fill_value`` because an integer cannot be NaN.
    """
    if divisor is not None:
        positive = divisor if reached is None else np.where(divisor > 0, divisor, 1)
        weights = output.spread(positive).astype(real_dtype(total.dtype), copy=False)
        there = isinstance(total, DeviceArray)
        total = device_array.divided(total, weights) if there else quotient(total, weights)
    block = device_array.as_host(total if output.reduce is None else _reduce(output, total))
    unknown = 0
    if block.dtype != output.dtype:
        block, unknown = _cast(block, output)
    if reached is not None and not reached.all():
        fill = np.asarray(output.fill_value, output.dtype)
        block = _chosen(output.spread(reached, reduced=True), block, fill)
    return block, unknown


def _chosen(bits: Bits, block: Array, fill: Array) -> Array:
    """Return ``block`` where bits are true, and elsewhere ``fill``, of the same dtype.

    It has no branches: where bits are at random, which no processor foresees, np.where takes ten times as
    long.
    """
    word = np.dtype(f"u{block.itemsize}") if block.itemsize in (1, 2, 4, 8) else None
    if word is None or block.dtype.hasobject:
        return np.where(bits, block, fill).astype(block.dtype, copy=False)  # which loses the byte order
    chosen, other = np.empty_like(block, order="C"), fill.view(word)
    for rows in rows_of(block.shape, 0):
        keep = np.negative((bits[rows] if bits.shape[0] > 1 else bits).astype(word))
        part = chosen[rows].view(word)
        np.bitwise_xor(block[rows].view(word), other, out=part)
        part &= keep
        part ^= other
    return chosen


def _reduce(output: BoundOutput, total: AnyArray) -> Array:
    n = output.n_each
    if output.reduce == "argmax":
        assert output.channel_axis is not None
        if isinstance(total, DeviceArray):
            return device_array.largest(total, n + output.channel_axis)
        return _largest(total, n + output.channel_axis)
    assert callable(output.reduce)
    lead = total.shape[:n]
    blocks = [np.asarray(output.reduce(total[i])) for i in np.ndindex(*lead)]
    lengths = [total.shape[n + a] for a in output.axes]
    expected = output.layout([*lead, *lengths], reduced=True)[n:]
    for block in blocks:
        if block.shape != expected:
            raise ContractError(f"reduce returned shape {block.shape} for a block; expected {expected}.")
    return np.stack(blocks).reshape(*lead, *expected) if lead else blocks[0]


def _largest(total: Array, axis: int) -> Array:
    """Return the number of the largest value along an axis, piece by piece: numpy copies what it looks at."""
    values = np.moveaxis(total, axis, -1)
    if values.ndim == 1:
        return np.asarray(values.argmax())
    found = np.empty(values.shape[:-1], np.intp)
    for rows in rows_of(values.shape, 0):
        found[rows] = values[rows].argmax(axis=-1)
    return found


def _cast(block: Array, output: BoundOutput) -> tuple[Array, int]:
    """Return ``block`` in the output's dtype, and how many samples were NaN that an integer cannot hold.

    Integers are rounded half to even and clipped at the ends of their type. NaN becomes the fill value.
    """
    dtype, kind = output.dtype, block.dtype.kind
    if dtype.kind not in "iu" or kind == "b":
        return block.astype(dtype), 0
    info = np.iinfo(dtype)
    if kind in "iu":
        own = np.iinfo(block.dtype)
        return np.clip(block, max(info.min, own.min), min(info.max, own.max)).astype(dtype), 0
    if kind != "f":
        raise ContractError(f"reduce returned dtype {block.dtype}; the declared dtype is {dtype}.")
    block = np.rint(block)
    # Powers of two, which every floating-point type holds, unlike the largest integers themselves.
    low, high = np.float64(info.min), np.float64(2.0 ** (8 * dtype.itemsize - (dtype.kind == "i")))
    if not block.size or (float(block.min()) >= low and float(block.max()) < high):
        return block.astype(dtype), 0
    unknown = np.isnan(block)
    with np.errstate(invalid="ignore"):
        result = block.astype(dtype)
    result[block <= low] = info.min
    result[block >= high] = info.max
    result[unknown] = output.fill_value
    return result, int(unknown.sum())
