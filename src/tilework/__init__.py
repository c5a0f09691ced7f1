"""Functions on huge N-D images, crop by crop.

`tiled_map` turns a function on a small crop into a lazy dask array over an image of any size; `plan_tiles`
shows what it would do; `Output` declares what the function returns; `load_once` and `from_torch` bring
models; `to_zarr` and `write_many` write, `status` says how far they are. `Slicer`, `GridSampler` and
`Aggregator` are the eager loops of Ryomen and Patchly. Importing the package imports none of dask, zarr
and distributed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilework.aggregator import Aggregator
    from tilework.api import plan_tiles, tiled_map
    from tilework.checking import CheckReport, check
    from tilework.errors import (
        AlignmentError,
        ContractError,
        CostWarning,
        GridError,
        MemoryBudgetError,
        TilingError,
        TilingWarning,
    )
    from tilework.fn import load_once
    from tilework.geometry import Box, Tile
    from tilework.many import write_many
    from tilework.measuring import explain
    from tilework.output import Output
    from tilework.plan import TilePlan
    from tilework.plot import compare, plot_seams, plot_window
    from tilework.probe_report import ProbeReport
    from tilework.prober import probe
    from tilework.sampler import GridSampler, SamplingMode
    from tilework.slicer import Slicer
    from tilework.state import status
    from tilework.store import to_zarr
    from tilework.torch_fn import from_torch
    from tilework.viewer import view

_HOMES = {
    "Aggregator": "aggregator",
    "AlignmentError": "errors",
    "Box": "geometry",
    "CheckReport": "checking",
    "ContractError": "errors",
    "CostWarning": "errors",
    "GridError": "errors",
    "GridSampler": "sampler",
    "MemoryBudgetError": "errors",
    "Output": "output",
    "ProbeReport": "probe_report",
    "SamplingMode": "sampler",
    "Slicer": "slicer",
    "Tile": "geometry",
    "TilePlan": "plan",
    "TilingError": "errors",
    "TilingWarning": "errors",
    "check": "checking",
    "compare": "plot",
    "explain": "measuring",
    "from_torch": "torch_fn",
    "load_once": "fn",
    "plan_tiles": "api",
    "plot_seams": "plot",
    "plot_window": "plot",
    "probe": "prober",
    "status": "state",
    "tiled_map": "api",
    "to_zarr": "store",
    "view": "viewer",
    "write_many": "many",
}

__all__ = [
    "Aggregator",
    "AlignmentError",
    "Box",
    "CheckReport",
    "ContractError",
    "CostWarning",
    "GridError",
    "GridSampler",
    "MemoryBudgetError",
    "Output",
    "ProbeReport",
    "SamplingMode",
    "Slicer",
    "Tile",
    "TilePlan",
    "TilingError",
    "TilingWarning",
    "check",
    "compare",
    "explain",
    "from_torch",
    "load_once",
    "plan_tiles",
    "plot_seams",
    "plot_window",
    "probe",
    "status",
    "tiled_map",
    "to_zarr",
    "view",
    "write_many",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tilework")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tilework.{home}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
