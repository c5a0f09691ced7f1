"""What other libraries return for their files, and what it means."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import zarr

import tilework as tw

IMAGE = np.arange(3 * 64 * 96, dtype="u2").reshape(3, 64, 96)


@pytest.fixture
def pyramid(tmp_path: Path) -> Iterator[Any]:
    """A slide with two levels. tifffile shows it as version 0.1 with names at the arrays, or as 0.5."""
    path = tmp_path / "slide.ome.tif"
    sizes = {"PhysicalSizeY": 0.5, "PhysicalSizeX": 0.25}
    with tifffile.TiffWriter(path) as file:
        file.write(IMAGE, subifds=1, tile=(32, 32), metadata={"axes": "CYX"} | sizes)
        file.write(IMAGE[:, ::2, ::2], subfiletype=1, tile=(32, 32))
    with tifffile.imread(path, aszarr=True) as store:
        yield zarr.open(store, mode="r")


def test_a_pyramid_of_tifffile_is_an_image_with_levels(pyramid: Any) -> None:
    image = tw.open_image(pyramid)
    assert image.shape == IMAGE.shape
    assert image.meta == tw.image_meta(pyramid)
    assert (image.meta.axes, image.meta.types) == (tuple("CYX"), ("channel", "space", "space"))
    assert [level.shape for level in image.levels] == [(3, 64, 96), (3, 32, 48)]
    for coarse in (tw.open_image(pyramid, level=1).meta, tw.image_meta(pyramid["1"])):
        assert tuple(np.divide(coarse.scale, image.meta.scale)) == (1, 2, 2)
    out = tw.tiled_map(np.positive, pyramid, 32, 0, axes="YX", each="C")
    np.testing.assert_array_equal(out, IMAGE)


@pytest.mark.parametrize("slope", [None, (1, 0), (0.5, 1)])
@pytest.mark.parametrize("edge", ["shift", "pad"])
def test_scaled_samples_of_nibabel_have_the_dtype_that_is_read(
    slope: Any, edge: Any, tmp_path: Path, scheduler: str
) -> None:
    scan = nibabel.Nifti1Image(IMAGE.astype("i2"), np.eye(4))
    if slope is not None:
        scan.header.set_slope_inter(*slope)
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    samples = nibabel.load(tmp_path / "scan.nii.gz").dataobj
    want = np.asarray(samples)
    out = tw.tiled_map(np.positive, samples, (3, 32, 32), 0, edge=edge)
    assert out.dtype == want.dtype
    np.testing.assert_array_equal(out, want)


def test_an_image_of_nibabel_says_what_to_give() -> None:
    with pytest.raises(TypeError, match=r"image\.dataobj.*ImageMeta"):
        tw.tiled_map(np.positive, nibabel.Nifti1Image(IMAGE, np.eye(4)), 32, 0)


@pytest.mark.parametrize("paths", [["a.zarr", "b.zarr"], [Path("a.zarr")]], ids=str)
def test_a_list_of_paths_is_no_array(paths: list[Any]) -> None:
    with pytest.raises(TypeError, match="give one path, or a tuple of them"):
        tw.tiled_map(np.copy, paths, 16, 0)
