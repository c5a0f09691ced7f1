"""Running pieces of work on any dask scheduler, in a bounded window, with progress; independent of stores."""
