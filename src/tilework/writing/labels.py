"""What readers of a store are told of an array: names of axes, and of xarray all that it says.

A DataArray is written as a Dataset of one variable, as xarray does: its coordinates are arrays beside it, in
the same group. xarray itself writes the coordinates, and says how the attributes of a variable are encoded.

1. `Labels.check` refuses a group whose coordinates are other ones, before anything is written.
2. The arrays of the result are created with `Labels.options`. Their record lies beside them, because their
   attributes are those of the user.
3. `Labels.write` adds coordinates that are not there, and the metadata of all arrays in one document.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from tilework._checks import warn
from tilework.errors import TilingError, TilingWarning
from tilework.formats.labelled import dataset_of, is_dataset
from tilework.formats.missing import DIMENSIONS

__all__ = ["Labels"]

# Encodings of a coordinate that depend on its length or on the format of the store it was read from.
STORED = ("chunks", "preferred_chunks", "shards", "compressors", "compressor", "filters", "serializer")
# Name of a variable whose DataArray has none, and the attribute for a name that a coordinate has: from these
# xarray gives such an array back.
NAMELESS, NAME = "__xarray_dataarray_variable__", "__xarray_dataarray_name__"


@dataclass(frozen=True, slots=True)
class Labels:
    """The names of axes and the labels of the arrays of one result."""

    dims: Mapping[str, Sequence[str] | None]
    """Names of the axes of each output, by key; None: they are not known."""
    dataset: Any = None
    """The Dataset that is written; None: no array of xarray is."""
    variables: Mapping[str, Any] | None = None
    """Names of its variables, by key of the output."""
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Attributes of each output that is no array of xarray, by key."""

    @classmethod
    def of(cls, out: Any, dims: Mapping[str, Sequence[str] | None]) -> Labels:
        """Return the labels of a result: of xarray, or a tuple or dict of DataArrays, or anything else."""
        if is_dataset(out):
            return cls(dims, out, {str(key): key for key in out.data_vars})
        listed = out if isinstance(out, tuple | list) else [out]
        members = out if isinstance(out, Mapping) else dict(enumerate(listed))
        if not all(hasattr(one, "coords") and hasattr(one, "to_dataset") for one in members.values()):
            return cls(dims)
        if "" in dims:
            return cls(dims, *_single(out))
        dataset = dataset_of({str(key): one for key, one in members.items()})
        if not is_dataset(dataset):
            warn(
                "the arrays are written without their coordinates: they have other lengths along axes of the "
                "same names, so that one group cannot hold them all.",
                TilingWarning,
            )
            return cls(dims)
        return cls(dims, dataset, {key: key for key in dataset.data_vars})

    def name(self, key: str) -> str:
        """Return the name of the array of an output in its group."""
        return key if self.variables is None else str(self.variables[key])

    def check(self, at: Any, fresh: Sequence[str], zarr_format: int, *, overwrite: bool) -> list[Any]:
        """Return the coordinates in a group that have to go: those of the arrays that are replaced.

        Raises a `TilingError` if the labels cannot be written, or do not go with those in the group.

        Parameters
        ----------
        at : StorePath
            The group.
        fresh : sequence of str
            Names of the arrays that are to be created.
        zarr_format : int
        overwrite : bool
            Whether coordinates that no other array in the group uses may be replaced.
        """
        if self.dataset is None:
            return []
        if fresh:
            self._encoded(zarr_format)
        there = _opened(at)
        if there is None:
            return []
        others = self._others(there)
        if others:
            self._refuse_lengths(at, there[others])
        users = f"{', '.join(others)} there use them" if others else "overwrite=True replaces them"
        advice = f"{users}. Write into another group, with path=, or another store."
        if (overwrite or not fresh) and not others:
            return self._strange(there) if fresh else []
        for name in self._changed(there, attributes=bool(fresh)):
            if name in there.variables:
                raise TilingError(
                    f"the group at {at} has other coordinates {str(name)!r} than the result; {advice}"
                )
        for name in self._strange(there) if fresh else ():
            raise TilingError(
                f"the group at {at} has coordinates {str(name)!r}, and the result has none, but would get "
                f"these when it is opened; {advice}"
            )
        return []

    def _others(self, there: Any) -> list[str]:
        """Return the names of the arrays in a group that are not those of the result."""
        own = {self.name(key) for key in self.dims}
        return sorted(str(name) for name in there.data_vars if str(name) not in own)

    def _refuse_lengths(self, at: Any, others: Any) -> None:
        """Raise if a group could not be opened, because a dim of the result has another length there."""
        for dim, length in self.dataset.sizes.items():
            if others.sizes.get(dim, length) != length:
                raise TilingError(
                    f"the result has {length} samples along {str(dim)!r}, and the group at {at} has "
                    f"{others.sizes[dim]}, of {', '.join(map(str, others.data_vars))}; xarray could not open "
                    "it. Rename the dim, or write into another group, with path=, or another store."
                )

    def _changed(self, there: Any, *, attributes: bool) -> list[Any]:
        """Return the names of the coordinates that a group does not have, or not as they are."""
        # Attributes as they are read.
        own = _opened(_try(self._small().drop_vars(list(self.dataset.data_vars)), 3).store_path)
        found = []
        for name, coordinate in self.dataset.coords.items():
            known = there.variables.get(name)
            same = known is not None and _same(known, coordinate.variable)
            if not (same and (not attributes or _equal(known.attrs, own.variables[name].attrs))):
                found.append(name)
        return found

    def _strange(self, there: Any) -> list[Any]:
        """Return the coordinates in a group that an array of the result would get, and does not have.

        Those that have another length along a dim of the result count, too: with them xarray could not open
        the group.
        """
        own, sizes = self.dataset.data_vars.values(), self.dataset.sizes
        return [
            name
            for name, coordinate in there.coords.items()
            if name not in self.dataset.coords
            and (
                any(set(coordinate.dims) <= set(one.dims) for one in own)
                or any(sizes.get(dim, n) != n for dim, n in coordinate.sizes.items())
            )
        ]

    def options(self, key: str, zarr_format: int) -> dict[str, Any]:
        """Return the arguments of `zarr.create_array` that say what the array of an output is."""
        dims = self.dims[key]
        if self.dataset is not None:
            return self._encoded(zarr_format)[self.name(key)]
        attributes = dict(self.attributes.get(key, {}))
        if dims is None or len(set(dims)) < len(dims):
            return {"attributes": attributes}
        named = list(dims)
        if zarr_format == 3:
            return {"dimension_names": named, "attributes": attributes}
        # xarray takes samples of the fill value for missing, and it would be 0.
        return {"attributes": attributes | {DIMENSIONS: named}, "fill_value": None}

    def write(self, at: Any, fresh: Sequence[str], gone: Sequence[Any]) -> None:
        """Write the coordinates that the group at ``at`` does not have, and its consolidated metadata.

        Parameters
        ----------
        at : StorePath
            The group.
        fresh : sequence of str
            Names of the arrays that were created.
        gone : sequence of str
            Names of the coordinates that `check` returned.
        """
        if self.dataset is None:
            return
        group = zarr.open_group(at, mode="r+")
        for name in gone:
            if name in group:
                del group[name]
        there = _opened(at)
        known = self.dataset.drop_vars(list(self.dataset.variables)) if there is None else there
        missing = self._changed(known, attributes=bool(fresh))
        listing = group.metadata.consolidated_metadata
        shown = listing is not None and all(self.name(key) in listing.metadata for key in self.dims)
        if not (missing or gone or fresh) and shown:
            return
        for name in missing:
            if name in group:
                del group[name]
        listed = [n for n in str(group.attrs.get("coordinates", "")).split() if n not in gone]
        found = _clean(self.dataset.drop_vars(list(self.dataset.data_vars)))
        found = found.drop_vars([name for name in found.variables if name not in missing])
        where = {"zarr_format": group.metadata.zarr_format}
        with _quiet():
            # xarray consolidates in both formats, and warns when it reads a store that is not.
            found.to_zarr(at.store, group=at.path or None, mode="a", consolidated=False, **where)
            group = zarr.open_group(at, mode="r+", use_consolidated=False)
            if listed or gone:
                now = [*listed, *str(group.attrs.get("coordinates", "")).split()]
                group.attrs["coordinates"] = " ".join(dict.fromkeys(now))
            if getattr(at.store, "supports_consolidated_metadata", True):
                zarr.consolidate_metadata(at.store, path=at.path or None, **where)

    def _small(self) -> Any:
        """Return a Dataset with the first samples of all variables."""
        return _clean(self.dataset.isel(dict.fromkeys(self.dataset.dims, slice(0, 1))))

    def _encoded(self, zarr_format: int) -> dict[str, dict[str, Any]]:
        """Return what xarray would write as metadata of the variables, from a Dataset of single samples."""
        for name in self.dataset.variables:
            if _is_path(name):
                raise TilingError(f"{name!r} cannot be the name of an array in a group of Zarr; rename it.")
        small = self._small()
        # xarray encodes times and text; tilework writes samples as they are.
        plain = {name: v.dtype.kind in "biufc" for name, v in small.data_vars.items()}
        others = {n: v for n, v in small.data_vars.items() if not plain[n]}
        small = small.assign({n: v.copy(data=np.zeros(v.shape, "i4")) for n, v in others.items()})
        group, options = _try(small, zarr_format), {}
        for name, variable in small.data_vars.items():
            array = group[str(name)]
            named: dict[str, Any] = {"attributes": array.attrs.asdict()}
            if plain[name] or zarr_format == 2:
                # In format 2 xarray takes samples of the fill value for missing.
                named["fill_value"] = array.fill_value if plain[name] else None
            if zarr_format == 3:
                named["dimension_names"] = list(map(str, variable.dims))
            options[str(name)] = named
        return options


def _single(array: Any) -> tuple[Any, dict[str, Any]]:
    """Return the Dataset that xarray would write for a DataArray, and the name of its variable."""
    taken = array.name in array.coords or array.name in array.dims
    if array.name is not None and not taken and not _is_path(array.name):
        return array.to_dataset(), {"": array.name}
    dataset = array.to_dataset(name=NAMELESS)
    if array.name is not None:
        dataset.attrs[NAME] = array.name
    return dataset, {"": NAMELESS}


def _is_path(name: Any) -> bool:
    """Return whether a name is no name of an array of Zarr."""
    return isinstance(name, str) and ("/" in name or name in (".", "..", "zarr.json"))


def _clean(dataset: Any) -> Any:
    """Return a Dataset without the encodings that do not fit; lazy data become samples of zero."""
    found = dataset.copy()
    for name, variable in found.variables.items():
        if name in found.data_vars:
            zeros = np.zeros(variable.shape, variable.dtype)
            said = variable.encoding.items()  # a _FillValue of None keeps xarray from writing NaN
            kept = {k: v for k, v in said if k == "grid_mapping" or (k == "_FillValue" and v is None)}
            found[name] = variable._replace(data=zeros, encoding=kept)
        else:
            variable.encoding = {k: v for k, v in variable.encoding.items() if k not in STORED}
    return found


def _try(dataset: Any, zarr_format: int) -> Any:
    """Return the group that xarray writes for a Dataset, in memory; lazy samples are not computed."""
    store = MemoryStore()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # writing raises them again
            dataset.to_zarr(store, compute=False, consolidated=False, zarr_format=zarr_format)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise TilingError(
            f"xarray cannot write the labels of the result to Zarr: {error} Change them, or write the array "
            "alone: out.data."
        ) from error
    return zarr.open_group(store, mode="r")


@contextmanager
def _quiet() -> Iterator[None]:
    """Return a context without warnings that Zarr format 3 does not specify text or consolidated metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        yield


def _opened(at: Any) -> Any:
    """Return the Dataset in the group at ``at``; None if there is none."""
    import xarray as xr

    try:
        with _quiet():
            return xr.open_zarr(at.store, group=at.path or None, consolidated=False, chunks=None)
    except (FileNotFoundError, KeyError, ValueError):
        return None


def _same(there: Any, variable: Any) -> bool:
    """Return whether a coordinate in a store is the given one; one that is not in memory is not computed."""
    return not variable._in_memory or bool(there.equals(variable))


def _equal(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    """Return whether two values of attributes are equal, as xarray compares them."""
    import xarray as xr

    return bool(xr.Variable((), 0, a).identical(xr.Variable((), 0, b)))
