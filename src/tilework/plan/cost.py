"""The cost of a plan: calls, tasks and bytes read; and `explain`, which returns it as text."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tilework.grid.axis import ceil_div
from tilework.grid.progression import Progression
from tilework.labels.owner import limit
from tilework.plan.axis_table import Spans
from tilework.plan.box_sums import weighed_sum
from tilework.plan.decoding import as_dask_runs, decoded_ratio, is_bound
from tilework.plan.memory import peak_bytes, tiles_of_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilework._types import Array, Bits, Ints
    from tilework.grid.axis import AxisGrid
    from tilework.plan.tables import BlockPlan

__all__ = [
    "busiest",
    "computed",
    "decoded_ratio",
    "fewest_calls",
    "repeated_crops",
    "rows",
    "tasks",
    "threads_of",
]

# Most blocks that are assigned to workers one by one; with more, the last block hardly matters.
LAID_OUT = 20_000
# Factor below which two counts of what is decoded are told as one.
SAME = 1.05


def fewest_calls(plan: BlockPlan) -> int:
    """Return the smallest number of full crops with the plan's stride that could cover the image."""
    return math.prod(1 + max(0, ceil_div(a.extent + sum(a.margin) - a.crop, a.stride)) for a in plan.axes)


def computed(plan: BlockPlan) -> int:
    """Return the number of samples in all crops that the function gets, repeated crops not counted."""
    if plan.axes[-1].edge != "clip":
        return plan.calls() * math.prod(a.crop for a in plan.axes)
    ranges, before = tiles_of_blocks(plan), []
    for axis in plan.axes:
        starts, lengths = _clipped(axis)
        before.append(_sums(lengths, starts))
    return plan.total(ranges, before)


def _clipped(axis: AxisGrid) -> tuple[Progression, Ints]:
    """Return where crops start along an axis with clipped ones, and the lengths of those that are stored."""
    starts, stops = axis.read_ends()
    assert isinstance(starts, Progression)
    assert isinstance(stops, Progression)
    return starts, stops.near - starts.near


def _sums(values: Array, like: Progression) -> Progression:
    """Return the sum of the values of the tiles before each one; those that are left out are equal."""
    step = int(values[like.at]) if like.more else 0
    return Progression(np.append(0, values.cumsum()), like.at, step, like.more)


def repeated_crops(plan: BlockPlan) -> int:
    """Return the number of crops that are repeated to fill batches.

    A batch has crops of one block and one shape.
    """
    size = plan.batch_size or 1
    if plan.batches != "whole" or size == 1:
        return 0
    kinds = [_by_length(*pair) for pair in zip(plan.axes, tiles_of_blocks(plan), strict=True)]
    if plan.mask is not None:
        found = 0
        for chosen in itertools.product(*kinds):
            before, ranges = zip(*chosen, strict=True)
            mask = plan.mask.among(before)
            spans, times = zip(*map(mask.unlike, range(len(ranges)), ranges), strict=True)
            found += weighed_sum(-mask.counts(spans) % size, times)
        return found
    # How many blocks have how many crops of each shape: a product of one length per axis.
    several: dict[tuple[int, ...], int] = {(1,): 1}
    for axis in kinds:
        lengths = np.transpose([spans.lengths for _, spans in axis]).tolist()
        some = Counter(tuple(n for n in row if n) for row in lengths)
        crops: Counter[tuple[int, ...]] = Counter()
        for (own, blocks), (kind, more) in itertools.product(several.items(), some.items()):
            crops[tuple(a * b for a in own for b in kind)] += blocks * more
        several = crops
    return sum(blocks * sum(-n % size for n in own) for own, blocks in several.items())


def _by_length(axis: AxisGrid, ranges: Spans) -> list[tuple[Progression, Spans]]:
    """Return the tiles before each one that have the same length, for each; and the ranges among these."""
    if axis.edge != "clip":  # all are whole crops, as many before each as its number
        every = Progression(np.arange(2), 0, 1, len(axis) - 1)
        return [(every, ranges)] if len(axis) else []
    starts, lengths = _clipped(axis)
    found = [_sums(lengths == n, starts) for n in np.unique(lengths)]
    return [(before, Spans(*map(before.take, ranges))) for before in found]


def tasks(plan: BlockPlan) -> int:
    """Return the number of tasks that compute something.

    Notes
    -----
    A block in which a tile runs is one task. Under ``share``, one that owns a running tile has a group
    besides, unless it has no neighbours, and a seam if its tiles reach into later blocks with running tiles.
    """
    running, grouped, seamed = _masked_shares(plan) if plan.mask is not None else _shares(plan)
    # Each of several outputs has one more task per block, also where no tile runs, which picks it.
    getters = math.prod(plan.blocks) * len(plan.outputs) if len(plan.outputs) > 1 else 0
    return running + getters + (grouped + seamed if plan.reuse == "share" else 0)


def _shares(plan: BlockPlan) -> tuple[int, int, int]:
    """Return the number of blocks that run tiles, and under ``share`` of groups and of seams, without a mask.

    Each is a product over the axes, or one less another: a block has no neighbours if it has none along any
    axis.
    """
    counts = []
    for d, (table, shared) in enumerate(zip(plan.tables, plan.shared, strict=True)):
        runs, owns = table.touches.lengths > 0, shared.lengths > 0
        reaches = table.reaching & (d not in plan.slab_axes)
        reached = np.append(False, reaches[:-1])
        found = (runs, owns, owns & ~reaches, owns & ~reaches & ~reached)
        counts.append([int(np.count_nonzero(bits)) for bits in found])
    running, owning, ending, alone = map(math.prod, zip(*counts, strict=True))
    return running, owning - alone, owning - ending


def _masked_shares(plan: BlockPlan) -> tuple[int, int, int]:
    """Return what `_shares` does, for a plan with a mask."""
    mask: Any = plan.mask
    share = plan.reuse == "share"
    touches, shared, kinds = [], [], []
    for axis, (table, own) in enumerate(zip(plan.tables, plan.shared, strict=True)):
        groups = mask.groups(axis, table.touches), mask.groups(axis, own)
        linked = table.reaching & (share and axis not in plan.slab_axes)
        firsts, found = _alike(groups if share else groups[:1], linked)
        touches.append(Spans(*(ends[firsts] for ends in table.touches)))
        shared.append(Spans(*(ends[firsts] for ends in own)))
        kinds.append(found)

    def count(bits: Any) -> int:
        return weighed_sum(bits, [kind.times for kind in kinds])

    place = np.ix_(*(kind.numbers for kind in kinds))
    runs = mask.run_in(touches)
    if not share:
        return count(runs[place]), 0, 0
    owns = mask.run_in(shared)
    number = np.min_scalar_type(2 ** len(kinds))
    later, earlier = runs.astype(number), owns.astype(number)
    for axis, kind in enumerate(kinds):
        later = _with_near(later, axis, kind.numbers, kind.after)
        earlier = _with_near(earlier, axis, kind.numbers, kind.before)
    runs, owns = runs[place], owns[place]
    # The block itself is counted among its neighbours.
    seams, seamed = owns & (later > runs), earlier > owns
    return count(runs), count(seams | (owns & seamed)), count(seams)


class _Kinds(NamedTuple):
    """Kinds of blocks along an axis: blocks of one kind run the same, and so do their neighbours."""

    times: Ints
    """How many blocks are of each kind."""
    numbers: Ints
    """Number of what they run: blocks side by side that run the same have one number."""
    before: Ints
    """That of the block before, if it reaches into them; otherwise -1."""
    after: Ints
    """That of the next block, if they reach into it; otherwise -1."""


def _alike(ranges: Sequence[Spans], linked: Bits) -> tuple[Ints, _Kinds]:
    """Return the first block with each number, and the kinds of blocks along an axis.

    Parameters
    ----------
    ranges : sequence of Spans
        Groups of tiles of each block, ascending.
    linked : bool array
        Whether each block reaches into the next one.
    """
    ends = [end for spans in ranges for end in spans]
    new = np.append(True, np.logical_or.reduce([end[1:] != end[:-1] for end in ends]))
    # To the next block, and from the one before: not linked, linked to one that runs the same, or another.
    after = np.where(linked[:-1], 1 + new[1:], 0)
    codes = 9 * (new.cumsum() - 1) + 3 * np.append(0, after) + np.append(after, 0)
    times = np.bincount(codes)
    [found] = np.nonzero(times)
    numbers, (before, after) = found // 9, np.divmod(found % 9, 3)
    return np.flatnonzero(new), _Kinds(
        times[found],
        numbers,
        np.where(before > 0, numbers - (before == 2), -1),
        np.where(after > 0, numbers + (after == 2), -1),
    )


def _with_near(values: Array, axis: int, numbers: Ints, near: Ints) -> Array:
    """Return the values of the blocks of each kind along an axis, plus those of a neighbour."""
    found = values.take(numbers, axis)
    some = np.flatnonzero(near >= 0)
    found[(slice(None),) * axis + (some,)] += values.take(near[some], axis)
    return found


def busiest(plan: BlockPlan, workers: int) -> float:
    """Return the number of crops of the busiest worker if each takes the next block when it is free."""
    if math.prod(plan.blocks) > LAID_OUT:
        return plan.calls() / workers
    ends = [0] * workers
    ranges = tiles_of_blocks(plan)
    if plan.mask is None:
        crops = functools.reduce(np.multiply.outer, [r.lengths for r in ranges])
    else:
        crops = plan.mask.counts(ranges)
    for tiles in crops.ravel().tolist():
        heapq.heapreplace(ends, ends[0] + tiles)
    return float(max(ends))


def threads_of(plan: BlockPlan) -> str:
    """Return the number of threads of a process, in words."""
    return f"{plan.threads} thread{'s' * (plan.threads != 1)}"


def human(n: float) -> str:
    """Return ``n`` bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def rows(plan: BlockPlan, *, lazy: bool = True) -> list[tuple[str, str]]:
    """Return the decisions of ``plan`` and their cost, as names and values.

    ``lazy``: whether its blocks are those of a dask array, too.
    """
    tiled, names = plan.axes[plan.n_each :], plan.names[plan.n_each :]
    calls, run, fewest = plan.calls(), plan.n_runs, fewest_calls(plan)
    written = math.prod(plan.shape)
    batches = f" in batches of {plan.batch_size}" if plan.batch_size else ""
    if plan.predictions > 1:
        together = plan.together * (plan.batch_size or 1)
        batches += f", {plan.predictions} predictions each: {calls * plan.predictions}, {together} in a call"
    masked = f", {run} run (mask)" if run != plan.n_tiles else ""
    crop, overlap, stride = (tuple(getattr(a, n) for a in tiled) for n in ("crop", "overlap", "stride"))
    sharing = "each tile runs once" if plan.reuse == "share" else "blocks share nothing"
    if plan.slabs:
        cut = ", ".join(plan.names[d] for d in plan.slab_axes)
        sharing = f"one slab of blocks after the other along axis {cut}; tiles across a face run in both"
    given = " at given starts" if any(a.starts is not None for a in tiled) else ""
    peak = human(peak_bytes(plan))
    ratios = (
        f"{calls / max(1, run):.3f} per tile, {calls / max(1, fewest):.3f} of the fewest that could cover"
    )
    most = "at most " if plan.counted == "most" else ""
    lines = [
        ("image", f"{_by(plan.shape)}  axes {', '.join(plan.names)}"),
        ("crop", f"{crop}, overlap {overlap} per side, stride {stride}, edge {tiled[0].edge}{given}"),
        ("tiles", f"{plan.n_tiles} = {_by(plan.grid_shape)}{masked}"),
        ("calls", f"{most}{calls} crops{batches}; {ratios} ({fewest})"),
        ("blocks", f"{math.prod(plan.blocks)} = {_by(plan.blocks)} of {plan.block} samples"),
        ("reuse", f"{plan.reuse}: {sharing}"),
        ("tasks", str(tasks(plan))),
        ("computed", f"{computed(plan) / written:.3f} samples per sample written"),
        ("decoded", _decoded(plan, lazy=lazy)),
        ("peak", f"about {peak} in a process with {threads_of(plan)}, without what fn takes"),
    ]
    if repeated := repeated_crops(plan):
        lines.append(("repeated", f"{repeated} crops are repeated, so that each batch has {plan.batch_size}"))
    padded = [(n, a.padding) for a, n in zip(tiled, names, strict=True) if sum(a.padding)]
    if any(before for _, (before, _) in padded):
        sides = (f"{name} by {before} and {after}" for name, (before, after) in padded)
        lines.append(("padded", f"before and after, samples: {', '.join(sides)}"))
    elif padded:
        ends = (f"{name} by {after}" for name, (_, after) in padded)
        lines.append(("padded", f"at the end, samples: {', '.join(ends)}"))
    if plan.counted == "most":
        lines.append(("nodata", "crops without a valid sample do not run; the result there is fill_value"))
    if any(o.blend == "own" for o in plan.outputs):
        lines.append(("labels", _labels(plan)))
    if plan.covered < 1:
        lines.append(("covered", f"{plan.covered:.1%} of the image; the rest is fill_value"))
    return [*lines, *(("note", note) for note in plan.notes)]


def _decoded(plan: BlockPlan, *, lazy: bool) -> str:
    """Return how often samples are decoded; ``lazy``: dask may run the blocks, too."""
    ratio = decoded_ratio(plan)
    cache = f"cache {human(plan.cache_bytes)}"
    if any(s.chunks for s in plan.sources) and not any(s.shared and s.chunks for s in plan.sources):
        cache = "no chunk is shared"
    text = f"{_about(plan)} {ratio:.2f} source bytes per image byte ({cache})"
    if not lazy:
        return text
    by_dask = as_dask_runs(plan)
    more = decoded_ratio(by_dask)
    if more <= SAME * ratio:
        return text
    # Chunks may be kept between tasks that happen to be close to each other in dask's order.
    kept = plan.cache_bytes and any(s.shared and s.chunks for s in by_dask.sources)
    about = "up to about" if kept and not is_bound(by_dask) else _about(by_dask)
    return f"{text}; {about} {more:.2f} by out.compute()"


def _about(plan: BlockPlan) -> str:
    """Return what `decoded_ratio` is to what is decoded."""
    return "at most" if is_bound(plan) else "about"


def _labels(plan: BlockPlan) -> str:
    """Return how large objects may be."""
    n, found = plan.n_each, []
    for scale in dict.fromkeys(output.scale[n:] for output in plan.outputs if output.blend == "own"):
        contexts = [
            math.ceil((a.overlap - max(a.margin)) * s) for a, s in zip(plan.axes[n:], scale, strict=True)
        ]
        of = "" if set(scale) == {1} else " samples of the result"
        found.append(f"{tuple(map(limit, contexts))}{of}")
    extents = ", ".join(found)
    return f"exact if no object is longer than {extents}; 2 * (overlap - r) - 1 where fn looks r samples far"


def _by(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
