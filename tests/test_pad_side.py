"""`pad_side="both"` and given `starts`: what users see of them. The laws draw both everywhere."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import tilework as tw
from tilework.cli import main
from tilework.diagnostics.untiled import Untiled
from tilework.errors import GridError
from tilework.graph.build import find_spec
from tilework.grid.axis import AxisGrid
from tilework.writing.fingerprint import of_spec

MODES = ("reflect", "symmetric", "edge", "wrap", "constant")


def halves(missing: int) -> tuple[int, int]:
    return missing // 2, missing - missing // 2


def padded(image: np.ndarray, widths: Any, mode: str) -> np.ndarray:
    return np.pad(image, widths, mode, **({"constant_values": -3} if mode == "constant" else {}))


def edged(crop: np.ndarray) -> np.ndarray:
    """Return what depends on every sample of a crop, and on where each lies."""
    weights = 1 + np.arange(crop.size).reshape(crop.shape) % 11
    return crop + (crop * weights).sum()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reuse", ["share", "recompute"])
@pytest.mark.parametrize("edge", ["shift", "squeeze"])
def test_an_image_shorter_than_its_crop_lies_in_the_middle(mode, reuse, edge):
    """As the whole padded image, for odd and even rests, in 1 to 3 dimensions and in a batch of indices."""
    rng = np.random.default_rng(0)
    for dims, extra in itertools.product((1, 2, 3), (1, 2, 5)):
        shape = tuple(4 + k for k in range(dims))
        image = rng.random((2, *shape))
        crop = tuple(n + extra + k for k, n in enumerate(shape))
        widths = [halves(c - n) for n, c in zip(shape, crop, strict=True)]
        out = tw.tiled_map(
            edged, image, crop, 0, each=0, axes=tuple(range(1, dims + 1)), boundary=mode, cval=-3, edge=edge,
            pad_side="both", reuse=reuse, dtype=float,
        )  # fmt: skip
        inside = tuple(slice(a, a + n) for (a, _), n in zip(widths, shape, strict=True))
        expected = [edged(padded(one, widths, mode))[inside] for one in image]
        np.testing.assert_array_equal(out.compute(), expected)


def test_a_rest_that_multiple_leaves_is_padded_on_both_sides():
    """Crops of a network that pools by 4 start at multiples of 4 of the padded image."""

    def pool(crop: np.ndarray) -> np.ndarray:
        blocks = crop.reshape(*(n for m in crop.shape for n in (m // 4, 4))).mean(axis=(1, 3))
        return np.kron(blocks, np.ones((4, 4)))

    image = np.random.default_rng(0).random((49, 90))
    out = tw.tiled_map(pool, image, (24, 32), 4, multiple=4, pad_side="both", dtype=float, chunks=20)
    widths = [halves(3), halves(2)]
    expected = pool(np.pad(image, widths, "reflect"))[1:50, 1:91]
    np.testing.assert_array_equal(out.compute(), expected)
    assert tw.check(out).ok
    part = np.asarray(tw.view(out)[30:49, 2:7])
    np.testing.assert_array_equal(part, expected[30:49, 2:7])
    written = tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False)
    np.testing.assert_array_equal(written[...], expected)


@pytest.mark.parametrize("edge", ["shift", "squeeze"])
@pytest.mark.parametrize("trims", [True, False])
def test_tiles_are_those_of_the_padded_image_moved(edge, trims):
    """Crops, and cores but for what is padding."""
    for m, overlap, stride, rest in itertools.product((1, 2, 3), (0, 1, 2), (1, 2, 3), (0, 1)):
        crop = m * (stride + 2 * overlap) + rest
        for extent in range(1, 3 * crop):
            both = AxisGrid(extent, crop, m * overlap, m * stride, edge, trims, m, pad_side="both")
            before, after = both.padding
            assert 0 <= after - before <= 1
            whole = AxisGrid(before + extent + after, crop, m * overlap, m * stride, edge, trims, m)
            assert whole.padding == (0, 0)
            assert len(both) == len(whole)
            for i in range(len(both)):
                assert both.read(i) == tuple(x - before for x in whole.read(i))
                low, high = (min(max(0, x - before), extent) for x in whole.core(i))
                assert both.core(i) == (low, high)
                assert low < high


def test_check_reads_the_untiled_image_with_the_same_padding():
    """A window at the border begins where the padding does, at a multiple of it."""
    image = np.arange(20.0 * 30).reshape(20, 30)
    out = tw.tiled_map(edged, image, (32, 16), 0, axes=(0, 1), multiple=4, pad_side="both", dtype=float)
    found = find_spec(out)
    assert found is not None
    untiled = Untiled(found.spec, edged, None, None)
    box = tw.Box((0, 0), (20, 30))
    assert untiled.spans(box) == [(-6, 26), (-1, 31)]
    inside = untiled.spans(tw.Box((10, 20), (11, 21)), (0, 8))
    assert [(low + before) % 32 for (low, _), before in zip(inside, (6, 1), strict=True)] == [0, 0]


def test_a_scale_below_one_needs_whole_samples_before_the_image():
    image = np.arange(7.0)

    def thirds(crop: np.ndarray) -> np.ndarray:
        return crop.reshape(-1, 3).sum(axis=1)

    def out(n: int) -> Any:
        output = tw.Output(float, scale=tw_third)
        return tw.tiled_map(thirds, image[:n], 9, 0, pad_side="both", boundary="constant", output=output)

    from fractions import Fraction

    tw_third = Fraction(1, 3)
    with pytest.raises(
        GridError, match=r"pads 1 before and 1 after the image on axis 0; 1 is no multiple of 3"
    ):
        out(7)
    np.testing.assert_array_equal(out(3).compute(), [3.0])


def test_the_plan_says_it_and_equal_plans_stay_equal_texts():
    both = tw.plan_tiles((5, 33), (10, 8), 0, multiple=(1, 4), pad_side="both", axes=(0, 1))
    assert "before and after, samples: 0 by 2 and 3, 1 by 1 and 2" in str(both.explain())
    assert not both.exact_border
    assert tw.TilePlan.from_json(both.to_json()) == both
    assert both[0].padding == ((2, 3), (1, 0))
    end = tw.plan_tiles((5, 33), (10, 8), 0, multiple=(1, 4), axes=(0, 1))
    assert "at the end, samples: 0 by 5, 1 by 3" in str(end.explain())
    # Records of stores that were written before there was a side are compared with this text.
    assert not any("pad_side" in axis for axis in json.loads(end.to_json())["axes"])
    assert both != end


def test_stores_of_earlier_versions_are_resumed():
    """Their fingerprints know of no side."""
    image = np.arange(5.0)
    keys = [
        set(of_spec(found.spec))
        for side in ("end", "both")
        if (found := find_spec(tw.tiled_map(edged, image, 8, 0, pad_side=side, dtype=float)))
    ]
    assert keys[1] - keys[0] == {"pad_side"}


def test_a_stored_result_is_not_resumed_with_another_side():
    image, store = np.arange(5.0), zarr.storage.MemoryStore()
    tw.to_zarr(tw.tiled_map(edged, image, 8, 0, dtype=float), store, progress=False)
    other = tw.tiled_map(edged, image, 8, 0, pad_side="both", dtype=float)
    with pytest.raises(tw.TilingError, match="pad_side"):
        tw.to_zarr(other, store, progress=False)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pad_side": "left"}, "pad_side must be one of 'end', 'both'"),
        ({"pad_side": "both", "edge": "pad"}, 'edge="pad" pads each crop that sticks out'),
        ({"pad_side": "both", "edge": "clip"}, 'edge="clip" never pads'),
        ({"pad_side": "both", "edge": "drop"}, 'edge="drop" never pads'),
    ],
)
def test_what_pads_nothing_has_no_side(options, text):
    with pytest.raises(tw.TilingError, match=text):
        tw.plan_tiles((20,), 8, 2, **options)


def test_the_command_line_has_the_side(tmp_path):
    zarr.save(tmp_path / "x.zarr", np.zeros((5, 6)))
    arguments = ["plan", str(tmp_path / "x.zarr"), "--crop", "8", "--overlap", "0", "--pad-side", "both"]
    result = CliRunner().invoke(main, arguments)
    assert "before and after, samples: 0 by 1 and 2, 1 by 1 and 1" in result.output


# -- given starts --------------------------------------------------------------------------------------


def test_crops_lie_where_they_are_given():
    rows, columns = (0, 5, 11, 12), (0, 8)
    plan = tw.plan_tiles((20, 18), (8, 10), starts=(rows, columns))
    assert [tile.read.start for tile in plan] == list(itertools.product(rows, columns))
    assert "at given starts" in " ".join(str(plan.explain()).split())
    assert tw.TilePlan.from_json(plan.to_json()) == plan
    image = np.random.default_rng(0).random((20, 18))
    total, weight = np.zeros(image.shape), np.zeros(image.shape)
    for a, b in itertools.product(rows, columns):
        total[a : a + 8, b : b + 10] += edged(image[a : a + 8, b : b + 10])
        weight[a : a + 8, b : b + 10] += 1
    for chunks in (7, "auto"):
        out = tw.tiled_map(
            edged, image, (8, 10), starts=(rows, columns), blend="average", dtype=float, chunks=chunks
        )
        np.testing.assert_allclose(out.compute(), total / weight, rtol=1e-12)
        written = tw.to_zarr(out, zarr.storage.MemoryStore(), progress=False)
        np.testing.assert_array_equal(written[...], out.compute())


def test_starts_may_be_given_by_the_names_of_axes():
    by_name = tw.plan_tiles({"y": 20, "x": 18}, {"y": 8, "x": 10}, starts={"x": [0, 8], "y": [0, 6, 12]})
    assert by_name.axes == tw.plan_tiles((20, 18), (8, 10), starts=([0, 6, 12], [0, 8])).axes


def test_starts_of_a_padded_image_count_its_padding():
    plan = tw.plan_tiles((5, 20), 8, starts=[(0,), (0, 6, 12)], pad_side="both", axes=(0, 1))
    assert [tile.read.start for tile in plan] == [(-1, 0), (-1, 6), (-1, 12)]
    assert plan.covered == 1
    out = tw.tiled_map(
        np.negative, np.ones((5, 20)), 8, starts=[(0,), (0, 6, 12)], pad_side="both", axes=(0, 1), dtype=float
    )
    assert (out.compute() == -1).all()


@pytest.mark.parametrize(
    ("starts", "options", "text"),
    [
        ([[0, 6, 12]], {"stride": 6}, "starts say where crops lie; leave overlap and stride out"),
        ([[0, 6, 12]], {"overlap": 1}, "starts say where crops lie"),
        ([[0, 6, 12]], {"overlap": "auto"}, "starts say where crops lie"),
        ([[0, 6, 12]], {"edge": "squeeze"}, 'leave edge="squeeze" out'),
        ([[0, 6, 6, 12]], {}, "starts must increase"),
        ([[]], {}, "at least one"),
        ([[1, 6, 12]], {}, "must begin with 0 and end with 12"),
        ([[0, 6]], {}, "must begin with 0 and end with 12.*got 0 to 6 on axis 0"),
        ([[0, 12]], {}, "starts must not be further apart than crop.*got 12 samples and crop 8"),
        ([[0, 3, 6, 12]], {"multiple": 2}, "starts must be multiples of 2 on axis 0"),
        ([0, 6, 12], {}, "one sequence of whole numbers per tiled axis"),
        ([[0, 6, 12], [0, 6, 12]], {}, "one sequence of whole numbers per tiled axis"),
    ],
)
def test_starts_that_do_not_fit_are_refused(starts, options, text):
    with pytest.raises(tw.TilingError, match=text):
        tw.tiled_map(np.negative, np.zeros(20), 8, starts=starts, **options)


def test_starts_are_whole_numbers():
    with pytest.raises(TypeError, match="starts on axis 0 must be a whole number"):
        tw.plan_tiles((20,), 8, starts=[[0, 6.5, 12]])
