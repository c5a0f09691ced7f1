"""What a user is told of objects that may differ from those of the whole image."""

from __future__ import annotations

from collections.abc import Sequence

from tilework.labels.owner import limit, needed
from tilework.labels.painting import Counts

__all__ = ["PIECES", "doubts"]

PIECES = (
    'labels differ from those of the whole image until they are written: with labels="join" each piece of an '
    "object has an id, and tw.to_zarr joins what touches across the cuts between tiles."
)


def doubts(
    counts: Counts, names: Sequence[str], overlaps: Sequence[int], *, dropped: int = 0, where: str = ""
) -> str:
    """Return one sentence per kind of doubt and what to change; empty if there is none.

    Parameters
    ----------
    counts : Counts
    names : sequence of str
        Names of the tiled axes.
    overlaps : sequence of int, samples of the result per tiled axis
        Context of each core.
    dropped : int
        Number of objects of which nothing is painted.
    where : str
        The part of the result that the counts are about; empty: all of it.
    """
    found = []
    claims = counts.claims
    if claims.large:
        long = [
            f"{extent} samples along axis {name}, where {_safe(o)}: use at least {max(1, needed(extent))}"
            for name, extent, o in zip(names, claims.extent, overlaps, strict=True)
            if extent
        ]
        found.append(
            f"{_many(claims.large, 'object is', 'objects are')} cut by the crop of the tile that owns "
            f"{'it' if claims.large == 1 else 'them'}; the longest that was seen has {'; '.join(long)}"
        )
    if counts.contested:
        found.append(
            f"{_many(counts.contested, 'sample is', 'samples are')} claimed by two tiles, or seen otherwise "
            "by the tile whose core they are in"
        )
    if dropped:
        found.append(f"{_many(dropped, 'object is', 'objects are')} lost under others")
    if counts.unclaimed:
        found.append(
            f"{_many(counts.unclaimed, 'sample', 'samples')} of objects belong to none that a tile owns"
        )
    if not found:
        return ""
    return (
        f"labels may differ from those of the whole image{where}: {'. '.join(found)}. Use more overlap: at "
        "least half of the longest object, and as far as the function looks; tw.check(out) shows where."
    )


def _safe(overlap: int) -> str:
    if not overlap:
        return (
            "overlap=0 does not show whether an object is whole (if objects end there, make it an each= axis)"
        )
    return f"overlap={overlap} is safe up to {limit(overlap)}"


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
