"""Variables that xarray opened and did not read: tasks read them through xarray, and so as it decodes them.

xarray holds such a variable as layers around an array of its backend: what was selected, masks, scale and
offset. They are sent to other processes as they are, and the backend opens its file there, once per process.
Only backends are known whose data can be recognised again:

* Zarr: the array is checked as `ZarrSource` checks it. If there are no layers, it is read without xarray.
* NetCDF and HDF5 (scipy, netCDF4, h5netcdf) and rioxarray: files of this machine, by their stamps.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import numpy as np

from tilework._types import Array, Index, Span
from tilework.errors import TilingError
from tilework.formats.meta import ImageMeta
from tilework.source import held
from tilework.source.base import Source, slices_of
from tilework.source.on_disk import OnDisk
from tilework.source.stamps import Files, Stamp, check_files
from tilework.source.zarr_array import ZarrSource, zarr_source

__all__ = ["UndecodedSource", "undecoded"]

# Modules of the backends whose files are recognised.
IN_FILES = (
    "xarray.backends.scipy_",
    "xarray.backends.netCDF4_",
    "xarray.backends.h5netcdf_",
    "rioxarray._io",
)
IN_ZARR = "xarray.backends.zarr"
# Layers that change no values.
PLAIN = ("MemoryCachedArray", "CopyOnWriteArray", "LazilyIndexedArray")


@dataclass(slots=True)
class UndecodedSource(OnDisk):
    """A variable of xarray, as its layers and the file or Zarr array below them."""

    fresh: ClassVar[bool] = True

    layers: str = ""
    """The layers and the place in the file, as text: equal for equal values of equal files."""
    below: ZarrSource | None = None
    """The Zarr array below; None: files."""
    packed: bytes | None = field(default=None, repr=False)
    """The pickled variable; None where it was opened."""

    @property
    def path(self) -> str:
        """Path of the file; empty for a Zarr array."""
        return self.files[0][0] if self.files else ""

    def read(self, box: Sequence[Span]) -> Array:
        """Return the samples of ``box``, decoded by xarray."""
        if self.below is None:
            # The file may be opened again at any time: xarray keeps only some files open.
            check_files(self.files)
            return np.asarray(self.array()[slices_of(box)].values)
        self.below.check()
        part = np.asarray(self.array()[slices_of(box)].values)
        # Chunks of a folder that was renamed meanwhile were read as fill values.
        self.below.check(again=True)
        return part

    def _what(self) -> tuple[Any, ...]:
        return "xarray", self.path, self.layers, None if self.below is None else self.below.token

    def _open(self) -> Any:
        assert self.packed is not None
        return cloudpickle.loads(self.packed)

    def __reduce__(self) -> tuple[Any, ...]:
        function, (kind, values) = OnDisk.__reduce__(self)
        packed = held.dumps(self.handle) if self.packed is None else self.packed
        return function, (kind, values | {"packed": packed})


def undecoded(variable: Any, meta: ImageMeta | None) -> Source:
    """Return the source of a variable that xarray opened and did not read.

    Raises
    ------
    TilingError
        If it cannot be shown that another process, or a later call, reads the same data.
    """
    import xarray as xr

    layers = list(_layers(variable._data))
    array = layers[-1]
    module = type(array).__module__
    shape = tuple(map(int, variable.shape))
    # Without labels and encoding, which tasks do not need; unlike a Variable, it can be referred to weakly.
    plain = xr.DataArray(xr.Variable(variable.dims, variable._data))
    text = f"{_text(variable._data)} {_facts(array)}"
    if module == IN_ZARR:
        below = zarr_source(array.get_array(), None, ours=False)
        if _is_whole(layers, below):
            below.meta = meta
            return below
        token: Any = ("xarray", below.token, text)
        return UndecodedSource(plain, shape, variable.dtype, None, meta, token, layers=text, below=below)
    files = _files(array) if module in IN_FILES else None
    if files is None:
        raise TilingError(
            f"the xarray data are opened lazily but not chunked, and by a backend ({module}) of which it "
            "cannot be shown that other processes read the same data; open them with chunks={}, or give "
            "array.load()."
        )
    token = ("xarray", text, [(path, stamp and stamp.token) for path, stamp in files])
    return UndecodedSource(plain, shape, variable.dtype, None, meta, token, files=files, layers=text)


def _layers(data: Any) -> Iterator[Any]:
    """Yield the layers of lazy data of xarray, the array of the backend last."""
    for _ in range(50):
        yield data
        data = getattr(data, "array", None)
        if data is None:
            return


def _text(data: Any) -> str:
    """Return lazy data as text without addresses, with all numbers of long indices."""
    with np.printoptions(threshold=sys.maxsize, precision=17):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(data))


def _facts(array: Any) -> str:
    """Return what the array of a backend says of itself: the name of the variable, the group, options."""
    names = {name for kind in type(array).__mro__ for name in getattr(kind, "__slots__", ())}
    found = {n: getattr(array, n, None) for n in names | set(getattr(array, "__dict__", ()))}
    kinds = (bool, int, float, str, bytes, tuple, np.generic, np.dtype)
    simple = {n: repr(v) for n, v in sorted(found.items()) if isinstance(v, kinds)}
    store = getattr(array, "datastore", None)
    options = getattr(_manager(array), "_kwargs", {})
    return _text((simple, getattr(store, "_group", None), sorted(options.items(), key=repr)))


def _manager(array: Any) -> Any:
    """Return what opens the file of a backend's array."""
    store = getattr(array, "datastore", array)
    return getattr(store, "_manager", getattr(store, "manager", None))


def _files(array: Any) -> Files | None:
    """Return the files of a backend's array with their stamps; None if they are not all files here."""
    manager = _manager(array)
    given = next(iter(getattr(manager, "_args", ())), None)
    if not isinstance(given, str):
        return None
    listed = [given]
    if type(array).__module__ == "rioxarray._io":
        # GDAL names the files that a VRT refers to, and those beside the image.
        listed += [name for name in manager.acquire().files if name != given]
    paths = [str(Path(name).absolute()) for name in listed]  # tasks may run in another folder
    _refuse_replaced(manager, paths)
    stamps = [Stamp.of(path) for path in paths]
    if None in stamps or not all(Path(path).is_file() for path in paths):
        return None
    return tuple(zip(paths, stamps, strict=True))


def _refuse_replaced(manager: Any, paths: Sequence[str]) -> None:
    """Raise if this process still has a file open that was replaced since; seen on Linux only."""
    manager.acquire()
    table = Path("/proc/self/fd")
    names = []
    for entry in table.iterdir() if table.is_dir() else ():
        with contextlib.suppress(OSError):  # closed meanwhile
            names.append(os.readlink(entry))  # noqa: PTH115
    for path in paths:
        if f"{os.path.realpath(path)} (deleted)" in names:
            raise TilingError(
                f"{path} was replaced after xarray opened it, so that other processes would read another "
                "file. Close what is open (dataset.close()), and open it again."
            )


def _is_whole(layers: Sequence[Any], below: ZarrSource) -> bool:
    """Return whether layers only select everything of the Zarr array below."""
    if any(type(layer).__name__ not in PLAIN for layer in layers[:-1]) or layers[0].shape != below.shape:
        return False
    keys: Index | tuple[Any, ...] = tuple(
        k for layer in layers[:-1] if hasattr(layer, "key") for k in layer.key.tuple
    )
    whole = all(isinstance(k, slice) and k.start in (0, None) and k.step in (1, None) for k in keys)
    return whole and layers[0].dtype == below.dtype
