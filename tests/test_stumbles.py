"""First calls that go wrong: each error says what to write instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage as ndi

import tilework as tw
from tilework.cli import main

RGB = np.random.default_rng(0).integers(0, 255, (300, 200, 3)).astype(np.uint8)
IMAGE = RGB[..., 0]


def test_channels_last_are_named_to_a_network() -> None:
    torch = pytest.importorskip("torch")
    net = tw.from_torch(torch.nn.Conv2d(3, 1, 3, padding=1), device="cpu")
    with pytest.raises(RuntimeError) as caught:
        tw.tiled_map(net, RGB, (64, 64), 2, axes=(0, 1))
    assert "first convolution takes 3. Say from_torch(..., channel_axis=-1)" in str(caught.value.__notes__)
    last = tw.from_torch(torch.nn.Conv2d(3, 1, 3, padding=1), device="cpu", channel_axis=-1)
    assert np.asarray(last(RGB[None, :64, :48])).shape == (1, 64, 48, 1)


@pytest.mark.parametrize("value", [1.5, np.float32(2), np.zeros(())], ids=["float", "scalar", "0-d"])
def test_a_number_is_no_image(value: Any) -> None:
    with pytest.raises(tw.ContractError, match=r"single number.*an array with the crop's 2 tiled"):
        tw.tiled_map(lambda x: value, IMAGE, (64, 64), 2)


def test_nothing_returned_is_said() -> None:
    with pytest.raises(tw.ContractError, match="returned None; it must return an array"):
        tw.tiled_map(lambda x: None, IMAGE, (64, 64), 2)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: tw.plan_tiles(IMAGE, 64, 2), r"shape \(300, 200\).*image\.shape"),
        (lambda: tw.probe(np.sin, IMAGE), r"crop must be whole numbers.*shape \(300, 200\).*crop=256"),
        (lambda: tw.tiled_map(np.sin, IMAGE, IMAGE, 2), r"crop=256; the image is another argument"),
    ],
    ids=["plan_tiles", "probe", "tiled_map"],
)
def test_an_image_in_place_of_lengths_is_not_printed(call: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told) as caught:
        call()
    assert len(str(caught.value)) < 300


def test_auto_is_named_where_no_overlap_is_given() -> None:
    with pytest.raises(tw.TilingError, match='"auto" finds it'):
        tw.tiled_map(np.sin, IMAGE, 64)


@pytest.mark.parametrize(
    ("option", "value", "told"), [("overlap", 8, "(8, 8, 0)"), ("stride", 48, "(48, 48, 3)")]
)
def test_one_number_for_all_axes_is_answered_with_one_for_each(option: str, value: int, told: str) -> None:
    with pytest.raises(tw.TilingError) as caught:
        tw.tiled_map(np.sin, RGB, (64, 64, 3), **{option: value}, dtype="f4")
    assert f"such as {option}={told}" in str(caught.value)
    given = tuple(map(int, told.strip("()").split(",")))
    assert tw.tiled_map(np.sin, RGB, (64, 64, 3), **{option: given}, dtype="f4").shape == RGB.shape


@pytest.mark.parametrize(
    ("option", "told"),
    [("n_jobs", r"out\.compute\(num_workers"), ("store", r"to_zarr\(out, store\)"), ("device", "from_torch"),
     ("meta", "dtype"), ("patch_size", "crop"), ("scheduler", r"out\.compute\(scheduler")],
)  # fmt: skip
def test_options_of_elsewhere(option: str, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        tw.tiled_map(np.sin, IMAGE, 64, 2, **{option: 4})


@pytest.mark.parametrize("size", [2, 4, 7])
def test_a_function_that_mixes_its_batch_is_named(size: int) -> None:
    mixed = tw.tiled_map(
        lambda x: ndi.gaussian_filter(x, 1.0), IMAGE.astype("f4"), 64, 8, batch_size=size, dtype="f4"
    )
    report = tw.check(mixed)
    assert report.causes == ("batch",)
    assert "mixes the crops of a batch" in report.help
    kept = tw.tiled_map(
        lambda x: ndi.gaussian_filter(x, (0, 1, 1)), IMAGE.astype("f4"), 64, 8, batch_size=size, dtype="f4"
    )
    assert tw.check(kept).ok


def test_results_that_are_no_numbers_are_compared_by_equality() -> None:
    def words(x: np.ndarray) -> np.ndarray:
        return np.where(x > 100, "bright", "dark")

    def records(x: np.ndarray) -> np.ndarray:
        out = np.zeros(x.shape, [("a", "f4"), ("b", "u1")])
        out["a"], out["b"] = ndi.uniform_filter(x.astype("f4"), 9), x
        return out

    assert tw.check(tw.tiled_map(words, IMAGE, 64, 2)).ok
    assert tw.check(tw.tiled_map(records, IMAGE, 64, 4)).ok
    assert not tw.check(tw.tiled_map(records, IMAGE, 64, 1)).ok


def test_the_command_line_speaks_of_its_options(tmp_path: Any) -> None:
    import zarr

    zarr.save_array(str(tmp_path / "a.zarr"), IMAGE)
    for options, told in (
        (["--axes", "0,1", "--each", "0"], "axis 0 is in --axes 0,1 and in --each 0"),
        (["--axes", "0,5"], "--axes 0,5"),
    ):
        done = CliRunner().invoke(
            main, ["plan", str(tmp_path / "a.zarr"), "--crop", "64", "--overlap", "2", *options]
        )
        assert done.exit_code != 0
        assert told in done.output, done.output
        assert "each=" not in done.output
