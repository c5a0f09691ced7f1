"""The README's examples run as they stand."""

import re

import numpy as np
import pytest
import zarr

from tests.test_docs import ROOT, snippets

README = (ROOT / "README.md").read_text()
SNIPPETS = snippets(ROOT / "README.md")


def test_ten_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(SNIPPETS[0], names)
    whole = names["smooth"](names["image"])
    np.testing.assert_array_equal(names["part"], whole[1000:1200, :300])
    np.testing.assert_array_equal(names["written"][:], whole)


def test_overlap_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(SNIPPETS[0], names)
    exec(SNIPPETS[2], names)
    report, image = names["report"], names["image"]
    assert (report.overlap, report.multiple, report.exact) == ((12, 12), (1, 1), True)
    assert names["compared"].ok
    np.testing.assert_array_equal(names["corner"], names["smooth"](image[:200, :200])[:100, :100])
    assert "seconds" in capsys.readouterr().out


def test_network_example_runs(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    group = zarr.open_group("slide.ome.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=np.zeros((600, 700), np.float32), chunks=(256, 256))
    axes = [{"name": "y"}, {"name": "x"}]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]
    import tilework

    names = {"tw": tilework, "load_my_network": lambda: torch.nn.Conv2d(1, 5, 3, padding=1)}
    exec(SNIPPETS[1], names)
    assert names["out"].shape == (600, 700)
    assert names["out"].compute().dtype == np.uint8


def test_commands_are_one_line_each():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    assert len(commands) == 2
    assert not any("\n" in command for command in commands)
    assert commands[0].endswith("tilework demo")
    assert commands[1].endswith("pytest -n auto")
