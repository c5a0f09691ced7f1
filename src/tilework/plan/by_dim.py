"""Lengths by the names of axes, `crop={"y": 512, "x": 512}`, as one number per tiled axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tilework._checks import brief
from tilework.errors import GridError
from tilework.plan.arguments import lengths, resolve_axes
from tilework.plan.request import Request
from tilework.source.base import Source

__all__ = ["ordered"]

# Arguments with one number per tiled axis, and what an axis gets that a dict does not name; None: each axis
# must be named, because any number would be a guess.
PER_AXIS = {
    "crop": None, "overlap": None, "stride": None, "starts": None, "mask_scale": None,
    "multiple": 1, "rim": 0,
}  # fmt: skip


def ordered(request: Request, source: Source) -> Request:
    """Return the request with numbers in the order of the axes in place of dicts by name.

    The names of a crop are the tiled axes, unless `axes` is given, which must then name the same.

    Raises
    ------
    GridError
        If the array has no names, or a dict names other axes than those that are tiled, or not all.
    """
    given = {what: getattr(request, what) for what in (*PER_AXIS, "chunks")}
    given = {what: value for what, value in given.items() if isinstance(value, Mapping)}
    if not given:
        return request
    names = source.names
    for what, value in given.items():
        if names is None:
            raise GridError(
                f"{what}={brief(value)} names axes, but the array has no names. Give {what} as numbers in "
                'the order of the axes, or the names: meta=tw.ImageMeta("yx") in tiled_map, shape={"y": 100, '
                '"x": 80} in plan_tiles and probe.'
            )
        if not value or (unknown := [key for key in value if str(key) not in names]):
            which = f"names {unknown[0]!r}" if value else "is empty"
            raise GridError(f"{what}={brief(value)} {which}; the axes of the array are {', '.join(names)}.")
    assert names is not None
    by_name = {what: {str(key): n for key, n in value.items()} for what, value in given.items()}
    axes, crop = request.axes, request.crop
    if "crop" in by_name and axes is None:
        axes = tuple(name for name in names if name in by_name["crop"])
    one_each = None if "crop" in by_name or crop is None else lengths(crop)
    each, tiled = resolve_axes(source, axes, request.each, one_each)
    dims, leading = [names[a] for a in tiled], [names[a] for a in each]
    changes: dict[str, Any] = {
        what: _values(what, value, dims, PER_AXIS[what])
        for what, value in by_name.items()
        if what != "chunks"
    }
    if "chunks" in by_name:
        blocks = by_name["chunks"]
        _refuse_others("chunks", blocks, [*leading, *dims], "whole in each block")
        changes["chunks"] = _values("chunks", dict.fromkeys(leading, 1) | blocks, [*leading, *dims], None)
    return replace(request, axes=axes, **changes)


def _values(what: str, value: Mapping[str, Any], dims: Sequence[str], usual: int | None) -> tuple[Any, ...]:
    """Return one number per axis of ``dims``."""
    _refuse_others(what, value, dims, "not tiled")
    missing = [dim for dim in dims if dim not in value]
    if missing and usual is None:
        raise GridError(
            f"{what}={brief(dict(value))} must name every tiled axis ({', '.join(dims)}); "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
        )
    return tuple(value.get(dim, usual) for dim in dims)


def _refuse_others(what: str, value: Iterable[str], dims: Sequence[str], why: str) -> None:
    """Raise a `GridError` if a dict names axes that cannot have a number."""
    if others := [name for name in value if name not in dims]:
        raise GridError(
            f"{what} names {', '.join(others)}: {why}. It can name {', '.join(dims)}; the tiled axes are "
            "those of crop= or axes=."
        )
