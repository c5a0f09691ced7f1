"""Places in Zarr stores: opened by path or URL, the attributes of groups, and what lies above an array."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tilework._checks import brief
from tilework.errors import TilingError

__all__ = ["above", "attributes_of", "open_node", "opening_code"]

# Places above an array that are asked for its meaning: writers put levels into up to two folders.
ABOVE = 3


def open_node(given: Any, storage_options: Mapping[str, Any] | None = None) -> Any:
    """Return the array or group at a path or URL, or in a store."""
    import zarr

    place = given
    if isinstance(given, str | Path) and "://" not in str(given):
        # Workers may run in another folder.
        place = Path(given).expanduser().absolute()
        if place.is_file() and zipfile.is_zipfile(place):
            place = zarr.storage.ZipStore(place, mode="r")
    try:
        return zarr.open(place, mode="r", storage_options=dict(storage_options) if storage_options else None)
    except (OSError, ValueError) as error:
        if not isinstance(given, str | Path):
            raise TilingError(
                f"no Zarr array or OME-Zarr group can be opened in {brief(given)}: {error}"
            ) from error
        raise TilingError(_how_to_open(str(given), error)) from error
    except TypeError as error:
        raise TypeError(
            f"open_image opens what is in a Zarr store, by path, URL or store; got {brief(given)}. Arrays go "
            f"to tiled_map themselves. ({error})"
        ) from error


# What opens files of other formats, lazily where the library can; by the ends of their names.
_FORMATS = {
    "tif tiff btf lsm svs ndpi scn qptiff": (
        'tifffile.memmap({0}), or zarr.open(tifffile.imread({0}, aszarr=True), mode="r") if it is compressed '
        "or a pyramid"
    ),
    "npy": 'np.load({0}, mmap_mode="r")',
    "npz": 'np.load({0})["name"]',
    "nii nii.gz img hdr mgh mgz": "nibabel.load({0}).dataobj",
    "h5 hdf5 hdf he5 h5ad ims mat": 'h5py.File({0})["dataset"]',
    "nc nc4 cdf grib": 'xarray.open_dataset({0}, chunks={{}})["variable"]',
    "png jpg jpeg bmp gif webp ppm pgm": "imageio.v3.imread({0})",
    "jp2 j2k": "glymur.Jp2k({0})",
    "mrc map rec st ali": 'mrcfile.mmap({0}, mode="r").data',
    "fits fit fts fz": "astropy.io.fits.open({0}, memmap=True)[0].data",
    "mha mhd nrrd nhdr": "SimpleITK.GetArrayFromImage(SimpleITK.ReadImage({0}))",
    "dcm": "pydicom.dcmread({0}).pixel_array",
    "nd2": "nd2.imread({0}, dask=True)",
    "czi lif oib oif vsi dv": "bioio.BioImage({0}).dask_data",
    "pt pth": "torch.load({0}, mmap=True)",
    "raw bin dat": 'np.memmap({0}, dtype, mode="r", shape=shape)',
}


def opening_code(name: str) -> str:
    """Return the code that opens a file of another format than Zarr, by the end of its name, or ""."""
    ends = {f".{end}": code for ends, code in _FORMATS.items() for end in ends.split()}
    return next((code for end, code in ends.items() if name.lower().endswith(end)), "")


def _how_to_open(path: str, error: Exception) -> str:
    """Return the message for a path that is not Zarr, with the line that opens it if its name tells."""
    name = path.rstrip("/").rpartition("/")[-1].lower()
    local = Path(path).expanduser()
    if "*" in name or (not name.endswith(".zarr") and local.is_dir() and any(local.glob("*.tif*"))):
        pattern = path if "*" in name else f"{path.rstrip('/')}/*.tif"
        line = f"dask.array.image.imread({pattern!r})"
    else:
        line = opening_code(name).format(repr(path))
    if "://" not in path and "*" not in name and not local.exists():
        none = f"no Zarr array or OME-Zarr group can be opened at {path!r}: there is no such file or folder."
        return f"{none} A file of this kind is opened by array={line}." if line else none
    if not line:
        return f"no Zarr array or OME-Zarr group can be opened at {path!r}: {error}"
    return f"{path!r} is not Zarr, the only kind of path that tilework opens; give the array: array={line}."


def above(place: Any) -> Iterator[tuple[Any, str]]:
    """Yield the places above a node, the nearest first, and the path of the node below each."""
    from zarr.storage import StorePath

    names: list[str] = []
    store, path = place.store, place.path
    while len(names) < ABOVE:
        if not path:
            # An array that was opened by its own path is the root of its store.
            outer = _outside(store)
            if outer is None:
                return
            store, name = outer
        else:
            path, _, name = path.rpartition("/")
        names.insert(0, name)
        yield StorePath(store, path), "/".join(names)


def _outside(store: Any) -> tuple[Any, str] | None:
    """Return a store whose root is one folder higher, and the name of this one there; None if not known."""
    kind = type(store).__name__
    if kind == "LocalStore":
        root = store.root.absolute()
        return (type(store)(root.parent, read_only=True), root.name) if root.name else None
    if kind == "FsspecStore":
        parent, _, name = store.path.rstrip("/").rpartition("/")
        if name and parent.strip("/") and not parent.endswith(":/"):
            return type(store)(store.fs, read_only=True, path=parent), name
    return None


def attributes_of(
    places: Sequence[Any], zarr_format: int, *, strict: bool = False
) -> list[dict[str, Any] | None]:
    """Return the attributes of the groups at some places; None where there is none.

    Parameters
    ----------
    places : sequence of zarr.storage.StorePath
    zarr_format : 2 or 3
    strict : bool
        Whether an error of the store is raised. Otherwise it counts as none: some stores refuse to say
        whether there is something at a place that nobody may read.
    """
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    document = "zarr.json" if zarr_format == 3 else ".zattrs"

    async def read() -> list[Any]:
        wanted = ((place / document).get(default_buffer_prototype()) for place in places)
        return await asyncio.gather(*wanted, return_exceptions=not strict)

    return [_parsed(found, zarr_format) for found in sync(read())]


def _parsed(found: Any, zarr_format: int) -> dict[str, Any] | None:
    """Return the attributes in a document; None for one that cannot be read."""
    if found is None or isinstance(found, BaseException):
        return None
    try:
        document = json.loads(found.to_bytes())
        attributes = document["attributes"] if zarr_format == 3 else document
    except (ValueError, KeyError, TypeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}
