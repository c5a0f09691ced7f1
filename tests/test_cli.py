"""The command line: what it writes, what it says, and its exit codes."""

from __future__ import annotations

import importlib.metadata
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result

import tilework as tw
from tilework.cli import main

DOUBLE = ["run", "cli_filters:double", "in.zarr"]
OVER = ["run", "cli_filters:double", "--crop", "8", "--overlap", "1", "in.zarr"]
IMAGE = np.arange(60 * 50, dtype="f4").reshape(60, 50)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with an image and a module, and work there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    zarr.create_array("in.zarr", data=IMAGE, chunks=(20, 20))
    Path("cli_filters.py").write_text(
        textwrap.dedent("""
        def double(crop):
            return crop * 2

        def shifted(crop):
            crop[:, 3:] = crop[:, :-3].copy()
            return crop

        def centred(crop):
            return crop - crop.mean()

        def picky(crop):
            if (crop == 100).any():
                raise ValueError("a hundred")
            return crop

        def bad_argument(crop):
            raise TypeError("overlap=3 is wrong")

        def kept(crop):
            import os

            assert "MALLOC_TRIM_THRESHOLD_" not in os.environ, "memory is given back at once"
            assert os.environ["MALLOC_ARENA_MAX"] == "1"
            return crop * 2

        NUMBER = 1
        """)
    )
    return tmp_path


def tilework(*args: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def test_run_writes_and_goes_on(folder: Path) -> None:
    line = ["run", "./cli_filters.py:double", "in.zarr", "out.zarr"]
    line += ["--chunks", 20, "--crop", 16, "--overlap", 2]
    result = tilework(*line)
    assert (result.exit_code, result.output) == (0, f"{folder}/out.zarr: 9 of 9 units done\n")
    np.testing.assert_array_equal(zarr.open_array("out.zarr")[...], IMAGE * 2)
    assert tilework(*line).exit_code == 0
    changed = tilework(*line[:-1], 4)
    assert changed.exit_code == 1
    assert "overlap: (2, 2) -> (4, 4)" in changed.output
    assert tilework(*line[:-1], 4, "--overwrite", "--chunks", "12,10").exit_code == 0
    assert zarr.open_array("out.zarr").chunks == (12, 10)


def test_run_writes_an_image_and_its_labels(folder: Path) -> None:
    line = ["run", "./cli_filters.py:double", "in.zarr", "out.ome.zarr", "--crop", 16, "--overlap", 2]
    assert tilework(*line, "--chunks", 8, "--ome", "0.4", "--levels", 2).exit_code == 0
    image = tw.open_image("out.ome.zarr")
    np.testing.assert_array_equal(image[...], IMAGE * 2)
    assert len(image.levels) == 2
    labels = ["run", "./cli_filters.py:double", "in.zarr", "out.ome.zarr", "--crop", 16, "--overlap", 2]
    assert "whole numbers" in tilework(*labels, "--label-name", "twice").output
    assert "add --ome" in tilework(*line[:3], "b.zarr", *line[4:], "--pyramid", "max").output


def test_status_is_a_table_and_says_what_is_missing(folder: Path) -> None:
    line = ["run", "cli_filters:picky", "in.zarr", "out.zarr", "--crop", "16", "--overlap", "2"]
    failed = tilework(*line)
    assert failed.exit_code == 1
    assert "Error: a hundred | raised by fn on tile" in failed.output
    assert '| cli_filters.py:14: raise ValueError("a hundred")' in failed.output
    assert "Traceback" not in failed.output
    shown = tilework(*line, "--traceback")
    assert shown.exit_code == 1
    assert "Traceback (most recent call last)" in shown.output
    assert "in picky" in shown.output
    assert "Error: a hundred |" in shown.output
    assert tilework("--traceback", *line).output.count("in picky") == shown.output.count("in picky")
    filled = tilework(*line, "--on-error", "fill")
    assert filled.exit_code == 1
    assert "Warning: " in filled.output
    table = tilework("status", "out.zarr", "nothing.zarr", "in.zarr")
    assert table.exit_code == 1
    rows = table.output.splitlines()
    assert rows[0].split() == ["store", "units", "done", "failed", "tiles", "state"]
    assert "incomplete" in rows[1]
    assert "there is no Zarr array" in rows[2]
    assert "nothing that tilework wrote" in rows[3]
    tilework("run", "cli_filters:double", "in.zarr", "done.zarr", "--crop", 16, "--overlap", 2)
    assert tilework("status", "done.zarr").exit_code == 0


def test_plan_writes_nothing(folder: Path) -> None:
    result = tilework("plan", "in.zarr", "--crop", "16,20", "--stride", "8,10", "--blend", "hann")
    assert result.exit_code == 0
    assert "tiles      28 = 7 x 4" in result.output
    assert sorted(p.name for p in folder.iterdir()) == ["cli_filters.py", "in.zarr"]


def test_probe_says_how_much_and_fails_where_nothing_is_exact(folder: Path) -> None:
    found = tilework("probe", "cli_filters:shifted", "in.zarr", "--crop", "24,32")
    assert found.exit_code == 0, found.output
    assert "overlap           0        3\n" in found.output
    without = tilework("probe", "cli_filters:shifted", "--crop", "24,32", "--dtype", "float64")
    assert without.exit_code == 0
    assert "overlap           0        3\n" in without.output
    unbounded = tilework("probe", "cli_filters:centred", "in.zarr", "--crop", 24)
    assert unbounded.exit_code == 1
    assert "no overlap is exact" in unbounded.output


def test_run_with_the_overlap_that_probe_finds(folder: Path) -> None:
    line = ["run", "cli_filters:shifted", "in.zarr", "out.zarr", "--crop", "24,32", "--overlap", "auto"]
    assert tilework(*line).exit_code == 0
    expected = IMAGE.copy()
    expected[:, 3:] = IMAGE[:, :-3]
    np.testing.assert_array_equal(zarr.open_array("out.zarr")[...], expected)


def test_stats_are_text_and_json(folder: Path) -> None:
    expected = tw.image_statistics(IMAGE, (0.1, 0.5), progress=False)
    line = ["stats", "in.zarr", "--quantiles", "0.1,0.5"]
    result = tilework(*line)
    assert (result.exit_code, result.output) == (0, f"{expected}\n")
    assert tw.ImageStatistics.from_json(tilework(*line, "--json").output) == expected


def test_stats_take_all_that_image_statistics_takes(folder: Path) -> None:
    zarr.create_array("mask.zarr", data=IMAGE > 1000)
    for more, given in (
        (["--each", "0", "--nodata", "7"], {"each": 0, "nodata": 7}),
        (["--where", "mask.zarr"], {"where": IMAGE > 1000}),
        (["--sample", "3", "--seed", "2"], {"sample": 3, "seed": 2}),
        (["in.zarr", "--quantiles", "0.5"], {"quantiles": (0.5,)}),
    ):
        arrays = [zarr.open_array("in.zarr")] * (1 + (more[0] == "in.zarr"))
        expected = tw.image_statistics(arrays, progress=False, **given)
        found = tilework("stats", "in.zarr", *more, "--json", "--no-progress").output
        assert tw.ImageStatistics.from_json(found) == expected
    out = tw.tiled_map(np.positive, IMAGE, crop=20, overlap=0, meta=tw.ImageMeta("yx"))
    tw.to_zarr(out, "x.ome.zarr", ome=True, levels=2, progress=False)
    found = tilework("stats", "x.ome.zarr", "--level", "-1", "--json").output
    assert tw.ImageStatistics.from_json(found).count == 30 * 25


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        pytest.param(["stats", "in.zarr", "--quantiles", "99"], 2, "Divide percent by 100", id="percent"),
        pytest.param(["stats", "in.zarr", "--quantiles", "a"], 2, "numbers with commas", id="quantiles"),
        pytest.param(["stats", "in.zarr", "--nodata", "a"], 2, '"nan" or "meta"', id="nodata"),
        pytest.param(["stats", "in.zarr", "--each", "q"], 2, "--each", id="each"),
        pytest.param(["stats", "gone.zarr"], 1, "gone.zarr", id="no image"),
        pytest.param(["stats"], 2, "IMAGE...", id="no images"),
        pytest.param(["run", "none", "in.zarr", "o", "--crop", "8"], 2, "names no function", id="no colon"),
        pytest.param(["run", "no_mod:f", "in.zarr", "o", "--crop", "8"], 2, "No module named", id="module"),
        pytest.param(["run", "cli_filters:nope", "in.zarr", "o", "--crop", "8"], 2, "has no nope", id="name"),
        pytest.param(["run", "no.py:f", "in.zarr", "o", "--crop", "8"], 2, "there is no file", id="file"),
        pytest.param([*DOUBLE, "o", "--crop", "x"], 2, "whole number", id="crop"),
        pytest.param([*DOUBLE, "o", "--crop", "8"], 2, "--overlap", id="overlap"),
        pytest.param(["plan", "in.zarr", "--crop", "8", "--overlap", "auto"], 2, "--function", id="auto"),
        pytest.param(["probe", DOUBLE[1], "--crop", "8"], 2, "per axis", id="dimensions"),
        pytest.param(["run", DOUBLE[1], "gone.zarr", "o", "--crop", "8", "--overlap", "1"], 1,
                     "gone.zarr", id="source"),
        pytest.param([*DOUBLE, "o", "--crop", "8", "--overlap", "4"], 2,
                     "got crop 8 and --overlap 4", id="crop and overlap"),
        pytest.param([*DOUBLE, "o", "--crop", "8", "--overlap", "1", "--stride", "3"], 2,
                     "--overlap and --stride disagree", id="disagree"),
        pytest.param([*DOUBLE, "o", "--crop", "8", "--overlap", "1", "--axes", "0,7"], 2,
                     "--axes 0,7", id="axes"),
        pytest.param([*DOUBLE, "o", "--crop", "99", "--overlap", "1", "--memory-limit", "2"], 2,
                     "--memory-limit is 2", id="memory"),
        pytest.param([*DOUBLE, "o", "--crop", "8", "--overlap", "1", "--dtype", "f5"], 2,
                     "--dtype must be", id="dtype"),
        pytest.param([*DOUBLE, "o", "--crop", "8", "--overlap", "1", "--edge", "shifted"], 2,
                     "'shift', 'squeeze'", id="edge"),
        pytest.param([*DOUBLE, "o", "--crop", "8", "--overlap", "1", "--blend", "gauss"], 2,
                     "'hann', 'gaussian'", id="blend"),
        pytest.param([*DOUBLE, "o", "--crop", "8", "--overlap", "1", "--boundary", "nearest"], 2,
                     "'reflect', 'symmetric'", id="boundary"),
        pytest.param(["plan", "in.zarr", "--crop", "8", "--stride", "9"], 2, "--stride must not", id="plan"),
        pytest.param(["run", "cli_filters:picky", "in.zarr", "o", "--crop", "8", "--overlap", "1"], 1,
                     "a hundred", id="of the function"),
        pytest.param(["run", "cli_filters:bad_argument", "in.zarr", "o", "--crop", "8", "--overlap", "1"], 1,
                     "overlap=3 is wrong", id="in words like ours"),
        pytest.param(["run", "json:f", "in.zarr", "o", "--crop", "8", "--overlap", "1"], 2,
                     "__init__.py) has no f", id="an installed module"),
        pytest.param([*DOUBLE, "o", "--crop", "8", "--overlap", "1",
                      "--workers", "1", "--cluster", "tcp://x:1"], 2, "exclude each other", id="both"),
        pytest.param([*OVER, "cli_filters.py"], 1, "cli_filters.py is a file", id="a file"),
        pytest.param([*OVER, "cli_filters.py", "--overwrite"], 1, "is a file", id="over a file"),
        pytest.param([*OVER, "cli_filters.py", "--ome", "0.5"], 1, "is a file", id="an image over a file"),
        pytest.param([*OVER, "/proc/o"], 1, "Error: /proc", id="no place to write"),
        pytest.param([*OVER, "in.zarr/o"], 1, "inside an array", id="in an array"),
        pytest.param([*OVER, ""], 2, "must not be empty", id="no name"),
        pytest.param(["plan", "", "--crop", "8"], 2, "must not be empty", id="no source"),
        pytest.param([*OVER, "o", "--chunks", "0"], 2, "--chunks needs", id="chunks"),
        pytest.param([*OVER, "o", "--shards", "1,2,3"], 2, "--shards needs", id="shards"),
        pytest.param([*OVER, "o", "--levels", "2"], 2, "add --ome", id="levels"),
        pytest.param([*OVER, "o", "--properties", "area"], 2, "with --table", id="properties"),
        pytest.param([*OVER, "o", "--intensity", "in.zarr"], 2, "with --table", id="intensity"),
        pytest.param([*OVER, "o", "--dtype", "u4", "--labels", "join", "--table", "t.x"], 2,
                     "--table must be", id="table"),
        pytest.param([*OVER, "o", "--dtype", "u4", "--labels", "join", "--table", "t.csv",
                      "--properties", "q"], 2, "--properties 'q'", id="property"),
        pytest.param([*OVER, "o", "--table", "t.csv"], 2, "--table is for labels", id="no labels"),
        pytest.param([*OVER, "o", "--dtype", "object"], 2, "--dtype object", id="object"),
        pytest.param([*OVER, "o", "--cluster", "nowhere"], 2, "--cluster nowhere", id="address"),
        pytest.param(["run", "./cli:f", "in.zarr", "o", "--crop", "8"], 2, "is no module", id="a folder"),
        pytest.param(["run", "cli_filters:", "in.zarr", "o", "--crop", "8"], 2, "no function", id="nothing"),
        pytest.param(["run", "cli_filters:NUMBER", "in.zarr", "o", "--crop", "8"], 2,
                     "type int", id="number"),
        pytest.param(["probe", DOUBLE[1], "in.zarr", "--crop", "8", "--dtype", "u1"], 2,
                     "--dtype", id="of IN"),
        pytest.param(["probe", DOUBLE[1], "--crop", "8,8", "--axes", "0"], 2, "give IN", id="without IN"),
        pytest.param(["status", "cli_filters.py"], 1, "is a file", id="status of a file"),
        pytest.param(["demo", "--folder", "cli_filters.py/x"], 1,
                     "cli_filters.py/x: ", id="demo below a file"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(folder: Path, line: list[str], code: int, said: str) -> None:
    result = tilework(*line)
    assert result.exit_code == code
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_store_may_be_called_as_an_option(folder: Path) -> None:
    """What is wrong with it is no mistake in the arguments."""
    zarr.create_array("levels", data=IMAGE)
    result = tilework(*OVER, "levels")
    assert result.exit_code == 1
    assert "levels already holds data" in result.output
    assert "--levels" not in result.output


def test_a_store_that_cannot_be_opened_does_not_hide_the_others(folder: Path) -> None:
    assert tilework(*OVER, "o").exit_code == 0
    result = tilework("status", "nosuch+http://x/o", "cli_filters.py/x", "o")
    assert result.exit_code == 1
    assert "100.0%" in result.output


def test_the_version_is_shown_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tilework("--version").output.endswith(f"version {tw.__version__}\n")

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert tilework("--version").output.endswith("version 0+unknown\n")
    assert tw.__version__ == "0+unknown"


def test_help_can_be_learnt_from() -> None:
    for command in ("run", "stats", "probe", "plan", "status", "demo"):
        assert tilework(command, "--help").exit_code == 0
    text = tilework("run", "--help").output
    for word in ("--crop", "--overlap", "--blend", "--cluster", "--workers", "--overwrite", "--resume"):
        assert word in text


@pytest.mark.sample(0)
@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_run_on_workers_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep memory that was freed, unless the environment says otherwise."""
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    line = ["run", "./cli_filters.py:kept", "in.zarr", "out.zarr", "--crop", 16, "--overlap", 2]
    result = tilework(*line, "--dtype", str(IMAGE.dtype), "--workers", 1)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(zarr.open_array("out.zarr")[...], IMAGE * 2)


def test_labels_with_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy import ndimage as ndi

    monkeypatch.chdir(tmp_path)
    noise = ndi.gaussian_filter(np.random.default_rng(0).random((120, 130)), 1.5)
    mask = (noise > np.quantile(noise, 0.8)).astype("u1")
    zarr.save_array("mask.zarr", mask)
    Path("find.py").write_text("from scipy import ndimage\ndef cells(x):\n    return ndimage.label(x)[0]\n")
    options = ["--crop", "64", "--overlap", "20", "--labels", "own", "--dtype", "uint16"]
    made = ["--table", "cells.csv", "--properties", "eccentricity", "--properties", "intensity_max"]
    made += ["--intensity", "mask.zarr"]
    done = tilework("run", "find.py:cells", "mask.zarr", "out.zarr", *options, *made)
    assert done.exit_code == 0, done.output
    want = ndi.label(mask)[0]
    found = zarr.open_array("out.zarr", mode="r")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[:], want)
    table = tw.Table.read("cells.csv")
    assert len(table) == want.max()
    assert {"eccentricity", "intensity_max", "cut"} <= set(table)
    shown = tilework("plan", "mask.zarr", "--function", "find.py:cells", *options)
    assert "exact if no object is longer than (41, 41)" in " ".join(shown.output.split())
    # Without a function, the plan alone, and the dtype of labels.
    shown = tilework("plan", "mask.zarr", *options[:6])
    assert "exact if no object is longer than (41, 41)" in " ".join(shown.output.split())
