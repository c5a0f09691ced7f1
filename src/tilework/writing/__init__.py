"""A result into Zarr: every unit whole, once, resumable, and only into what is ours."""
