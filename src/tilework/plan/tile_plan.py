"""`TilePlan`: every decision of a run (tiles, blocks, reuse, reads), without data."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any

from tilework._checks import Explanation, flag, read_json
from tilework.errors import TilingError
from tilework.grid.axis import AxisGrid, Starts
from tilework.plan.cost import rows
from tilework.plan.picture import html
from tilework.plan.tables import BlockPlan, OutputPlan, SourcePlan
from tilework.plan.tile_mask import TileMask

__all__ = ["OutputPlan", "SourcePlan", "TilePlan"]

FORMAT = 1
"""Version of the JSON form."""
MEMORY = ("finish_bytes", "gap_bytes", "kept_bytes")
"""Fields of an `OutputPlan` that records of earlier versions do not have."""


@dataclass(frozen=True, slots=True)
class TilePlan(BlockPlan):
    """A lazy sequence of tiles with the blocks that compute them; made by `plan_tiles`.

    It holds every decision of a run, without data. Equal plans compute the same; `to_json` and `from_json`
    store and restore them; `explain` returns their cost.

    Examples
    --------
    >>> from tilework import plan_tiles
    >>> plan = plan_tiles((100, 100), crop=32, overlap=4)
    >>> len(plan), plan.grid_shape, plan[1].read.start
    (16, (4, 4), (0, 20))
    """

    def to_json(self) -> str:
        """Return the plan as JSON text; `from_json` returns an equal plan."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        # Records in stores of earlier versions have no word on the side.
        data["axes"] = [
            {k: v for k, v in asdict(axis).items() if k != "pad_side" or v != "end"} for axis in self.axes
        ]
        # Nor on the memory of outputs.
        data["outputs"] = [
            {k: v for k, v in asdict(o).items() if k not in MEMORY or v} | {"scale": list(map(str, o.scale))}
            for o in self.outputs
        ]
        # Records in stores of earlier versions have no word on sharing, and on requests.
        usual = {"shared": True, "request": 0, "given": False, "in_runs": False}
        data["sources"] = [
            {k: v for k, v in asdict(s).items() if usual.get(k) != v or k not in usual} for s in self.sources
        ]
        data["mask"] = None if self.mask is None else self.mask.to_json()
        if self.counted == "exact":
            del data["counted"]  # likewise
        if self.predictions == 1:
            del data["predictions"], data["together"], data["waiting"]
        if self.batches == "asked":
            del data["batches"]
        if self.gaps == "known":
            del data["gaps"]
        if not self.order:
            del data["order"]
        if self.boundary == "reflect":
            del data["boundary"]
        return json.dumps({"tilework_plan": FORMAT, **data})

    @classmethod
    def from_json(cls, text: str) -> TilePlan:
        """Return the plan that `to_json` wrote.

        Raises
        ------
        TilingError
            For text of another format.
        TypeError
            If it is no text.
        """
        return read_json(text, "tilework_plan", FORMAT, "a plan", cls._restored)

    @classmethod
    def _restored(cls, data: dict[str, Any]) -> TilePlan:
        """Return the plan with the values of its JSON form."""
        data["axes"] = tuple(_axis(**a) for a in data["axes"])
        data["outputs"] = tuple(
            OutputPlan(
                None if o["rim"] is None else tuple(o["rim"]),
                tuple(map(Fraction, o["scale"])),
                o["sample_bytes"],
                o["final_bytes"],
                o.get("blend", "trim"),
                o.get("sigma_scale", 0.125),
                *(o.get(name, 0) for name in MEMORY),
            )
            for o in data["outputs"]
        )
        data["sources"] = tuple(
            SourcePlan(
                s["sample_bytes"],
                None if s["chunks"] is None else tuple(s["chunks"]),
                s["in_memory"],
                s.get("shared", True),
                s.get("request", 0),
                s.get("given", False),
                s.get("in_runs", False),
            )
            for s in data["sources"]
        )
        for name in ("names", "block", "notes", "order"):
            data[name] = tuple(data.get(name, ()))
        if data["mask"] is not None:
            data["mask"] = TileMask.from_json(data["mask"], tuple(map(len, data["axes"])))
        return cls(**data)

    def explain(self, *, measure: bool = False) -> Explanation:
        """Return the decisions of the run and their cost, as text; a notebook shows a table.

        Parameters
        ----------
        measure : bool
            Only for results of `tiled_map`: a plan has no function to run.

        Returns
        -------
        Explanation
            A string of one row per fact: calls, blocks, tasks, bytes read, peak bytes, and the reasons.
        """
        if flag("measure", measure):
            raise TilingError(
                "a plan has no function to run; measure its result: tw.explain(out, measure=True)."
            )
        return Explanation(rows(self))

    def plot(self, ax: Any = None) -> Any:
        """Draw tiles, blocks and windows; the same as `plot_plan`.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes for the tiles; the windows are then not drawn. Default: a new figure of both.

        Returns
        -------
        matplotlib.axes.Axes, or 1-D array of two
            ``ax``, or the axes of a new figure of pyplot: tiles and windows.
        """
        # Figures are above the plan. The front door, which is loaded whenever this module is, opens them.
        return sys.modules["tilework"].plot_plan(self, ax)

    def _repr_html_(self) -> str:
        return html(self)

    def __repr__(self) -> str:
        shape, crop = self.shape[self.n_each :], tuple(a.crop for a in self.axes[self.n_each :])
        return (
            f"<TilePlan: {self.n_tiles} crops of {crop} over {shape}, {math.prod(self.blocks)} blocks of "
            f"{self.block[self.n_each :]}, {self.reuse}>"
        )


def _axis(margin: Sequence[int], starts: dict[str, Any] | None = None, **values: Any) -> AxisGrid:
    rule = starts and Starts(tuple((first, step, count) for first, step, count in starts["pieces"]))
    return AxisGrid(margin=(margin[0], margin[1]), starts=rule or None, **values)
