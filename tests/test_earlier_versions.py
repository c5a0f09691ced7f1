"""Stores and plans that version 0.1.0 wrote, when all modules lay in one folder, open and resume."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.plan.tile_plan import MEMORY
from tilework.writing.status import statuses

DATA = Path(__file__).parent / "data" / "stores-0.1.0.zip"
IMAGE = np.arange(40 * 40, dtype="f4").reshape(40, 40)


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """Give the stores of interrupted runs: of 4 rows of units the first two are there.

    They were made with numpy 2.4.6 and torch 2.13.0; the records
    name the versions that are installed here, as if those had been there from the beginning.
    """
    with zipfile.ZipFile(DATA) as file:
        file.extractall(tmp_path)
    for record in (tmp_path / "stores").rglob("zarr.json"):
        text = record.read_text()
        for package in ("numpy", "torch"):
            if importlib.util.find_spec(package) is not None:
                text = re.sub(rf", {package} \d[^\"]*", f", {package} {version(package)}", text)
        record.write_text(text)
    return tmp_path / "stores"


def network() -> Any:
    torch = pytest.importorskip("torch")
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    return tw.from_torch(net)


def factory() -> Any:
    return tw.from_torch(pytest.importorskip("torch").nn.Identity)


RESULTS: dict[str, Any] = {
    "trim": lambda: tw.tiled_map(np.negative, IMAGE, 12, 2, dtype="f4"),
    "function": lambda: tw.tiled_map(np.negative, IMAGE, 12, 2, dtype="f4"),
    "masked": lambda: tw.tiled_map(
        np.sqrt, IMAGE, 12, 2, dtype="f4", blend="hann", mask=np.eye(40, dtype=bool), fill_value=-1
    ),
    "disagreement": lambda: tw.tiled_map(
        np.sqrt, IMAGE, 12, 4, blend="gaussian", dtype="f4", disagreement=True
    ),
    "network": lambda: tw.tiled_map(factory(), IMAGE, 12, 2, dtype="f4"),
    "module": lambda: tw.tiled_map(network(), IMAGE, 12, 2, dtype="f4"),
    "dask": lambda: tw.tiled_map(np.negative, IMAGE, 12, 2, dtype="f4", chunks=20) * 2,
}


@pytest.mark.parametrize("name", RESULTS)
def test_an_interrupted_run_of_an_earlier_version_is_resumed(stores: Path, name: str) -> None:
    """The finished units stay as they are, byte by byte; the others are those of an uninterrupted run."""
    store, out = stores / f"{name}.zarr", RESULTS[name]()
    expected = zarr.storage.MemoryStore()
    known = "1" if name in ("trim", "dask") else None
    options: dict[str, Any] = {"chunks": (10, 10), "progress": False, "version": known}
    tw.to_zarr(out, expected, **options)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.rglob("c/[01]/*")}
    assert all(0 < s.done < s.units for s in statuses(store))
    seen: list[tuple[int, int]] = []
    written = tw.to_zarr(out, store, **(options | {"progress": lambda *n: seen.append(n)}))
    assert tw.status(store).complete
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before
    whole = zarr.open(expected, mode="r")
    if isinstance(written, zarr.Group):
        for key, member in written.members():
            # Its blocks are those of the record, and others round sums in another way.
            np.testing.assert_allclose(member[...], whole[key][...], rtol=1e-6)
    else:
        np.testing.assert_array_equal(written[...], whole[...])
        tiles = len(tw.GridSampler(None, (40, 40), (12, 12), (8, 8)))
        assert 0 < seen[-1][0] < tiles


def test_another_function_is_refused_still(stores: Path) -> None:
    with pytest.raises(tw.TilingError, match=r"fn: numpy\.negative.* -> numpy\.sqrt"):
        tw.to_zarr(tw.tiled_map(np.sqrt, IMAGE, 12, 2, dtype="f4"), stores / "function.zarr", progress=False)


def test_plans_of_an_earlier_version_are_read(stores: Path) -> None:
    """Into equal plans, which write the same JSON."""
    old = json.loads((stores.parent / "plans.json").read_text())
    mask = np.eye(10, dtype=bool)
    outputs = (tw.Output("f4", scale=2), tw.Output("u1", channels=3))
    new = {
        "trim": tw.plan_tiles((100, 90), 32, 4),
        "blend": tw.plan_tiles(
            (3, 100, 90),
            (32, 30),
            stride=(20, 11),
            each=0,
            blend="gaussian",
            rim=2,
            output=outputs,
            chunks=40,
        ),
        "mask": tw.plan_tiles((100, 90), 32, 4, mask=mask),
        "starts": tw.GridSampler(IMAGE, (40, 40), (12, 12), (8, 8)).plan,
    }
    for name, plan in new.items():
        read = tw.TilePlan.from_json(json.dumps(old[name]))
        assert json.loads(read.to_json()) == old[name]
        # What the machine has is part of a plan, and another machine has other threads.
        facts = json.loads(plan.to_json())
        free = {"threads", "cache_bytes", "notes", "block", "reuse"}
        # Earlier versions knew less of what an output takes.
        facts["outputs"] = [{k: v for k, v in o.items() if k not in MEMORY} for o in facts["outputs"]]
        assert {k: v for k, v in facts.items() if k not in free} == {
            k: v for k, v in old[name].items() if k not in free
        }


@pytest.mark.parametrize("module", ["geometry", "plan", "fn"])
def test_a_pickle_of_an_earlier_version_says_that_it_is_one(module: str) -> None:
    name = {"geometry": "Box", "plan": "TilePlan", "fn": "LoadOnce"}[module]
    with pytest.raises(ImportError, match=r"pickled by version 0\.1\.0"):
        pickle.loads(f"ctilework.{module}\n{name}\n.".encode())
