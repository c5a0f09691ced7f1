"""Where the time of a run goes: reading, transfer to a device, the model, blending and writing.

Each stage is timed alone, in one thread, and the sums are bounds of the run: its devices, its processors and
its threads each need some time, and the run takes the longest of these at least.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from tilework._types import Array
from tilework.diagnostics.tile_runner import TileCache, TileRunner
from tilework.engine.spec import Spec
from tilework.function.calling import is_batched
from tilework.function.device_array import as_host
from tilework.function.devices import devices_of
from tilework.grid.tiles import Tile

__all__ = ["Stages", "best_batch", "busy_part", "encoding_seconds", "timed", "tried_batches"]

# Seconds for which a call is repeated, and most repetitions: enough to time quick functions to a few per
# cent.
ENOUGH, MOST_CALLS = 0.3, 30
# Batches that are tried, crops; seconds after which no further one is, and how much slower than the fastest a
# batch may be until then. Fewer crops take less memory, so that they win if they are as fast within NOISE.
BATCHES, LONGEST, SLOWER, NOISE = (1, 2, 4, 8, 16), 10.0, 1.5, 0.03
# Part of a device's time from which on it is what the run waits for.
FULL = 0.9
# What helps where the run waits for a stage.
HINTS = {
    "read": "larger chunks, or decoded chunks that fit into memory; more lanes= if the store is far away",
    "transfer": "crops of 8 or 16 bits, and results that are reduced",
    "model": "a larger crop for its overlap, or another device",
    "blend": "less overlap",
    "write": "larger chunks, or another compressor",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Seconds of each stage of the whole run, in one thread or on one device."""

    read: float
    """Reading and decoding all crops."""
    transfer: float
    """Moving crops to the device and results back."""
    model: float
    """All calls of the function, without the transfer."""
    blend: float
    """Adding up, normalising and reducing."""
    write: float
    """Encoding the result, without the time of the store."""

    def rows(self, fn: Any, share: float) -> list[tuple[str, str]]:
        """Return names and values; ``share`` is the part of the run in which the device works."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        if not self.transfer:
            del named["transfer"]
        text = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in named.items())
        return [("stages", f"{text}; each in one thread"), ("bottleneck", self._slowest(named, fn, share))]

    def _slowest(self, named: dict[str, float], fn: Any, share: float) -> str:
        works = ""
        if devices_of(fn):
            device = {"transfer", "model"}
            named = {n: s for n, s in named.items() if (n in device) == (share >= FULL)}
            works = f"; the device works {share:.0%} of the time".replace("%", " %")
        name = max(named, key=named.__getitem__)
        return f"{name}{works}. What helps: {HINTS[name]}"


def timed(act: Callable[[], Any]) -> float:
    """Return the median seconds of ``act``; quick ones are repeated."""
    taken: list[float] = []
    while sum(taken) < ENOUGH and len(taken) < MOST_CALLS:
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def busy_part(act: Callable[[], Any]) -> float:
    """Return the number of processors that ``act`` keeps busy; 0 if it waits."""
    start, before = time.perf_counter(), time.process_time()
    act()
    return (time.process_time() - before) / max(1e-9, time.perf_counter() - start)


def encoding_seconds(spec: Spec, results: Sequence[Array], writing: Mapping[str, Any]) -> float:
    """Return the seconds of encoding the whole result as `to_zarr` would, into memory."""
    import zarr

    given = {k: writing[k] for k in ("compressors", "filters", "serializer", "zarr_format") if k in writing}
    total = 0.0
    # Valid samples, if they are asked for, come after the results.
    for output, own, result in zip(spec.outputs, spec.plan.outputs, results, strict=False):
        with np.errstate(all="ignore"):
            part = as_host(result).astype(output.dtype, copy=False)
        target = zarr.create_array(
            zarr.storage.MemoryStore(), shape=part.shape, chunks=part.shape, dtype=part.dtype, **given
        )
        size = math.prod(spec.plan.shape) * own.per_sample * own.final_bytes
        total += timed(functools.partial(target.__setitem__, ..., part)) / max(1, part.nbytes) * size
    return total


def tried_batches(spec: Spec, tile: Tile) -> dict[int, float]:
    """Return the seconds per crop of batches of some sizes; of one, if the function takes no others."""
    plan = spec.plan
    if plan.batches == "whole" or not (plan.batch_size is not None or is_batched(spec.fn)):
        return {}
    found: dict[int, float] = {}
    began = time.perf_counter()
    for size in sorted({*BATCHES, plan.batch_size or 1}):
        late = time.perf_counter() - began > LONGEST
        slow = found and list(found.values())[-1] > SLOWER * min(found.values())
        if size > max(1, plan.n_tiles) or late or slow:
            break
        runner = TileRunner(replace(spec, plan=replace(plan, batch_size=size, batches="short")), TileCache(0))
        tiles = [tile] * size
        crops = runner.crops(tiles)
        try:
            runner.call(tiles, crops)  # the first batch of a length takes longer
            found[size] = timed(functools.partial(runner.call, tiles, crops)) / size
        except Exception:  # it does not fit into the device's memory, or the function takes no such batch
            break
    return found


def best_batch(found: Mapping[int, float]) -> int:
    """Return the shortest batch that is about as fast as the fastest."""
    least = min(found.values())
    return min(size for size, seconds in found.items() if seconds <= (1 + NOISE) * least)
