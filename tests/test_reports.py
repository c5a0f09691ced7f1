"""What `explain`, `status`, `check` and `probe` return: text at a prompt, a table in a notebook."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import zarr

import tilework as tw
from tilework.diagnostics.measuring import measure
from tilework.writing.status import statuses

IMAGE = np.random.default_rng(0).random((90, 80)).astype(np.float32)


def result() -> Any:
    return tw.tiled_map(np.sqrt, IMAGE, 32, 4)


def group(path: Path) -> zarr.Group:
    pair = tw.tiled_map(lambda x: {"a": x, "b<": x > 0}, IMAGE, 32, 4)
    written: zarr.Group = tw.to_zarr(pair, path, progress=False)
    return written


@pytest.mark.parametrize("what", ["explain", "measured", "plan", "check", "probe", "status", "several"])
def test_reports_are_text_at_a_prompt_and_a_table_in_a_notebook(what: str, tmp_path: Path) -> None:
    found: Any = {
        "explain": lambda: tw.explain(result()),
        "measured": lambda: measure(result()),
        "plan": lambda: tw.plan_tiles((90, 80), 32, 4).explain(),
        "check": lambda: tw.check(result()),
        "probe": lambda: tw.probe(np.sqrt, (16, 16)),
        "status": lambda: tw.status(tw.to_zarr(result(), tmp_path / "a.zarr", progress=False)),
        "several": lambda: tw.status(group(tmp_path / "g.zarr")),
    }[what]()
    assert repr(found) == str(found) == f"{found}"
    assert "\\n" not in repr(found)
    assert "\n" in repr(found)
    root = ET.fromstring(found._repr_html_())
    cells = ["".join(cell.itertext()) for cell in root.iter("td")]
    assert root.tag == "div"
    assert len(cells) == len(root.findall(".//tr")) > 1
    # The table says what the text says.
    assert all(" ".join(cell.split()) in " ".join(str(found).split()) for cell in cells)
    assert str(pickle.loads(pickle.dumps(found))) == str(copy.deepcopy(found)) == str(found)


def test_tables_have_one_style(tmp_path: Path) -> None:
    shown = [
        tw.plan_tiles((90, 80), 32, 4), tw.explain(result()), tw.check(result()),
        tw.status(tw.to_zarr(result(), tmp_path / "a.zarr", progress=False)),
        tw.status(group(tmp_path / "g.zarr")),
    ]  # fmt: skip
    tables = [next(iter(ET.fromstring(one._repr_html_()).iter("table"))) for one in shown]
    assert len({table.get("style") for table in tables}) == 1
    assert len({table.find(".//th").get("style") for table in tables}) == 1


def test_an_explanation_is_still_a_string() -> None:
    text = tw.explain(result())
    assert isinstance(text, str)
    assert "tiles" in text
    assert text.splitlines()[2].startswith("tiles")
    assert text + "\n" == f"{text}\n"
    assert dict(text.rows)["tiles"] in text
    assert tw.explain(result(), measure=True).startswith(text)


def test_status_of_an_array_is_one_and_of_a_group_several(tmp_path: Path) -> None:
    one = tw.status(tw.to_zarr(result(), tmp_path / "a.zarr", progress=False))
    assert one.complete
    assert str(tmp_path / "a.zarr") in " ".join(str(one).split())
    assert tw.status(str(tmp_path / "a.zarr")) == one
    both = tw.status(group(tmp_path / "g.zarr"))
    assert [s.units == s.done > 0 for s in both] == [True, True]
    assert both.complete
    assert len(both) == 2
    assert both[0].place.endswith("/a")
    assert [line.split("  ")[0].strip() for line in str(both).splitlines()] == ["a", "b<"]
    assert tw.status(tmp_path / "g.zarr" / "a").complete
    # A group of one array is a group; what to_zarr has not written has no status.
    zarr.create_group(tmp_path / "one.zarr").create_array("plain", data=IMAGE)
    assert tw.status(tmp_path / "one.zarr") == ()
    assert "no result of to_zarr" in repr(tw.status(tmp_path / "one.zarr"))
    with pytest.raises(tw.TilingError, match="has not written"):
        tw.status(tmp_path / "one.zarr" / "plain")
    assert statuses(tmp_path / "one.zarr" / "plain") == []


def test_status_names_what_is_missing(tmp_path: Path) -> None:
    def picky(x: np.ndarray) -> np.ndarray:
        if x[0, 0] == IMAGE[0, 0]:
            raise ValueError("not this one")
        return x

    out = tw.tiled_map(picky, IMAGE, 32, 4, dtype="f4")
    with pytest.warns(tw.TilingWarning):
        written = tw.to_zarr(out, tmp_path / "a.zarr", chunks=16, on_error="fill", progress=False)
    found = tw.status(written)
    assert not found.complete
    assert "not this one" in " ".join(str(found).split())
    assert "1 tile in the last run" in str(found)
