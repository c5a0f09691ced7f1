"""`image_statistics`: exact statistics of images that do not fit into memory, in a few passes."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask.array
import numpy as np

from tilework._checks import at_least, brief, warn, whole
from tilework._types import Array, Index, Span
from tilework.errors import CostWarning, GridError, TilingError
from tilework.execution.inside import outside_of_the_pool
from tilework.execution.local import run
from tilework.execution.progress import Progress, check_progress
from tilework.execution.where import Where
from tilework.formats.labelled import unpacked
from tilework.graph.build import bare, open_known, specs_below
from tilework.grid.axis import AxisGrid
from tilework.objects.boxes import Cuts, cuts_of
from tilework.objects.measuring import How
from tilework.plan.arguments import resolve_axes
from tilework.plan.nodata import valid_of
from tilework.plan.request import Layout
from tilework.source.base import Source
from tilework.source.images import StoredImage, StoredImages, open_image
from tilework.source.opening import Image
from tilework.statistics.bootstrap import ALL_KEYS, KEYS, intervals_of
from tilework.statistics.counting import DIGIT, Counts, Tally, Target, tally_of, value_of
from tilework.statistics.passes import Measured, PassJob, calls_of
from tilework.statistics.result import ImageStatistics
from tilework.statistics.sums import root

__all__ = ["image_statistics"]

# Targets of one reading, and the bytes that each of them takes in every task: at most, so that there are more
# of smaller ones; and at least.
MOST, TARGET, LEAST = 64, 2**19, 2**10
# Samples whose keys are kept, rather than counted in further passes.
GATHER = 2**17
# Most samples in a box, unless a storage chunk has more.
MOST_SAMPLES = 2**23
# What a quantile may be.
NUMBER = int | float | Fraction | Decimal | np.integer | np.floating
# Samples of a part that is drawn as a chunk, of an image without chunks.
PART = 2**16


def image_statistics(
    arrays: Image | Sequence[Image],
    quantiles: Sequence[float] = (0.01, 0.5, 0.99),
    *,
    axes: int | str | Sequence[int | str] | None = None,
    each: int | str | Sequence[int | str] = (),
    where: Any = None,
    nodata: Any = None,
    sample: int | None = None,
    seed: int = 0,
    level: int | None = None,
    retries: int = 0,
    progress: Progress = "auto",
    memory_limit: int | str | None = None,
    client: Any = None,
    scheduler: Any = None,
) -> ImageStatistics:
    """Return exact statistics of one image, or of several together, read in bounded memory.

    NaN and infinite samples are counted apart; all else is of the finite samples, with -0.0 equal to 0.
    Nothing depends on chunks, scheduler or the number of arrays: quantiles are samples of the image, and
    moments are rounded once, at the end of exact sums.

    Parameters
    ----------
    arrays : array, path or URL, or sequence of them
        Anything that `tiled_map` takes. A list or tuple is measured as if it were one image: its arrays have
        one dtype, and any shapes.
    quantiles : sequence of float
        Fractions from 0 to 1, as decimal numbers. The quantile q of n samples is the one of rank
        ``ceil(q * n)``, at least 1: `numpy.quantile` with ``method="inverted_cdf"``.
    axes : int, str or sequence of them, optional
        As in `tiled_map`: the axes of positions, for ``where`` and ``nodata``. A position is valid if any
        sample along the remaining axes is. Default: all axes but those in ``each``.
    each : int, str or sequence of them
        Numbers or names of axes, such as channels, whose every index is measured for itself.
    where : array of bool, path or URL, optional
        Which samples count, as in `tiled_map`: over ``axes``, these and those in ``each``, or all axes. For
        several arrays, a list of one mask each.
    nodata : scalar or True, optional
        Value of samples that do not count, NaN included; True: what the image says.
    sample : int, optional
        Measure this many chunks, drawn at random, instead of all.
    seed : int
        Seed of the draw.
    level : int, optional
        The level of an OME-Zarr image to measure. Coarse levels are fast, but averages of pixels have other
        extremes.
    retries : int
        Further attempts at a task that fails.
    progress : bool, "auto" or callable
        As in `to_zarr`; it counts boxes, in every pass.
    memory_limit : int or str, bytes per process, optional
        Default: the limit of the cluster's workers, or half the memory of this machine.
    client : distributed.Client, optional
        Client of the cluster to run on. Default: the active client, else dask's scheduler.
    scheduler : str or callable, optional
        Another scheduler of dask: "threads", "processes", "synchronous".

    Returns
    -------
    ImageStatistics
        Scalars, or arrays over the axes in ``each``.

    Raises
    ------
    TilingError
        If the samples are no real numbers; for quantiles beyond 0 to 1; for arrays that do not belong
        together; and if ``level`` is given for what has no levels.
    TypeError
        For arguments of a wrong type.

    Notes
    -----
    In one pass every storage chunk is read once. Integers of up to 16 bits, bool and float16 take one pass,
    as do images of at most 131072 samples and calls without quantiles. Numbers of 32 bits take two, those of
    64 two to four. More than 64 channels, or quantiles in more than 64 parts of the range, take more passes,
    because each is counted in 512 KiB.

    Examples
    --------
    >>> image = np.array([[1.0, 2.0, np.nan], [4.0, 8.0, np.inf]])
    >>> image_statistics(image, (0, 0.5, 0.76), progress=False)
    samples     4, float64
    NaN         1, not counted
    infinite    1, not counted
    mean        3.75
    std         2.68095
    min         1
    q 0         1
    q 0.5       2
    q 0.76      8
    max         8
    """
    fractions = _fractions(quantiles)
    check_progress(progress)
    how = How.of(Where.find(scheduler, client, retries=retries), memory_limit, progress)
    given = _given(arrays, level)
    images = _opened(given, axes, each, where, nodata)
    work = _Work(images, tuple(fractions.values()), how, _drawn(images, sample, seed))
    work.warn_of_calls(given)
    with outside_of_the_pool(how.where.client):
        work.measure()
    found = given[0].level if level is not None else None
    return _result(work, list(fractions), found)


def _fractions(quantiles: Any) -> dict[float, Fraction]:
    """Return the quantiles as they were written, by their values as floats."""
    if isinstance(quantiles, str) or not isinstance(quantiles, Iterable):
        raise TypeError(f"quantiles must be a sequence, such as (0.01, 0.99); got {brief(quantiles)}.")
    found: dict[float, Fraction] = {}
    for q in quantiles:
        if isinstance(q, bool) or not isinstance(q, NUMBER):
            raise TypeError(f"quantiles must be numbers from 0 to 1; got {brief(q)}.")
        if (isinstance(q, Decimal) and q.is_nan()) or not 0 <= q <= 1:
            raise TilingError(f"quantiles must be from 0 to 1; got {q}. Divide percent by 100.")
        # A float stands for the decimal number that it is written as: 0.07 of 100 samples is the seventh.
        exact = Fraction(q) if isinstance(q, Fraction | Decimal) else Fraction(str(q))
        if found.setdefault(float(exact), exact) != exact:
            raise TilingError(
                f"quantiles {found[float(exact)]} and {exact} are one number as floats; leave one out."
            )
    return found


# -- images -----------------------------------------------------------------------------------------------


def _given(arrays: Any, level: Any) -> list[Any]:
    """Return the arrays, or a level of each."""
    arrays = unpacked(arrays)
    given = list(arrays) if isinstance(arrays, list | tuple) else [arrays]
    if not given:
        raise TypeError("arrays must be an array, or a sequence of at least one; got none.")
    return given if level is None else [_at_level(array, level) for array in given]


def _opened(given: Sequence[Any], axes: Any, each: Any, where: Any, nodata: Any) -> list[Measured]:
    """Return the images to measure."""
    masks = list(where) if isinstance(where, list | tuple) else [where] * len(given)
    if len(masks) != len(given) or (where is not None and len(given) > 1 and masks[0] is where):
        raise TilingError(f"where needs one mask for each of the {len(given)} arrays, in a list.")
    images = []
    for array, mask in zip(given, masks, strict=True):
        source = open_known(array, masked=True)
        if source.dtype.kind not in "biuf" or source.dtype.itemsize > 8:
            raise TilingError(
                f"the samples must be bool, integers, or floats of at most 64 bits; got dtype {source.dtype}."
                + _cure(source.dtype)
            )
        images.append(_measured(source, axes, each, mask, nodata))
    first = images[0]
    for image in images[1:]:
        a, b = (i.sources[0].dtype.newbyteorder("=") for i in (first, image))
        if a != b:
            raise TilingError(f"all arrays must have one dtype; got {a} and {b}. Convert them first.")
        if image.counts != first.counts:
            raise GridError(
                f"all arrays must have equal extents along each={each!r}; got {first.counts} and "
                f"{image.counts}."
            )
    return images


def _computes(array: Any) -> bool:
    """Return whether reading an array calls the function of `tiled_map`."""
    array = bare(array)
    # A DataArray has the protocol of dask, whatever holds its samples.
    return isinstance(array, dask.array.Array) and any(True for _ in specs_below(array))


def _cure(dtype: np.dtype[Any]) -> str:
    cures = {
        "c": " Measure abs(array), or its real and imaginary part.",
        "f": " Convert it to float64.",
        "m": ' Measure array.view("int64").',
        "M": ' Measure array.view("int64").',
    }
    return cures.get(dtype.kind, "")


def _at_level(array: Any, level: Any) -> StoredImage:
    """Return a level of an OME-Zarr image."""
    level = whole("level", level)
    stored = isinstance(array, str | Path | StoredImage)
    if not (stored or type(array).__module__.partition(".")[0] == "zarr"):
        raise TilingError(
            f"level={level} is of an OME-Zarr image: give its path, or tw.open_image(path); got "
            f"{brief(array)}."
        )
    found: StoredImage | StoredImages = open_image(array, level=level)
    return found.one() if isinstance(found, StoredImages) else found


def _measured(source: Source, axes: Any, each: Any, where: Any, nodata: Any) -> Measured:
    chosen, own = resolve_axes(source, axes, each, None)
    names = tuple(source.names[a] if source.names else str(a) for a in (*chosen, *own))
    lengths = tuple(source.shape[a] for a in own)
    grids = tuple(AxisGrid(source.shape[a], 1, 0) for a in chosen)
    grids += tuple(AxisGrid(n, max(1, n), 0) for n in lengths)
    none = ((0, 0),) * len(own)
    layout = Layout((chosen,), (own,), lengths, grids, names, (0,) * len(names), none)
    valid = valid_of((source,), layout, where, nodata, None)
    extra = () if valid is None else tuple(s for s, _ in valid.extra)
    return Measured((source, *extra), layout, valid)


def _cuts(image: Measured, how: How) -> Cuts:
    """Return the boxes of an image; they hold whole chunks, and all of what makes a position valid."""
    own = [a for a in range(len(image.shape)) if a not in image.each]
    source = image.sources[0]
    shards = getattr(source.handle, "shards", None)
    if shards and math.prod(shards) <= MOST_SAMPLES:
        # A shard that is read as a whole takes one request.
        source = replace(source, chunks=tuple(shards))
    return _whole_positions(image, cuts_of(source, own, min(how.most(image.sources), MOST_SAMPLES)))


def _whole_positions(image: Measured, cuts: Cuts) -> Cuts:
    if image.valid is None:
        return cuts
    cut = {*image.each, *image.layout.tiled[0]}
    return [c if a in cut else [0, image.shape[a]] for a, c in enumerate(cuts)]


# -- a sample of chunks -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Chunks that were drawn."""

    cuts: tuple[Cuts, ...]
    """The chunks of each image."""
    chosen: tuple[dict[Index, int], ...]
    """Of each image, the positions of chunks along the axes that are not in ``each``, with a number."""
    total: int
    seed: int

    def boxes(
        self, k: int, image: Measured, spans: Sequence[Sequence[Span]]
    ) -> Iterator[tuple[int, tuple[Span, ...]]]:
        """Yield the number and box of each chunk that was drawn of an image; ``spans`` has all chunks."""
        own = [a for a in range(len(spans)) if a not in image.each]
        for place, number in self.chosen[k].items():
            chosen = dict(zip(own, place, strict=True))
            ranges = [[spans[a][chosen[a]]] if a in chosen else spans[a] for a in range(len(spans))]
            for box in itertools.product(*ranges):
                yield number, box

    @property
    def count(self) -> int:
        """Number of the chunks that were drawn."""
        return sum(map(len, self.chosen))


def _drawn(images: Sequence[Measured], sample: Any, seed: Any) -> _Drawn | None:
    """Return chunks that are drawn at random along the axes that are not in ``each``; None: all are read."""
    seed = at_least("seed", seed, 0)
    if sample is None:
        return None
    sample = at_least("sample", sample, 1)
    cuts = [_chunks(image) for image in images]
    shapes = [
        tuple(len(c) - 1 for a, c in enumerate(own) if a not in image.each)
        for own, image in zip(cuts, images, strict=True)
    ]
    sizes = [math.prod(shape) for shape in shapes]
    if sample >= sum(sizes):
        return None
    numbers = np.random.default_rng(seed).choice(sum(sizes), sample, replace=False)
    chosen, first = [], 0
    for size, shape in zip(sizes, shapes, strict=True):
        mine = np.sort(numbers[(numbers >= first) & (numbers < first + size)]).tolist()
        places = (tuple(int(i) for i in np.unravel_index(n - first, shape)) for n in mine)
        chosen.append(dict(zip(places, mine, strict=True)))
        first += size
    return _Drawn(tuple(cuts), tuple(chosen), sum(sizes), seed)


def _chunks(image: Measured) -> Cuts:
    source = image.sources[0]
    own = [a for a in range(len(image.shape)) if a not in image.each]
    if source.chunks is None and not source.dask_name:
        side = max(1, round(PART ** (1 / max(1, len(own)))))
        return _whole_positions(
            image,
            [[*range(0, n, side if a in own else 1), n] if n else [0, 0] for a, n in enumerate(image.shape)],
        )
    return _whole_positions(image, cuts_of(source, own, 1))


# -- the passes -------------------------------------------------------------------------------------------


class _Work:
    """The passes of one call."""

    def __init__(
        self, images: Sequence[Measured], fractions: Sequence[Fraction], how: How, drawn: _Drawn | None
    ) -> None:
        self.images, self.fractions, self.how, self.drawn = images, fractions, how, drawn
        self.dtype = images[0].sources[0].dtype.newbyteorder("=")
        self.counts = images[0].counts
        self.bits = 8 * self.dtype.itemsize
        self.small = self.bits <= DIGIT
        self.tallies: dict[int, Tally] = {}
        """By index."""
        self.chunks: list[tuple[int, int, Tally, Array]] = []
        self.values: dict[tuple[int, int], Any] = {}
        """Quantiles, by index and number of the fraction."""
        self.cuts = [_cuts(image, how) for image in images] if drawn is None else list(drawn.cuts)

    @property
    def samples(self) -> int:
        """Number of samples of an index."""
        return sum(math.prod(image.shape) for image in self.images) // max(1, math.prod(self.counts))

    @property
    def gathers(self) -> bool:
        """Whether an index has so few samples that the first pass keeps them."""
        return not self.small and self.samples <= GATHER

    def warn_of_calls(self, given: Sequence[Any]) -> None:
        """Warn if the function of a lazy result will run several times."""
        passes = -(-self.bits // DIGIT)
        if self.small or not self.fractions or self.gathers or not any(map(_computes, given)):
            return
        times = "twice" if passes == 2 else f"two to {passes} times"
        warn(
            f"the image is a lazy result, so fn runs {times} on every crop: once for each pass over "
            f"{self.dtype} samples. Write it first with tw.to_zarr; or quantiles=() takes one pass.",
            CostWarning,
        )

    def measure(self) -> None:
        """Run all passes."""
        counted = self.small or bool(self.fractions)
        targets: dict[int, tuple[Target, ...]] = {
            i: (Target(i, gather=self.gathers),) if counted else () for i in range(math.prod(self.counts))
        }
        ranks: dict[Target, list[tuple[int, int]]] = {}
        first = True
        while targets:
            following: dict[Target, list[tuple[int, int]]] = {}
            for group in self._groups(targets, first=first):
                found = self._pass(group, first=first)
                own = self._first_ranks(found) if first else {t: ranks[t] for t in found}
                following |= self._resolve(own, found)
            targets, ranks, first = {}, following, False
            for target in following:
                targets[target.index] = (*targets.get(target.index, ()), target)

    def _first_ranks(self, found: Mapping[Target, Array]) -> dict[Target, list[tuple[int, int]]]:
        """Return the numbers of fractions and their ranks, from what the first pass found of some indices."""
        ranks = {}
        for target, own in found.items():
            tally = self.tallies[target.index]
            if self.small:
                tally.take(tally_of(own, self.dtype))
            if n := tally.count:
                ranks[target] = [(k, max(1, math.ceil(q * n))) for k, q in enumerate(self.fractions)]
        return ranks

    def _resolve(
        self, ranks: Mapping[Target, list[tuple[int, int]]], found: Mapping[Target, Array]
    ) -> dict[Target, list[tuple[int, int]]]:
        """Return the targets of the next pass, with the numbers of fractions and their ranks in them."""
        following: dict[Target, list[tuple[int, int]]] = {}
        for target, wanted in ranks.items():
            own = found[target]
            if target.gather:
                own = np.sort(own)
                for k, rank in wanted:
                    self.values[target.index, k] = value_of(int(own[rank - 1]), self.dtype)
                continue
            upto = np.cumsum(own)
            width = min(DIGIT, self.bits)
            for k, rank in wanted:
                digit = int(np.searchsorted(upto, rank))
                key, known = target.prefix << width | digit, target.known + width
                if known == self.bits:
                    self.values[target.index, k] = value_of(key, self.dtype)
                    continue
                few = own[digit] <= GATHER and known + width < self.bits
                next_one = Target(target.index, known, key, bool(few))
                following.setdefault(next_one, []).append((k, rank - int(upto[digit] - own[digit])))
        return following

    def _pass(self, targets: Mapping[int, tuple[Target, ...]], *, first: bool) -> dict[Target, Array]:
        """Return what one reading found of some indices."""
        jobs = list(self._jobs(targets, first=first))
        run(jobs, self.how.where, progress=self.how.progress, title="image-statistics")
        total = Counts()
        for job in jobs:
            for counts in job.found:
                total.take(counts)
            job.found = []
        if first:
            self.tallies |= {i: total.tallies.get(i, Tally()) for i in targets}
            self.chunks += total.chunks
        none = np.zeros(1 << min(DIGIT, self.bits), np.int64)
        return {
            t: total.found.get(t, none[:0] if t.gather else none) for own in targets.values() for t in own
        }

    def _size(self, *, first: bool) -> int:
        """Return the bytes of the counts of a target."""
        gathered = first and self.gathers
        return max(LEAST, self.samples * self.dtype.itemsize if gathered else 8 << min(DIGIT, self.bits))

    def _groups(
        self, targets: Mapping[int, tuple[Target, ...]], *, first: bool
    ) -> Iterator[dict[int, tuple[Target, ...]]]:
        """Yield the targets of each reading of the image; indices of one storage chunk stay together."""
        room = min(MOST * TARGET, self.how.memory // (8 * self.how.where.threads))
        most = max(1, room // self._size(first=first))
        chunks = _chunks(self.images[0])
        cuts = [chunks[a] for a in self.images[0].each]
        cells: dict[Index, list[int]] = {}
        for i in targets:
            place = np.unravel_index(i, self.counts) if self.counts else ()
            cell = tuple(bisect_right(c, p) for c, p in zip(cuts, place, strict=True))
            cells.setdefault(cell, []).append(i)
        group: dict[int, tuple[Target, ...]] = {}
        size = 0
        for cell in sorted(cells):
            whole_cell = sum(len(targets[i]) for i in cells[cell])
            if group and size + whole_cell > most:
                yield group
                group, size = {}, 0
            for i in cells[cell]:
                for start in range(0, max(1, len(targets[i])), most):
                    part = targets[i][start : start + most]
                    if group and size + len(part) > most:
                        yield group
                        group, size = {}, 0
                    group[i] = group.get(i, ()) + part
                    size += len(part)
        if group:
            yield group

    def _jobs(self, targets: Mapping[int, tuple[Target, ...]], *, first: bool) -> Iterator[PassJob]:
        """Yield the reading of every image."""
        kept = min(KEYS, ALL_KEYS // max(1, math.prod(self.counts)))
        sampled = 0 if self.drawn is None else max(1, kept // self.drawn.count)
        size = self._size(first=first)
        for k, image in enumerate(self.images):
            spans = image.spans(self.cuts[k], list(targets))
            if self.drawn is None:
                boxes: Iterable[tuple[int, tuple[Span, ...]]] = enumerate(itertools.product(*spans))
            else:
                boxes = self.drawn.boxes(k, image, spans)
            calls = list(calls_of(image, boxes, list(targets)))
            yield PassJob(image, calls, targets, self.how.where, first=first, size=size, sampled=sampled)


def _result(work: _Work, quantiles: Sequence[float], level: int | None) -> ImageStatistics:
    """Return what all passes found."""
    image = work.images[0]
    source, shape = image.sources[0], work.counts
    n = math.prod(shape)
    tallies = [work.tallies[i] for i in range(n)]
    none = np.zeros(1, work.dtype)[0] if work.dtype.kind in "biu" else work.dtype.type(np.nan)

    def over(values: Sequence[Any], dtype: Any) -> Any:
        array = np.array(values, dtype).reshape(shape)
        return array if shape else array[()]

    moments = [t.moments(work.dtype.kind) for t in tallies]
    found = ImageStatistics(
        dtype=work.dtype,
        count=over([t.count for t in tallies], np.int64),
        mean=over([math.nan if m is None else float(m[0]) for m in moments], np.float64),
        std=over([math.nan if m is None else root(m[1]) for m in moments], np.float64),
        min=over([none if t.high < 0 else value_of(t.low, work.dtype) for t in tallies], work.dtype),
        max=over([none if t.high < 0 else value_of(t.high, work.dtype) for t in tallies], work.dtype),
        quantiles={
            q: over([work.values.get((i, k), none) for i in range(n)], work.dtype)
            for k, q in enumerate(quantiles)
        },
        n_nan=over([t.n_nan for t in tallies], np.int64),
        n_inf=over([t.n_inf for t in tallies], np.int64),
        each=tuple(source.names[a] if source.names else a for a in image.each),
        axes=image.each,
        ndim=len(source.shape),
        level=level,
        sampled=None if work.drawn is None else (work.drawn.count, work.drawn.total),
    )
    if work.drawn is None:
        return found
    return replace(found, intervals=intervals_of(found, work.chunks, work.fractions, work.drawn.seed))
