"""Arrays on a device, and what the engine does to them: the same sums, in the same order, as on the host.

A canvas on a device is the base of the views that tiles are added to. It can move to the host at any time
between two operations (`DeviceArray.leave`), so a view looks its tensor up when it is used. Every operation
holds the lane of the device.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from tilework._types import Array
from tilework.errors import ContractError, TilingError
from tilework.function.device_memory import is_out_of_memory, register, with_room
from tilework.function.devices import device_lock, device_name

__all__ = [
    "DeviceArray",
    "Weights",
    "add_weighted",
    "as_host",
    "choose",
    "divided",
    "full",
    "largest",
    "plus",
    "put",
    "restored",
]

T = TypeVar("T")

# Samples that are multiplied and added at a time: what the device holds beside canvas and result.
PIECE = 2**24


class DeviceArray:
    """A torch tensor with the attributes of a numpy array that the engine uses."""

    __slots__ = ("__weakref__", "_base", "_held", "_index", "_left", "_tensor", "dtype", "home", "shape")

    def __init__(self, tensor: Any, base: DeviceArray | None = None, index: Any = None) -> None:
        self._tensor: Any = tensor if base is None else None
        self._base, self._index = base, index
        self._held: dict[Any, Any] = {}
        self._left = False
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.dtype: np.dtype[Any] = _dtype_of(tensor.dtype) if base is None else base.dtype
        self.home: Any = tensor.device if base is None else base.home
        """The device on which it was made."""

    @property
    def tensor(self) -> Any:
        """The tensor, where it is now."""
        return self._tensor if self._base is None else self._base.tensor[self._index]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of samples."""
        return math.prod(self.shape)

    def __getitem__(self, index: Any) -> DeviceArray:
        return DeviceArray(self.tensor[index], self, index)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has another device, or none.
        return np.asarray, (self.host(),)

    def min(self) -> Any:
        """Return the smallest sample."""
        return with_room(lambda: self._ordered().min().item(), self.home)

    def max(self) -> Any:
        """Return the largest sample."""
        return with_room(lambda: self._ordered().max().item(), self.home)

    def _ordered(self) -> Any:
        # Torch does not compare unsigned integers of more than 8 bits.
        return self.tensor.long() if self.dtype.kind == "u" and self.dtype.itemsize < 8 else self.tensor

    def host(self) -> Array:
        """Return the samples in memory of the host."""
        with device_lock([device_name(self.home)]):
            array: Array = self.tensor.cpu().numpy()
        return array

    def copy(self) -> Array:
        """Return a copy in memory of the host."""
        return self.host().copy()

    def widen(self, dtype: np.dtype[Any]) -> None:
        """Change the dtype of a canvas."""
        with device_lock([device_name(self.home)]):
            self._tensor = with_room(lambda: self._tensor.to(_torch_dtype(dtype)), self.home)
            self.dtype = dtype

    def leave(self, device: str) -> bool:
        """Move a canvas to the host if it is on ``device``, and what its output makes from now on."""
        if self._left or device_name(self.home) != device:
            return False
        self._tensor, self._left, self._held[_HOST] = self._tensor.cpu(), True, True
        return True


# Key of the mark of an output whose canvases are on the host.
_HOST = "canvases on the host"


def as_host(array: Any) -> Any:
    """Return an array of either kind in memory of the host."""
    return array.host() if isinstance(array, DeviceArray) else array


@functools.cache
def _dtype_of(dtype: Any) -> np.dtype[Any]:
    """Return numpy's dtype of a dtype of torch, which has the same name."""
    return np.dtype(str(dtype).removeprefix("torch."))


@functools.cache
def _torch_dtype(dtype: np.dtype[Any]) -> Any:
    """Return torch's dtype of a dtype of numpy."""
    return getattr(sys.modules["torch"], dtype.name)


def full(
    like: DeviceArray, shape: tuple[int, ...], dtype: np.dtype[Any], value: Any, held: dict[Any, Any]
) -> DeviceArray:
    """Return a canvas on the device of ``like``, or on the host if those of its output have moved there.

    Parameters
    ----------
    held : dict
        What the process keeps of the output.
    """
    torch: Any = sys.modules["torch"]

    def make() -> Any:
        place = "cpu" if held.get(_HOST) else like.home
        try:
            return torch.full(shape, value, dtype=_torch_dtype(dtype), device=place)
        except TypeError as error:  # Metal has no numbers of 64 bits
            raise TilingError(
                f"{like.home} has no {dtype}, in which these results are added up ({error}). Use "
                "on_device=False."
            ) from None

    def marked() -> Any:
        try:
            return make()
        except RuntimeError as error:
            if is_out_of_memory(error):
                held[_HOST] = True  # the canvas is not there yet, so it cannot move
            raise

    with device_lock([device_name(like.home)]):
        made = DeviceArray(with_room(marked, like.home))
        made.home, made._held, made._left = like.home, held, bool(held.get(_HOST))
        register(made)
    return made


# -- operations -------------------------------------------------------------------------------------------


def _in_place(targets: Sequence[DeviceArray], source: Any, change: Callable[..., Sequence[Any]]) -> None:
    """Set ``targets``, of one shape, to ``change(source, index, *targets)``, piece by piece.

    What a piece needs is there before a canvas changes, so that it may be repeated.
    """
    for index in _pieces(targets[0].shape):

        def act(index: Any = index) -> None:
            canvases = [target.tensor[index] for target in targets]
            values = source[index]
            values = values.tensor if isinstance(values, DeviceArray) else _tensor(values)
            results = change(values.to(canvases[0].device), index, *canvases)
            for canvas, result in zip(canvases, results, strict=True):
                canvas.copy_(result)

        with_room(act, targets[0].home)


def _tensor(array: Array) -> Any:
    torch: Any = sys.modules["torch"]
    return torch.from_numpy(np.require(array, requirements="W"))


def _pieces(shape: Sequence[int]) -> Iterator[Any]:
    """Yield indices of pieces of about `PIECE` samples."""
    rows = max(1, PIECE // max(1, math.prod(shape[1:])))
    for a in range(0, shape[0], rows):
        yield (slice(a, a + rows),)


def put(target: DeviceArray, values: Any) -> None:
    """Copy values, cast as numpy does."""
    _in_place([target], values, lambda new, index, canvas: [new.to(canvas.dtype)])


def choose(target: DeviceArray, values: Any, *, largest: bool) -> None:
    """Keep the larger, or smaller, of each pair of samples; NaN wins, and of zeros of both signs either."""
    torch: Any = sys.modules["torch"]
    pick = torch.maximum if largest else torch.minimum
    _in_place([target], values, lambda new, index, canvas: [pick(canvas, new.to(canvas.dtype))])


def plus(target: DeviceArray, values: Any, *, average: bool, lost: DeviceArray | None = None) -> None:
    """Add values, to the bit as `engine.sums.plus` does on the host.

    Parameters
    ----------
    average : bool
        Whether weights sum to 1, so that finite values do not give inf.
    lost : DeviceArray, optional
        What rounding took from ``target``, which is added to.
    """
    torch: Any = sys.modules["torch"]

    def change(new: Any, index: Any, canvas: Any, *more: Any) -> Sequence[Any]:
        new = new.to(canvas.dtype)
        if new.is_complex():
            # Torch multiplies what it adds by a complex 1, which makes NaN of inf.
            parts = [torch.view_as_real(one) for one in (canvas, *more)]
            return [torch.view_as_complex(one) for one in change(torch.view_as_real(new), index, *parts)]
        if average or more or _is_integer(canvas):
            return _sum(average, new, canvas, *more)
        return [canvas.add_(new)]  # needs no memory

    _in_place([target] if lost is None else [target, lost], values, change)


def _is_integer(tensor: Any) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _sum(average: bool, values: Any, canvas: Any, lost: Any = None) -> Sequence[Any]:
    """Return the sum and, with ``lost``, what rounding took from it so far."""
    if _is_integer(canvas):
        return [_saturated(canvas, values)]
    total = canvas + values
    if average:
        total = _finite(total, canvas, values)
    if lost is None:
        return [total]
    own = total - canvas  # Knuth's two-sum
    return [total, lost + ((canvas - (total - own)) + (values - own))]


def _saturated(sums: Any, values: Any) -> Any:
    """Return the sum of integers of 64 bits; what would wrap around is at the end of the type."""
    torch: Any = sys.modules["torch"]
    dtype = sums.dtype
    # Torch neither adds nor compares unsigned integers, whose sums have the bits of signed ones.
    sums, values = sums.view(torch.int64), values.view(torch.int64)
    total = sums + values
    least, most = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    if dtype is torch.uint64:
        return torch.where((total ^ least) < (sums ^ least), -1, total).view(dtype)
    end = torch.where(sums < 0, least, most)
    return torch.where(((sums ^ total) & (values ^ total)) < 0, end, total)


def _finite(result: Any, *operands: Any) -> Any:
    torch: Any = sys.modules["torch"]
    over = torch.isinf(result)
    for operand in operands:
        over &= torch.isfinite(operand)
    most = torch.full((), torch.finfo(result.dtype).max, dtype=result.dtype, device=result.device)
    return torch.where(over, torch.copysign(most, result), result)


class Weights:
    """Weights of a whole crop as two factors that broadcast over a result, on any device."""

    def __init__(self, product: Array, positive: bool, scalars: Array | None = None) -> None:
        self._factors = [product] if scalars is None else [product, scalars]
        self._positive = positive and (scalars is None or bool(scalars.min(initial=1) > 0))
        self._there: dict[str, list[Any]] = {}
        self.nbytes = sum(f.nbytes for f in self._factors)

    def on(self, device: Any) -> list[Any]:
        """Return the factors on a device."""
        found = self._there.get(str(device))
        if found is None:
            found = [_tensor(np.ascontiguousarray(f)).to(device) for f in self._factors]
            self._there[str(device)] = found
        return found

    def times(self, values: Any, part: Sequence[slice]) -> Any:
        """Return values times a part of the weights; samples of weight 0 are 0, because 0 * inf is NaN."""
        torch: Any = sys.modules["torch"]
        where = None
        for factor in self.on(values.device):
            one = tuple(s if n > 1 else slice(None) for s, n in zip(part, factor.shape, strict=True))
            weights = factor[one]
            values = values * weights
            if not self._positive:
                where = weights > 0 if where is None else where & (weights > 0)
        return values if where is None else torch.where(where, values, 0)


def add_weighted(
    target: DeviceArray,
    values: DeviceArray,
    weights: Weights,
    part: Sequence[slice],
    lost: DeviceArray | None = None,
) -> None:
    """Add values times the part of the weights that belongs to them, to the bit as on the host.

    ``lost`` is as in `plus`.
    """
    if target.dtype.kind != "f":
        raise ContractError(
            f"the function returned dtype {values.dtype}, which on_device=True cannot average; return real "
            "numbers, or use on_device=False."
        )

    def change(new: Any, index: Any, canvas: Any, *more: Any) -> Sequence[Any]:
        rows = (_within(part[0], index[0]), *part[1:])
        wide = _wider(new.dtype, canvas.dtype)
        return _sum(True, weights.times(new.to(wide), rows).to(canvas.dtype), canvas, *more)

    _in_place([target] if lost is None else [target, lost], values, change)


def _within(part: slice, rows: slice) -> slice:
    """Return rows of a part as rows of the whole."""
    start = part.start or 0
    return slice(
        start + rows.start, start + rows.stop if part.stop is None else min(part.stop, start + rows.stop)
    )


@functools.cache
def _wider(values: Any, weights: Any) -> Any:
    """Return the dtype in which numpy multiplies values by weights."""
    return _torch_dtype(np.result_type(_dtype_of(values), _dtype_of(weights)))


def divided(total: DeviceArray, weights: Array) -> DeviceArray:
    """Return sums divided by the sums of their weights."""

    def act() -> Any:
        sums = total.tensor
        return _finite(sums / _tensor(np.ascontiguousarray(weights)).to(sums.device), sums)

    return DeviceArray(with_room(act, total.home))


def restored(sums: DeviceArray, lost: DeviceArray) -> DeviceArray:
    """Return sums with what rounding took from them; inf and NaN have no remainder."""
    torch: Any = sys.modules["torch"]

    def act() -> Any:
        one, other = sums.tensor, lost.tensor
        if one.is_complex():
            one, other = torch.view_as_real(one), torch.view_as_real(other)
        total = torch.where(torch.isfinite(one) & torch.isfinite(other), one + other, one)
        return torch.view_as_complex(total) if sums.dtype.kind == "c" else total

    return DeviceArray(with_room(act, sums.home))


def largest(total: DeviceArray, axis: int) -> Array:
    """Return the number of the largest sample along an axis, on the host; the first of them, or of NaN."""
    torch: Any = sys.modules["torch"]
    n = total.shape[axis]
    small = torch.uint8 if n <= 2**8 else torch.int16 if n <= 2**15 else torch.int32

    def act() -> Any:
        values = total.tensor
        if total.dtype.kind in "bu" and total.dtype.itemsize < 8:
            values = values.to(torch.int32 if total.dtype.itemsize < 4 else torch.int64)
        return values.argmax(dim=axis).to(small)

    return DeviceArray(with_room(act, total.home)).host()
