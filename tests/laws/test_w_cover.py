"""W, cover: where tiles ran and what their weights sum to is what adding all tiles one by one gives."""

from __future__ import annotations

import itertools
import warnings
from contextlib import suppress
from unittest import mock

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

import tilework as tw
from tests.laws.strategies import WINDOWS, calls, many
from tilework import Output
from tilework.engine import cover as module
from tilework.engine.cover import cover
from tilework.errors import TilingError, TilingWarning
from tilework.graph.build import find_spec
from tilework.grid.tiles import Box
from tilework.grid.weights import AxisWeights


@st.composite
def specs(draw):
    """Draw the spec of a blend: a window or a map, which may have zeros, a mask or not."""
    call = draw(calls(trims=False))
    shape, n = call.shape, len(call.shape)
    lead = draw(st.sampled_from((0, 0, 2)))
    margin, scale = tuple(a.grid.margin for a in call.axes), tuple(a.scale for a in call.axes)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    lengths = [int((a.grid.crop - sum(a.grid.margin)) * a.scale) for a in call.axes]
    blend = draw(st.sampled_from((*WINDOWS, "max", "sum", "map", "map", "gaps")))
    if blend in ("map", "gaps"):
        blend = rng.random(lengths) * (1 if blend == "map" else rng.random(lengths) < 0.7)
    mask = draw(st.sampled_from((None, 0.1, 0.5, 0.9)))
    with warnings.catch_warnings(), suppress(TilingError):
        warnings.simplefilter("ignore", TilingWarning)
        out = tw.tiled_map(
            lambda x: x, np.zeros((lead,) * bool(lead) + shape, "f4"), call.crop, **call.options,
            each=(0,) if lead else (), axes=tuple(range(bool(lead), n + bool(lead))), blend=blend,
            output=Output("float32", scale=scale, margin=margin),
            mask=None if mask is None else rng.random(shape) < mask,
            chunks=tuple(a.grid.quantum * draw(st.integers(1, 12)) for a in call.axes),
        )  # fmt: skip
        found = find_spec(out)
        assert found is not None
        return found.spec
    return assume(False)


def walked(spec, box, skipped, times):
    """Return where tiles have weight, where one was not added once, and the sums, over a box."""
    [output] = spec.outputs
    reached, uneven, total = np.zeros(box.shape, bool), np.zeros(box.shape, bool), np.zeros(box.shape)
    lost = np.zeros(box.shape)
    for tile in spec.plan:
        support = Box.of([w.support(i) for w, i in zip(output.weights, tile.position, strict=True)])
        common = support.intersect(box)
        if not common.size:
            continue
        ran = spec.plan.runs is None or spec.plan.runs[tile.position]
        count = times.get(tile.index, 1) if ran and tile.index not in skipped else 0
        weights = np.ones(support.shape)
        if output.importance is not None:
            full, own = output.importance * output.factor, []
            for d, (w, i) in enumerate(zip(output.weights, tile.position, strict=True)):
                if d >= output.n_each:
                    full = w.fill_rim(i, full, d - output.n_each)
                    own.append(w.in_window(i))
            weights = full[(None,) * output.n_each][(..., *own)]
        elif output.weighted:
            for d in range(output.n_each, len(tile.position)):
                profile = output.weights[d].weights(tile.position[d])
                weights = weights * profile.reshape((-1,) + (1,) * (len(tile.position) - d - 1))
        here = weights[common.shift([-a for a in support.start]).slices]
        at = common.shift([-a for a in box.start]).slices
        if count:
            reached[at] |= here > 0
            before = total[at].copy()
            total[at] += count * here
            own = total[at] - before
            lost[at] += (before - (total[at] - own)) + (count * here - own)
        if count != 1:
            uneven[at] |= here > 0
    return reached, uneven, total + lost if output.compensated else total


@many
@given(specs(), st.data())
def test_W_cover_equals_adding_all_tiles_one_by_one(spec, data):
    [output] = spec.outputs
    runs = st.sets(st.integers(0, len(spec.plan) - 1), max_size=4) if len(spec.plan) else st.just(set())
    skipped = data.draw(runs)
    times = {number: data.draw(st.integers(2, 3)) for number in data.draw(runs) - skipped}
    dtype = np.dtype(data.draw(st.sampled_from(("f4", "f8"))))
    # With room for few sums, they are computed again and again. Those of maps are taken piece by piece, or
    # tile by tile if that is less.
    with (
        mock.patch.object(module, "SUMS", data.draw(st.sampled_from((2**25, 64)))),
        mock.patch.object(module, "FEW", data.draw(st.sampled_from((0, 10**9)))),
        mock.patch.object(module, "CALL", data.draw(st.sampled_from((2**12, 1)))),
    ):
        for index in itertools.product(*map(range, spec.plan.blocks)):
            [box] = spec.boxes(index)
            reached, uneven, total = walked(spec, box, skipped, times)
            found, divisor = cover(spec, output, index, box, skipped, times, dtype=dtype)
            np.testing.assert_array_equal(np.ones(box.shape, bool) if found is None else found, reached)
            if not output.weighted:
                assert divisor is None
                continue
            expected = total if output.importance is not None else np.where(uneven, total, 1.0)
            assert divisor is None or divisor.dtype == dtype
            divisor = np.ones(box.shape, dtype) if divisor is None else divisor
            # Sums of products are taken an axis at a time, and so are rounded elsewhere.
            near = 0 if output.importance is not None else 64 * np.finfo(dtype).eps
            np.testing.assert_allclose(divisor[reached], expected[reached].astype(dtype), rtol=near)
            part = data.draw(parts(box))
            at = part.shift([-a for a in box.start]).slices
            found, some = cover(spec, output, index, part, skipped, times, dtype=dtype)
            some = np.ones(part.shape, dtype) if some is None else some
            within = reached[at]
            np.testing.assert_array_equal(np.ones(part.shape, bool) if found is None else found, within)
            np.testing.assert_array_equal(some[within], divisor[at][within])


@st.composite
def parts(draw, box):
    """Draw a box within another one."""
    starts = [draw(st.integers(a, b - 1)) for a, b in zip(box.start, box.stop, strict=True)]
    return Box.of([(a, draw(st.integers(a + 1, b))) for a, b in zip(starts, box.stop, strict=True)])


def test_a_skipped_tile_and_a_map_cost_little():
    """Counted in samples of weights that are added, since seconds tell nothing."""
    image, rng = np.zeros((512, 512), "f4"), np.random.default_rng(0)
    image[128, 128] = 1
    for options, most in (
        # The tiles around the skipped one, where they lie on it.
        ({"blend": "hann", "skip": lambda x: x[0, 0] == 1}, 4 * 32**2 * 4),
        # Each kind of piece once, of the four tiles on it.
        ({"blend": rng.random((32, 32)) + 0.1}, 25 * 16**2 * 4),
    ):
        added = []

        def counted(target, values, plus=module.plus, added=added, **kind):
            added.append(values.size)
            plus(target, values, **kind)

        out = tw.tiled_map(lambda x: x, image, 32, stride=16, dtype="f4", chunks=128, **options)
        with mock.patch.object(module, "plus", counted):
            out.compute(scheduler="synchronous")
        assert 0 < sum(added) <= most


def test_weights_where_many_tiles_are_skipped_are_summed_axis_by_axis():
    """A sample takes two additions along each axis, and not one for each of the eight tiles on it."""
    image, added = np.random.default_rng(0).random((64, 64, 64)).astype("f4"), []

    def counted(target, values, plus=module.plus, **kind):
        added.append(values.size)
        plus(target, values, **kind)

    def skip(crop):
        return bool(crop[0, 0, 0] < 0.5)

    out = tw.tiled_map(lambda x: x, image, 16, stride=8, blend="hann", dtype="f4", skip=skip, chunks=64)
    with mock.patch.object(module, "plus", counted):
        out.compute(scheduler="synchronous")
    # Once for the sums, and once for the bits of where a tile is missing.
    assert sum(added) <= 2 * (2 + 2 / 4) * image.size


def test_maps_are_summed_once_for_each_way_in_which_tiles_may_be_left_out():
    """Four tiles lie on a piece inside, two at a border and one in a corner, and any may be skipped."""
    image, added = np.random.default_rng(0).random((512, 512)).astype("f4"), []

    def counted(target, values, plus=module.plus, **kind):
        added.append(values.size)
        plus(target, values, **kind)

    def skip(crop):
        return bool(crop[0, 0] < 0.3)

    blend = np.random.default_rng(1).random((32, 32)) + 0.1
    out = tw.tiled_map(lambda x: x, image, 32, stride=16, blend=blend, dtype="f4", skip=skip, chunks=128)
    with mock.patch.object(module, "plus", counted):
        out.compute(scheduler="synchronous")
    ways = 2**4 * 4 + 4 * 2**2 * 2 + 4 * 2
    # Blocks of a side, and of the inside, each come with their own cuts of the pieces at their ends.
    assert 0 < sum(added) <= 2 * ways * 16**2


def test_an_importance_map_is_filled_at_borders_once_for_each_kind():
    """A map with a rim is another one for tiles at each border: 27 in a volume, however many tiles."""
    filled, calls = AxisWeights.fill_rim, []

    def counted(self, i, window, axis=0):
        calls.append(i)
        return filled(self, i, window, axis)

    image, rng = np.random.default_rng(0).random((24, 24, 24)), np.random.default_rng(1)
    blend = rng.random((6, 6, 6)) + 0.1
    out = tw.tiled_map(lambda x: x, image, 6, stride=3, blend=blend, rim=1, dtype="f8", chunks=24)
    with mock.patch.object(AxisWeights, "fill_rim", counted):
        found = out.compute(scheduler="synchronous")
    np.testing.assert_allclose(found, image)
    assert len(calls) == 3 * 27
