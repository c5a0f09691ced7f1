"""What a sample means: axes, places, channels and coordinates, and how file formats and xarray say it."""
