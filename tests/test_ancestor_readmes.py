"""The examples of both READMEs with nothing but the import changed; what cannot run anywhere is repaired.

Files and sizes come from the surroundings: ``io.imread`` gives a small image.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import zarr

from tests.networks import require

USAGE = """
from tilework import Aggregator, GridSampler

sampler = GridSampler(spatial_size, patch_size, patch_offset, image)
aggregator = Aggregator(sampler, output_size)

for patch, patch_bbox in sampler:
    aggregator.append(patch, patch_bbox)

prediction = aggregator.get_output()
"""

INFERENCE = """
import numpy as np
from tilework import GridSampler
from tilework import Aggregator
from torch.utils.data import DataLoader, Dataset
import torch

class ExampleDataset(Dataset):
    def __init__(self, sampler):
        self.sampler = sampler

    def __getitem__(self, idx):
        # Get patch
        patch, patch_bbox = self.sampler.__getitem__(idx)
        # Preprocess patch
        patch = patch.transpose(2, 0, 1)
        return patch, patch_bbox

    def __len__(self):
        return len(self.sampler)

def model(x):
    y = torch.rand((x.shape[0], 8, x.shape[2], x.shape[3]))  # Batch, Class, Width, Height
    return y

# Init GridSampler
sampler = GridSampler(image=np.random.random((1000, 1000, 3)), spatial_size=(1000, 1000), patch_size=(100, 100), patch_offset=(50, 50))
# Init dataloader
loader = DataLoader(ExampleDataset(sampler), batch_size=4, num_workers=0, shuffle=False)
# Init aggregator
aggregator = Aggregator(sampler=sampler, output_size=(8, 1000, 1000), spatial_first=False, has_batch_dim=True)

# Run inference
with torch.no_grad():
    for patch, patch_bbox in loader:
        patch_prediction = model(patch)
        aggregator.append(patch_prediction, patch_bbox)

# Finalize aggregation
prediction = aggregator.get_output()
print("Inference completed!")
print("Prediction shape: ", prediction.shape)
"""

LOOP = """
crop_size = (512, 512)
overlap = (64, 64)
slices = ryomen.Slicer(image, crop_size=crop_size, overlap=overlap)

for crop, source, destination in slices:
    # Run the expensive fn on a crop of the whole image
    crop = expensive_fn(crop)

    # Slot the crop into an output array, excluding the overlap
    output[destination] = crop[source]
"""

HEAD = """
import skimage.io as io
import numpy as np
import torch
from torch import nn as nn
import zarr
from tilework import Slicer
"""

OUTPUT = """
output: zarr.Array = zarr.open(
    'really_huge_output_on_disk.zarr',
    mode="w",
    shape=image.shape,
    dtype="|f2",
)
"""

FULL = (
    HEAD.replace("import torch\nfrom torch import nn as nn\n", "")
    + """
image = io.imread("really_huge_8bit_2d_image.tif")  # Shape of [3, 10000, 10000]
c, x, y = image.shape
"""
    + OUTPUT
    + """
expensive_fn = lambda x: x + 1  # might be a ML model, or anything else

crop_size = (512, 512)
overlap = (64, 64)
slices = Slicer(image, crop_size=crop_size, overlap=overlap)
for crop, source, destination in slices:
    # Run the expensive fn on a crop of the whole image
    crop = expensive_fn(crop)

    # Slot the crop into an output array, excluding the overlap
    output[destination] = crop[source]
"""
)

TRANSFORM = (
    HEAD.replace("import torch\nfrom torch import nn as nn\n", "")
    + """
image = io.imread("really_huge_8bit_3d_image.tif")  # Shape of [3, 10000, 10000, 500]
c, x, y, z = image.shape
"""
    + OUTPUT
    + """
crop_size = (512, 512, 64)
overlap = (64, 64, 8)
# Output transform will be applied to each crop.
output_transform = lambda x: x.astype(float).div(255).sub(0.5).mul(2)  # cast to float an normalize

slices = Slicer(image, crop_size=crop_size, overlap=overlap, output_transform=output_transform)

expensive_fn = lambda x: x + 1  # might be a ML model, or anything else

for crop, source, destination in slices:
    assert crop.max() <= 1  # True
    assert crop.dtype() == np.float32  # True

    # Run the expensive fn on a crop of the whole image
    crop = expensive_fn(crop)

    # Slot the crop into an output array, excluding the overlap
    output[destination] = crop[source]
"""
)

BATCHES = (
    HEAD
    + """
image = io.imread("really_huge_8bit_2d_image.tif")  # Shape of [3, 10000, 10000]
c, x, y = image.shape
"""
    + OUTPUT
    + """
crop_size = (512, 512, 64)
overlap = (64, 64, 8)
device = 'cuda' if torch.cuda.is_available() else 'cpu'
batch_size = 64

# Output transform will be applied to each crop.
output_transform = lambda x: torch.from_numpy(x).to(device).div(255).sub(0.5).div(0.5)  # cast to cuda tensor an normalize
collate = lambda x: torch.stack(x, dim=0)  # turns a list of tensors to one tensor

slices = Slicer(image,
                crop_size=crop_size,
                overlap=overlap,
                output_transform=output_transform,
                batch_size=64,
                collate=collate)

pytorch_model = lambda x: nn.Conv3d(3, 1, kernel_size=3)

for crop, source, destination in slices:
    assert crop.ndim == 4  # crop shape is -> [B=64, 3, 512, 512]

    # Run the expensive fn on a crop of the whole image
    crop = pytorch_model(crop)

    # Slot the batched crop into an output array, excluding the overlap
    for b, (_source, _destination) in enumerate(zip(source, destination)):
        output[_destination] = crop[b, ...][_source]
"""
)


def repaired(example, **changes):
    """Return an example with lines replaced that no array type and no version of the original can run."""
    for old, new in changes.values():
        assert example.count(old) == 1
        example = example.replace(old, new)
    return example


@pytest.fixture
def image_file(monkeypatch, tmp_path):
    """Let ``skimage.io.imread`` return an image of a given shape."""
    monkeypatch.chdir(tmp_path)

    def provide(shape):
        image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
        io = ModuleType("skimage.io")
        io.imread = lambda name: image
        monkeypatch.setitem(sys.modules, "skimage", SimpleNamespace(io=io))
        monkeypatch.setitem(sys.modules, "skimage.io", io)
        return image

    return provide


def test_usage_of_patchly():
    image = np.random.default_rng(0).random((60, 50))
    names = {
        "spatial_size": (60, 50), "patch_size": (20, 20), "patch_offset": (10, 10), "image": image,
        "output_size": (60, 50),
    }  # fmt: skip
    exec(USAGE, names)
    np.testing.assert_allclose(names["prediction"], image)


def test_inference_of_patchly(capsys):
    torch = require("torch")
    names = {}
    exec(INFERENCE, names)
    assert isinstance(names["prediction"], torch.Tensor)
    assert names["prediction"].shape == (8, 1000, 1000)
    assert "torch.Size([8, 1000, 1000])" in capsys.readouterr().out
    assert 0 < float(names["prediction"].min()) < float(names["prediction"].max()) < 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("chunk_size", [None, (200, 200)])
def test_inference_of_patchly_with_workers(chunk_size):
    """The numbers, too: the mean over classes is the patch, whatever order the workers give."""
    require("torch")
    image = np.random.default_rng(0).random((300, 260, 3), np.float32)
    changed = repaired(
        INFERENCE,
        image=("image=np.random.random((1000, 1000, 3)), spatial_size=(1000, 1000)", "**given"),
        # A class made by exec can only be inherited by workers, not imported.
        loader=("num_workers=0", "num_workers=2, multiprocessing_context='fork'"),
        size=("(8, 1000, 1000)", "(3, 300, 260)"),
        model=("    y = torch.rand((x.shape[0], 8, x.shape[2], x.shape[3]))", "    y = 2 * x"),
    )
    names = {"given": {"image": image, "spatial_size": image.shape[:2], "chunk_size": chunk_size}}
    exec(changed, names)
    np.testing.assert_allclose(names["prediction"].numpy(), 2 * image.transpose(2, 0, 1), rtol=1e-5)


def test_loop_of_ryomen():
    import tilework

    image = np.random.default_rng(0).random((3, 700, 520))
    names = {"ryomen": tilework, "image": image, "output": np.zeros_like(image), "expensive_fn": np.sqrt}
    exec(LOOP, names)
    np.testing.assert_array_equal(names["output"], np.sqrt(image))


def test_full_example_of_ryomen(image_file):
    image = image_file((3, 600, 700))
    exec(FULL, {})
    np.testing.assert_array_equal(
        zarr.open("really_huge_output_on_disk.zarr", mode="r")[:], (image + 1).astype("f2")
    )


def test_output_transform_of_ryomen(image_file):
    """Its line is neither numpy's nor torch's: numpy has no ``div``, torch no ``astype``, a dtype no call."""
    image = image_file((1, 390, 300, 40))
    exec(
        repaired(
            TRANSFORM,
            transform=(
                "x.astype(float).div(255).sub(0.5).mul(2)", "(x.astype(np.float32) / 255 - 0.5) * 2"
            ),
            dtype=("crop.dtype()", "crop.dtype"),
        ),
        {},
    )  # fmt: skip
    expected = ((image.astype(np.float32) / 255 - 0.5) * 2 + 1).astype("f2")
    np.testing.assert_array_equal(zarr.open("really_huge_output_on_disk.zarr", mode="r")[:], expected)


def test_batches_of_ryomen(image_file):
    """Its image has two axes to cut, its crop three, its model returns a layer, and Zarr 3 takes no tensors."""
    torch = require("torch")
    image = image_file((3, 700, 600))
    names = {}
    exec(
        repaired(
            BATCHES,
            crop=("(512, 512, 64)", "(256, 256)"),
            overlap=("(64, 64, 8)", "(1, 1)"),
            batch=("batch_size=64,", "batch_size=4,"),
            model=(
                "lambda x: nn.Conv3d(3, 1, kernel_size=3)",
                "nn.Conv2d(3, 3, kernel_size=3, padding=1).requires_grad_(False)",
            ),
            tensor=("crop[b, ...][_source]", "crop[b, ...][_source].numpy()"),
        ),
        names,
    )
    whole = torch.from_numpy(image).div(255).sub(0.5).div(0.5)
    padded = torch.from_numpy(np.pad(whole.numpy(), ((0, 0), (1, 1), (1, 1)), "reflect"))
    expected = names["pytorch_model"](padded[None])[0, :, 1:-1, 1:-1]
    written = zarr.open("really_huge_output_on_disk.zarr", mode="r")[:]
    np.testing.assert_allclose(written, expected, atol=1e-3)
