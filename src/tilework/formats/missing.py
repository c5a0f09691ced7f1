"""What arrays of Zarr say of themselves beside OME-Zarr: names of axes, values of no data, packed values."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = [
    "DIMENSIONS",
    "OF_VALUES",
    "missing_attribute",
    "missing_in",
    "missing_value",
    "most_telling",
    "packing",
    "stored_names",
]

# Attributes that are values of samples; they mean nothing for samples of another dtype.
OF_VALUES = ("_FillValue", "missing_value", "fill_value", "nodata")
# Names of the axes in Zarr format 2, as xarray writes them.
DIMENSIONS = "_ARRAY_DIMENSIONS"
# JSON has no such numbers; Zarr has these words for fill values.
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def missing_value(attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> Any:
    """Return the value of samples without data that the attributes of an array say; None if they say none.

    A value that no sample of the dtype has says nothing.
    """
    return most_telling(_number(attributes.get(name), dtype) for name in OF_VALUES)


def most_telling(values: Iterable[Any]) -> Any:
    """Return the first value that is neither None nor NaN, else NaN, else None.

    xarray writes a fill value of NaN for every array of floats that states none: it says the least.
    """
    found = [value for value in values if value is not None]
    return next((value for value in found if value == value), found[0] if found else None)


def missing_in(array: Any) -> Any:
    """Return the value of samples without data of an array of zarr that has names of axes; None if unknown.

    In Zarr format 2 xarray says it by the fill value. That is 0 where nobody chose one.
    """
    value = missing_value(array.attrs, array.dtype)
    if value is None and array.metadata.zarr_format == 2 and DIMENSIONS in array.attrs:
        return _number(array.fill_value, array.dtype) or None
    return value


def packing(attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the attributes by which other libraries read other numbers than those that are stored."""
    usual = {"scale_factor": 1, "add_offset": 0}
    found = {
        name: attributes[name]
        for name, neutral in usual.items()
        if isinstance(attributes.get(name), int | float) and attributes[name] != neutral
    }
    unsigned = attributes.get("_Unsigned")
    if (dtype.kind, unsigned) in (("i", "true"), ("u", "false")):
        found["_Unsigned"] = unsigned
    units = attributes.get("units")
    if isinstance(units, str) and " since " in units and dtype.kind in "iuf":
        found["units"] = repr(units)  # dates, as CF has them
    return found


def stored_names(array: Any) -> tuple[str, ...] | None:
    """Return the names of the axes of an array of zarr; None unless each has one."""
    found: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get(DIMENSIONS)
    sound = isinstance(found, list | tuple) and len(found) == array.ndim and None not in found
    return tuple(map(str, found)) if sound and found else None


def missing_attribute(value: Any, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the attribute that says the value of samples without data, if it can be said.

    It is one that no reader takes for a reason to mask, as classes often have the same value.
    """
    if value is None or dtype.kind not in "iuf" or _number(value, dtype) is None:
        return {}
    if dtype.kind != "f":
        return {OF_VALUES[-1]: int(value)}
    number = float(value)
    word = next((word for word, own in WORDS.items() if str(own) == str(number)), None)
    return {OF_VALUES[-1]: number if word is None else word}


def _number(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a value as a number of ``dtype``; None if it is none."""
    if isinstance(value, str):
        value = WORDS.get(value, _unpacked(value) if dtype.kind == "f" else None)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            number = dtype.type(value)
        return None if np.isinf(number) and not np.isinf(value) else number
    if dtype.kind not in "iu" or value != value or value in (math.inf, -math.inf) or value != int(value):
        return None
    info = np.iinfo(dtype)
    return dtype.type(int(value)) if info.min <= value <= info.max else None


def _unpacked(text: str) -> float | None:
    """Return the number in a ``_FillValue`` of xarray, which packs eight bytes as text in Zarr format 3."""
    try:
        (number,) = struct.unpack("<d", base64.b64decode(text, validate=True))
    except (ValueError, struct.error):
        return None
    return float(number)
