"""Writing results into Zarr: every unit whole, once and resumable, and never over foreign data."""
