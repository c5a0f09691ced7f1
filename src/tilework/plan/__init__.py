"""Arguments to decisions: grids, blocks, reuse, cost. No data, no dask."""


def __getattr__(name: str) -> object:
    if name == "TilePlan":  # which pickles of version 0.1.0 ask for here
        raise ImportError("plans pickled by version 0.1.0 or before cannot be loaded; use TilePlan.to_json.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
