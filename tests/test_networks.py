"""The real networks do what they are for, and are exact at the overlap that `networks` says.

The tiling is written out here, so that these figures owe nothing to the package under test.
"""

from __future__ import annotations

import pickle
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests import networks
from tests.networks import deepcr, dncnn, hubble, kodim23, noisy, realesr_x2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from tests.networks import Image, Network


def spans(extent: int, stride: int, overlap: int, edge: str) -> Iterator[tuple[slice, slice]]:
    """Yield what each tile of an axis reads and what it owns."""
    crop = stride + 2 * overlap
    for start in range(0, extent, stride):
        first, last = start - overlap, start - overlap + crop
        if edge == "shift":
            first = min(max(first, 0), extent - crop)
            last = first + crop
        yield slice(max(first, 0), min(last, extent)), slice(start, min(start + stride, extent))


def tiled(fn: Network, image: Image, stride: int, overlap: int, edge: str, scale: int = 1) -> Image:
    """Return `fn` run crop by crop over the last two axes, the overlaps cut off."""
    ny, nx = image.shape[-2:]
    out = np.full((*image.shape[:-2], ny * scale, nx * scale), np.nan, np.float32)
    axes = (spans(n, stride, overlap, edge) for n in (ny, nx))
    for (read_y, own_y), (read_x, own_x) in product(*axes):
        result = fn(image[..., read_y, read_x])
        y, x = (slice(s.start * scale, s.stop * scale) for s in (own_y, own_x))
        top, left = read_y.start * scale, read_x.start * scale
        out[..., y, x] = result[..., y.start - top : y.stop - top, x.start - left : x.stop - left]
    return out


def worst(a: Image, b: Image) -> float:
    """Return the largest difference; NaN, which no comparison passes, where a tile is missing."""
    return float(np.abs(a - b).max())


def psnr(image: Image, truth: Image) -> float:
    """Return the peak signal-to-noise ratio in dB for values in 0..1."""
    return float(-10 * np.log10(np.mean((image - truth) ** 2)))


def with_rays(image: Image, n: int = 40) -> tuple[Image, npt.NDArray[np.bool_]]:
    """Return photon counts of `image` crossed by `n` short cosmic rays, and where these are."""
    rng = np.random.default_rng(0)
    along = np.linspace(0, 10, 21)
    hit = np.zeros(image.shape, bool)
    for _ in range(n):
        angle = rng.uniform(0, 2 * np.pi)
        y, x = (rng.uniform(10, size - 11) for size in image.shape)
        hit[(y + along * np.sin(angle)).astype(int), (x + along * np.cos(angle)).astype(int)] = True
    counts = rng.poisson(image) + rng.normal(0, 5, image.shape) + 2000 * hit
    return counts.astype(np.float32), hit


edges = pytest.mark.parametrize("edge", ["shift", "clip"])


@edges
def test_dncnn_is_exact_at_overlap_6(edge: str) -> None:
    net, image = dncnn("6M"), noisy(kodim23())[200:360, 300:445]
    whole = net(image)
    assert worst(tiled(net, image, 48, 6, edge), whole) < 1e-5
    assert worst(tiled(net, image, 48, 4, edge), whole) > 1e-3


@edges
def test_realesr_is_exact_at_overlap_20(edge: str) -> None:
    net, image = realesr_x2(), kodim23(rgb=True)[:, 200:328, 300:413]
    whole = net(image)
    assert worst(tiled(net, image, 40, 20, edge, scale=2), whole) < 1e-4
    assert worst(tiled(net, image, 40, 8, edge, scale=2), whole) > 1e-3


@edges
def test_deepcr_is_exact_at_overlap_10_from_even_starts(edge: str) -> None:
    net, image = deepcr(), with_rays(hubble()[300:460, 300:446])[0]
    whole = net(image)
    assert worst(tiled(net, image, 44, 10, edge), whole) < 1e-5
    assert worst(tiled(net, image, 44, 4, edge), whole) > 1e-3


def test_deepcr_is_not_exact_from_odd_starts() -> None:
    net, image = deepcr(), with_rays(hubble()[300:400, 300:400])[0]
    assert worst(net(image[1:99])[20:-20], net(image)[21:-21]) > 1e-3


def test_dncnn_raises_the_psnr_of_a_noisy_photo_from_20_to_30_dB() -> None:
    photo = kodim23()[160:352, 280:472]
    image = noisy(photo)
    assert psnr(image, photo) == pytest.approx(20, abs=0.1)
    assert psnr(dncnn("6M")(image), photo) > 30


def test_dncnn_module_returns_the_noise() -> None:
    torch = networks.require("torch")
    image = noisy(kodim23())[:64, :64]
    with torch.inference_mode():
        noise = networks.dncnn_module("6M")(torch.tensor(image)[None, None])[0, 0].numpy()
    np.testing.assert_array_equal(image - noise, dncnn("6M")(image))


def test_realesr_keeps_the_photo_it_enlarges() -> None:
    image = kodim23(rgb=True)[:, 200:261, 300:347]
    large = realesr_x2()(image)
    assert large.shape == (3, 122, 94)
    assert psnr(large.reshape(3, 61, 2, 47, 2).mean((2, 4)), image) > 30


def test_deepcr_finds_cosmic_rays_among_galaxies() -> None:
    image, hit = with_rays(hubble()[300:460, 300:446])
    probability = deepcr()(image)
    assert probability[hit].mean() > 0.9
    assert probability[~hit].mean() < 0.02


@pytest.mark.parametrize("factory", [dncnn, deepcr])
def test_a_batch_gives_the_bits_of_its_crops(factory: Callable[[], Network]) -> None:
    net, image = factory(), hubble(1.0)
    batch = np.stack([image[:64, :64], image[100:164, 50:114], image[7:71, 300:364]])
    np.testing.assert_array_equal(net(batch), [net(crop) for crop in batch])


@pytest.mark.parametrize("factory", [dncnn, realesr_x2, deepcr])
def test_a_network_pickles_by_name(factory: Callable[[], Network]) -> None:
    net = factory()
    data = pickle.dumps(net)
    assert len(data) < 200
    image = kodim23(rgb=True)[:, :32, :32]
    np.testing.assert_array_equal(pickle.loads(data)(image), net(image))


@pytest.mark.parametrize("factory", [dncnn, realesr_x2, deepcr])
def test_a_network_leaves_its_input_alone(factory: Callable[[], Network]) -> None:
    image = kodim23(rgb=True)[:, ::-1, :64][:, :64]
    image.flags.writeable = False
    kept = image.copy()
    factory()(image)
    np.testing.assert_array_equal(image, kept)


def test_what_is_absent_skips_and_says_what_to_install() -> None:
    with pytest.raises(pytest.skip.Exception, match="pip install no_such_package"):
        networks.require("no_such_package.part")
    with pytest.raises(pytest.skip.Exception, match="pip install no_such_package"):
        networks.require_file("no_such_package", "weights")
    with pytest.raises(pytest.skip.Exception, match="has no dncnn7M"):
        networks.require_file("numpy", "dncnn7M")
