"""Pieces of work on any dask scheduler, in a bounded window, with progress; knows nothing of stores."""
