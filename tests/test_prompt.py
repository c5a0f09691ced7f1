"""The command line as a process: which file it loads, what it logs, and how signals end it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import tilework
import tilework.execution.progress
from tilework.cli import main
from tilework.errors import TilingError
from tilework.function.user_file import UserFile

IMAGE = np.arange(60 * 50, dtype="f4").reshape(60, 50)
GRID = ["--crop", "16", "--overlap", "2", "--chunks", "12"]
MODULE = [sys.executable, "-m", "tilework"]
SCRIPT = [sys.executable, "-P", "-c", "from tilework.cli import main\nif __name__ == '__main__': main()"]
TEXT = """
import helpers

CALLS = 0

def f(crop):
    global CALLS
    CALLS += 1
    return helpers.double(crop)

def fails(crop):
    raise ValueError("of the file")

def leaves(crop):
    import sys
    sys.exit(4)
"""
SCHEDULERS = {"threads": [], "processes": [], "workers": ["--workers", "1"]}
# Each of these starts a cluster in a process of its own, which takes seconds.
CLUSTER = pytest.param("workers", marks=(pytest.mark.slow, pytest.mark.distributed))
on_each_scheduler = pytest.mark.parametrize("scheduler_name", ["threads", "processes", CLUSTER])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with an image and a module that functions import."""
    zarr.create_array(str(tmp_path / "in.zarr"), data=IMAGE, chunks=(20, 20))
    (tmp_path / "helpers.py").write_text("def double(crop):\n    return crop * 2\n")
    return tmp_path


def environment(scheduler_name: str = "threads", **more: str) -> dict[str, str]:
    source = str(Path(tilework.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    chosen = {"DASK_SCHEDULER": scheduler_name} if scheduler_name != "workers" else {}
    return os.environ | {"PYTHONPATH": paths, "DASK_NUM_WORKERS": "2"} | chosen | more


def prompt(
    folder: Path, *line: str, scheduler_name: str = "threads", way: Sequence[str] = MODULE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*way, *line, *(SCHEDULERS[scheduler_name] if line[0] == "run" else [])],
        cwd=folder, env=environment(scheduler_name), capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def result(folder: Path, name: str = "out.zarr") -> Any:
    return zarr.open_array(str(folder / name))[...]


# -- the file that is named -------------------------------------------------------------------------------


@pytest.mark.sample(0, whole=2)
@on_each_scheduler
@pytest.mark.parametrize("stem", ["json", "scipy", "signal"])
def test_a_file_is_loaded_whatever_its_name(
    stem: str, scheduler_name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the standard library, of an installed package, and one that starting a process imports."""
    (folder / f"{stem}.py").write_text(TEXT)
    way = SCRIPT if stem == "signal" else MODULE  # Python itself could not start the module
    line = ["run", f"{stem}.py:f", "in.zarr", "out.zarr", *GRID]
    done = prompt(folder, *line, scheduler_name=scheduler_name, way=way)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(result(folder), IMAGE * 2)
    (folder / f"{stem}.py").write_text(f"# edited elsewhere\n{TEXT}\nNEW = 1\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    again = in_process(*line)
    assert again.exit_code == 0, again.output
    assert "were found done; 0 tiles are to run" in again.stderr


@pytest.mark.sample(1)
@on_each_scheduler
def test_errors_show_the_line_in_the_file(scheduler_name: str, folder: Path) -> None:
    (folder / "filters.py").write_text(TEXT)
    line = ["run", "filters.py:fails", "in.zarr", "out.zarr", *GRID, "--dtype", "f4"]
    done = prompt(folder, *line, scheduler_name=scheduler_name)
    assert done.returncode == 1, done.stderr
    assert "Error: of the file | raised by fn on tile " in done.stderr
    assert '| filters.py:12: raise ValueError("of the file")\n' in done.stderr


def in_process(*line: str) -> Any:
    return CliRunner().invoke(main, list(line))


def test_a_file_beside_another_module_of_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes in front of the standard library, and two files of one name are two modules."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    for place, factor in (("a", 2), ("b", 3)):
        (folder / place).mkdir()
        (folder / place / "textwrap.py").write_text(f"def f(crop):\n    return crop * {factor}\n")
        done = in_process("run", f"{place}/textwrap.py:f", "in.zarr", f"{place}.zarr", *GRID)
        assert done.exit_code == 0, done.output
        np.testing.assert_array_equal(result(folder, f"{place}.zarr"), IMAGE * factor)
    assert sys.path[: len(before)] == before
    assert sys.modules["textwrap"] is textwrap


def test_a_file_that_cannot_be_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own line is shown; one that ends Python is an error, too."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for text, code, said in (
        ("import no_such_module\n", 2, "No module named"),
        ("x = 1\ny = x / 0\n", 1, "broken.py:2: y = x / 0"),
        ("import sys\nsys.exit(0)\n", 1, "the function raised SystemExit"),
        ("def f(:\n", 1, "SyntaxError"),
    ):
        Path("broken.py").write_text(text)
        done = in_process("run", "broken.py:f", "in.zarr", "out.zarr", *GRID)
        assert done.exit_code == code, done.output
        assert said in done.output
    assert not [name for name in sys.modules if name.startswith("broken")]


def test_a_file_has_a_module_for_each_content(tmp_path: Path) -> None:
    """A worker that has loaded it before does not call what was edited since."""
    (tmp_path / "my filters.py").write_text("x = 1\n")
    one = UserFile.read(tmp_path / "my filters.py")
    (tmp_path / "my filters.py").write_text("x = 2\n")
    other = UserFile.read(tmp_path / "my filters.py")
    assert one.name != other.name
    assert (one.load().x, other.load().x) == (1, 2)
    for file in (one, other):
        del sys.modules[file.name]


VARIED = """
import enum, functools, typing
from dataclasses import dataclass

@dataclass
class Options:
    gain: "float" = 2.0

class Kind(enum.Enum):
    SUM = 1

class Pair(typing.NamedTuple):
    a: float = 0.0

@functools.lru_cache
def table(n):
    return n * OPTIONS.gain

OPTIONS, PAIR, KINDS = Options(), Pair(), {Kind.SUM: table}

class Filter:
    def __init__(self, options):
        self.options = options

    def __call__(self, crop, kind=Kind.SUM):
        return crop * KINDS[kind](1) + PAIR.a

f = functools.partial(Filter(OPTIONS))
"""


def test_a_file_that_was_moved_or_edited_elsewhere_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of its module is no part of the fingerprint, whatever the function is made of."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    line = ["in.zarr", "out.zarr", *GRID, "--dtype", "f4"]
    for place, more in (("a", ""), ("b", "# of a comment\nNEW = 3\n")):
        (folder / place).mkdir()
        (folder / place / "varied.py").write_text(VARIED + more)
        done = in_process("run", f"{place}/varied.py:f", *line)
        assert done.exit_code == 0, done.output
    assert "were found done; 0 tiles are to run" in done.output
    (folder / "b" / "varied.py").write_text(VARIED.replace("2.0", "3.0"))
    changed = in_process("run", "b/varied.py:f", *line)
    assert changed.exit_code == 1
    assert "changed: " in changed.output


# -- what is shown ----------------------------------------------------------------------------------------


def test_progress_is_logged_where_there_is_no_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(tilework.execution.progress, "LOG_SECONDS", 0.0)
    (folder / "filters.py").write_text(TEXT)
    done = in_process("run", "filters.py:f", "in.zarr", "out.zarr", *GRID)
    assert re.search(r"^\d\d:\d\d:\d\d to_zarr .*: \d+ of 20 tiles, ", done.stderr, re.MULTILINE), done.stderr
    assert done.stdout.endswith("units done\n")
    quiet = in_process("run", "filters.py:f", "in.zarr", "q.zarr", *GRID, "--no-progress")
    assert " tiles, " not in quiet.output


def test_the_module_is_the_command(folder: Path) -> None:
    done = prompt(folder, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: tilework [OPTIONS]")
    assert not prompt(folder, "--version").returncode


@pytest.mark.sample(0)
def test_nothing_that_only_posix_has_is_imported(folder: Path) -> None:
    """On Windows these modules do not exist; every module of the package must load without them."""
    text = """
        import importlib, pkgutil, sys
        posix = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "crypt")
        class Blocker:
            def find_spec(self, name, *rest):
                mine = sys._getframe(1)
                while mine is not None and "importlib" in mine.f_code.co_filename:
                    mine = mine.f_back
                if name in posix and mine.f_globals.get("__name__", "").startswith("tilework"):
                    raise ImportError(f"{name} is not on Windows")
        for name in posix:
            sys.modules.pop(name, None)
        sys.meta_path.insert(0, Blocker())
        import tilework
        found = [m.name for m in pkgutil.walk_packages(tilework.__path__, "tilework.")]
        for name in found:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name not in ("matplotlib", "skimage", "torch"):
                    raise
        print(len(found))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], env=environment(), capture_output=True, text=True,
        timeout=200, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


# -- signals ----------------------------------------------------------------------------------------------

SLOW = """
import time

def f(crop):
    with open("log", "a") as log:
        log.write("<")
    time.sleep({seconds})
    with open("log", "a") as log:
        log.write(">")
    return crop * 2
"""


def started(
    folder: Path, scheduler_name: str, seconds: float, calls: int, way: Sequence[str] = MODULE
) -> subprocess.Popen[str]:
    """Start a run, and wait until the function was called a few times."""
    (folder / "slow.py").write_text(SLOW.format(seconds=seconds))
    process = subprocess.Popen(
        [*way, "run", "slow.py:f", "in.zarr", "out.zarr", *GRID, "--dtype", "f4",
         *SCHEDULERS[scheduler_name]],
        cwd=folder, env=environment(scheduler_name), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    log, end = folder / "log", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("<") >= calls) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


@pytest.mark.sample(0)
@on_each_scheduler
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs groups of processes")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_run_after_the_tiles_in_flight(
    name: str, code: int, scheduler_name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal sends Ctrl-C to all processes of a command. No tile begins later; the rest is resumed."""
    process = started(folder, scheduler_name, 0.5, 7)
    (os.killpg if name == "SIGINT" else os.kill)(process.pid, getattr(signal, name))
    found, said = ended(process)
    assert found == code, said
    assert said.endswith("Error: interrupted; run the same command again to resume.\n")
    assert "Traceback" not in said
    log = (folder / "log").read_text()
    assert log.count("<") == log.count(">")
    assert log.count("<") < 5 * 4  # a busy machine takes a while to deliver it, in which tiles begin
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rest = in_process("run", "slow.py:f", "in.zarr", "out.zarr", *GRID, "--dtype", "f4")
    assert rest.exit_code == 0, rest.output
    np.testing.assert_array_equal(result(folder), IMAGE * 2)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs groups of processes")
def test_a_second_signal_does_not_wait(folder: Path) -> None:
    process = started(folder, "threads", 1000, 1)
    os.kill(process.pid, signal.SIGINT)
    assert process.stderr is not None
    assert "stopping" in process.stderr.readline()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    process.communicate()


def test_a_tile_that_never_ends_does_not_keep_the_command(folder: Path) -> None:
    """After the patience of the run, the interpreter would wait for the thread of the tile."""
    impatient = "import tilework.execution.local as l; l.PATIENCE = 0.1\n" + SCRIPT[-1]
    process = started(folder, "threads", 1000, 1, [*SCRIPT[:-1], impatient])
    os.kill(process.pid, signal.SIGINT)
    code, said = ended(process)
    assert code == 130, said
    assert "still run after" in said


def test_other_commands_are_interrupted_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for name, code in (("SIGINT", 130), ("SIGTERM", 143)):
        text = f"import signal\ndef f(crop):\n    signal.raise_signal(signal.{name})\n"
        Path(f"{name}.py").write_text(text)
        done = in_process("probe", f"{name}.py:f", "in.zarr", "--crop", "16")
        assert done.exit_code == code, done.output
        assert done.stderr == "Error: interrupted.\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("other", ["RuntimeError", "ImportError", "SystemExit"])
def test_what_makes_another_error_of_a_signal_is_interrupted_too(
    other: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python does while it makes a class, and modules do that try what they can import."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = (
        "import signal\ntry:\n    signal.raise_signal(signal.SIGTERM)\nexcept BaseException as error:\n"
        f"    raise {other}('none') from error\ndef f(crop):\n    return crop\n"
    )
    Path(f"of_{other}.py").write_text(text)
    done = in_process("run", f"of_{other}.py:f", "in.zarr", "out.zarr", "--crop", "16")
    assert done.exit_code == 143, done.output
    assert done.stderr == "Error: interrupted; run the same command again to resume.\n"


@pytest.mark.sample(0)
def test_the_error_of_an_exit_in_the_function(folder: Path) -> None:
    """The exit code is that of an error, not the one that the function asked for."""
    (folder / "filters.py").write_text(TEXT)
    done = prompt(folder, "run", "filters.py:leaves", "in.zarr", "out.zarr", *GRID, "--dtype", "f4")
    assert done.returncode == 1
    assert "RuntimeError: the function raised SystemExit: 4" in done.stderr
    assert "| filters.py:16: sys.exit(4)" in done.stderr


def test_the_words_of_the_command_line() -> None:
    from tilework.cli import _in_options

    for text, said in (
        ("Use overlap=12 or axes=(0, 1).", "Use --overlap 12 or --axes 0,1."),
        ("crop must be larger than 2 * overlap", "--crop must be larger than 2 * --overlap"),
        ("offer overwrite=True, or on_error='fill'", "offer --overwrite, or --on-error 'fill'"),
        ("memory_limit is 3; batch_size=4", "--memory-limit is 3; --batch-size 4"),
        ("Name the axes with axes= first", "Name the axes with --axes first"),
        ("no_overlap=3, tw.overlap, overlapping", "no_overlap=3, tw.overlap, overlapping"),
        ('Output("u1", labels="own"), and resume=True', "--dtype u1 --labels own, and --resume"),
        ('declare them: output=tw.Output("uint32").', "declare them: --dtype uint32."),
        ("nodata=numpy.nan, or meta=tw.ImageMeta(axes, nodata=3)",
         "--nodata nan, or meta=tw.ImageMeta(axes, nodata=3)"),
    ):  # fmt: skip
        assert _in_options(text) == said
    assert issubclass(TilingError, ValueError)
