"""Sources that are results of `to_zarr` themselves, and of which units are missing."""

from __future__ import annotations

from collections.abc import Iterable

from tilework._checks import warn
from tilework.errors import TilingError, TilingWarning
from tilework.source.base import HalfSource, Source
from tilework.source.zarr_array import ZarrSource
from tilework.writing.claim import Owner, owner_alive
from tilework.writing.ledger import FORMAT, Ledger

__all__ = ["check_whole"]


def check_whole(sources: Iterable[Source]) -> None:
    """Raise if a run writes one of the sources, and warn if units of one are missing.

    They are read as fill value, and what is computed from that counts as done ever after. A warning suffices
    where nobody writes: tiles may have been left out on purpose. Records of newer formats say nothing here,
    nor do those of arrays that somebody resized.

    Raises
    ------
    TilingError
        If a process of this machine writes a source. Whether one of another machine lives is not known before
        its beat was watched for half a minute.
    """
    arrays = {}
    for source in sources:
        origin = source.origin if isinstance(source, HalfSource) else source
        if isinstance(origin, ZarrSource):
            arrays[str(origin.handle.store_path).removeprefix("file://")] = origin.handle
    for address, array in arrays.items():
        try:
            missing = _missing(Ledger(array))
        except Exception:
            # It went away, or a server answers a missing object with an error of its own, as 403: no record
            # is known, and tasks say what is wrong with samples.
            continue
        if missing is None:
            continue
        some, owner = missing
        if owner is not None:
            raise TilingError(
                f"{address}, which is read, is being written by a run ({owner}), {some}; wait until it has "
                "ended, and call again."
            )
        warn(
            f"{address}, which is read, is an incomplete result of to_zarr: {some}, and the others are read "
            "as fill value. Resume it first, by the call that wrote it; tw.status says what is missing.",
            TilingWarning,
        )


def _missing(ledger: Ledger) -> tuple[str, Owner | None] | None:
    """Return how many units are done, and who writes the others; None if all are, or nothing is known."""
    record = ledger.record if ledger.begun else None
    if record is None or record["format"] > FORMAT or ledger.misfit(record):
        return None
    done = ledger.read()
    if done.all():
        return None
    return f"{int(done.sum())} of {done.size} units are done", owner_alive(ledger.objects)
