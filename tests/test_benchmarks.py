"""The benchmarks run: each case once, at the smallest size, in this process."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import measure
from benchmarks.cases import BUILD, CASES
from benchmarks.cases_memory import BLEND2D
from benchmarks.measure import MISSING, Outcome
from benchmarks.report import draw, write_page
from benchmarks.table import document, judge, rows, text

# Those that take longest, and whose parts other cases run, too.
LONG = (
    *("blend3d", "build", "cluster_memory", "growth", "length", "network", "network_stored"),
    *("scheduler", "slicer", "small", "zarr_blend3d", "zarr_trim3d"),
)


@pytest.mark.sample(0)
@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in CASES]
)
def test_each_case_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of ours fails or is wrong; a peer that is not installed is a row that says so."""
    page, samples = tmp_path / "docs" / "page.md", tmp_path / "samples.json"
    quick = ["--here", "--repeat", "1", "--scale", "0.001"]
    assert command.main([name, *quick, "--json", str(samples), "--docs", str(page)]) == 0
    printed = capsys.readouterr().out
    [found] = json.loads(samples.read_text())["cases"]
    for contestant in CASES[name].contestants:
        assert contestant.name in printed
        assert f"| {contestant.name}" in page.read_text()
        assert (contestant.name in found["samples"]) != (contestant.name in found["failures"])
    assert all(said.startswith(MISSING) for said in found["failures"].values()), found["failures"]
    # What was kept gives the same table, and the same page, without running.
    again = tmp_path / "docs" / "again.md"
    assert command.main(["--from", str(samples), "--docs", str(again)]) == 0
    assert capsys.readouterr().out == printed
    assert again.read_text() == page.read_text()
    assert not re.search(r"(?m)(?<![\w.])/(home|root|tmp|Users|work)/", page.read_text())


def sample(**figures: float) -> dict[str, float]:
    return {"wall_s": 1.0, "cpu_s": 1.0, "peak_mb": 1.0, "error": 0.0} | figures


def outcome(samples: dict[str, Any], failures: dict[str, str], case: Any = BLEND2D) -> Outcome:
    return Outcome(case, 1.0, samples, failures)


def test_bars_are_ratios_of_medians_over_the_turns_that_both_had() -> None:
    """The slower one took part in the first turn only."""
    ours = [sample(wall_s=w) for w in (1.0, 3.0, 2.0)]
    found = outcome({"tilework compute": ours, "patchly": [sample(wall_s=8.0)]}, {})
    [bar] = [bar for bar in judge(found) if bar["what"] == "tilework compute: faster than patchly"]
    assert (bar["value"], bar["range"], bar["met"]) == (4.0, (8.0, 8.0), "no")


def test_a_wrong_answer_meets_no_bar_and_is_the_fault_of_nobody_but_us() -> None:
    wrong = [sample(error=float("nan"))]
    ours = outcome(
        {"tilework compute": wrong, "monai": [sample(wall_s=9.0)]}, {"tilework loop": "ValueError: no"}
    )
    assert ours.bad == ["tilework compute", "tilework loop"]
    assert {bar["met"] for bar in judge(ours)} == {"no"}
    theirs = outcome({"tilework compute": [sample()], "monai": wrong}, {"tiler": "MemoryError"})
    assert theirs.bad == []
    table = text(rows(theirs))
    assert re.search(r"monai .* WRONG", table)
    assert re.search(r"tiler .* failed +MemoryError", table)
    missing = outcome({}, {"tilework compute": f"{MISSING} torch"})
    assert missing.bad == []


@pytest.mark.sample(0)
def test_what_grows_is_drawn_for_a_light_and_a_dark_page(tmp_path: Path) -> None:
    """Without a background, and the same bytes for the same figures."""
    samples = {
        c.name: [sample(wall_s=k + 1, slice_s=0.1, blocks=10.0**k)] for k, c in enumerate(BUILD.contestants)
    }
    found = outcome(samples, {}, BUILD)
    drawn = tmp_path / "images" / "benchmark-build.svg"
    write_page(tmp_path / "page.md", document([found]), [found])
    assert f"](images/{drawn.name})" in (tmp_path / "page.md").read_text()
    first = drawn.read_bytes()
    assert draw(found, drawn)
    assert drawn.read_bytes() == first
    assert b"fill: #ffffff" not in first
    assert b"tilework 5-D" in first
    assert not draw(outcome({}, {}, BUILD), tmp_path / "nothing.svg")


@pytest.mark.sample(0)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_contestant_that_takes_too_long_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "benchmarks" / "__main__.py"
    script.parent.mkdir()
    script.write_text(
        "import pathlib, subprocess, sys\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path('started').write_text(str(other.pid))\n"
        "other.wait()\n"
    )
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "CHILD_SECONDS", 10)  # to start two interpreters on a busy machine
    with pytest.raises(measure.ContestantFailed, match="stopped after 10 s"):
        measure.run_child(CASES["patches"], "tilework", 1.0, tmp_path)
    pid = int((tmp_path / "started").read_text())
    for _ in range(1000):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX":
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the process that it started is alive")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scale", "nan"], "--scale must be positive numbers"),
        (["--scale", "inf"], "--scale must be positive numbers"),
        (["--seconds", "nan"], "--seconds not negative"),
        (["--seconds", "-1"], "--seconds not negative"),
        (["--from", "{}/nothing"], "nothing cannot be read: No such file"),
        (["--from", "{}"], "cannot be read: Is a directory"),
        (["--from", "{}/half"], "half is not what --json wrote"),
        (["--from", "{}/other"], "other is not what --json wrote"),
        (["--json", "{}"], "is a folder"),
        (["--docs", "{}/half/page.md"], "half, which is no folder"),
    ],
)
def test_what_cannot_end_well_does_not_begin(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scale of NaN ran every case, and a page that cannot be written was an error after hours."""
    (tmp_path / "half").write_text('{"cases": [')
    (tmp_path / "other").write_text("[]")
    with pytest.raises(SystemExit):
        command.parse(["patches", *(option.format(tmp_path) for option in options)])
    assert said in capsys.readouterr().err


def test_samples_are_whole_or_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it writes them loses one case."""
    file = tmp_path / "new" / "samples.json"
    command._keep(file, {})
    before = file.read_text()

    def killed(self: Path, text: str) -> int:
        self.write_bytes(text[:5].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        command._keep(file, {})
    assert file.read_text() == before
