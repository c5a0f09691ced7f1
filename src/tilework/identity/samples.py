"""Where the samples of an array are, so that nothing is written into the array that is read."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tilework._checks import attribute, brief, has
from tilework._types import Array, Index
from tilework.errors import TilingError
from tilework.formats.labelled import is_labelled
from tilework.function.calling import from_tensor, is_tensor
from tilework.source.base import Source
from tilework.source.on_disk import FileSource, H5Source

__all__ = ["assign", "check_samples", "dtype_of", "same_array", "view_of_tensor", "writable"]

Bytes = tuple[str, int, int]
"""A file, and the first and last byte in it, the latter excluded."""
# Steps after which numpy gives up to find out whether two arrays share memory.
WORK: Any = 10**4  # its stubs know only two special values


def writable(what: str, array: Any) -> Any:
    """Return an array to write into; of a tensor or a variable of xarray, the numpy array of its memory.

    Parameters
    ----------
    what : str
        Name of the argument, for messages.
    array : array

    Raises
    ------
    TilingError
        If it is read-only, if some of its samples are one, or if numpy cannot write into its memory.
    TypeError
        If it is lazy: it would take no samples.
    """
    check_samples(what, array)
    if is_tensor(array):
        memory = view_of_tensor(array)
        if memory is None:
            raise TilingError(
                f"{what} is a tensor of {array.dtype} on {array.device} that numpy cannot write into; give "
                "a numpy array, and convert it then: torch.from_numpy(array)."
            )
        return memory
    if is_labelled(array):
        data = attribute(array, "variable", array).data
        return data if isinstance(data, np.ndarray) else array
    return array


def check_samples(what: str, array: Any) -> None:
    """Raise unless an array to write into takes every sample, at a place of its own.

    Of arrays that are neither of numpy, torch nor xarray, nothing is known.

    Raises
    ------
    TilingError
        If it is read-only, or if some of its samples are one.
    TypeError
        If it is lazy: it would take no samples.
    """
    if is_labelled(array):
        variable = attribute(array, "variable", array)
        if _is_lazy(variable):
            raise TypeError(f"{what} must be an array that holds data; got {brief(array)}: load it first.")
        if type(variable).__name__ == "IndexVariable":
            raise TilingError(f"{what} is an index of xarray, which nothing can be written into.")
        array = variable.data
    one = False
    if isinstance(array, np.ndarray):
        if not array.flags.writeable:
            raise TilingError(f"{what} is read-only; open it for writing (mode='r+' for a memmap).")
        one = _repeats(array.shape, array.strides, array.itemsize)
    elif (dataset := _dataset(array)) is not None and dataset.file.mode == "r":
        raise TilingError(f"{what} is read-only; open its file for writing: h5py.File(path, 'r+').")
    elif is_tensor(array):
        if array.is_meta or str(array.layout) != "torch.strided":
            where = "on meta" if array.is_meta else f"of layout {str(array.layout)[6:]}"
            raise TilingError(
                f"{what} is a tensor {where}, which takes no samples; give a dense one that does."
            )
        size = array.element_size()
        one = _repeats(tuple(array.shape), tuple(size * step for step in array.stride()), size)
    if one:
        raise TilingError(f"several samples of {what} are one in memory; give an array that holds all.")


def view_of_tensor(tensor: Any) -> Array | None:
    """Return the memory of a tensor; None if numpy has no such array, or cannot reach it."""
    if tensor.device.type != "cpu" or str(tensor.layout) != "torch.strided":
        return None
    try:
        array = from_tensor(tensor)
        return array if array.__array_interface__["data"][0] == tensor.data_ptr() else None
    except (TilingError, RuntimeError, TypeError):
        return None


def dtype_of(array: Any) -> np.dtype[Any]:
    """Return the dtype in which numpy has what is written into an array or tensor."""
    return np.dtype(from_tensor(array.new_empty(0)).dtype if is_tensor(array) else array.dtype)


def assign(array: Any, place: tuple[slice, ...], values: Array) -> None:
    """Write samples to a place of an array or tensor, which may need a gradient."""
    if not is_tensor(array):
        array[place] = values
        return
    torch: Any = sys.modules["torch"]
    own = torch.from_numpy(np.require(values, dtype_of(array), ["C", "W"]))
    array.detach()[place] = own.to(array.device, array.dtype)


def same_array(one: Any, other: Any) -> bool:
    """Return whether two arrays share samples, as far as that is known without reading them.

    Each is an array or a source. What an array of another library is a view of is known if it has a buffer.
    """
    first, second = _handle(one), _handle(other)
    if first is second:
        return first is not None
    if _device(first) != _device(second):
        return False
    mine, theirs = _memory(first), _memory(second)
    if mine is not None and theirs is not None:
        if _overlap(mine, theirs):
            return True
        if _root(mine) is _root(theirs):
            return False
    a, b = _bytes(one, mine), _bytes(other, theirs)
    if a is not None and b is not None:
        return a[1] < b[2] and b[1] < a[2] and _same_file(a[0], b[0])
    datasets = _dataset(first), _dataset(second)
    if None not in datasets and datasets[0] == datasets[1]:
        return True
    return not set(_places(one, datasets[0])).isdisjoint(_places(other, datasets[1]))


def _handle(array: Any) -> Any:
    """Return the object that a source slices."""
    return array.handle if isinstance(array, Source) else array


# -- in memory --------------------------------------------------------------------------------------------


def _memory(array: Any) -> Array | None:
    """Return an array of numpy with the addresses of an array; None if it has none, or they are not known."""
    if isinstance(array, np.ndarray):
        return array
    if is_tensor(array):
        return _addresses(array)
    if is_labelled(array):
        variable = attribute(array, "variable", array)
        return None if _is_lazy(variable) else _memory(variable.data)
    if type(array).__module__.partition(".")[0] == "pandas":
        return np.asarray(array)
    try:
        buffer = array if has(array, "__array_interface__") else memoryview(array)
        return np.asarray(buffer)
    except (AttributeError, BufferError, TypeError, ValueError):
        return None


def _is_lazy(variable: Any) -> bool:
    """Return whether the samples of a variable of xarray are not in memory."""
    return not attribute(variable, "_in_memory") and not isinstance(attribute(variable, "_data"), np.ndarray)


class _Addresses:
    """What numpy asks for the place of samples in memory; the samples are never looked at."""

    def __init__(self, tensor: Any) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "data": (tensor.data_ptr(), True),
            "shape": tuple(tensor.shape),
            "strides": tuple(size * step for step in tensor.stride()),
        }


def _addresses(tensor: Any) -> Array | None:
    """Return an array with the addresses of a tensor, on any device and of any dtype; None if it has none."""
    try:
        return np.asarray(_Addresses(tensor)) if tensor.data_ptr() else None
    except (RuntimeError, TypeError):
        return None  # it has no memory of its own: sparse, nested, or not there


def _device(array: Any) -> str:
    """Return where an array is, if its addresses are not those of this process."""
    return str(array.device) if is_tensor(array) and array.device.type != "cpu" else ""


def _overlap(one: Array, other: Array) -> bool:
    """Return whether two arrays share samples, also where it takes too long to find out that they do not."""
    try:
        return np.shares_memory(one, other, WORK)
    except np.exceptions.TooHardError:
        return True


def _repeats(shape: Index, strides: Index, size: int) -> bool:
    """Return whether samples of an array share bytes; False where it takes too long to find out.

    If two samples do, so do two at the same distance that lie at 0 on all axes before the first on which they
    differ, and one of them on this axis, too. So, axis by axis, the first place is compared with all others.
    """
    if 0 in shape:
        return False
    # The longest step first: nearly always, the others then lie within it, and bounds are compared.
    axes = sorted((axis for axis, n in enumerate(shape) if n > 1), key=lambda a: -abs(strides[a]))
    lengths, steps = [shape[a] for a in axes], [abs(strides[a]) for a in axes]
    reach = size + sum((n - 1) * step for n, step in zip(lengths, steps, strict=True))
    if math.prod(lengths) * size > reach:
        return True
    # Only its addresses are looked at, never what is there.
    left = np.lib.stride_tricks.as_strided(np.empty(1, f"V{size}"), lengths, steps)
    try:
        while left.ndim:
            if np.shares_memory(left[1:], left[:1], WORK):
                return True
            left = left[0, ...]
    except np.exceptions.TooHardError:
        return False
    return False


# -- in files ---------------------------------------------------------------------------------------------


def _root(array: Array) -> Any:
    """Return what holds the memory of an array."""
    root: Any = array
    while isinstance(root, np.ndarray) and root.base is not None:
        root = root.base
    return root


def _bytes(array: Any, memory: Array | None) -> Bytes | None:
    """Return the bytes of a file that an array or source maps."""
    if isinstance(array, FileSource):
        steps = zip(array.shape, array.strides, strict=True)
        size = array.dtype.itemsize + sum((n - 1) * step for n, step in steps)
        return array.path, array.offset, array.offset + size
    root: Any = memory
    mapped = None
    while isinstance(root, np.ndarray):
        mapped = root if isinstance(root, np.memmap) else mapped
        root = root.base
    if memory is None or mapped is None or mapped.filename is None or not memory.size:
        return None
    low, high = np.lib.array_utils.byte_bounds(memory)
    start = mapped.offset + low - np.lib.array_utils.byte_bounds(mapped)[0]
    return os.fspath(mapped.filename), start, start + high - low


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


# -- in HDF5 ----------------------------------------------------------------------------------------------


def _dataset(array: Any) -> Any:
    """Return the open h5py dataset that an array is, or is a view of."""
    array = attribute(array, "_dset", array)
    known = type(array).__module__.partition(".")[0] == "h5py" and has(array, "virtual_sources")
    return array if known and array else None


def _places(array: Any, dataset: Any) -> Iterator[tuple[str, str]]:
    """Yield file and name of the datasets of HDF5 that an array or source consists of."""
    if isinstance(array, H5Source):
        yield os.path.realpath(array.path), array.dataset
    if dataset is None:
        return
    path = os.path.realpath(dataset.file.filename)
    yield path, dataset.name
    for part in dataset.virtual_sources() if dataset.is_virtual else ():
        # "." is the file itself.
        file = path if part.file_name == "." else Path(path).parent / part.file_name
        yield os.path.realpath(file), f"/{part.dset_name.lstrip('/')}"
