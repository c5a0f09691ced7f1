"""Open any supported array as a `Source`."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import mmap
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tilework._checks import as_dtype, attribute, brief, has, wholes
from tilework._machine import n_threads
from tilework._types import Array, Sliceable
from tilework.errors import GridError, TilingError
from tilework.formats.labelled import meta_of
from tilework.formats.meta import ImageMeta
from tilework.function.calling import from_tensor, is_tensor
from tilework.function.load_once import LoadOnce, in_task
from tilework.source.base import (
    BlockSource,
    HalfSource,
    MemorySource,
    OnceSource,
    Source,
)
from tilework.source.images import StoredImage, StoredImages, open_path, open_zarr
from tilework.source.on_disk import FileSource, H5Source
from tilework.source.stamps import Files, Stamp, settle
from tilework.source.undecoded import undecoded

__all__ = ["Image", "check_extents", "check_lengths", "open_source", "opened"]


# Larger arrays are not hashed for the name of the result; this many bytes take about 0.1 s.
HASH_LIMIT = 64 * 2**20
# What one thread hashes at a time, bytes.
HASHED = 2 * 2**20
# Names that a message lists.
MOST_NAMES = 10


Image = Source | Sliceable | LoadOnce | str | Path
"""Anything that can be opened: an array, a path or URL, or a `load_once` object."""


def open_source(array: Image, *, masked: bool = False) -> Source:
    """Open any supported array as a `Source`.

    Parameters
    ----------
    array : array, path, URL or load_once
        numpy, memmap, Zarr v2 and v3 (array, path, URL), an OME-Zarr group or path, h5py, dask, an xarray
        DataArray, a torch CPU tensor, `load_once`, or anything with shape, dtype and slicing.
    masked : bool
        Whether a masked array may be opened: the source has its samples, ``source.valid`` its mask.

    Raises
    ------
    TypeError
        For an object that has no shape, dtype and slicing, and for a masked array unless ``masked``.
    TilingError
        For object dtypes, unknown dask chunks, xarray data that are opened lazily by an unknown backend, and
        tensors on a device.
    """
    source = array if isinstance(array, Source) else _open(array)
    if source.valid is not None and not masked:
        raise TypeError(
            "masked arrays are not supported here, only as the image of tiled_map: fill them first "
            "(array.filled(value))."
        )
    if source.dtype.hasobject:
        raise TilingError(
            f"the array has dtype {source.dtype}; tilework needs numbers, bool or datetimes. "
            "Convert it with astype()."
        )
    return source


def opened(source: Source) -> Source:
    """Return the source of what `load_once` has opened in this process; other sources as they are."""
    inner = source.origin if isinstance(source, HalfSource) else source
    if not isinstance(inner, OnceSource):
        return source
    try:
        with in_task():
            return open_source(inner.handle.get(), masked=True)
    except Exception:  # tasks read it as it is, and say what is wrong
        return source


def _open(array: Any) -> Source:
    if isinstance(array, str | Path):
        return open_path(str(array))
    if isinstance(array, StoredImage | StoredImages):
        return (array.one() if isinstance(array, StoredImages) else array).source
    if isinstance(array, LoadOnce):
        with in_task():
            opened = array.get()
        _check_sliceable(opened)
        none = (slice(0, 0),) * len(opened.shape)
        dtype = from_tensor(opened[none]).dtype if is_tensor(opened) else _dtype_read(opened)
        meta = opened.meta if isinstance(opened, StoredImage) else None
        once = OnceSource(array, tuple(map(int, opened.shape)), dtype, None, meta, array.named)
        return _halved(once) if _reads_masked(opened) else once
    if isinstance(array, np.ma.MaskedArray):
        return _open_masked(array)
    if isinstance(array, np.ndarray):
        return _open_numpy(array)
    if is_tensor(array):
        if array.device.type != "cpu":
            raise TilingError(
                f"the tensor is on {array.device}; give array=tensor.cpu(): crops are cut on the CPU."
            )
        return _open_numpy(from_tensor(array))
    # By all classes that a type is derived from: subclasses are defined elsewhere.
    made_by = {base.__module__.partition(".")[0] for base in type(array).__mro__}
    for library, open_it in _OPENERS.items():
        if library in made_by:
            return open_it(array)
    _check_sliceable(array)
    return _open_duck(array)


def _open_duck(array: Any) -> Source:
    """Open any array that can be sliced; refuse one of a library of arrays that numpy cannot read."""
    if has(array, "__array_function__") or has(array, "__array_namespace__"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # that units are lost, for example
                np.asarray(array[(slice(0, 0),) * len(array.shape)])
        except Exception as error:
            kind = f"{type(array).__module__}.{type(array).__name__}"
            raise TypeError(
                f"the array is a {kind}, of which numpy cannot read a part ({error}). Convert it first: "
                "array.todense() of sparse, array.magnitude of pint, array.get() of cupy; of xarray, "
                "array.as_numpy()."
            ) from error
    shape = tuple(map(int, array.shape))
    source = Source(array, shape, _dtype_read(array), _regular_chunks(array))
    return _halved(source) if _reads_masked(array) else source


# -- masked arrays ----------------------------------------------------------------------------------------


def _open_masked(array: Any) -> Source:
    """Open the samples of a masked array of numpy; if any is masked, with its mask."""
    _refuse_fields(array.dtype)
    source = _open_numpy(np.ma.getdata(array))
    if not np.ma.is_masked(array):
        return source
    return replace(source, valid=_open_numpy(~np.ma.getmaskarray(array)))


def _reads_masked(array: Any) -> bool:
    """Return whether an array says that its slices are masked arrays; to see it, it would have to be read."""
    # The attribute of variables of netCDF4, by which its users turn masks off.
    return isinstance(array, np.ma.MaskedArray) or attribute(array, "mask") is True


def _dtype_read(array: Any) -> np.dtype[Any]:
    """Return the dtype of what is read: variables of netCDF4 have that of the packed numbers in the file."""
    found: np.dtype[Any] = np.dtype(array.dtype)
    if _reads_masked(array):
        with contextlib.suppress(Exception):  # it takes no empty slices
            found = np.dtype(array[(slice(0, 0),) * len(array.shape)].dtype)
    return found


def _halved(source: Source) -> Source:
    """Return the samples of a source that reads masked arrays, with their mask."""
    _refuse_fields(source.dtype)
    return replace(HalfSource.of(source, mask=False), valid=HalfSource.of(source, mask=True))


def _not_masked(part: Any) -> Array:
    """Return where a part of a masked array is not masked."""
    return np.asarray(~np.ma.getmaskarray(part))


def _refuse_fields(dtype: np.dtype[Any]) -> None:
    if dtype.names is not None:
        raise TypeError("masked records are not supported, because each field has a mask: fill them first.")


def _check_sliceable(array: Any) -> None:
    members = has(array, "shape", "dtype", "__getitem__")
    if isinstance(array, type) or not members or not isinstance(array.shape, tuple | list):
        raise TypeError(
            f"array must have shape, dtype and slicing, or be a path; got {brief(array)}{_conversion(array)}."
        )
    wholes("the shape of array", array.shape)
    if not is_tensor(array):
        as_dtype(array.dtype)


def _conversion(array: Any) -> str:
    """Return the end of a message that makes a known kind of value an array; empty if there is none."""
    if isinstance(array, list) and any(isinstance(one, str | os.PathLike) for one in array):
        return "; give one path, or a tuple of them if one call of fn takes one crop of each"
    if isinstance(array, list) and any(has(one, "shape") for one in array):
        return (
            "; give np.stack(images) with each=0 for images of one shape, or a tuple of them if one call of "
            "fn takes one crop of each"
        )
    # Images of PIL, data frames and others convert themselves.
    known = any(hasattr(type(array), name) for name in ("__array__", "__array_interface__"))
    if isinstance(array, list) or (known and not isinstance(array, np.generic)):
        return "; give np.asarray(image)"
    if isinstance(array, dict):
        return "; give one of its values"
    if isinstance(array, os.PathLike):
        return "; give str(path)"
    return ""


def _regular_chunks(array: Any) -> tuple[int, ...] | None:
    chunks = attribute(array, "chunks")
    if (
        isinstance(chunks, tuple)
        and len(chunks) == len(array.shape)
        and all(isinstance(c, int) for c in chunks)
    ):
        return chunks
    return None


def _open_numpy(array: Array) -> Source:
    mapped = _mapped(array)
    if mapped is None:
        token = _Hashed(array) if array.nbytes <= HASH_LIMIT else None
        return MemorySource(array, array.shape, array.dtype, token=token)
    path, offset, writer = mapped
    if writer is not None:
        settle(path)
    files = ((path, Stamp.of(path)),)
    return FileSource(
        array, array.shape, array.dtype,
        token=("mmap", offset, repr(array.dtype), array.shape, array.strides, _tokens(files)),
        files=files, writer=writer, path=path, offset=offset, strides=array.strides,
    )  # fmt: skip


def _tokens(files: Files) -> list[Any]:
    return [(path, stamp and stamp.token) for path, stamp in files]


def _open_h5(array: Any) -> Source:
    import h5py

    dataset, view, dtype = _view_of_h5(array)
    if isinstance(dataset, h5py.HLObject) and not dataset:
        raise TilingError(
            "the file of the h5py object is closed; open it again: array=h5py.File(path)[name]."
        )
    if isinstance(dataset, h5py.Group):
        raise TypeError(_choose_from_h5(dataset))
    if not isinstance(dataset, h5py.Dataset):
        raise TypeError(f"array must be an h5py dataset; got h5py {type(array).__name__}.")
    if dataset.shape is None:
        raise TilingError(f"the h5py dataset {dataset.name} is empty: it has no shape.")
    file = dataset.file
    if file.mode == "r+":
        file.flush()
    files = _files_of_h5(dataset)
    facts = (dataset.name, view, repr(dtype), dataset.shape, _tokens(files))
    return H5Source(
        array, dataset.shape, dtype, dataset.chunks,
        token=("h5", *(fact for fact in facts if fact is not None)),
        files=files, writer=file if file.mode == "r+" else None, path=files[0][0],
        dataset=dataset.name or "", view=view,
    )  # fmt: skip


def _view_of_h5(array: Any) -> tuple[Any, tuple[str, Any] | None, np.dtype[Any]]:
    """Return the dataset of an h5py object, the method and argument that give the view, and its dtype."""
    dataset = getattr(array, "_dset", None)
    if dataset is None:
        return array, None, getattr(array, "dtype", None) if array else None  # type: ignore[return-value]
    if hasattr(array, "read_dtype"):
        names = array.extract_field or list(array.read_dtype.names)
        dtype = array.read_dtype[names] if isinstance(names, str) else array.read_dtype
        return dataset, ("fields", names), dtype
    if hasattr(array, "_dtype"):
        return dataset, ("astype", array._dtype), array._dtype
    raise TilingError("text of h5py (asstr) is not numbers; give the dataset, or text of fixed length.")


def _choose_from_h5(group: Any) -> str:
    """Return the message for a file or group, which names its datasets."""
    found: list[str] = []

    def see(name: str, item: Any) -> bool | None:
        if getattr(item, "shape", None) is not None:
            found.append(f"{name} {item.shape} {item.dtype}")
        return True if len(found) > MOST_NAMES else None

    group.visititems(see)
    lines = "".join(f"\n    {line}" for line in [*found[:MOST_NAMES], *["..."][: len(found[MOST_NAMES:])]])
    inside = "" if group.name == "/" else f'["{group.name}"]'
    what = "file" if group.name == "/" else "group"
    if not found:
        return f"array is an h5py {what} without datasets: {group.file.filename}{inside}."
    name = found[0].partition(" (")[0]
    return (
        f"array is an h5py {what}; give one of its datasets, "
        f'array=h5py.File("{group.file.filename}"){inside}["{name}"]:{lines}'
    )


def _files_of_h5(array: Any) -> Files:
    """Return the files that hold the samples of an h5py dataset."""
    path = str(Path(array.file.filename).absolute())  # tasks may run in another folder
    try:
        # The path may name another file by now.
        own = Stamp.of(array.file.id.get_vfd_handle())
    except (NotImplementedError, TypeError, ValueError, RuntimeError):  # drivers without a descriptor
        own = Stamp.of(path)
    names = [name for name, *_ in array.external or ()]
    if getattr(array, "is_virtual", False):
        # "." is the file itself, and "%b" stands for numbers of files.
        names += [
            s.file_name for s in array.virtual_sources() if s.file_name != "." and "%" not in s.file_name
        ]
    others = dict.fromkeys(os.path.join(os.path.dirname(path), name) for name in names)  # noqa: PTH118, PTH120
    return ((path, own), *((other, Stamp.of(other)) for other in others))


class _Hashed:
    """A token that hashes an array's samples when it is needed; it is pickled without the array."""

    def __init__(self, array: Array | None) -> None:
        self._array, self._lock, self.digest = array, threading.Lock(), ""

    def __dask_tokenize__(self) -> Any:
        with self._lock:
            if self._array is not None:
                self.digest, self._array = _hash(self._array), None
        return self.digest

    def __reduce__(self) -> tuple[Any, ...]:
        self.__dask_tokenize__()
        return _rebuild_hashed, (self.digest,)


def _hash(array: Array) -> str:
    """Return a digest of dtype, shape and samples.

    dask's own token takes the samples in the order of memory, so that an array and the transpose of another
    one can have the same. Pieces are hashed side by side: hashing took a third of the time of small images.
    """
    samples = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    pieces = [samples[a : a + HASHED] for a in range(0, len(samples), HASHED)]
    digest = hashlib.blake2b(repr((array.dtype, array.shape)).encode(), digest_size=20)
    threads = min(n_threads(), len(pieces))
    with ThreadPoolExecutor(threads) if threads > 1 else contextlib.nullcontext() as pool:
        for found in (pool.map if pool else map)(_digest, pieces):
            digest.update(found)
    return digest.hexdigest()


def _digest(piece: memoryview) -> bytes:
    return hashlib.blake2b(piece, digest_size=20).digest()


def _rebuild_hashed(digest: str) -> _Hashed:
    hashed = _Hashed(None)
    hashed.digest = digest
    return hashed


def _mapped(array: Array) -> tuple[str, int, mmap.mmap | None] | None:
    """Return file, byte offset and what may write, if ``array`` is any strided view of a mapped file."""
    root: Any = array
    memmap = None
    while isinstance(root, np.ndarray):
        if isinstance(root, np.memmap):
            memmap = root
        root = root.base
    # A copy-on-write mapping may differ from its file; with negative strides the first sample is not first.
    if not isinstance(root, mmap.mmap) or memmap is None or memmap.mode == "c" or memmap.filename is None:
        return None
    if min(array.strides, default=0) < 0 or not array.size:
        return None
    path = os.fspath(memmap.filename)
    start = np.frombuffer(root, np.uint8).__array_interface__["data"][0]
    if not _is_mapped(path, root, start):
        return None
    page = memmap.offset - memmap.offset % mmap.ALLOCATIONGRANULARITY
    offset = page + array.__array_interface__["data"][0] - start
    return path, offset, None if memmap.mode == "r" else root


def _is_mapped(path: str, root: mmap.mmap, start: int) -> bool:
    """Return whether a path still names the file that is mapped at ``start``."""
    try:
        other = np.memmap(path, mode="r", dtype=np.uint8, shape=(1,))
        if other.base is None or os.stat(path).st_size != root.size():  # noqa: PTH116
            return False
        # Both numbers of the file come from the same table: those of stat may differ (overlayfs).
        with open("/proc/self/maps") as table:  # noqa: PTH123
            found = dict(_mappings(table, (start, other.__array_interface__["data"][0])))
    except (OSError, ValueError):
        # Without such a table (macOS, Windows) only the length can be compared.
        return os.path.exists(path) and os.stat(path).st_size == root.size()  # noqa: PTH110, PTH116
    return len(set(found.values())) < 2


def _mappings(table: Iterable[str], addresses: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield each address with device and inode of the file that is mapped there."""
    for line in table:
        span, _, _, device, inode, *_ = line.split()
        first, last = (int(part, 16) for part in span.split("-"))
        for address in addresses:
            if first <= address < last:
                yield address, f"{device} {inode}"


def _named(names: tuple[str, ...] | None) -> ImageMeta | None:
    """Return the meaning of samples of which only the axis names are known; none if they are not unique."""
    return None if not names or len(set(names)) < len(names) else ImageMeta(names)


def check_lengths(array: Any) -> None:
    """Raise if lengths of a dask array are not known, as after an index of bools."""
    if any(math.isnan(n) for n in array.shape):
        raise TilingError("the dask array has unknown chunk sizes; call compute_chunk_sizes() on it first.")


def _open_dask(array: Any) -> Source:
    if not isinstance(attribute(array, "chunks"), tuple):  # a delayed value has any attribute
        raise TypeError(
            f"array must be a dask array; got {type(array).__name__}. Turn it into one first, by "
            "dask.array.from_delayed(value, shape, dtype) or to_dask_array(lengths=True)."
        )
    check_lengths(array)
    if isinstance(array._meta, np.ma.MaskedArray):
        _refuse_fields(array.dtype)
        data, valid = (
            array.map_blocks(half, dtype=dtype, meta=np.empty((0,) * array.ndim, dtype))
            for half, dtype in ((np.ma.getdata, array.dtype), (_not_masked, np.dtype(bool)))
        )
        return replace(_open_dask(data), valid=_open_dask(valid))
    if hasattr(array, "expr"):
        array = array.optimize()  # dask would do so later, and rename its blocks
    offsets = tuple(tuple(itertools.accumulate(c, initial=0)) for c in array.chunks)
    shape = tuple(map(int, array.shape))
    return BlockSource(array, shape, array.dtype, None, None, ("dask", array.name), offsets)


def _open_nibabel(array: Any) -> Source:
    if not hasattr(array, "dtype"):
        raise TypeError(
            "array is an image of nibabel; give its samples, array=image.dataobj, and what they mean, "
            "meta=tw.ImageMeta(...)."
        )
    # What is read is scaled by the slope of the header, so that it may have another dtype than the file.
    read = np.asarray(array[(slice(0, 1),) * len(array.shape)]).dtype
    return Source(array, tuple(map(int, array.shape)), read)


def _open_xarray(array: Any) -> Source:
    variable = getattr(array, "variable", array)
    if not hasattr(variable, "_data") or not hasattr(variable, "_in_memory"):
        raise TypeError(
            f"give one variable of the xarray object (a DataArray); got {type(array).__name__}"
            f"{_variables(array)}."
        )
    if not variable._in_memory and type(variable._data).__module__.partition(".")[0] == "xarray":
        return undecoded(variable, meta_of(array))
    data = array.data
    if hasattr(data, "dask"):
        source = _open_dask(data)
    else:
        source = _open_numpy(data) if isinstance(data, np.ndarray) else _open_duck(data)
    source.meta = meta_of(array)
    return source


def _variables(dataset: Any) -> str:
    """Return the first variables of an xarray dataset as the end of a message."""
    found = [repr(name) for name in itertools.islice(getattr(dataset, "data_vars", ()), MOST_NAMES + 1)]
    return f" with {', '.join(found[:MOST_NAMES])}{', ...' if found[MOST_NAMES:] else ''}" if found else ""


_OPENERS: dict[str, Callable[[Any], Source]] = {
    "zarr": open_zarr,
    "h5py": _open_h5,
    "nibabel": _open_nibabel,
    "dask": _open_dask,
    "xarray": _open_xarray,
}
"""By the library in which the class of an array, or one that it is derived from, is defined."""


def check_extents(sources: Sequence[Source], axes: Sequence[Sequence[int]]) -> None:
    """Raise a `GridError` if the extents of several arrays differ on the axes that are cut."""
    names, first = sources[0].names, [sources[0].shape[a] for a in axes[0]]
    for number, (source, own) in enumerate(zip(sources, axes, strict=True)):
        extents = [source.shape[b] for b in own]
        for a, b, n, m in zip(axes[0], own, first, extents, strict=True):
            if n != m:
                raise GridError(
                    "all arrays must have equal extents on the tiled axes; array 0 has "
                    f"{first}, array {number} has {extents}: axis {names[a] if names else a} of array 0 has "
                    f"{n}, axis {source.names[b] if source.names else b} of array {number} has {m}."
                )
