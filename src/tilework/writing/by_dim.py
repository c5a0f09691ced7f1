"""Chunks and shards by the names of axes, and by the keys of several outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilework._checks import brief
from tilework._types import Index
from tilework.errors import TilingError

__all__ = ["filled", "of_output"]


def of_output(what: str, value: Any, key: str, dims: Mapping[str, Sequence[str] | None]) -> Any:
    """Return chunks or shards of one output; None for axes that a dict by name leaves out.

    Parameters
    ----------
    what : {"chunks", "shards"}
    value : int, sequence, None, or dict by name or by key
        As given. Of several outputs, a dict may have their keys, and each value may be a dict by name; or
        names of axes, which are those of all outputs.
    key : str
        The output; empty for a single one.
    dims : dict
        Names of the axes of each output, by key; None: they are not known.

    Raises
    ------
    TilingError
        If the keys of a dict are both or neither.
    """
    if not isinstance(value, Mapping):
        return value
    named = {str(k): v for k, v in value.items()}
    known = {name for names in dims.values() for name in names or ()}
    by_key = "" not in dims and set(named) <= set(dims)
    by_name = set(named) <= known
    if by_key and by_name and named:
        raise TilingError(
            f"{what}={brief(value)} may mean the outputs {', '.join(dims)} or the axes "
            f"{', '.join(sorted(known))}; give it by output, with axes inside: {what}={{{key!r}: {{...}}}}."
        )
    if by_key:
        # Of an output that is not named, the default.
        return of_output(what, named.get(key), "", {"": dims[key]})
    if not by_name:
        what_there_is = f"the axes are {', '.join(sorted(known))}" if known else "the axes have no names"
        if "" not in dims:
            what_there_is = f"the outputs are {', '.join(dims)}, and {what_there_is}"
        raise TilingError(f"{what}={brief(value)} names none that there is: {what_there_is}.")
    return tuple(named.get(name) for name in dims[key] or ())


def filled(value: Any, usual: Index | Callable[[], Index]) -> Any:
    """Return lengths with ``usual`` ones for axes that a dict by name left out."""
    if not isinstance(value, tuple) or None not in value:
        return value
    if all(n is None for n in value):
        return None
    return tuple(
        u if n is None else n for n, u in zip(value, usual() if callable(usual) else usual, strict=True)
    )
