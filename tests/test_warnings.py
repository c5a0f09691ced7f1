"""Warnings: they point at the caller's line, and speak of a cost only where it can be avoided."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw

IMAGE = np.random.default_rng(0).random((64, 48)).astype("f4")


def to_nan(crop: np.ndarray) -> np.ndarray:
    return np.where(crop > 0.5, np.nan, crop)


def fails(crop: np.ndarray) -> np.ndarray:
    if crop[0, 0] == IMAGE[0, 0]:
        raise ArithmeticError("the first tile")
    return crop


def labels(fn: Any = to_nan) -> Any:
    return tw.tiled_map(fn, IMAGE, 16, 4, blend="average", dtype="u1", chunks=16)


def found(call: Callable[[], Any]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [w for w in seen if issubclass(w.category, tw.TilingWarning)]


# Each is one line, so that the line of the function's code is the line of the warning.
CALLS: dict[str, Callable[[], Any]] = {
    "tiled_map, drop": lambda: tw.tiled_map(np.copy, IMAGE, 99, 4, edge="drop", axes=(0, 1), dtype=float),
    "tiled_map, mask": lambda: tw.tiled_map(np.copy, IMAGE, 16, 4, mask=np.zeros((4, 3), bool), dtype=float),
    "tiled_map, auto": lambda: tw.tiled_map(lambda x: x + x.mean(), IMAGE, 24, "auto", dtype=float),
    "tiled_map, cost": lambda: tw.tiled_map(np.copy, np.zeros((162, 162), "u1"), 12, 1, dtype="u1"),
    "plan_tiles": lambda: tw.plan_tiles((40, 30), 16, 4, mask=np.zeros((4, 3), bool)),
    "compute": lambda: labels().compute(),
    "compute on threads": lambda: labels().compute(scheduler="threads"),
    "dask.compute": lambda: dask.compute(labels(), scheduler="threads"),
    "np.asarray": lambda: np.asarray(labels()),
    "view": lambda: tw.view(labels(), verbose=False)[:],
    "to_zarr": lambda: tw.to_zarr(labels(), zarr.storage.MemoryStore(), progress=False),
    "to_zarr on threads": lambda: tw.to_zarr(labels(), np.empty((64, 48), "u1"), scheduler="threads"),
    "to_zarr, failures": lambda: tw.to_zarr(
        labels(fails), zarr.storage.MemoryStore(), on_error="fill", progress=False
    ),
    "write_many": lambda: tw.write_many([(labels(), zarr.storage.MemoryStore())], progress=False),
    "Aggregator": lambda: tw.Aggregator(tw.GridSampler(IMAGE, (64, 48), (16, 16)), (64, 48)).get_output(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_points_at_the_line_of_the_caller(name: str) -> None:
    call = CALLS[name]
    seen = found(call)
    assert seen
    lines = {line for _, _, line in call.__code__.co_lines() if line}
    for one in seen:
        assert one.filename == __file__
        assert one.lineno in lines


def test_a_filter_by_module_and_the_default_filter_work() -> None:
    """The caller's module is the warning's, and its registry says what was shown."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            labels().compute()
        warnings.filterwarnings("ignore", module=re.escape(__name__))
        tw.view(labels(), verbose=False)[:]
    assert len(seen) == 1


# -- cost ------------------------------------------------------------------------------------------------


def cost(shape: tuple[int, ...], crop: Any, overlap: Any = None, **options: Any) -> int | None:
    """Return the number of crops that a cost warning promises; None without a warning."""
    image = np.broadcast_to(np.zeros((), "u1"), shape)
    seen = found(lambda: tw.tiled_map(np.copy, image, crop, overlap, dtype="u1", **options))
    texts = [str(w.message) for w in seen if issubclass(w.category, tw.CostWarning)]
    assert len(texts) < 2
    return int(re.search(r"; (\d+) could cover", texts[0])[1]) if texts else None  # type: ignore[index]


@pytest.mark.parametrize(
    ("shape", "crop", "overlap", "promised"),
    [
        # 1. Few crops, however large the share of those that could be spared.
        ((100, 100), 10, 1, None),
        ((20,), 8, 3, None),
        # 2. One crop or two beyond the fewest, of many.
        ((2562,), 12, 1, None),
        ((2563,), 12, 1, None),
        # 3. Per axis one beyond the fewest, and in all more than a tenth, or just less.
        ((162, 162), 12, 1, 256),
        ((202, 202), 12, 1, 400),
        ((212, 212), 12, 1, None),
        # 4. Where squeezing spares nothing.
        ((160, 160), 10, 0, None),
        ((161, 161), 10, 0, None),
    ],
)
def test_where_a_cost_warning_begins(shape: Any, crop: Any, overlap: Any, promised: Any) -> None:
    assert cost(shape, crop, overlap) == promised


def test_blends_and_other_edges_have_nothing_to_spare() -> None:
    assert cost((162, 162), 12, 1) == 256
    assert cost((162, 162), 12, 1, blend="hann") is None
    assert cost((162, 162), 12, 1, edge="pad") is None
    assert cost((162, 162), 12, 1, mask=np.ones((2, 2), bool)) is None, "what would run is not known"


@given(
    extents=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    crop=st.integers(1, 24),
    overlap=st.integers(0, 8),
    multiple=st.integers(1, 4),
    each=st.integers(1, 40),
)
def test_the_advice_of_a_cost_warning_ends_it(
    extents: list[int], crop: int, overlap: int, multiple: int, each: int
) -> None:
    overlap = min(overlap, (crop - 1) // 2)
    options: dict[str, Any] = {"axes": tuple(range(1, len(extents) + 1)), "each": 0, "multiple": multiple}
    try:
        promised = cost((each, *extents), crop, overlap, **options)
    except tw.GridError:
        return
    few = tw.plan_tiles((each, *extents), crop, overlap, edge="squeeze", **options)
    many = tw.plan_tiles((each, *extents), crop, overlap, **options)
    assert (promised is not None) == (len(many) >= 256 and len(many) > 1.1 * len(few))
    if promised is not None:
        assert promised == len(few)
        assert cost((each, *extents), crop, overlap, edge="squeeze", **options) is None


@pytest.mark.distributed
def test_an_array_that_is_not_sent_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in this process share its memory; threads need no cluster."""
    from distributed import Client

    def sent() -> bool:
        seen = found(lambda: tw.tiled_map(np.sqrt, IMAGE, 16, 4, dtype="f4"))
        return any("sent to the cluster" in str(w.message) for w in seen)

    monkeypatch.setattr("tilework.api.TRAVEL_WARNING", 1000)
    assert not sent()
    with dask.config.set(scheduler=None), Client(processes=False, n_workers=1, dashboard_address=":0"):
        assert not sent()
    address = type("Address", (), {"address": "tcp://127.0.0.1:1"})
    monkeypatch.setattr("tilework.api.active_client", lambda: type("C", (), {"scheduler": address}))
    with dask.config.set(scheduler=None):
        assert sent()
    with dask.config.set(scheduler="threads"):
        assert not sent()
