"""Objects are drawn where they are, in colours that tell neighbours apart, from the tiles that are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

import tilework as tw
from tests.networks import require
from tests.sampling import share
from tilework.diagnostics.label_figures import COLOURS, _chosen

pytestmark = pytest.mark.skipif(not require("matplotlib"), reason="matplotlib is not installed")

MASK = np.zeros((200, 180), bool)
for row in range(5, 200, 20):
    MASK[row : row + 8, 5:170:9] = MASK[row : row + 8, 6:170:9] = MASK[row : row + 8, 7:170:9] = True
LABELS = tw.Output("uint32", labels="own")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")


def numbered(x: np.ndarray) -> np.ndarray:
    return ndi.label(x)[0]


@settings(max_examples=share(40))
@given(seed=st.integers(0, 10**6), kinds=st.integers(1, 40), factor=st.sampled_from([1, 10**12]))
def test_no_two_touching_objects_have_one_colour(seed: int, kinds: int, factor: int) -> None:
    rng = np.random.default_rng(seed)
    # Blocks have at most eight neighbours, and colours are more.
    grid = np.arange(49).reshape(7, 7) % kinds if kinds > 30 else rng.permutation(49).reshape(7, 7)
    labels = np.kron(grid, np.ones((4, 4), int)) * factor
    ids, numbers = np.unique(labels, return_inverse=True)
    numbers = numbers.reshape(labels.shape)
    chosen = _chosen(ids, numbers)
    assert ((chosen >= 0) & (chosen < COLOURS)).all()
    if len(ids) < 49:
        return
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        one, two = labels[a], labels[b]
        met = (one != two) & (one != 0) & (two != 0)
        assert (chosen[numbers[a]][met] != chosen[numbers[b]][met]).all()


def test_objects_background_and_outlines() -> None:
    labels = np.zeros((30, 20), np.uint32)
    labels[5:15, 4:14] = 7
    ax = tw.plot_labels(labels)
    (drawn,) = ax.get_images()
    alpha = np.asarray(drawn.get_array())[..., 3]
    assert (alpha[labels == 0] == 0).all()
    assert alpha[5, 4] == alpha[14, 13] == 1
    assert 0 < alpha[10, 9] < 1
    assert ax.get_title() == "1 object"
    assert not ax.get_lines()


def test_cuts_are_drawn_and_only_the_tiles_that_are_shown_run(counting: Callable[..., Any]) -> None:
    fn = counting(numbered)
    out = tw.tiled_map(fn, MASK, 40, 8, output=LABELS)
    ax = tw.plot_labels(out, MASK, centre=(60, 60), size=40)
    assert fn.calls <= 9
    assert ax.get_title().endswith("objects, cuts between tiles")
    cuts = {line.get_ydata()[0] for line in ax.get_lines() if len(set(line.get_ydata())) == 1}
    assert cuts == {c for c in (48, 72) if 40 < c < 80}
    assert len(ax.get_images()) == 2


@pytest.mark.parametrize("colour", [3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_images_of_colours(colour: int, dtype: str) -> None:
    labels = numbered(MASK)
    image = (np.random.default_rng(0).random((*MASK.shape, colour)) * 200).astype(dtype)
    figure = require("matplotlib.figure").Figure()
    ax = figure.subplots()
    assert tw.plot_labels(labels, image, ax=ax, size=50) is ax
    under = np.asarray(ax.get_images()[0].get_array())
    assert under.shape == (50, 50, colour)
    assert 0 <= under.min() <= under.max() <= 1


@pytest.mark.parametrize("source", ["zarr", "dask", "volume", "bool", "int8"])
def test_what_is_shown_may_be_anything_that_is_sliced(source: str) -> None:
    labels = numbered(MASK)
    if source == "volume":
        volume = np.stack([labels * 0, labels, labels * 0])
        out = tw.tiled_map(numbered, volume > 0, (3, 64, 64), (0, 8, 8), output=LABELS)
        title = f"{labels.max()} objects at axis 0 = 1"
        assert tw.plot_labels(out, volume).get_title() == f"{title}, cuts between tiles"
        assert tw.plot_labels(volume).get_title() == title
        return
    given_labels: Any = {
        "zarr": lambda: zarr.array(labels, chunks=(50, 50)),
        "dask": lambda: require("dask.array").from_array(labels, chunks=60),
        "bool": lambda: labels > 0,
        "int8": lambda: (labels > 0).astype(np.int8) * -1,
    }[source]()
    count = 1 if source in ("bool", "int8") else labels.max()
    assert tw.plot_labels(given_labels).get_title() == f"{count} object{'s' if count > 1 else ''}"


@pytest.mark.parametrize("source", ["result", "image", "xarray"])
def test_axes_have_their_names(source: str, tmp_path: Path) -> None:
    labels = np.zeros((3, *MASK.shape), np.uint32)
    out = tw.tiled_map(
        np.asarray, labels, 64, 8, axes="yx", each="z", output=LABELS, meta=tw.ImageMeta("zyx")
    )
    if source == "result":
        given: Any = out
    elif source == "image":
        tw.to_zarr(out, tmp_path / "x.ome.zarr", ome=True, progress=False)
        given = tw.open_image(tmp_path / "x.ome.zarr")
    else:
        given = require("xarray").DataArray(labels, dims=("z", "y", "x"))
    ax = tw.plot_labels(given)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x (samples)", "y (samples)")
    assert ax.get_title().startswith("0 objects at z = 1")


def test_mistakes_are_named() -> None:
    labels = numbered(MASK)
    with pytest.raises(tw.TilingError, match="integers, one id per object"):
        tw.plot_labels(labels.astype(np.float32))
    with pytest.raises(tw.TilingError, match="shape of the labels"):
        tw.plot_labels(labels, np.zeros((3, *MASK.shape)))
    with pytest.raises(tw.TilingError, match="two axes"):
        tw.plot_labels(labels[0])
    with pytest.raises(TypeError, match=r"labels must be an array; got 'cells'\. Open it first"):
        tw.plot_labels("cells")
    with pytest.raises(TypeError, match="ax must be axes"):
        tw.plot_labels(labels, ax=3)
