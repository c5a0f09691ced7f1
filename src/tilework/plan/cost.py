"""The cost of a plan: calls, tasks, bytes read and peak bytes; and `explain`, which returns it as text."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING

from tilework.grid.axis import ceil_div

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilework.plan.tables import BlockPlan

__all__ = ["busiest", "decoded_ratio", "fewest_calls", "peak_bytes", "rows", "tasks"]

# Most blocks that are assigned to workers one by one; with more, the last block hardly matters.
LAID_OUT = 20_000


def fewest_calls(plan: BlockPlan) -> int:
    """Return the smallest number of full crops with the plan's stride that could cover the image."""
    return math.prod(1 + max(0, ceil_div(a.extent + sum(a.margin) - a.crop, a.stride)) for a in plan.axes)


def tasks(plan: BlockPlan) -> int:
    """Return the number of tasks that compute something."""
    running = [b for b in itertools.product(*map(range, plan.blocks)) if plan.touched(b)]
    # Each of several outputs has one more task per block, which picks it.
    getters = len(running) * len(plan.outputs) if len(plan.outputs) > 1 else 0
    if plan.reuse == "recompute":
        return len(running) + getters
    count = 0
    for block in running:
        group, later, earlier = plan.owned(block) > 0, plan.later(block), plan.earlier(block)
        # A block without neighbours is one task; others are a block, and a group and a seam if these exist.
        count += 1 if group and not later and not earlier else 1 + group + (group and bool(later))
    return count + getters


def decoded_ratio(plan: BlockPlan) -> float:
    """Return decoded source bytes per image byte, estimated for blocks that run in the order of keys.

    Notes
    -----
    Neighbouring blocks along an axis share chunks. These are decoded once if the cache holds all chunks that
    are read before the neighbour runs: a few along the fastest axis, a plane of them along the slowest.
    """
    tables = plan.tables
    reads = [t.owned_read if plan.reuse == "share" else t.touch_read for t in tables]
    worst = 1.0
    for source in plan.sources:
        if source.chunks is None:
            spans = [
                sum(min(b, n) - max(a, 0) for a, b in r) / n for r, n in zip(reads, plan.shape, strict=True)
            ]
            worst = max(worst, math.prod(spans))
            continue
        ratio, held = 1.0, float(source.sample_bytes * math.prod(source.chunks))
        for d in reversed(plan.slow_axes):
            chunk, extent = source.chunks[d], plan.shape[d]
            ranges = [(max(a, 0) // chunk, ceil_div(min(b, extent), chunk)) for a, b in reads[d] if b > a]
            once = len(set().union(*(range(a, b) for a, b in ranges)))
            shared = max((max(0, p[1] - q[0]) for p, q in itertools.pairwise(ranges)), default=0)
            if shared and held * shared > plan.cache_bytes:
                ratio *= sum(b - a for a, b in ranges) / once
            held *= once
        worst = max(worst, ratio)
    return worst


def peak_bytes(plan: BlockPlan) -> int:
    """Return the peak memory of one process, bytes, without allocations of the function itself.

    For each thread: the samples read for a block, a batch of crops and of results, the canvas and the
    finished block. For the process: the chunk cache and, under ``share``, the seams that wait for later
    blocks. The sum does not grow with the slowest axis.
    """
    tables, crop = plan.tables, math.prod(a.crop for a in plan.axes)
    share = plan.reuse == "share"
    read = math.prod(max(b - a for a, b in (t.owned_read if share else t.touch_read)) for t in tables)
    batch = (plan.batch_size or 1) * crop * sum(s.sample_bytes for s in plan.sources)
    task = batch + read * sum(s.sample_bytes for s in plan.sources if not s.in_memory)
    block, seams = math.prod(plan.block), 0
    for number, output in enumerate(plan.outputs):
        scale = float(math.prod(output.scale))
        canvas = math.prod(max(b - a for a, b in t.canvas[number]) for t in tables)
        if share:
            # One canvas grows while another waits until its seam is copied and its block merged.
            samples = 2 * canvas + block
            seams += int(_waiting(plan) * (canvas - block) * scale * output.sample_bytes)
        else:
            samples = block if output.rim is None else 2 * block
        crops = (plan.batch_size or 1) * crop
        task += int((samples + crops) * scale * output.sample_bytes + block * scale * output.final_bytes)
    return int(plan.threads * task + plan.cache_bytes + seams)


def _waiting(plan: BlockPlan) -> int:
    """Return the number of seams that wait at a time: a plane of blocks, a row, and so on."""
    counts = [1 if d in plan.slab_axes else plan.blocks[d] for d in plan.slow_axes]
    first = next((k for k, n in enumerate(counts) if n > 1), len(counts))
    return sum(math.prod(counts[k + 1 :]) for k in range(first, len(counts))) if first < len(counts) else 0


def busiest(plan: BlockPlan, workers: int) -> float:
    """Return the number of crops of the busiest worker if each takes the next block when it is free."""
    if plan.slabs or math.prod(plan.blocks) > LAID_OUT:
        return plan.calls() / workers
    ends = [0] * workers
    for index in itertools.product(*map(range, plan.blocks)):
        tiles = plan.owned(index) if plan.reuse == "share" else plan.touched(index)
        heapq.heapreplace(ends, ends[0] + tiles)
    return float(max(ends))


def human(n: float) -> str:
    """Return ``n`` bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def rows(plan: BlockPlan) -> list[tuple[str, str]]:
    """Return the decisions of ``plan`` and their cost, as names and values."""
    tiled, names = plan.axes[plan.n_each :], plan.names[plan.n_each :]
    calls, run, fewest = plan.calls(), plan.n_runs, fewest_calls(plan)
    written = math.prod(plan.shape)
    computed = calls * math.prod(a.crop for a in plan.axes)
    batches = f" in batches of {plan.batch_size}" if plan.batch_size else ""
    masked = f", {run} run (mask)" if run != len(plan) else ""
    crop, overlap, stride = (tuple(getattr(a, n) for a in tiled) for n in ("crop", "overlap", "stride"))
    sharing = "each tile runs once" if plan.reuse == "share" else "blocks share nothing"
    if plan.slabs:
        cut = ", ".join(plan.names[d] for d in plan.slab_axes)
        sharing = f"one slab of blocks after the other along axis {cut}; tiles across a face run in both"
    given = " at given starts" if any(a.starts is not None for a in tiled) else ""
    ratio, cache, peak = decoded_ratio(plan), human(plan.cache_bytes), human(peak_bytes(plan))
    ratios = (
        f"{calls / max(1, run):.3f} per tile, {calls / max(1, fewest):.3f} of the fewest that could cover"
    )
    lines = [
        ("image", f"{_by(plan.shape)}  axes {', '.join(plan.names)}"),
        ("crop", f"{crop}, overlap {overlap} per side, stride {stride}, edge {tiled[0].edge}{given}"),
        ("tiles", f"{len(plan)} = {_by(plan.grid_shape)}{masked}"),
        ("calls", f"{calls} crops{batches}; {ratios} ({fewest})"),
        ("blocks", f"{math.prod(plan.blocks)} = {_by(plan.blocks)} of {plan.block} samples"),
        ("reuse", f"{plan.reuse}: {sharing}"),
        ("tasks", str(tasks(plan))),
        ("computed", f"{computed / written:.3f} samples per sample written"),
        ("decoded", f"about {ratio:.2f} source bytes per image byte (cache {cache})"),
        ("peak", f"about {peak} in a process with {plan.threads} threads, without what fn takes"),
    ]
    padded = [f"{n} by {a.end_padding}" for a, n in zip(tiled, names, strict=True) if a.end_padding]
    if padded:
        lines.append(("padded", f"at the end, samples: {', '.join(padded)}"))
    if plan.covered < 1:
        lines.append(("covered", f"{plan.covered:.1%} of the image; the rest is fill_value"))
    return [*lines, *(("note", note) for note in plan.notes)]


def _by(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
