"""Plans in a notebook and figures: well-formed, true to the plan, and drawn from few tiles."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilework as tw
from tests.networks import require
from tests.sampling import share
from tilework.plan.cost import rows
from tilework.plan.picture import axis_profiles, svg

IMAGE = np.random.default_rng(0).random((300, 260)).astype(np.float32)
plots = pytest.mark.skipif(not require("matplotlib"), reason="matplotlib is not installed")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """pyplot keeps figures until they are closed."""
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")


def centred(x: np.ndarray) -> np.ndarray:
    """A function with seams: it looks at the mean of its crop."""
    return x - 20 * x.mean() * np.arange(x.shape[1], dtype=x.dtype) / x.shape[1]


@settings(max_examples=share(30))
@given(
    shape=st.lists(st.integers(1, 400), min_size=1, max_size=4), crop=st.integers(1, 90),
    edge=st.sampled_from(("shift", "squeeze", "pad", "clip", "drop")),
    blend=st.sampled_from(("trim", "hann")), chunked=st.booleans(), each=st.booleans(),
)  # fmt: skip
def test_any_plan_is_drawn_as_well_formed_xml(
    shape: list[int], crop: int, edge: Any, blend: str, chunked: bool, each: bool
) -> None:
    overlap = crop // 4
    if blend != "trim" and not overlap:
        blend = "trim"
    plan = tw.plan_tiles(
        shape, (crop,) * (len(shape) - (each and len(shape) > 1)), overlap, edge=edge, blend=blend,
        each=0 if each and len(shape) > 1 else (), axes=tuple(range(each and len(shape) > 1, len(shape))),
        source_chunks=[16] * len(shape) if chunked else None,
    )  # fmt: skip
    root = ET.fromstring(plan._repr_html_())
    assert len(root.findall(".//tr")) == len(rows(plan))
    for value in re.findall(r'="(-?[\d.]+)"', svg(plan)):
        assert abs(float(value)) < 1000  # nothing is drawn out of the picture


@plots
@pytest.mark.parametrize("shape", [(50,), (400, 20), (60, 50, 40), (90000, 90000)], ids=str)
def test_plans_of_any_dimension_are_plotted(shape: tuple[int, ...]) -> None:
    assert len(tw.plan_tiles(shape, 32, 4, axes=tuple(range(len(shape)))).plot()) == 2
    none = tw.plan_tiles((20, 20), 32, 4, edge="drop")
    assert none.plot()[0].get_title().startswith("0 crops")


ELSEWHERE = """
import pickle, sys
plan = pickle.loads(bytes.fromhex(sys.argv[1]))
assert len(plan.plot()) == 2
"""


@plots
@pytest.mark.sample(0)
def test_a_plan_is_drawn_in_a_process_that_only_unpickled_it() -> None:
    plan = pickle.dumps(tw.plan_tiles((60, 50), 32, 4)).hex()
    subprocess.run([sys.executable, "-W", "error", "-c", ELSEWHERE, plan], check=True, timeout=120)


def test_every_core_block_and_chunk_has_its_line() -> None:
    plan = tw.plan_tiles((400, 300), 64, 8, source_chunks=(100, 100), chunks=(192, 144))
    paths = [p.get("d") for p in ET.fromstring(svg(plan)).iter("path")]
    cores, blocks, chunks = (path.count("M") for path in paths[:3])
    assert cores == sum(n - 1 for n in plan.grid_shape)
    assert blocks == sum(n - 1 for n in plan.blocks)
    assert chunks == 3 + 2


def test_of_many_tiles_the_first_are_shown_and_it_says_so() -> None:
    text = svg(tw.plan_tiles((65536, 400), 256, 16))
    assert "first 2480 of 65536" in text
    assert "axis 1: 400" in text


def test_names_of_users_are_escaped() -> None:
    plan = tw.plan_tiles((100, 100), 32, 4)
    odd = type(plan)(**{f: getattr(plan, f) for f in plan.__dataclass_fields__} | {"names": ("<y>", "&")})
    assert "<y>" not in odd._repr_html_()
    ET.fromstring(odd._repr_html_())


def test_profiles_are_the_weights_that_are_used() -> None:
    plan = tw.plan_tiles((80,), 32, 8, blend="linear")
    total = np.zeros(80)
    for x, weights in axis_profiles(plan):
        total[x] += weights
    assert len(plan) == 4
    np.testing.assert_allclose(total, 1)
    assert plan == tw.TilePlan.from_json(plan.to_json())
    assert plan.outputs[0].blend == "linear"


@plots
def test_figures_have_titles_and_labelled_axes(tmp_path: Path) -> None:
    out = tw.tiled_map(np.sqrt, IMAGE, 64, 8, blend="gaussian")
    figures = {
        "plan": tw.plan_tiles((400, 300), 64, 8).plot(),
        "window": tw.plot_window(out, axis=0),
        "seams": tw.plot_seams(out),
        "compare": tw.compare(np.sqrt(IMAGE), out),
    }
    for name, drawn in figures.items():
        panels = np.ravel(drawn).tolist()
        figure = panels[0].figure
        assert all(ax.get_title() for ax in panels), name
        assert all("samples" in ax.get_xlabel() for ax in panels), name
        # Panels that share an axis have its label once, at the first.
        shared = panels[0].get_shared_y_axes()
        assert all(ax.get_ylabel() or shared.joined(panels[0], ax) for ax in panels), name
        assert panels[0].get_ylabel(), name
        figure.savefig(tmp_path / f"{name}.png", dpi=40)


@plots
def test_figures_go_into_axes_that_are_given() -> None:
    figure = require("matplotlib.figure").Figure()
    one, two = figure.subplots(1, 2)
    plan = tw.plan_tiles((400, 300), 64, 8)
    assert plan.plot(one) is one
    assert tw.plot_window(plan, ax=two) is two
    assert one.get_title() == f"{len(plan)} crops in 4 blocks (recompute)"
    out = tw.tiled_map(np.sqrt, IMAGE, 64, 8)
    draws = {
        "seams": lambda axes: tw.plot_seams(out, axes=axes),
        "compare": lambda axes: tw.compare(np.sqrt(IMAGE), out, axes=axes),
    }
    for name, draw in draws.items():
        axes = require("matplotlib.figure").Figure().subplots(1, 3)
        drawn = draw(axes)
        assert list(drawn) == list(axes), name
        assert all(ax.get_title() for ax in axes), name
        assert list(draw(list(axes))) == list(axes), name
        with pytest.raises(tw.TilingError, match="3 axes"):
            draw(axes[:2])
    assert not require("matplotlib.pyplot").get_fignums()


@plots
@pytest.mark.filterwarnings("error")
def test_figures_are_known_to_pyplot() -> None:
    """A notebook shows them once, whatever the cell ends with; ``plt.show()`` shows them in a script."""
    pyplot = require("matplotlib.pyplot")
    out = tw.tiled_map(np.sqrt, IMAGE, 64, 8)
    plan = tw.plan_tiles((400, 300), 64, 8)
    draws: list[Callable[[], Any]] = [
        plan.plot, lambda: tw.plot_plan(plan), lambda: tw.plot_window(plan), lambda: tw.plot_seams(out),
        lambda: tw.compare(np.sqrt(IMAGE), out),
    ]  # fmt: skip
    for number, draw in enumerate(draws, 1):
        figure = np.ravel(draw())[0].figure
        assert pyplot.gcf() is figure
        assert len(pyplot.get_fignums()) == number
    for _ in range(20):
        tw.plot_window(plan)


@plots
def test_seams_are_measured_at_the_cuts_from_few_tiles(counting: Callable[..., Any]) -> None:
    def ratio(axes: Any, panel: int) -> float:
        return float(re.search(r"([\d.]+) times", axes[panel].get_title())[1])

    fn = counting(centred)
    out = tw.tiled_map(fn, IMAGE, 64, 8, dtype="float32")
    axes = tw.plot_seams(out, centre=(100, 100), size=100)
    assert ratio(axes, 2) > 5
    assert fn.calls < 12
    assert 0.8 < ratio(tw.plot_seams(tw.tiled_map(np.sqrt, IMAGE, 64, 8)), 2) < 1.25


@plots
def test_compare_shows_the_largest_difference() -> None:
    out = tw.tiled_map(centred, IMAGE, 64, 8, dtype="float32")
    axes = tw.compare(centred(IMAGE), out)
    gap = np.abs(centred(IMAGE) - out.compute())
    assert f"{gap.max():.2g} at most" in axes[2].get_title()
    volume = np.zeros((3, 90, 80))
    assert tw.compare(volume, volume)[0].get_xlabel() == "axis 2 (samples)"


@plots
@pytest.mark.filterwarnings("error")
def test_compare_counts_what_has_no_difference() -> None:
    def title(a: np.ndarray, b: np.ndarray) -> str:
        drawn = tw.compare(a, b)
        drawn[2].figure.canvas.draw()
        low, high = drawn[2].images[0].get_clim()
        assert 0 <= low < high < np.inf
        return drawn[2].get_title().replace("\n", " ")

    one, other = IMAGE.copy(), IMAGE.copy()
    one[:, 2] = other[:, 2] = np.nan
    one[:, 4] = other[:, 4] = np.inf
    equal = "difference: 0 at most, 0 on average"
    assert title(one, other) == equal
    other[:2, 0], one[5, 5] = np.nan, -np.inf
    assert title(one, other) == f"{equal} NaN or infinite in just one: 3 samples"
    assert title(IMAGE, IMAGE * np.nan).startswith("difference:  NaN or infinite in just one:")
    assert title(IMAGE, IMAGE + 1j) == "difference: 1 at most, 1 on average"
    counts = (IMAGE * 9).astype(np.int16)
    assert title(counts, counts + np.float32(0.25)) == "difference: 0.25 at most, 0.25 on average"
    shown = tw.compare(IMAGE * 2j, IMAGE * 2j)[0].figure.axes
    np.testing.assert_allclose(shown[0].images[0].get_array(), IMAGE * 2, rtol=1e-6)
    assert [ax.get_ylabel() for ax in shown[3:]] == ["modulus", "absolute difference"]


@plots
@pytest.mark.filterwarnings("error")
def test_steps_are_those_that_are_finite() -> None:
    def title(image: np.ndarray, panel: int = 1) -> str:
        return str(tw.plot_seams(tw.tiled_map(lambda x: x, image, 50, 0))[panel].get_title())

    clean = np.where(np.indices((100, 100)).sum(axis=0) % 2, 1.0, 0.0)
    assert title(clean) == "mean step 1 at cuts, 1 elsewhere, 1.00 times"
    image = clean.copy()
    image[7, 9], image[49, 3], image[70:72, 70] = np.nan, np.inf, np.inf
    assert title(image) == title(clean)
    assert title(clean * 2j) == "mean step 2 at cuts, 2 elsewhere, 1.00 times"
    image[50] = np.nan
    assert title(image) == "mean step nothing finite at cuts, 1 elsewhere"
    assert title(image, 2) == title(clean, 2)
    image[:50] = image[52:] = np.nan
    image[50:52] = 1
    image[49] = 3
    assert title(image) == "mean step 2 at cuts, 0 elsewhere"
    image[51:] = np.nan
    assert title(image) == "mean step 2 at cuts, nothing finite elsewhere"


@plots
def test_figures_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(tw.TilingError, match="one shape"):
        tw.compare(IMAGE, IMAGE[1:])
    with pytest.raises(tw.TilingError, match="two axes"):
        tw.compare(IMAGE[0], IMAGE[0])
    with pytest.raises(tw.TilingError, match="knows its cuts"):
        tw.plot_seams(IMAGE)
    with pytest.raises(tw.TilingError, match="has one"):
        tw.plot_window(IMAGE)
    with pytest.raises(tw.TilingError, match="out of range"):
        tw.plot_window(tw.plan_tiles((99,), 9, 1), axis=1)
