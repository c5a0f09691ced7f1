"""What is written passes the two validators of OME-Zarr that are light enough to be installed with the tests.

The readers of ngff-zarr (with ``validate=True``) and of ome-zarr-py accept the same groups. They need 40
packages, among them a WebAssembly runtime and the clients of S3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pytest
import yaozarrs
import zarr

import tilework as tw
from tilework.formats.ome_zarr import Level, image_attributes, labels_attributes

IMAGES = {
    "tczyx": tw.ImageMeta(
        "tczyx", units={"t": "s", "z": "um", "y": "um", "x": "um"}, scale=(5, 1, 2, 0.5, 0.25),
        translation=(0, 0, 1, 10, 20), channel_names=["a", "b"], name="cells",
    ),
    "colors": tw.ImageMeta("cyx", channel_colors=["FF0000", "00FF00"]),
    "volume": tw.ImageMeta("zyx", units="nanometer"),
    "plane": tw.ImageMeta("yx"),
    "movie": tw.ImageMeta("tyx", units={"t": "ms"}),
    "untyped": tw.ImageMeta(["q", "y", "x"]),
}  # fmt: skip


def put(path: Path, meta: tw.ImageMeta, version: Any, **options: Any) -> zarr.Group:
    """Write an image with three levels of zeros."""
    three = version == "0.5"
    group = zarr.create_group(path, zarr_format=3 if three else 2)
    levels = []
    for k in range(3):
        steps = [2**k if kind == "space" else 1 for kind in meta.types]
        shape = [(16 if kind == "space" else 2) // step for kind, step in zip(meta.types, steps, strict=True)]
        naming: Any = {"dimension_names": meta.axes} if three else {
            "chunk_key_encoding": {"name": "v2", "separator": "/"}
        }  # fmt: skip
        group.create_array(f"s{k}", data=np.zeros(shape, "u2"), chunks=shape, **naming)
        columns = list(zip(meta.scale, meta.translation, steps, strict=True))
        scale, start = [s * n for s, _, n in columns], [t + s * (n - 1) / 2 for s, t, n in columns]
        levels.append(Level(f"s{k}", tuple(scale), tuple(start)))
    group.attrs.update(image_attributes(meta, version, levels, dtype="u2", **options))
    return group


def assert_valid(path: Path, model: str) -> None:
    yaozarrs.validate_zarr_store(str(path))
    found = ome_zarr_models.open_ome_zarr(zarr.open_group(path, mode="r"))
    assert type(found).__name__ == model


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("name", IMAGES)
def test_images_are_valid(name: str, version: Any, tmp_path: Path) -> None:
    put(tmp_path / "x.ome.zarr", IMAGES[name], version, kind="mean")
    assert_valid(tmp_path / "x.ome.zarr", "Image")
    levels = tw.open_image(tmp_path / "x.ome.zarr").levels
    assert len(levels) == 3
    assert levels[2].meta.scale[-1] == 4 * IMAGES[name].scale[-1]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_valid(version: Any, tmp_path: Path) -> None:
    meta = IMAGES["tczyx"].replace(channel_names=None)
    group = put(tmp_path / "x.ome.zarr", IMAGES["tczyx"], version)
    group.create_group("labels").attrs.update(labels_attributes(["cells", "more"], version))
    colors = [{"label-value": 1, "rgba": [255, 0, 0, 255]}]
    put(tmp_path / "x.ome.zarr" / "labels" / "cells", meta, version, kind="nearest", label={})
    put(tmp_path / "x.ome.zarr" / "labels" / "more", meta, version, label={"colors": colors})
    assert_valid(tmp_path / "x.ome.zarr", "Image")
    if version == "0.5":  # the list of 0.4 names no version, and is checked with its image
        assert_valid(tmp_path / "x.ome.zarr" / "labels", "Labels")
    for name in ("cells", "more"):
        assert_valid(tmp_path / "x.ome.zarr" / "labels" / name, "ImageLabel")
    assert tw.open_image(tmp_path / "x.ome.zarr").labels == ("cells", "more")


def test_a_unit_of_no_word_is_kept_and_not_an_error(tmp_path: Path) -> None:
    put(tmp_path / "x.ome.zarr", tw.ImageMeta("yx", units="px"), "0.5")
    with pytest.warns(UserWarning, match="'px', SHOULD be one of"):
        assert_valid(tmp_path / "x.ome.zarr", "Image")
    assert tw.image_meta(tmp_path / "x.ome.zarr").units == ("px", "px")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("name", IMAGES)
def test_what_to_zarr_writes_is_valid(name: str, version: Any, tmp_path: Path) -> None:
    """Image, pyramid and labels, each array with the shape and the names that the metadata promise."""
    meta = IMAGES[name]
    shape = [40 if kind == "space" else 2 for kind in meta.types]
    image = np.random.default_rng(0).integers(0, 99, shape).astype("u2")
    n = meta.types.count("space")
    axes = tuple(range(len(shape) - n, len(shape)))
    each = tuple(range(len(shape) - n))
    out = tw.tiled_map(np.negative, image, (10,) * n, 1, axes=axes, each=each, dtype="u2", meta=meta)
    path = tmp_path / "x.ome.zarr"
    tw.to_zarr(out, path, ome=version, levels=3, chunks=8, progress=False)
    labels = tw.tiled_map(np.positive, path, (10,) * n, 1, axes=axes, each=each, dtype="u2")
    tw.to_zarr(labels, path, label_name="cells", progress=False)
    assert_valid(path, "Image")
    if version == "0.5":
        assert_valid(path / "labels", "Labels")
    assert_valid(path / "labels" / "cells", "ImageLabel")
    found = tw.open_image(path)
    assert found.labels == ("cells",)
    assert (found.meta.axes, found.meta.scale) == (meta.axes, meta.scale)
    assert found.meta.channel_names == meta.channel_names
    for k, level in enumerate(found.levels):
        stored: Any = zarr.open_array(path / str(k))
        assert stored.shape == level.shape
        if version == "0.5":
            assert stored.metadata.dimension_names == meta.axes
