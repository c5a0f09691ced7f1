"""The adapters of the page on instance segmentation, with stand-ins for the packages."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage as ndi

import tilework as tw
from tests.test_docs import snippets

PAGE = Path(__file__).parent.parent / "docs" / "instance-segmentation.md"
ADAPTERS = ("cellpose", "stardist", "sam")
RNG = np.random.default_rng(0)
IMAGE = np.zeros((160, 180), np.uint16)
for y in range(6, 150, 16):
    for x in range(6, 170, 16):
        IMAGE[y : y + 2 + (x * y) % 7, x : x + 8] = 100 + (x + y) % 100
WHOLE = ndi.label(IMAGE > 50)[0]


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions of the page, and modules with the interfaces that they use."""
    names: dict[str, Any] = {"np": np, "tw": tw}
    for code in snippets(PAGE):
        if code.lstrip().startswith(tuple(f"def {name}(" for name in (*ADAPTERS, "segment"))):
            exec(compile(code, PAGE.name, "exec"), names)
    assert set(names) >= {*ADAPTERS, "segment"}
    modules = {
        "cellpose": {"models": SimpleNamespace(CellposeModel=Cellpose)},
        "stardist": {},
        "stardist.models": {"StarDist2D": StarDist},
        "segment_anything": {
            "SamAutomaticMaskGenerator": Sam,
            "sam_model_registry": {"vit_b": lambda checkpoint: checkpoint},
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return names


class Cellpose:
    """``CellposeModel`` of versions 3 and 4: masks, flows and styles."""

    def __init__(self, gpu: bool = False) -> None:
        self.gpu = gpu

    def eval(
        self, x: Any, *, diameter: Any = None, channel_axis: Any = None, normalize: Any = True
    ) -> tuple[Any, Any, Any]:
        assert diameter is not None
        assert x.ndim == (2 if channel_axis is None else 3)
        low, high = normalize["lowhigh"]
        gray = x if channel_axis is None else x.max(axis=channel_axis)
        masks = ndi.label((gray - low) / (high - low) > 0.25)[0].astype(np.uint16)
        return masks, [], np.zeros(256)


class StarDist:
    """``StarDist2D``: labels, and a dict of polygons."""

    @classmethod
    def from_pretrained(cls, name: str) -> StarDist:
        assert name == "2D_versatile_fluo"
        return cls()

    def predict_instances(self, img: Any, axes: str | None = None, verbose: bool = True) -> tuple[Any, Any]:
        assert axes == "YX"
        assert img.dtype == np.float32
        return ndi.label(img > 0.25)[0].astype(np.int32), {"coord": [], "points": [], "prob": []}


class Sam:
    """``SamAutomaticMaskGenerator``: a list of masks in the order of their quality, which may overlap."""

    def __init__(self, model: Any) -> None:
        assert model == "weights.pth"

    def generate(self, image: Any) -> list[dict[str, Any]]:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        labels, count = ndi.label(image[..., 0] > 50)
        masks = [labels == n for n in range(1, count + 1)]
        # One more mask, of all objects together, lies under them.
        order = [*np.random.default_rng(0).permutation(count), -1]
        if count:
            masks.append(ndi.binary_dilation(labels > 0))
        return [
            {
                "segmentation": masks[k],
                "area": int(masks[k].sum()),
                "predicted_iou": 0.9,
                "bbox": [0, 0, 1, 1],
            }
            for k in order[: len(masks)]
        ]


def same_objects(got: np.ndarray, want: np.ndarray) -> bool:
    pairs = np.unique(np.stack((got.ravel(), want.ravel())), axis=1)
    return bool(len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1])


LABELS = tw.Output("uint32", labels="own", channels=0)


def test_cellpose(adapters: dict[str, Any]) -> None:
    assert same_objects(adapters["segment"](IMAGE, 0, 200).compute(), WHOLE)
    fn = tw.load_once(adapters["cellpose"], (0, 200))
    assert same_objects(tw.tiled_map(fn, IMAGE, 64, 8, output=LABELS).compute(), WHOLE)
    channels = np.stack([IMAGE, IMAGE // 2], axis=-1)
    out = tw.tiled_map(fn, channels, (64, 64), 8, axes=(0, 1), output=LABELS)
    assert same_objects(out.compute(), WHOLE)


def test_stardist(adapters: dict[str, Any]) -> None:
    fn = tw.load_once(adapters["stardist"], (0, 200))
    out = tw.tiled_map(fn, IMAGE[:, :176], 64, 16, multiple=16, output=LABELS)
    assert same_objects(out.compute(), ndi.label(IMAGE[:, :176] > 50)[0])


def test_sam(adapters: dict[str, Any]) -> None:
    """Small masks stay visible on large ones, whatever the order of the list."""
    rgb = np.repeat(IMAGE[..., None], 3, axis=-1).astype(np.uint8)
    find = adapters["sam"]("weights.pth")
    labels = find(rgb)
    for number in range(1, WHOLE.max() + 1):
        assert len(np.unique(labels[number == WHOLE])) == 1
    assert (labels[WHOLE > 0] > 0).all()
    assert len(np.unique(labels)) == WHOLE.max() + 2
    fn = tw.load_once(adapters["sam"], ("weights.pth",))
    out = tw.tiled_map(fn, rgb, (256, 256), 64, axes=(0, 1), output=LABELS)
    assert len(np.unique(out.compute())) == WHOLE.max() + 2
