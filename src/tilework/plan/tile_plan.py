"""`TilePlan`: every decision of a run and no data: tiles, blocks, who computes what, what is read.

Tasks are blocks of tiles. Under ``recompute`` a block runs every tile that has weight in it. Under
``share`` a tile runs once, in the block in which its support starts, so it reaches only into later blocks::

    block      |-------- b --------|------- b+1 -------|
    tiles of b     [ support ][ support ][ support ]
    canvas of b    |---------------|=====|   <- seam: the part of the canvas in later blocks
"""

from __future__ import annotations

import base64
import importlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, overload

import numpy as np

from tilework.errors import TilingError
from tilework.function.output import BoundOutput
from tilework.grid.axis import AxisGrid, Starts, ceil_div
from tilework.grid.tiles import Box, Tile, TileGrid
from tilework.plan.tables import AxisTable, Range, axis_tables, box_sums, unpack

__all__ = ["OutputPlan", "Range", "SourcePlan", "TilePlan"]

Ints = np.ndarray[Any, np.dtype[np.int64]]
FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """What the plan has to know of one output."""

    rim: tuple[int, ...] | None = None
    """Image samples per grid axis without weight; None when trimming."""
    scale: tuple[Fraction, ...] = ()
    """Result samples per image sample, per grid axis."""
    sample_bytes: int = 1
    """Bytes that a result sample takes while it is accumulated, over all channels."""
    final_bytes: int = 1
    """Bytes that a sample of the returned array takes, over all channels."""
    blend: str = "trim"
    """Its word, "window" for weights that somebody brought; for pictures."""
    sigma_scale: float = 0.125
    """Standard deviation of a gaussian window, as a fraction of the crop."""

    @classmethod
    def of(cls, output: BoundOutput) -> OutputPlan:
        """Return what the plan, and its JSON, says of an output with its weights."""
        tiled = max(1, math.prod(output.shape[a] for a in output.axes))
        rims = tuple(w.rim or 0 for w in output.weights)
        return cls(
            rim=None if output.kind == "trim" else rims,
            scale=tuple(w.scale for w in output.weights),
            sample_bytes=math.prod(output.shape) // tiled * output.accumulator().itemsize,
            final_bytes=math.prod(output.reduced_shape) // tiled * output.dtype.itemsize,
            blend=output.kind,
            sigma_scale=output.sigma_scale,
        )


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """What the plan has to know of one source."""

    sample_bytes: int = 1
    """Bytes per image sample, over all untiled axes."""
    chunks: tuple[int, ...] | None = None
    """Storage chunks per grid axis, samples; None where parts decode alone."""
    in_memory: bool = False
    """Whether reading is a view that takes no memory."""


@dataclass(frozen=True, slots=True)
class TilePlan(Sequence[Tile]):
    """A lazy sequence of tiles with the blocks that compute them; made by `plan_tiles`.

    Examples
    --------
    >>> from tilework import plan_tiles
    >>> plan = plan_tiles((100, 100), crop=32, overlap=4)
    >>> len(plan), plan.grid_shape, plan[1].read.start
    (16, (4, 4), (0, 20))
    """

    axes: tuple[AxisGrid, ...]
    """One grid per axis: first those of ``each``, then the tiled ones."""
    names: tuple[str, ...]
    """Names or numbers of the axes, for messages."""
    n_each: int
    """How many of the axes are ``each`` axes."""
    block: tuple[int, ...]
    """Samples of the image per block and axis."""
    outputs: tuple[OutputPlan, ...]
    """One entry per array that the function returns."""
    sources: tuple[SourcePlan, ...]
    """One entry per array that is read."""
    reuse: str = "share"
    """"share": each tile runs once; "recompute": blocks share nothing."""
    batch_size: int | None = None
    """Crops per call of the function; None: one, without a batch axis."""
    mask: bytes | None = None
    """Which tiles run, one bit per tile in raster order; None: all."""
    threads: int = 1
    """Tasks at a time in a process, for the estimate of memory."""
    cache_bytes: int = 0
    """Decoded chunks that a process may keep, bytes."""
    notes: tuple[str, ...] = ()
    """Why the plan is as it is."""
    slabs: int = 0
    """Tiled axes, the slowest first, across which blocks share nothing: written one slab after the other."""

    # -- tiles ------------------------------------------------------------------------------------------

    @property
    def grid(self) -> TileGrid:
        """The tiles without their blocks."""
        return TileGrid(self.axes)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of tiles per axis."""
        return self.grid.shape

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of the ``each`` and tiled axes, samples."""
        return tuple(axis.extent for axis in self.axes)

    def __len__(self) -> int:
        return len(self.grid)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tile]: ...
    def __getitem__(self, index: int | slice) -> Tile | Sequence[Tile]:
        return self.grid[index]

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.grid)

    @property
    def exact_border(self) -> bool:
        """Whether no axis is padded at its end, so that the untiled image itself is the measure."""
        return all(a.end_padding == 0 for a in self.axes) and self.axes[-1].edge in (
            "shift",
            "squeeze",
            "clip",
        )

    @property
    def covered(self) -> float:
        """Share of the image that some core covers; below 1 only for ``drop``."""
        return math.prod(axis.covered / axis.extent for axis in self.axes)

    @property
    def runs(self) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        """Which tiles run, shape ``grid_shape``; None: all."""
        return None if self.mask is None else unpack(self.mask, self.grid_shape)

    # -- blocks -----------------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks per axis."""
        return tuple(ceil_div(a.extent, b) for a, b in zip(self.axes, self.block, strict=True))

    @property
    def slow_axes(self) -> list[int]:
        """The axes in the order of keys: ``each`` axes, then the longest tiled axis first."""
        tiled = range(self.n_each, len(self.axes))
        return [*range(self.n_each), *sorted(tiled, key=lambda d: (-self.axes[d].extent, d))]

    @property
    def slab_axes(self) -> list[int]:
        """The axes along which each slab is one block thick."""
        return self.slow_axes[self.n_each : self.n_each + self.slabs]

    @property
    def tables(self) -> tuple[AxisTable, ...]:
        """Per axis, what each block owns, touches and reads."""
        return axis_tables(self.axes, self.block, tuple(o.rim for o in self.outputs))

    def count(self, ranges: Sequence[Range]) -> int:
        """Return how many tiles run among those in ``ranges``, first and last per axis."""
        if self.mask is None:
            return math.prod(max(0, b - a) for a, b in ranges)
        runs = self.runs
        assert runs is not None
        return int(runs[tuple(slice(a, b) for a, b in ranges)].sum())

    def box(self, index: Sequence[int]) -> Box:
        """Return the image samples of block ``index``."""
        start = tuple(b * size for b, size in zip(index, self.block, strict=True))
        return Box(start, tuple(min(a + s, n) for a, s, n in zip(start, self.block, self.shape, strict=True)))

    def owned(self, index: Sequence[int]) -> int:
        """Return how many tiles the group of block ``index`` runs under ``share``."""
        return self.count([t.owned[b] for t, b in zip(self.tables, index, strict=True)])

    def touched(self, index: Sequence[int]) -> int:
        """Return how many running tiles have weight in block ``index``."""
        return self.count([t.touch[b] for t, b in zip(self.tables, index, strict=True)])

    def earlier(self, index: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the earlier neighbours whose seam reaches into block ``index``, in raster order."""
        steps = [(1, 0) if b and t.reaches[b - 1] else (0,) for t, b in zip(self.tables, index, strict=True)]
        near = (
            tuple(b - d for b, d in zip(index, step, strict=True))
            for step in itertools.product(*steps)
            if any(step)
        )
        return [block for block in near if self.owned(block)]

    def later(self, index: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the later neighbours, as steps per axis, into which the group of ``index`` reaches."""
        steps = [(0, 1) if t.reaches[b] else (0,) for t, b in zip(self.tables, index, strict=True)]
        found = [step for step in itertools.product(*steps) if any(step)]
        if self.mask is None:
            return found
        # A block that no running tile touches is filled: nobody would take the seam.
        return [s for s in found if self.touched([b + d for b, d in zip(index, s, strict=True)])]

    def calls(self, box: Box | None = None) -> int:
        """Return how many crops the function gets when ``box`` is computed.

        Parameters
        ----------
        box : Box, optional
            Image samples of the ``each`` and tiled axes; left out, all.

        Returns
        -------
        int
        """
        box = Box((0,) * len(self.axes), self.shape) if box is None else box
        if not box.size or not len(self):
            return 0
        chosen = [
            range(a // size, ceil_div(b, size))
            for a, b, size in zip(box.start, box.stop, self.block, strict=True)
        ]
        if self.slabs:
            return self._slab_calls()
        if self.mask is not None:
            return self._masked_calls(chosen)
        if self.reuse == "share":
            ranges = []
            for table, blocks in zip(self.tables, chosen, strict=True):
                first = blocks[0] - 1 if blocks[0] and table.reaches[blocks[0] - 1] else blocks[0]
                ranges.append((table.owned[first][0], table.owned[blocks[-1]][1]))
            return self.count(ranges)
        return math.prod(
            sum(t.touch[b][1] - t.touch[b][0] for b in blocks)
            for t, blocks in zip(self.tables, chosen, strict=True)
        )

    def _slab_calls(self) -> int:
        """Return the calls of all slabs: a tile runs once in each slab in which it has weight."""
        cut = self.slab_axes
        per_axis = [t.touch if d in cut else t.owned for d, t in enumerate(self.tables)]
        if self.mask is not None:
            return int(self._counts(per_axis).sum())
        return math.prod(sum(b - a for a, b in ranges) for ranges in per_axis)

    def _masked_calls(self, chosen: Sequence[range]) -> int:
        """Return the calls of ``chosen`` blocks per axis: a block that no running tile touches costs none."""
        tables = self.tables
        touch = self._counts([[t.touch[b] for b in c] for t, c in zip(tables, chosen, strict=True)])
        if self.reuse != "share":
            return int(touch.sum())
        needed, owned = touch > 0, []
        for axis, (table, blocks) in enumerate(zip(tables, chosen, strict=True)):
            reaches = np.array([False, *table.reaches])[blocks.start : blocks.stop]
            lead = np.zeros_like(needed.take([0], axis))
            wider = np.moveaxis(np.concatenate((lead, needed), axis), axis, -1)
            wider[..., :-1] |= wider[..., 1:] & reaches
            needed = np.moveaxis(wider, -1, axis)
            owned.append([(0, 0) if b < 0 else table.owned[b] for b in (blocks.start - 1, *blocks)])
        return int(self._counts(owned)[needed].sum())

    def _counts(self, ranges: Sequence[Sequence[Range]]) -> Ints:
        """Return how many tiles run in every product of one range per axis."""
        return box_sums(np.asarray(self.runs), ranges)

    # -- forms ------------------------------------------------------------------------------------------

    def with_blocks(
        self, block: Sequence[int], reuse: str, notes: Sequence[str] = (), slabs: int = 0
    ) -> TilePlan:
        """Return the same tiles under other blocks."""
        return replace(self, block=tuple(block), reuse=reuse, notes=tuple(notes), slabs=slabs)

    def to_json(self) -> str:
        """Return the plan as JSON; `from_json` gives an equal plan."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["axes"] = [asdict(axis) for axis in self.axes]
        data["outputs"] = [asdict(o) | {"scale": [str(s) for s in o.scale]} for o in self.outputs]
        data["sources"] = [asdict(s) for s in self.sources]
        data["mask"] = None if self.mask is None else base64.b64encode(self.mask).decode()
        return json.dumps({"tilework_plan": FORMAT, **data})

    @classmethod
    def from_json(cls, text: str) -> TilePlan:
        """Return the plan that `to_json` wrote."""
        data = json.loads(text)
        version = data.pop("tilework_plan", None)
        if version != FORMAT:
            raise TilingError(f"this is no plan of format {FORMAT}; got format {version!r}.")
        data["axes"] = tuple(_axis(**a) for a in data["axes"])
        data["outputs"] = tuple(
            OutputPlan(
                None if o["rim"] is None else tuple(o["rim"]),
                tuple(map(Fraction, o["scale"])),
                o["sample_bytes"],
                o["final_bytes"],
                o.get("blend", "trim"),
                o.get("sigma_scale", 0.125),
            )
            for o in data["outputs"]
        )
        data["sources"] = tuple(
            SourcePlan(s["sample_bytes"], None if s["chunks"] is None else tuple(s["chunks"]), s["in_memory"])
            for s in data["sources"]
        )
        for name in ("names", "block", "notes"):
            data[name] = tuple(data[name])
        data["mask"] = None if data["mask"] is None else base64.b64decode(data["mask"])
        return cls(**data)

    def explain(self, *, measure: bool = False) -> str:
        """Return what the run does and costs, as text."""
        if measure:
            raise TilingError(
                "a plan has no function to run; measure its result: tw.explain(out, measure=True)."
            )
        from tilework.plan.cost import explain

        return explain(self)

    def plot(self, ax: Any = None) -> Any:
        """Return a matplotlib figure of tiles, blocks and windows; with ``ax`` the tiles alone, into it."""
        # By name, because the plan stands below all pictures that need more than text.
        return importlib.import_module("tilework.diagnostics.figures").plot_plan(self, ax)

    def _repr_html_(self) -> str:
        from tilework.plan.picture import html

        return html(self)

    def __repr__(self) -> str:
        shape, crop = self.shape[self.n_each :], tuple(a.crop for a in self.axes[self.n_each :])
        return (
            f"<TilePlan: {len(self)} crops of {crop} over {shape}, {math.prod(self.blocks)} blocks of "
            f"{self.block[self.n_each :]}, {self.reuse}>"
        )


@lru_cache(maxsize=16)
def chunk_uses(
    plan: TilePlan, shape: tuple[int, ...], chunks: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[Ints, ...]:
    """Return how many blocks of ``plan`` read each storage chunk of a source, along each of its axes.

    Parameters
    ----------
    shape, chunks : tuple of int, samples per axis of the source
    axes : tuple of int
        The source's axis for every grid axis.
    """
    counts = [np.ones(ceil_div(n, c), np.int64) for n, c in zip(shape, chunks, strict=True)]
    for axis, grid, table in zip(axes, plan.axes, plan.tables, strict=True):
        counts[axis][:] = 0
        for a, b in table.owned_read if plan.reuse == "share" else table.touch_read:
            counts[axis][max(a, 0) // chunks[axis] : ceil_div(min(b, grid.extent), chunks[axis])] += b > a
    return tuple(counts)


def _axis(margin: Sequence[int], starts: dict[str, Any] | None = None, **values: Any) -> AxisGrid:
    rule = starts and Starts(tuple((first, step, count) for first, step, count in starts["pieces"]))
    return AxisGrid(margin=(margin[0], margin[1]), starts=rule or None, **values)
