"""What `check` compares: differences by the spread of the values, and unusual places of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

import tilework as tw
from tests.sampling import share
from tilework.diagnostics import places
from tilework.diagnostics.closeness import gap_between, judge

IMAGE = np.random.default_rng(0).random((230, 190)).astype(np.float32)


def box(x: np.ndarray) -> np.ndarray:
    return ndi.uniform_filter(x, 7)


# -- spread -----------------------------------------------------------------------------------------------


@settings(max_examples=share(20))
@given(
    offset=st.sampled_from([0.0, 1e4, -1e6, 1e9]), factor=st.sampled_from([1.0, 1e-9, 1e9]),
    dtype=st.sampled_from(["f8", "c16"]),
)  # fmt: skip
def test_neither_offset_nor_factor_hide_an_off_by_one(offset: float, factor: float, dtype: str) -> None:
    def fn(x: np.ndarray) -> np.ndarray:
        return ((box(x.astype(np.float64)) + offset) * factor).astype(dtype)

    assert tw.check(tw.tiled_map(fn, IMAGE, 64, 3), places=2).ok
    short = tw.check(tw.tiled_map(fn, IMAGE, 64, 2), places=2)
    assert not short.ok
    assert short.causes == ("overlap",)
    assert 0.1 < short.relative < 10


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_an_image_far_from_zero(dtype: str) -> None:
    image = (IMAGE + 1e4).astype(dtype)
    for fn in (box, lambda x: x - box(x), lambda x: box(x - box(x))):
        reach = 6 if fn is not box and fn(image[:9, :9])[0, 0] else 3
        assert tw.check(tw.tiled_map(fn, image, 64, 2 * reach)).ok
    assert not tw.check(tw.tiled_map(box, image, 64, 2)).ok
    assert not tw.check(tw.tiled_map(lambda x: x - box(x), image, 64, 2)).ok


def test_each_output_and_channel_has_its_own_spread() -> None:
    def channels(x: np.ndarray) -> np.ndarray:
        return np.stack([x * 1e6, box(x.astype(np.float64))])

    report = tw.check(tw.tiled_map(channels, IMAGE.astype(np.float64), 64, 2))
    assert not report.ok
    assert report.where[0] == 1
    pair = tw.tiled_map(lambda x: (x * 1e9, box(x)), IMAGE, 64, 2)
    report = tw.check(pair)
    assert (report.ok, report.output) == (False, 1)


def test_a_hot_pixel_hides_nothing() -> None:
    image = IMAGE.astype(np.float64)
    image[100, 100] = 1e12
    assert tw.check(tw.tiled_map(box, image, 64, 3)).ok
    assert not tw.check(tw.tiled_map(box, image, 64, 2)).ok


def test_rounding_of_dead_channels_and_flat_places_is_no_difference() -> None:
    rng = np.random.default_rng(0)

    def channels(x: np.ndarray) -> np.ndarray:
        noise = np.float32(1e-9) * rng.random(x.shape).astype(np.float32)
        return np.stack([box(x), noise])

    image = IMAGE.copy()
    image[:120] = 0
    assert tw.check(tw.tiled_map(channels, image, 64, 3)).ok


@pytest.mark.parametrize("value", [0.0, 1e4, 3.7])
def test_constant_results(value: float) -> None:
    assert tw.check(tw.tiled_map(lambda x: x * 0 + value, IMAGE, 64, 3)).ok
    other = tw.check(tw.tiled_map(lambda x: x * 0 + value, IMAGE, 64, 3), lambda x: x * 0 + value + 1)
    assert not other.ok


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "u4", "i8", "u8", "M8[s]", "m8[ms]"])
def test_differences_of_values_that_are_no_floats(dtype: str) -> None:
    image = (IMAGE > 0.02) if dtype == "?" else (IMAGE * 200).astype(dtype)

    def erode(x: np.ndarray) -> np.ndarray:
        low = x if x.dtype.kind not in "mM" else x.view(np.int64)
        return ndi.minimum_filter(low.astype(np.int64), 9).astype(x.dtype)

    assert tw.check(tw.tiled_map(erode, image, 64, 4)).ok
    report = tw.check(tw.tiled_map(erode, image, 64, 1))
    assert not report.ok
    assert report.largest >= 1


def test_nan_and_infinities() -> None:
    image = IMAGE.copy()
    image[50:60, 50:60], image[100, 100], image[150, 20] = np.nan, np.inf, -np.inf
    assert tw.check(tw.tiled_map(lambda x: ndi.maximum_filter(x, 5), image, 64, 2)).ok
    spread = tw.check(
        tw.tiled_map(lambda x: np.where(np.isnan(x).any(), np.float32(np.nan), x), image, 64, 3)
    )
    assert not spread.ok
    assert spread.relative == np.inf
    assert "inf" in str(spread)


def test_the_limit_is_that_of_the_larger_spread() -> None:
    rng = np.random.default_rng(0)
    values = [rng.random((8, 8)) * scale for scale in (1.0, 1e-12, 1.0)]
    gaps = [gap_between(v + 2e-6 * i, v, (0, 1)) for i, v in enumerate(values)]
    judge(gaps)
    assert gaps[0].excess.max() == 0
    assert gaps[1].excess.max() == gaps[2].excess.max() / 2 > 0 or gaps[1].excess.max() < 1
    assert gaps[2].excess.max() > 1


# -- unusual places ---------------------------------------------------------------------------------------


def odd_image() -> np.ndarray:
    image = IMAGE.astype(np.float32).copy()
    image[120:, 60:] = 0.25  # a background
    image[33, 41] = 9.0
    image[80, 20] = -5.0
    image[10, 170] = np.nan
    return image


def sources(path: Path) -> dict[str, Any]:
    image = odd_image()
    np.save(path / "a.npy", image)
    return {
        "numpy": image,
        "memmap": np.load(path / "a.npy", mmap_mode="r"),
        "zarr": zarr.create_array(path / "a.zarr", data=image, chunks=(32, 48)),
        "dask": da.from_array(image, (50, 70)),
    }


@pytest.mark.parametrize("kind", ["numpy", "memmap", "zarr", "dask"])
def test_unusual_places_are_found_in_every_source(kind: str, tmp_path: Path) -> None:
    out = tw.tiled_map(lambda x: x, sources(tmp_path)[kind], 32, 0)
    at = {word: [] for word in ("nonfinite", "extremes", "background")}
    for word, window, _ in tw.check(out, where=tuple(at), places=4).windows:
        at[word].append(window)

    def covered(word: str, point: tuple[int, int]) -> bool:
        return any(all(a <= p < b for a, p, b in zip(w.start, point, w.stop, strict=True)) for w in at[word])

    assert covered("nonfinite", (10, 170))
    assert covered("extremes", (33, 41))
    assert covered("extremes", (80, 20))
    assert any(w.start[0] >= 120 and w.start[1] >= 60 for w in at["background"])


def test_the_middle_of_the_background_is_found() -> None:
    report = tw.check(tw.tiled_map(lambda x: x, odd_image(), 32, 0), where="background", places=2)
    middles = [np.add(w.start, w.stop) / 2 for _, w, _ in report.windows]
    assert min(np.abs(m - (175, 125)).max() for m in middles) < 16


@pytest.mark.parametrize(
    ("fn", "where"),
    [
        (lambda x: np.where(np.isnan(x).any(), np.float32(0), x), "nonfinite"),
        (lambda x: x / max(1, np.abs(x[np.isfinite(x)]).max()), "extremes"),
        (lambda x: ndi.distance_transform_edt(x == 0.25).astype(np.float32), "background"),
    ],
    ids=["nonfinite", "extremes", "background"],
)
def test_what_is_wrong_at_unusual_places_only_is_found(fn: Any, where: str) -> None:
    image = odd_image()
    out = tw.tiled_map(fn, image, 32, 2, dtype="f4")
    assert not tw.check(out, where=where).ok
    assert not tw.check(out).ok


def test_the_look_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(4096, 4096), chunks=(64, 64), dtype="f4", fill_value=1
    )
    out = tw.tiled_map(lambda x: x, array, 64, 0)
    read: list[int] = []
    inner = places._Seen.add

    def add(self: Any, box: Any, part: np.ndarray) -> None:
        read.append(part.nbytes)
        inner(self, box, part)

    monkeypatch.setattr(places._Seen, "add", add)
    monkeypatch.setattr(places, "LOOK", 20 * 64 * 64 * 4)
    tw.check(out)
    assert 1 <= len(read) <= 20
    assert max(read) == 64 * 64 * 4
    monkeypatch.setattr(places, "LOOK", 64 * 64 * 4 - 1)
    read.clear()
    tw.check(out)
    assert read == []


def test_places_of_an_image_with_each_axes() -> None:
    stack = np.random.default_rng(0).random((5, 90, 80)).astype(np.float32)
    stack[3, 40, 50] = np.nan
    out = tw.tiled_map(
        lambda x: np.where(np.isnan(x).any(), np.float32(0), x), stack, (32, 32), 2, each=0, dtype="f4"
    )
    report = tw.check(out, where="nonfinite")
    assert not report.ok
    assert report.where[0] == 3


@pytest.mark.parametrize("shape", [(400,), (2, 40, 50), (7, 9, 8, 6)], ids=str)
@pytest.mark.parametrize("value", [0, 3, np.nan])
def test_backgrounds_of_any_shape(shape: tuple[int, ...], value: float) -> None:
    image = np.full(shape, value, "f4" if np.isnan(value) else "u1")
    image[(0,) * len(shape)], image[(-1,) * len(shape)] = 9, 5
    out = tw.tiled_map(lambda x: x, image, 4, 0, axes=tuple(range(len(shape)))[-2:])
    report = tw.check(out, where=("background", "extremes"))
    assert report.ok
    assert {kind for kind, _, _ in report.windows} == {"background", "extremes"}


def test_words_of_places_are_checked() -> None:
    out = tw.tiled_map(box, IMAGE, 64, 3)
    with pytest.raises(tw.TilingError, match="background"):
        tw.check(out, where="backgrounds")
    with pytest.raises(tw.TilingError, match="nothing to compare"):
        tw.check(out, where="nonfinite")
