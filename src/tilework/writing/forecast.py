"""What `to_zarr` would do: its plan, write units and coarser levels; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from zarr.storage import MemoryStore

from tilework._checks import as_options
from tilework.execution.where import Where
from tilework.grid.axis import ceil_div
from tilework.plan.tile_plan import TilePlan
from tilework.writing.jobs import TileJob
from tilework.writing.many import asked_from
from tilework.writing.numbering import Numbering
from tilework.writing.preparing import prepare
from tilework.writing.tail import Pyramid, Tail
from tilework.writing.units import layout_of

__all__ = ["forecast"]

LEFT_OUT = ("path", "overwrite", "resume", "accept", "storage_options", "compute", "progress")
"""Arguments of `to_zarr` that change neither the plan nor the arrays."""
OF_THE_RUN = ("retries", "resources", "priority", "lanes")
"""Arguments of `to_zarr` about where its tasks run, with scheduler and client."""


def forecast(out: Any, options: Mapping[str, Any]) -> tuple[TilePlan, list[tuple[str, str]]]:
    """Return the plan with which `to_zarr` would write a result, and rows on units and coarser levels.

    Parameters
    ----------
    out : result of tiled_map
    options : dict
        Arguments of `to_zarr`; those about what is in a store are left out.
    """
    given = {k: v for k, v in as_options("writing", options).items() if k not in LEFT_OUT}
    if given.pop("label_name", None) is not None:
        # The levels of labels are those of an image, but never averaged.
        given = {"pyramid": "nearest"} | given | {"ome": True}
    run: dict[str, Any] = {k: given.pop(k) for k in OF_THE_RUN if k in given}
    where = Where.find(given.pop("scheduler", None), given.pop("client", None), **run)
    common: dict[str, Any] = {k: given.pop(k) for k in ("on_error", "memory_limit") if k in given}
    job, writing = prepare(out, MemoryStore(), asked_from(common, given), where)
    try:
        assert isinstance(job, TileJob)
        rows = [_units(d.array) for n, d in writing.closing.destinations.items() if n < len(job.spec.outputs)]
        parts = [] if writing.rest is None else writing.rest.parts
        growing = dict(job.growing)
        for part in parts:
            if isinstance(part, Numbering):
                growing[part.number] = part.growing
                rows.append(
                    ("labels", "written with lazy ids first, then read again and numbered 1, 2, 3...")
                )
        for pyramid in (p for part in parts if isinstance(part, Tail) for p in part.pyramids):
            rows += _levels(pyramid, growing[pyramid.number].depth if pyramid.number in growing else 0)
        return job.spec.plan, rows
    finally:
        writing.release()


def _units(array: Any) -> tuple[str, str]:
    layout = layout_of(array)
    number = math.prod(ceil_div(n, u) for n, u in zip(array.shape, layout.unit, strict=True))
    shards = "" if layout.shards is None else f" in shards of {layout.shards}"
    return "units", f"{number}, chunks of {layout.chunks}{shards}"


def _levels(pyramid: Pyramid, depth: int) -> Iterator[tuple[str, str]]:
    """Yield rows on the coarser levels, of which ``depth`` are made with the blocks."""
    shapes = " > ".join("x".join(map(str, level.shape)) for level in pyramid.levels)
    yield "levels", f"{len(pyramid.levels)} coarser, by {pyramid.method}: {shapes or 'none'}"
    if depth:
        yield "", f"{_numbers(1, depth)} made from the blocks in memory"
    if left := pyramid.levels[depth:]:
        below = [pyramid.below.array.shape, *(level.shape for level in pyramid.levels)][depth:-1]
        share = sum(map(math.prod, below)) / math.prod(pyramid.below.array.shape)
        yield "", f"{_numbers(left[0].number, left[-1].number)} made from parts of several blocks, as far as"
        yield "", f"memory has them; else the level below is read: at most {share:.2%} of the image"


def _numbers(first: int, last: int) -> str:
    return f"level {first} is" if first == last else f"levels {first} to {last} are"
