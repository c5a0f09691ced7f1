"""Functions on huge N-D images, crop by crop.

`tiled_map` turns a function on a small crop into a lazy dask array over an image of any size; `plan_tiles`
returns its plan without data. `Output` declares what the function returns; `load_once` and `from_torch` load
models. `compute` makes results in memory, `to_zarr` and `write_many` write them; `status` reports how much is
written. `Slicer`, `GridSampler` and `Aggregator` are the eager loops of Ryomen and Patchly.

Importing the package imports none of numpy, dask, distributed, zarr and matplotlib: each public name imports
its module when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilework.api import image_meta, plan_tiles, tiled_map
    from tilework.diagnostics.checking import CheckReport, check
    from tilework.diagnostics.figures import compare, plot_plan, plot_seams, plot_window
    from tilework.diagnostics.label_figures import plot_labels
    from tilework.diagnostics.measuring import explain
    from tilework.diagnostics.napari_layers import add_to_napari
    from tilework.diagnostics.viewing import view
    from tilework.errors import (
        AlignmentError,
        ContractError,
        CostWarning,
        GridError,
        MemoryBudgetError,
        TilingError,
        TilingWarning,
    )
    from tilework.formats.meta import ImageMeta
    from tilework.function.combining import augmented, ensemble
    from tilework.function.load_once import load_once
    from tilework.function.network import from_torch
    from tilework.function.normalizing import normalized
    from tilework.function.output import Output
    from tilework.function.variants import Variant
    from tilework.grid.recipes import monai_options, monai_weights, nnunet_options
    from tilework.grid.tiles import Box, Tile
    from tilework.loops.aggregator import Aggregator
    from tilework.loops.sampler import GridSampler, SamplingMode
    from tilework.loops.slicer import Slicer
    from tilework.objects.measuring import measure_labels
    from tilework.objects.table import Table
    from tilework.plan.tile_plan import TilePlan
    from tilework.probing.probe import probe
    from tilework.probing.report import ProbeReport
    from tilework.source.images import open_image
    from tilework.source.kept import clear_caches
    from tilework.statistics.crops import sample_crops
    from tilework.statistics.measuring import image_statistics
    from tilework.statistics.result import ImageStatistics
    from tilework.writing.computing import compute
    from tilework.writing.filtering import filter_labels
    from tilework.writing.joining import merge_labels
    from tilework.writing.many import write_many
    from tilework.writing.status import status
    from tilework.writing.store import to_zarr

_HOMES = {
    "Aggregator": "loops.aggregator",
    "AlignmentError": "errors",
    "Box": "grid.tiles",
    "CheckReport": "diagnostics.checking",
    "ContractError": "errors",
    "CostWarning": "errors",
    "GridError": "errors",
    "GridSampler": "loops.sampler",
    "ImageMeta": "formats.meta",
    "ImageStatistics": "statistics.result",
    "MemoryBudgetError": "errors",
    "Output": "function.output",
    "ProbeReport": "probing.report",
    "SamplingMode": "loops.sampler",
    "Slicer": "loops.slicer",
    "Table": "objects.table",
    "Tile": "grid.tiles",
    "TilePlan": "plan.tile_plan",
    "TilingError": "errors",
    "TilingWarning": "errors",
    "Variant": "function.variants",
    "add_to_napari": "diagnostics.napari_layers",
    "augmented": "function.combining",
    "check": "diagnostics.checking",
    "clear_caches": "source.kept",
    "compare": "diagnostics.figures",
    "compute": "writing.computing",
    "ensemble": "function.combining",
    "explain": "diagnostics.measuring",
    "filter_labels": "writing.filtering",
    "from_torch": "function.network",
    "image_meta": "api",
    "image_statistics": "statistics.measuring",
    "load_once": "function.load_once",
    "measure_labels": "objects.measuring",
    "merge_labels": "writing.joining",
    "normalized": "function.normalizing",
    "monai_options": "grid.recipes",
    "monai_weights": "grid.recipes",
    "nnunet_options": "grid.recipes",
    "open_image": "source.images",
    "plan_tiles": "api",
    "plot_labels": "diagnostics.label_figures",
    "plot_plan": "diagnostics.figures",
    "plot_seams": "diagnostics.figures",
    "plot_window": "diagnostics.figures",
    "probe": "probing.probe",
    "sample_crops": "statistics.crops",
    "status": "writing.status",
    "tiled_map": "api",
    "to_zarr": "writing.store",
    "view": "diagnostics.viewing",
    "write_many": "writing.many",
}

__all__ = [
    "Aggregator", "AlignmentError", "Box", "CheckReport", "ContractError", "CostWarning", "GridError",
    "GridSampler", "ImageMeta", "ImageStatistics", "MemoryBudgetError", "Output", "ProbeReport",
    "SamplingMode", "Slicer", "Table", "Tile", "TilePlan", "TilingError", "TilingWarning", "Variant",
    "add_to_napari", "augmented", "check", "clear_caches", "compare", "compute", "ensemble", "explain",
    "filter_labels", "from_torch", "image_meta", "image_statistics", "load_once", "measure_labels",
    "merge_labels", "monai_options", "monai_weights", "nnunet_options", "normalized", "open_image",
    "plan_tiles", "plot_labels", "plot_plan", "plot_seams", "plot_window", "probe", "sample_crops",
    "status", "tiled_map", "to_zarr", "view", "write_many",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from tilework._installed import version_of

        return version_of("tilework")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tilework.{home}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


# Modules of 0.1.0 that its pickles of public objects and of graphs name.
_GONE = frozenset(
    {
        "aggregator", "canvas", "checking", "deviation", "fn", "geometry", "kernel", "many", "output",
        "measuring", "plot", "probe_report", "prober", "sampler", "slicer", "spec", "state", "store",
        "torch_fn", "viewer", "window",
    }
)  # fmt: skip


class _Gone:
    """An import finder that explains why one of `_GONE` is missing; Python tries it last."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Raise a `ModuleNotFoundError` for a module that only a pickle of version 0.1.0 names."""
        del path, target
        package, _, module = name.partition(".")
        if package == "tilework" and module in _GONE:
            raise ModuleNotFoundError(
                f"there is no module {name!r} in this version of tilework. Objects pickled by version 0.1.0 "
                "or before cannot be loaded: make them again, or exchange plans as JSON (TilePlan.to_json).",
                name=name,
            )


sys.meta_path.append(_Gone)
