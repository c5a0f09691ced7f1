"""Makes ``data/ome-zarr.zip``: images as the two libraries of the field write them.

Run it where both are installed; the file in the repository is from ome-zarr 0.18.0 and ngff-zarr 0.50.0:

    python -m tests.ome_zarr_files
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

SHAPE = (2, 3, 4, 16, 24)
SCALE = {"t": 5.0, "c": 1.0, "z": 2.0, "y": 0.5, "x": 0.25}
TRANSLATION = {"t": 0.0, "c": 0.0, "z": 1.0, "y": 10.0, "x": 20.0}
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}


def samples() -> np.ndarray:
    """Every sample has a value of its own."""
    return np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)


def labels() -> np.ndarray:
    return (samples()[:, :1] // 500).astype(np.uint16)


def by_ome_zarr(path: str, version: str) -> None:
    import zarr
    from ome_zarr.format import format_from_version
    from ome_zarr.writer import write_image, write_labels

    form = format_from_version(version)
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    options = {"axes": "tczyx", "fmt": form, "scale": SCALE, "axes_units": UNITS, "scale_factors": [2]}
    write_image(samples(), group, name="cells", **options)
    channels = [
        {"label": name, "color": color, "window": {"start": 0, "end": 9, "min": 0, "max": 9}, "active": True}
        for name, color in (("DAPI", "0000FF"), ("GFP", "00FF00"), ("RFP", "FF0000"))
    ]
    attributes = group.attrs.asdict()
    attributes.get("ome", attributes)["omero"] = {"channels": channels}
    group.attrs.update(attributes)
    write_labels(labels(), group, "nuclei", **options)


def by_ngff_zarr(path: str, version: str) -> None:
    import ngff_zarr

    image = ngff_zarr.to_ngff_image(
        samples(), dims=list("tczyx"), scale=SCALE, translation=TRANSLATION, axes_units=UNITS, name="cells"
    )
    levels = ngff_zarr.to_multiscales(image, scale_factors=[2], chunks=32)
    ngff_zarr.to_ngff_zarr(path, levels, version=version)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (("ome-zarr", by_ome_zarr), ("ngff-zarr", by_ngff_zarr)):
            for version in ("0.4", "0.5"):
                make(f"{folder}/{name}-{version}.ome.zarr", version)
        shutil.make_archive(str(Path(__file__).parent / "data" / "ome-zarr"), "zip", folder)


if __name__ == "__main__":
    main()
