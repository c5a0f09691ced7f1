"""The engine as dask tasks; the only package that builds dask arrays."""
