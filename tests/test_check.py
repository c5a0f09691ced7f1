"""`check` sees what is wrong, and nothing where nothing is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from scipy import ndimage as ndi

import tilework as tw
from tests.test_probe import pooled, unet

IMAGE = np.random.default_rng(0).random((230, 190)).astype(np.float32)


def box(x: np.ndarray) -> np.ndarray:
    return ndi.uniform_filter(x, 7)


@pytest.mark.parametrize("edge", ["shift", "squeeze", "clip", "drop"])
def test_enough_overlap_is_ok(edge: str) -> None:
    report = tw.check(tw.tiled_map(box, IMAGE, 64, 3, edge=edge))
    assert report.ok, report
    assert len(report.windows) == 12
    assert {kind for kind, _, _ in report.windows} == {"corners", "borders", "random", "extremes"}


def test_one_sample_too_little_is_seen_at_corners() -> None:
    out = tw.tiled_map(box, IMAGE, 64, 2)
    report = tw.check(out, where="corners")
    assert not report.ok
    truth = np.abs(out.compute() - box(IMAGE))
    assert report.largest == pytest.approx(truth[report.where], rel=1e-3)
    assert "differs" in str(report)


def test_padding_is_seen_at_borders() -> None:
    report = tw.check(tw.tiled_map(box, IMAGE, 64, 3, edge="pad", boundary="constant"), where="borders")
    assert not report.ok


def test_a_wrong_multiple_is_seen() -> None:
    assert tw.check(tw.tiled_map(unet, IMAGE[:228, :188], 64, 12, multiple=4)).ok
    assert not tw.check(tw.tiled_map(lambda x: pooled(x, 2), IMAGE, 64, stride=43, dtype="float32")).ok


def test_only_the_tiles_at_the_places_run() -> None:
    report = tw.check(tw.tiled_map(box, IMAGE, 64, 3), where=[(100, 100)])
    assert [kind for kind, _, _ in report.windows] == ["given"]
    assert report.crops <= 4


def test_another_function_or_image_may_be_given() -> None:
    out = tw.tiled_map(box, IMAGE, 64, 3)
    assert not tw.check(out, lambda x: box(x) + 1).ok
    assert not tw.check(out, box, IMAGE[::-1]).ok
    with pytest.raises(tw.TilingError, match="what was tiled"):
        tw.check(out, box, IMAGE[:-1])


def test_scales_margins_channels_and_reduction() -> None:
    def double(x: np.ndarray) -> np.ndarray:
        return box(x).repeat(2, 0).repeat(2, 1)

    assert tw.check(tw.tiled_map(double, IMAGE, 64, 3, output=tw.Output("float32", scale=2))).ok
    half = tw.Output("float32", scale=Fraction(1, 2))
    assert tw.check(tw.tiled_map(lambda x: box(x)[::2, ::2], IMAGE, 64, 4, output=half)).ok
    valid = tw.Output("float32", margin=3)
    assert tw.check(tw.tiled_map(lambda x: box(x)[3:-3, 3:-3], IMAGE, 64, 3, output=valid)).ok
    classes = tw.Output(channels=3, reduce="argmax")
    assert tw.check(
        tw.tiled_map(lambda x: np.stack([x, box(x), x * 0 + 0.5]), IMAGE, 64, 3, output=classes)
    ).ok


def test_several_outputs_are_all_compared() -> None:
    out = tw.tiled_map(
        lambda x: {"good": x, "bad": box(x)},
        IMAGE,
        64,
        0,
        output={"good": tw.Output("f4"), "bad": tw.Output("f4")},
    )
    report = tw.check(out)
    assert (report.ok, report.output) == (False, "bad")
    assert tw.check(out["good"]).ok


@pytest.mark.parametrize("kind", ["dask", "zarr", "pair"])
def test_every_source_batches_and_each(kind: str, tmp_path: Path) -> None:
    stack = np.random.default_rng(1).random((3, 120, 100)).astype(np.float32)
    array: Any = stack
    if kind == "dask":
        array = da.from_array(stack, (1, 50, 60))
    if kind == "zarr":
        array = zarr.create_array(tmp_path / "a.zarr", data=stack, chunks=(1, 32, 32))
    if kind == "pair":
        array = (stack, stack)
    out = tw.tiled_map(
        lambda *b: ndi.uniform_filter(sum(b), (0, 5, 5)), array, (48, 48), 2, each=0, batch_size=2
    )
    assert tw.check(out).ok


def test_places_left_out_by_a_mask_are_not_compared() -> None:
    mask = np.zeros((23, 19), bool)
    mask[10, 10] = True
    assert tw.check(tw.tiled_map(box, IMAGE, 64, 3, mask=mask)).ok


@pytest.mark.parametrize(
    "options", [{}, {"blend": "average", "rim": 3}, {"blend": "hann", "rim": 3}], ids=str
)
def test_places_that_were_skipped_are_not_compared(options: dict[str, Any]) -> None:
    image = IMAGE.copy()
    image[:, :90] += 1
    options |= {"skip": lambda crop: crop.mean() > 1, "fill_value": -1}
    report = tw.check(tw.tiled_map(box, image, 48, stride=30, **options))
    assert report.ok, report
    kinds = [kind for kind, _, _ in report.windows]
    assert all(kinds.count(kind) == 3 for kind in ("corners", "borders", "random"))
    assert not tw.check(tw.tiled_map(lambda x: x - x.mean(), image, 48, stride=30, **options)).ok
    # The functions of time points differ in where they are skipped.
    stack = np.stack([image, image[::-1, ::-1], image * 0])
    assert tw.check(tw.tiled_map(box, stack, (48, 48), stride=30, each=0, **options)).ok


@pytest.mark.parametrize("options", [{}, {"blend": "hann", "rim": 3}], ids=str)
def test_beside_a_skipped_tile_only_the_core_of_one_that_ran_is_compared(options: dict[str, Any]) -> None:
    rows, columns = np.indices(IMAGE.shape) // 42
    board = (IMAGE + 10 * ((rows + columns) % 2)).astype(np.float32)
    skipped = tw.tiled_map(box, board, 48, 3, skip=lambda x: x[24, 24] > 5, fill_value=-1, **options)
    report = tw.check(skipped, where="corners", places=10)
    assert report.ok, report


def test_where_no_tile_ran_there_is_nothing_to_compare() -> None:
    always = tw.tiled_map(box, IMAGE, 64, 3, skip=lambda crop: True)
    with pytest.raises(tw.TilingError, match="no tile ran at any place"):
        tw.check(always)
    some = tw.tiled_map(box, IMAGE, 64, 3, skip=lambda crop: crop[0, 0] == IMAGE[0, 0])
    with pytest.raises(tw.TilingError, match="no tile ran at any place"):
        tw.check(some, where=[(5, 5)])
    assert len(tw.check(some, where=[(5, 5), (100, 100)]).windows) == 1
    with pytest.warns(tw.TilingWarning):
        masked = tw.tiled_map(box, IMAGE, 64, 3, mask=np.zeros((23, 19), bool))
    with pytest.raises(tw.TilingError, match="no tile of this result runs"):
        tw.check(masked)


def test_the_verdict_says_what_may_help() -> None:
    little = {"trim": {"overlap": 2}, "hann": {"stride": 30, "blend": "hann"}}
    for kind, options in little.items():
        report = tw.check(tw.tiled_map(box, IMAGE, 32, **options), where=("corners", "random"))
        assert report.causes == ("overlap",)
        assert report.help.startswith("more overlap: ")
        assert ("overlap=3 " if kind == "trim" else "rim=3 ") in report.help
    padded = tw.check(tw.tiled_map(box, IMAGE, 64, 3, edge="pad", boundary="constant"))
    assert padded.help == 'edge="pad" invents what the function sees beyond the border; another edge does not'
    assert padded.help in " ".join(str(padded).split())
    both = tw.check(tw.tiled_map(box, IMAGE, 64, 2, edge="pad", boundary="constant"))
    assert set(both.causes) == {"overlap", "border"}
    assert "; besides, " in both.help
    assert "help" not in str(tw.check(tw.tiled_map(box, IMAGE, 64, 3)))


def test_errors() -> None:
    out = tw.tiled_map(box, IMAGE, 64, 3)
    with pytest.raises(tw.TilingError, match="unmodified"):
        tw.check(out + 1)
    with pytest.raises(tw.TilingError, match="corners"):
        tw.check(out, where="corner")
    with pytest.raises(tw.TilingError, match="one sample per tiled axis"):
        tw.check(out, where=[(1000, 0)])
    with pytest.raises(tw.TilingError, match="takes its tile"):
        tw.check(tw.tiled_map(lambda x, tile: x, IMAGE, 64, 3, pass_tile=True, dtype="f4"))

    def strict(x: np.ndarray) -> np.ndarray:
        if x.shape != (64, 64):
            raise ValueError("wrong shape")
        return x

    with pytest.raises(ValueError, match="wrong shape") as caught:
        tw.check(tw.tiled_map(strict, IMAGE, 64, 3, dtype="f4"))
    assert "called fn on crops" in caught.value.__notes__[0]


def test_names_what_wraps_round() -> None:
    image = np.random.default_rng(0).random((200, 200))
    out = tw.tiled_map(lambda x: ndi.gaussian_filter(x, 2, mode="wrap"), image, 64, 8, dtype="float64")
    report = tw.check(out)
    assert not report.ok
    assert 'needs edge="pad", boundary="wrap"' in " ".join(str(report).split())
