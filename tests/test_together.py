"""Wrappers of functions inside each other: statistics, variants, ensembles, networks and batches."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.function import device_memory
from tilework.function.devices import devices_of

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(100, 20, (3, 40, 36)).astype("f4")
PLAIN = tw.image_statistics(IMAGE, each=0, progress=False)


def lopsided(x: Any) -> Any:
    """Look at two earlier samples, so that every variant differs."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(2, 0), (1, 0)], "edge")
    return 0.5 * x + 0.25 * padded[..., :-2, 1:] + 0.25 * padded[..., 2:, :-1]


def by_hand(image: Any) -> Any:
    """All flips of a normalised image, in loops."""
    mean, std = image.mean(axis=(1, 2), keepdims=True), image.std(axis=(1, 2), keepdims=True)
    own = ((image - mean) / std).astype("f8")
    total = np.zeros_like(own)
    for axes in ((), (1,), (2,), (1, 2)):
        total += np.flip(lopsided(np.flip(own, axes)), axes)
    return total / 4


@pytest.mark.parametrize("outside", ["augmented", "normalized", "ensemble"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_statistics_and_variants_in_any_order(outside: str, batch_size: int | None) -> None:
    fn: Any
    if outside == "augmented":
        fn = tw.augmented(tw.normalized(lopsided, PLAIN))
    elif outside == "normalized":
        fn = tw.normalized(tw.augmented(lopsided), PLAIN)
    else:
        fn = tw.normalized(tw.ensemble([tw.augmented(lopsided), tw.augmented(lopsided)]), PLAIN)
    out = tw.tiled_map(fn, IMAGE, 16, 3, axes=(1, 2), batch_size=batch_size)
    np.testing.assert_allclose(out.compute(), by_hand(IMAGE), rtol=1e-5, atol=1e-5)


def test_statistics_along_a_mirrored_axis_are_refused() -> None:
    volume = RNG.normal(0, 1, (4, 20, 20)).astype("f4")
    stats = tw.image_statistics(volume, each=0, progress=False)
    fn = tw.normalized(tw.augmented(np.tanh), stats)
    with pytest.raises(tw.GridError, match="for each index of axis 0"):
        tw.tiled_map(fn, volume, (4, 10, 10), 0)
    plain = tw.image_statistics(volume, progress=False)
    for inside in (
        tw.normalized(tw.normalized(np.tanh, stats), plain),
        functools.partial(tw.normalized(np.tanh, stats)),
    ):
        with pytest.raises(tw.GridError, match="for each index of axis 0"):
            tw.tiled_map(tw.augmented(inside), volume, (4, 10, 10), 0)
    cube = RNG.normal(0, 1, (8, 8, 8)).astype("f4")
    turned = tw.normalized(
        tw.augmented(np.tanh, (), (0, 2)), tw.image_statistics(cube, each=0, progress=False)
    )
    with pytest.raises(tw.GridError, match="for each index of axis 0"):
        tw.tiled_map(turned, cube, 8, 0)
    fn = tw.normalized(tw.augmented(np.tanh, flips=(1, 2)), stats)
    assert tw.tiled_map(fn, volume, (4, 10, 10), 0).compute().shape == volume.shape


def test_a_store_knows_statistics_inside_variants(tmp_path: Path) -> None:
    def out(stats: Any) -> Any:
        return tw.tiled_map(
            tw.normalized(tw.augmented(lopsided), stats), IMAGE, 16, 3, axes=(1, 2), dtype="f4"
        )

    store = tmp_path / "out.zarr"
    first = tw.to_zarr(out(PLAIN), store, progress=False)
    assert "mean" in str(tw.status(store)) or "mean" in str(dict(first.attrs))
    others = tw.image_statistics(IMAGE[:, :20], each=0, progress=False)
    with pytest.raises(tw.TilingError, match="statistics"):
        tw.to_zarr(out(others), store, progress=False)


def test_wrappers_have_the_devices_of_what_they_hold() -> None:
    model = tw.load_once(lambda: lopsided)
    for fn in (
        tw.augmented(model), tw.normalized(model, PLAIN), tw.ensemble([lopsided, model]),
        tw.normalized(tw.augmented(model), PLAIN), functools.partial(model),
    ):  # fmt: skip
        assert devices_of(fn) == 1
    assert devices_of(tw.normalized(tw.augmented(lopsided), PLAIN)) == 0


class TestNetworks:
    """With torch, on the CPU."""

    @pytest.fixture(autouse=True)
    def _torch(self) -> Any:
        self.torch = pytest.importorskip("torch")
        device_memory.LIMITS.clear()
        yield
        device_memory.LIMITS.clear()

    def net(self) -> Any:
        torch = self.torch
        torch.manual_seed(0)
        return torch.nn.Conv2d(3, 2, 3, padding=1).eval()

    def untiled(self, module: Any) -> Any:
        torch = self.torch
        mean, std = IMAGE.mean(axis=(1, 2), keepdims=True), IMAGE.std(axis=(1, 2), keepdims=True)
        own = ((IMAGE - mean) / std).astype("f4")
        with torch.no_grad():
            found = [
                np.flip(module(torch.from_numpy(np.flip(own, axes).copy())[None])[0].numpy(), axes)
                for axes in ((), (1,), (2,), (1, 2))
            ]
        return np.mean(found, axis=0)

    @pytest.mark.parametrize("pad_batch", [None, True])
    def test_variants_of_a_network_with_statistics(self, pad_batch: bool | None) -> None:
        module, shapes = self.net(), []
        module.register_forward_pre_hook(lambda m, args: shapes.append(args[0].shape[0]))
        fn = tw.normalized(tw.augmented(tw.from_torch(module, device="cpu")), PLAIN)
        out = tw.tiled_map(
            fn, IMAGE, 16, 3, axes=(1, 2), output=tw.Output("f4", channels=2), batch_size=4,
            pad_batch=pad_batch, chunks=20,
        )  # fmt: skip
        result = out.compute()
        if pad_batch:
            assert set(shapes) == {16}
        np.testing.assert_allclose(result, self.untiled(self.net()), rtol=1e-4, atol=1e-5)

    def test_a_full_device_below_wrappers(self) -> None:
        torch, batches = self.torch, []

        class Full(torch.nn.Module):  # type: ignore[name-defined,misc]
            def forward(self, x: Any) -> Any:
                batches.append(len(x))
                if len(x) > 5:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return torch.tanh(x)

        fn = tw.normalized(tw.augmented(tw.from_torch(Full(), device="cpu")), PLAIN)
        out = tw.tiled_map(fn, IMAGE, 16, 3, axes=(1, 2), dtype="f4", batch_size=4)
        mean, std = IMAGE.mean(axis=(1, 2), keepdims=True), IMAGE.std(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(out.compute(), np.tanh((IMAGE - mean) / std), rtol=1e-5, atol=1e-6)
        assert max(batches[4:]) <= 5

    def test_a_network_on_the_device_behind_statistics(self) -> None:
        results = []
        for on_device in (False, True):
            net = tw.from_torch(self.net, device="cpu", on_device=on_device)
            out = tw.tiled_map(
                tw.normalized(net, PLAIN), IMAGE, 16, stride=10, axes=(1, 2), blend="gaussian",
                output=tw.Output(channels=2, reduce="argmax"), batch_size=3, pad_batch=True,
            )  # fmt: skip
            results.append(out.compute())
        np.testing.assert_array_equal(*results)
