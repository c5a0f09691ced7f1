"""Axes of several arrays of one call, by their names: paired, refused, or warned of."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

from tilework._checks import warn
from tilework._types import Index
from tilework.errors import GridError, TilingWarning
from tilework.source.base import BlockSource, Source

__all__ = ["check_names", "in_order_of", "warn_of_orders"]


def in_order_of(first: Source, axes: Index, source: Source, own: Index) -> Index:
    """Return axes of a source in the order that ``axes`` of the first one have, if names tell."""
    if first.names is None or source.names is None:
        return own
    numbers = {source.names[a]: a for a in own}
    order = [numbers.get(first.names[a]) for a in axes]
    return own if None in order else tuple(a for a in order if a is not None)


def check_names(
    sources: Sequence[Source], cut: Sequence[Index], keys: Sequence[Hashable] | None = None
) -> None:
    """Raise where an axis would be cut with one of another name that the first source cuts elsewhere.

    Parameters
    ----------
    sources : sequence of Source
    cut : sequence of tuple of int
        Per source, the axes that are cut.
    keys : sequence, optional
        What messages call the sources. Default: their numbers.
    """
    names = [[s.names[a] for a in axes] if s.names else None for s, axes in zip(sources, cut, strict=True)]
    for number, own in enumerate(names[1:], 1):
        for one, other in zip(names[0] or (), own or (), strict=False):
            if one != other and other in (names[0] or ()):
                key = number if keys is None else keys[number]
                raise GridError(
                    f"axis {one!r} of the first array would be cut with axis {other!r} of array {key!r}; "
                    f"transpose that one, or name the axes: its axes are {sources[number].names}."
                )


def warn_of_orders(
    sources: Sequence[Source],
    crops: Sequence[Index],
    each: Sequence[Index] | None = None,
    keys: Sequence[Hashable] | None = None,
) -> None:
    """Warn of two crops with the same axes in different orders that numpy cannot tell apart by lengths.

    Parameters
    ----------
    sources : sequence of Source
    crops : sequence of tuple of int
        Per source, the shape of the crop that is given to the caller's code.
    each : sequence of tuple of int, optional
        Per source, the axes that crops do not have. Default: none.
    keys : sequence, optional
        What messages call the sources. Default: their numbers.
    """
    found = []
    for number, (source, crop) in enumerate(zip(sources, crops, strict=True)):
        if source.names is not None:
            gone = () if each is None else each[number]
            seen = (name for a, name in enumerate(source.names) if a not in gone)
            own = dict(zip(seen, crop, strict=True))
            found.append((number if keys is None else keys[number], source, source.names, own))
    for (first, _, _, a), (key, source, names, b) in itertools.combinations(found, 2):
        # An axis of one sample may lie anywhere.
        long = {name for name in a.keys() & b.keys() if (a[name], b[name]) != (1, 1)}
        one, other = ([name for name in own if name in long] for own in (a, b))
        if one == other or [a[name] for name in one] != [b[name] for name in other]:
            continue
        turned = iter(one)
        order = tuple(next(turned) if name in long else name for name in names)
        lazy = "array" if isinstance(source, BlockSource) else "dask.array.from_array(tw.open_image(array))"
        warn(
            f"crops of array {first!r} have axes {tuple(a)} and those of array {key!r} {tuple(b)}, which "
            f"numpy does not tell apart: lengths {tuple(a.values())} and {tuple(b.values())}. Transpose "
            f"array {key!r}: array.transpose{order} of xarray, which xarray.DataArray({lazy}, "
            f"dims={names}) makes of others.",
            TilingWarning,
        )
        return
