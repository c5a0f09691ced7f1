"""`explain`: the decisions and the cost of a run, optionally with the measured cost of one tile."""

from __future__ import annotations

import functools
import math
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tilework._checks import Explanation, Report, flag
from tilework._machine import n_threads
from tilework._types import Array, Span
from tilework.diagnostics.stages import (
    ENOUGH,
    MOST_CALLS,
    Stages,
    best_batch,
    busy_part,
    encoding_seconds,
    timed,
    tried_batches,
)
from tilework.diagnostics.tile_runner import TileCache, TileRunner
from tilework.diagnostics.viewing import members_of
from tilework.engine.parts import blocks_of, part_of_block, tiles_touching
from tilework.engine.spec import Spec
from tilework.errors import TilingError
from tilework.execution.where import Where
from tilework.function.bound import BoundOutput
from tilework.function.devices import calls_at_a_time, devices_of, transfer_seconds
from tilework.graph.build import find_spec
from tilework.grid.tiles import Box, Tile
from tilework.plan.cost import busiest, decoded_ratio, human, rows, tasks
from tilework.plan.memory import peak_bytes
from tilework.plan.tile_mask import TileMask
from tilework.plan.tile_plan import TilePlan
from tilework.source.kept import CHUNKS
from tilework.writing.forecast import forecast

__all__ = ["Measured", "explain", "measure"]

# Seconds that a scheduler spends on a task: dask's own in this process, and that of a cluster.
LOCAL_TASK, CLUSTER_TASK = 2e-4, 1e-3
# Tiles that are tried if some are left out when they are read.
TRIED = 64
# Bytes that are copied to see how long it takes.
COPIED = 2**25


@dataclass(frozen=True, slots=True, repr=False)
class Measured(Report):
    """Measured cost of one tile in this process, and the estimate for the whole run."""

    scheduler: str
    """"threads", "sync", "processes", "distributed" or "other"."""
    workers: int
    """Number of concurrent calls of the function."""
    call_seconds: float
    """Seconds of one call per crop, with nothing else running."""
    busy_seconds: float
    """Seconds of one call per crop, while all threads of this process call the function."""
    read_seconds: float
    """Seconds of reading all crops of the run in one thread."""
    blend_seconds: float
    """Seconds of adding up, normalising and reducing the whole result in one thread, beside the others."""
    seconds: float
    """Seconds of the whole run with the workers of the scheduler."""
    read_bytes: int
    """Bytes that the run decodes from its sources."""
    result_bytes: int
    """Bytes of the whole result, over all outputs."""
    call_bytes: int | None
    """Peak bytes that one call of the function allocates; None if the system does not tell."""
    peak_bytes: int
    """Peak bytes of a process, including allocations of the function."""
    stages: Stages
    """Seconds of each stage of the run, alone."""
    device_share: float
    """Part of the run in which the devices work, at most 1; of a function without a device, the calls."""
    batches: Mapping[int, float]
    """Seconds per crop of the lengths of batches that were tried; empty if the function takes one crop."""
    fn: Any
    """The function."""

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values."""
        own = "unknown" if self.call_bytes is None else human(self.call_bytes)
        parts = f"{self.read_seconds:.2g} s reading and {self.blend_seconds:.2g} s blending in one thread"
        return [
            (
                "measured",
                f"{self.call_seconds:.3g} s per crop, {self.busy_seconds:.3g} s with all threads busy",
            ),
            ("seconds", f"about {self.seconds:.3g} on {self.workers} workers ({self.scheduler}); {parts}"),
            *self.stages.rows(self.fn, self.device_share),
            *self._batch_rows(),
            ("bytes", f"{human(self.read_bytes)} decoded, {human(self.result_bytes)} of result"),
            ("peak", f"about {human(self.peak_bytes)} in a process, with {own} per call of fn"),
        ]

    def _batch_rows(self) -> list[tuple[str, str]]:
        if len(self.batches) < 2:
            return []
        each = ", ".join(f"{size}: {seconds:.3g}" for size, seconds in self.batches.items())
        best = best_batch(self.batches)
        return [("batches", f"seconds per crop in batches of {each}; best is batch_size={best}")]


def explain(out: Any, *, measure: bool = False, writing: Mapping[str, Any] | None = None) -> Explanation:
    """Return the decisions and the cost of computing a result, as text; a notebook shows a table.

    Parameters
    ----------
    out : dask.array.Array, tuple or dict of them, or TilePlan
        Unmodified result of `tiled_map`, or a plan, which has no function to measure.
    measure : bool
        Whether to run the function on one tile (or one batch, several times if it is quick), to predict the
        seconds of the run on the scheduler that dask would use now, with the lanes of `to_zarr` and
        `compute`, and to measure the memory that the function allocates. It times each stage, names the one
        that the run waits for, and tries batches of some lengths if the function takes batches.
    writing : dict, optional
        Arguments of `to_zarr`, such as ``{"ome": True, "chunks": 512}``: the plan is that of this call, with
        its write units, and coarser levels that are made with the blocks or afterwards. Nothing is written.

    Returns
    -------
    Explanation
        A string of one row per fact, a name and its value; its ``rows`` are pairs of strings.

    Raises
    ------
    TilingError
        If ``out`` is neither a plan nor an unmodified result of `tiled_map`; with ``measure``, if there is no
        tile to run or no function.

    Examples
    --------
    >>> import numpy as np
    >>> from tilework import tiled_map
    >>> out = tiled_map(np.sqrt, np.ones((300, 300)), 64, 4)
    >>> print(explain(out).splitlines()[2])
    tiles      36 = 6 x 6
    >>> "about" in explain(out, measure=True).splitlines()[-1]
    True
    >>> print(explain(out, writing={"ome": True, "chunks": 64, "levels": 2}).splitlines()[-1].strip())
    level 1 is made from the blocks in memory
    """
    flag("measure", measure)
    if isinstance(out, TilePlan):
        if writing is not None:
            raise TilingError("a plan has no result to be written; give the result: tw.explain(out, ...).")
        return out.explain(measure=measure)
    spec = _spec(out)
    lines = [*spec.plan.explain().rows]
    if writing is not None:
        plan, more = forecast(out, writing)
        lines = [*rows(plan, lazy=False), *more]
        spec = replace(spec, plan=plan) if measure else spec
    return Explanation([*lines, *_measure(spec, writing).rows()] if measure else lines)


def measure(out: Any) -> Measured:
    """Return the measured cost of one tile of a result, and the estimate for the whole; see `explain`."""
    return _measure(_spec(out))


def _spec(out: Any) -> Spec:
    found = find_spec(next(iter(members_of(out).values()), None))
    if found is None:
        raise TilingError(
            "out must be an unmodified result of tiled_map or its plan, which explain() describes."
        )
    return found.spec


def _measure(spec: Spec, writing: Mapping[str, Any] | None = None) -> Measured:
    where, devices = Where.find(), devices_of(spec.fn)
    lanes = max(where.threads, min(where.threads_for(devices), math.prod(spec.plan.blocks)))
    lanes = min(lanes, spec.plan.threads) if writing is not None else lanes
    shared = devices > 0 and where.name == "threads"
    runner, threads = TileRunner(spec, TileCache(0)), _together(where, devices)
    tiles = _running(runner, _batch(spec))
    plan = spec.plan.with_threads(lanes)
    crops = runner.crops(tiles)
    results: list[list[Array]] = []

    def call() -> None:
        results[:] = [r for _, r in runner.call(tiles, crops) if r is not None]

    call_bytes = _allocated(call)  # the first call, which builds models, is not timed
    if not results:
        raise TilingError("no tile that was tried runs: the skip predicate or nodata leaves them out.")
    alone = timed(call) / len(tiles)
    busy = _timed_together(call, threads) / len(tiles) if threads > 1 else alone
    read = timed(lambda: _read_anew(runner, tiles)) / _decoded(spec, tiles)
    samples, calls = math.prod(plan.shape), plan.calls()
    read_bytes = int(decoded_ratio(plan) * samples * sum(s.sample_bytes for s in plan.sources))
    result_bytes = sum(int(samples * math.prod(o.scale) * o.final_bytes) for o in plan.outputs)
    made = results[0][: len(spec.outputs)]  # without the valid samples
    transfer = transfer_seconds(spec.fn, [c.cut(tiles[0]) for c in crops], made)
    stages = Stages(
        read=read * read_bytes, transfer=transfer * calls, model=max(0.0, alone - transfer) * calls,
        blend=_blending(spec, tiles[0], results[0], threads),
        write=encoding_seconds(spec, made, writing or {}),
    )  # fmt: skip
    beside = stages.read + stages.blend + (0.0 if writing is None else stages.write)
    workers = lanes if shared else where.at_a_time
    if shared:
        on_device = calls * busy / threads
        processors = calls * alone * busy_part(call) + beside * min(
            1.0, busy_part(lambda: _read_anew(runner, tiles))
        )
        seconds = max(on_device, processors / n_threads(), (calls * alone + beside) / lanes)
        seconds += beside / math.prod(
            plan.blocks
        )  # the first block is read, and the last one finished, alone
    else:
        seconds = busiest(plan, workers) * (busy + beside / max(1, calls))
        on_device = calls * busy / workers
    seconds += _around(plan, result_bytes, where)
    at_once = min(lanes, calls_at_a_time(spec.fn) or lanes)
    return Measured(
        where.name, workers, alone, busy, stages.read, stages.blend, seconds, read_bytes, result_bytes,
        call_bytes, peak_bytes(plan) + at_once * (call_bytes or 0), stages,
        min(1.0, on_device / seconds), tried_batches(spec, tiles[0]), spec.fn,
    )  # fmt: skip


def _read_anew(runner: TileRunner, tiles: Sequence[Tile]) -> None:
    """Read tiles from where they are stored; decoded chunks would only be copied again and again."""
    CHUNKS.clear()
    for cutter in runner.crops(tiles):
        cutter.read()


def _together(where: Where, devices: int) -> int:
    """Return the number of threads of one process that call the function, as far as this machine has them."""
    if devices and where.name == "threads":
        return min(where.threads_for(devices), max(n_threads(), 2 * devices))  # the others would only wait
    return where.threads if where.client is None else min(where.threads, n_threads())


def _around(plan: TilePlan, result_bytes: int, where: Where) -> float:
    """Return seconds of what no worker shares: scheduling, and putting the result's blocks together."""
    part = np.ones(min(result_bytes, COPIED), np.uint8)
    copying = timed(part.copy) / max(1, part.nbytes) * result_bytes
    return tasks(plan) * (LOCAL_TASK if where.client is None else CLUSTER_TASK) + copying


def _batch(spec: Spec) -> list[Tile]:
    """Return one batch: a running tile near the middle of a middle block, repeated to fill the batch."""
    plan = spec.plan
    mask = plan.mask
    if not plan.n_tiles or (mask is not None and not mask.bits.any()):
        raise TilingError("no tile of this plan runs; there is nothing to measure.")
    # At a corner of blocks, what each block costs would count for the few tiles there.
    sizes = zip(plan.shape, plan.blocks, plan.block, strict=True)
    middle = [min(n - 1, count // 2 * size + size // 2) for n, count, size in sizes]
    position = tuple(axis.owner(min(x, axis.covered - 1)) for axis, x in zip(plan.axes, middle, strict=True))
    if mask is not None:
        position = mask.nearest(position)
    return [plan.grid.tile(position)] * min(plan.batch_size or 1, plan.n_tiles)


def _running(runner: TileRunner, tiles: list[Tile]) -> list[Tile]:
    """Return a batch of a tile that is not left out when it is read: that of ``tiles``, or another one."""
    spec = runner.spec
    if spec.skip is None and spec.validity is None:
        return tiles
    grid = spec.plan.grid
    mask = spec.plan.mask or TileMask.all(grid.shape)
    others = map(grid.tile, mask.some(TRIED))
    found = (t for t in (tiles[0], *others) if runner.get([t])[t.index] is not None)
    return [next(found, tiles[0])] * len(tiles)


def _timed_together(act: Callable[[], Any], threads: int) -> float:
    """Return seconds per call of ``act`` in one thread while ``threads`` threads call it."""
    if threads == 1:
        return timed(act)
    # Quick calls are repeated often, because otherwise the start of the threads would count.
    each = max(1, min(10 * MOST_CALLS, int(ENOUGH / max(timed(act), 1e-9))))
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(lambda _: [act() for _ in range(each)], range(threads)))
        return (time.perf_counter() - start) / each


def _decoded(spec: Spec, tiles: Sequence[Tile]) -> int:
    """Return the bytes that reading one tile decodes, in whole storage chunks if there are any."""
    total = 0
    for plan in spec.plan.sources:
        samples = 1
        for d, (a, b) in enumerate(zip(tiles[0].read.start, tiles[0].read.stop, strict=True)):
            n = spec.plan.shape[d]
            a, b = max(0, a), min(n, b)
            if plan.chunks is not None:
                c = plan.chunks[d]
                a, b = a // c * c, min(n, -(-b // c) * c)
            samples *= max(1, b - a)
        total += samples * plan.sample_bytes
    return max(1, total)


def _blending(spec: Spec, tile: Tile, results: list[Array], threads: int) -> float:
    """Return seconds of adding up, normalising and reducing the whole result.

    Many tiles reach into the support of a tile with a part of theirs: 49 of them where 16 lie on each sample.
    Each costs its samples, and as much again for finding its place. So two parts are timed, the support and
    one sample of it, which tells what a tile costs that brings hardly any samples.
    """
    plan, seconds = spec.plan, 0.0
    # The tile's results replace those of its neighbours, because values do not affect the cost.
    stand_in = _same_shape(spec, tile, results)
    for number, output in enumerate(spec.outputs):
        own_box = Box.of(_spans(output, tile))
        index, part = max(blocks_of(spec, number, own_box), key=lambda found: found[1].size)
        middle = Box.of(((a + b) // 2, (a + b) // 2 + 1) for a, b in zip(part.start, part.stop, strict=True))
        taken, met = [], []
        for box in (part, middle):
            finish = functools.partial(part_of_block, spec, number, index, box, stand_in)
            taken.append(_timed_together(finish, threads))
            met.append([t for _, own in tiles_touching(spec, number, index, box) for t in own])
        each = taken[1] / max(1, len(met[1]))
        added = max(1, sum(Box.of(_spans(output, t)).intersect(part).size for t in met[0]))
        per_sample = max(0.0, taken[0] - each * len(met[0])) / added
        all_added = 1
        for weights in output.weights:
            starts, stops = weights.supports()
            all_added *= int((stops - starts).sum())
        seconds += per_sample * all_added * plan.n_runs / plan.n_tiles + each * plan.calls()
    return seconds


def _spans(output: BoundOutput, tile: Tile) -> list[Span]:
    """Return where a tile has weight in an output, result samples per grid axis."""
    return [w.support(i) for w, i in zip(output.weights, tile.position, strict=True)]


def _same_shape(spec: Spec, tile: Tile, results: list[Array]) -> Callable[[Tile], list[Array]]:
    """Return a function that returns ``results`` for any tile, or zeros for a tile of another shape."""
    n = len(spec.plan.shape)

    def stand_in(other: Tile) -> list[Array]:
        if other.read.shape == tile.read.shape:
            return results
        found = []
        for output, result in zip(spec.outputs, results, strict=False):
            lengths = [
                b - a for a, b in (w.result(i) for w, i in zip(output.weights, other.position, strict=True))
            ]
            found.append(np.zeros(output.layout(lengths)[output.n_each :], result.dtype))
        if spec.validity is not None:
            found.append(np.ones(other.read.intersect(Box((0,) * n, spec.plan.shape)).shape, bool))
        return found

    return stand_in


def _allocated(act: Callable[[], Any]) -> int | None:
    """Return the peak bytes that ``act`` allocates; None if the system does not tell.

    This is the larger of the growth of the process and the allocations of Python and numpy, because a process
    that has kept freed memory need not grow.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        act()
        return None
    page, done, peak = os.sysconf("SC_PAGE_SIZE"), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], int(statm.read_text().split()[1]))

    act()  # so that lasting allocations (models, thread pools) do not count
    before = int(statm.read_text().split()[1])
    watcher = threading.Thread(target=watch, daemon=True)
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    watcher.start()
    try:
        act()
    finally:
        asked = tracemalloc.get_traced_memory()[1] - held
        if not tracing:
            tracemalloc.stop()
        done.set()
        watcher.join()
    return max((peak[0] - before) * page, asked)
