"""From arguments to decisions: grids, blocks, reuse, cost. No data, no dask."""


def __getattr__(name: str) -> object:
    if name in ("OutputPlan", "SourcePlan", "TilePlan"):  # pickles of version 0.1.0 look it up here
        raise ImportError("plans pickled by version 0.1.0 or before cannot be loaded; use TilePlan.to_json.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
