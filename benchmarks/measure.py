"""What is measured, and how: one contestant, once, in a process of its own.

Peak memory is the high-water mark of resident memory above what was resident when the imports were
done and the input existed. MB are 10**6 bytes. CPU seconds are user and system time of all threads
and of finished child processes. The largest difference from the expected array is taken after the
clock has stopped, so that a fast wrong answer shows. Ratios are of medians over the turns, with the
least and the greatest ratio of one turn: where these lie far apart, the machine was not quiet.
A contestant that has used its share of time in earlier turns is left out of the later ones. In a turn,
memory is taken in the first round and times are medians of the later ones, where there are several.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

CORES = 2
MB = 1e6
CHILD_SECONDS = 300
"""A contestant that takes longer in one turn is stopped and reported as failed."""
MISSING = "not installed:"
"""How the line of a contestant begins that needs a package which is not there."""
FETCHED = 6
"""Images for which memory is at hand when a run begins; the hungriest peer takes as many."""
QUICK = 6
"""Seconds after which no further round of a contestant begins in the same process."""
ROOT = Path(__file__).parents[1]
"""Repository root, from which `benchmarks` and `tests` are importable."""
MALLOC = {"M_TRIM_THRESHOLD": -1, "M_MMAP_MAX": -4, "M_ARENA_MAX": -8}
"""Numbers of the options in glibc's malloc.h."""
RESET_PEAK = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")

Figures = dict[str, float]


class Workload(Protocol):
    """What all contestants of a case are given."""

    def scaled(self, scale: float) -> Self:
        """Return the workload with its extents times `scale`."""

    def tiny(self) -> Self:
        """Return the smallest workload, run once untimed for its imports."""


@dataclass(frozen=True)
class Prepared:
    """A contestant whose input exists."""

    run: Callable[[], Any]
    """The only part that is measured."""
    check: Callable[[Any], float]
    """Largest |difference| of what `run` returned from the expected array."""
    image_bytes: int = 0
    """Size of the image, already resident."""
    output_bytes: int = 0
    """Size of the result that `run` allocates; 0 where it was given or is on disk."""
    figures: Callable[[], Figures] = dict
    """Further figures, asked for after `check`."""
    beside: Callable[[], Any] | None = None
    """Other work, done just before each round of `run` in the same process. `over_wall` and `over_cpu` are
    the times of `run` divided by its times: both meet the same load, and the same memory."""


@dataclass(frozen=True)
class Contestant:
    """One way to do the work."""

    name: str
    prepare: Callable[[Any, Path], Prepared]
    """Takes the workload and a folder for files."""
    peer: str | None = None
    """The contestant to whose wall time this one is set in proportion."""
    line: str = ""
    """The line of a drawing that this contestant is a point of."""

    @property
    def ours(self) -> bool:
        """Whether it is this package, and neither a peer nor a limit."""
        return self.name.startswith("tilework")


@dataclass(frozen=True)
class Bar:
    """A ratio of two contestants' figures, or one contestant's figure, and its limit."""

    what: str
    figure: str
    ours: str
    """Name of a contestant, or a pattern that takes the worst of those that match."""
    limit: float | None
    """None: reported only."""
    peer: str | None = None
    at_least: bool = False
    """The ratio is peer / ours and must reach the limit; else ours / peer must not exceed it."""

    def value(self, ours: Figures, peer: Figures | None) -> float:
        """Return what is compared with the limit."""
        if peer is None:
            return ours[self.figure]
        top, bottom = (peer, ours) if self.at_least else (ours, peer)
        return top[self.figure] / bottom[self.figure] if bottom[self.figure] else float("nan")

    def met(self, value: float) -> bool:
        """Return whether `value` keeps the limit; without a limit anything does."""
        if self.limit is None:
            return True
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return "" if self.limit is None else f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Case:
    """A workload, who runs it, and what tilework has to reach."""

    name: str
    why: str
    workload: Workload
    contestants: tuple[Contestant, ...]
    bars: tuple[Bar, ...]
    tolerance: float | None = 0.0
    """Largest |difference| that counts as right; None: there is no array to check."""
    rounds: int = 1
    """Measured runs in one process, as long as they are quick."""
    turns: int | None = None
    """Largest number of turns; None: as many as were asked for."""
    setup: Callable[[Any, Path], None] | None = None
    """Makes the files that all contestants read."""
    notes: tuple[str, ...] = ()
    """Further figures to print."""
    curves: tuple[Curves, ...] = ()
    """What is drawn over the size of the work."""


@dataclass(frozen=True)
class Curves:
    """A figure of the contestants that are points of lines, drawn over another of theirs."""

    x: str
    """Name of the figure to the right."""
    y: str
    """Name of the figure upwards."""
    right: str
    """What the axis says, with its unit."""
    up: str
    """The same."""
    title: str


def contestants_of(peer: str, **ways: Callable[[Any, Path], Prepared]) -> tuple[Contestant, ...]:
    """Return a contestant for each way, whose name has spaces for underscores."""
    names = {name: name.replace("_", " ") for name in ways}
    return tuple(Contestant(names[n], ways[n], None if names[n] == peer else peer) for n in ways)


def faster(peer: str, ours: str, times: float | None = 1.0) -> Bar:
    """Return a bar on wall time: how many times faster than the peer."""
    return Bar(f"{ours}: faster than {peer}", "wall_s", ours, times, peer, at_least=True)


@dataclass
class Outcome:
    """All samples of a case, per contestant, in the order in which they were taken."""

    case: Case
    scale: float
    samples: dict[str, list[Figures]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> list[str]:
        """Names of our contestants that failed or were wrong; a peer's failure is a row of the table."""
        names = [c.name for c in self.case.contestants if c.ours]
        failed = {n for n in self.failures if not self.failures[n].startswith(MISSING)}
        return [n for n in names if n in failed or (n in self.samples and not self.right(n))]

    def median(self, name: str) -> Figures:
        """Return the median of every figure over the repeats."""
        runs = self.samples[name]
        return {key: statistics.median(run[key] for run in runs) for key in runs[0]}

    def right(self, name: str) -> bool:
        """Return whether every run gave the expected array."""
        limit = self.case.tolerance
        # Written so that a NaN is wrong.
        return limit is None or all(run["error"] <= limit for run in self.samples[name])


# --------------------------------------------------------------------------------- in the child


class PeakMemory:
    """Context manager: `bytes` is the peak of resident memory above its start.

    With `trim`, free memory is given back to the system before, so that all that is used counts. Whoever is
    measured must then fetch it anew, which no user's second run does, so it is no time to take.
    """

    bytes: int = 0

    def __init__(self, trim: bool) -> None:
        self._trim = trim

    def __enter__(self) -> Self:
        gc.collect()
        if self._trim:
            _return_free_memory()
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        try:
            RESET_PEAK.write_text("5")  # proc(5): resets the peak resident set size
            self._start = _status("VmHWM")
        except OSError:
            self._sample()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._sampler is not None:
            self._stop.set()
            self._sampler.join()
        else:
            self.bytes = max(0, _status("VmHWM") - self._start)

    def _sample(self) -> None:
        """Watch every 5 ms instead, where the system keeps no mark that can be reset."""
        import psutil

        process = psutil.Process()
        self._start = process.memory_info().rss

        def watch() -> None:
            while not self._stop.wait(0.005):
                self.bytes = max(self.bytes, process.memory_info().rss - self._start)

        self._sampler = threading.Thread(target=watch, daemon=True)
        self._sampler.start()


def _status(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {key}")


def _return_free_memory() -> None:
    """Give freed heap back: what `malloc` kept from making the input would hide growth."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


def set_malloc(**options: int) -> None:
    """Set options of glibc's allocator, by their names in malloc.h, for the rest of this process."""
    library = ctypes.CDLL(None)
    for name, value in options.items():
        if not library.mallopt(MALLOC[name], value):
            raise OSError(f"this allocator has no {name}")


def keep_memory() -> None:
    """Let this process keep all memory that it frees, so that no later run fetches it from the system."""
    set_malloc(M_ARENA_MAX=1, M_MMAP_MAX=0, M_TRIM_THRESHOLD=2**31 - 1)


def _fetch_memory(size: int) -> None:
    """Touch memory and free it, so that the system has it at hand when a run asks for as much.

    A virtual machine gives memory that is free for seconds back to its host, and getting it again cost 0.4 s
    for 256 MB where it takes 0.03 s otherwise: as long as all of numpy's multiplications and additions.
    """
    import numpy as np

    np.empty(size, np.uint8).fill(1)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def use_two_cores() -> None:
    """Hold this process to two cores, before a library counts them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def measure(case: Case, name: str, scale: float, folder: Path, *, warm: bool = True) -> Figures:
    """Run one contestant in this process, and before that on a tiny workload, and return its figures."""
    contestant = next(c for c in case.contestants if c.name == name)
    if warm:
        tiny = contestant.prepare(case.workload.tiny(), folder)
        tiny.check(tiny.run())
        tiny.figures()  # closes what it opened
        del tiny
    prepared = contestant.prepare(case.workload.scaled(scale), folder)
    rounds = [_measure_once(prepared, trim=True)]
    while len(rounds) < case.rounds and sum(r["wall_s"] for r in rounds) < QUICK:
        rounds.append(_measure_once(prepared, trim=False))
    later = rounds[1:] or rounds
    figures = {key: statistics.median(r[key] for r in later) for key in later[0]}
    figures |= {key: max(r[key] for r in rounds) for key in ("peak_mb", "error")}
    figures["over_mb"] = figures["peak_mb"] - prepared.output_bytes / MB
    if prepared.image_bytes:
        figures["over_image"] = figures["over_mb"] * MB / prepared.image_bytes
    figures |= prepared.figures()
    if "estimate_mb" in figures:
        figures["over_estimate"] = figures["peak_mb"] / figures["estimate_mb"]
    return figures


def _measure_once(prepared: Prepared, *, trim: bool) -> Figures:
    other = None
    if prepared.beside is not None:
        _fetch_memory(FETCHED * prepared.image_bytes)
        other = _timed(prepared.beside)[:2]
    _fetch_memory(FETCHED * prepared.image_bytes)
    with PeakMemory(trim) as peak:
        wall, cpu, result = _timed(prepared.run)
    figures = {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_mb": peak.bytes / MB,
        "error": float(prepared.check(result)),
    }
    return figures if other is None else figures | {"over_wall": wall / other[0], "over_cpu": cpu / other[1]}


def _timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return wall and CPU seconds of a call, and its result."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    result = run()
    return time.perf_counter() - wall, _cpu_seconds() - cpu, result


# -------------------------------------------------------------------------------- in the parent


class ContestantFailed(Exception):
    """A contestant's process ended with an error; the message is its last line."""


def _last_line(lines: Sequence[str]) -> str:
    """Return what to say about a process that ended with these lines."""
    last = lines[-1] if lines else "no message"
    missing = re.fullmatch(r"ModuleNotFoundError: No module named '([\w.]+)'", last)
    return f"{MISSING} {missing[1].partition('.')[0]}" if missing else last


def run_here(case: Case, name: str | None, scale: float, folder: Path) -> Figures:
    """Do the same in this process: quick, and its figures are of no use."""
    try:
        if name:
            return measure(replace(case, rounds=1), name, scale, folder, warm=False)
        _set_up(case, scale, folder)
    except Exception as error:
        raise ContestantFailed(_last_line(traceback.format_exception_only(error)[-1].splitlines())) from error
    return {}


def run_child(case: Case, name: str | None, scale: float, folder: Path) -> Figures:
    """Run contestant `name`, or the case's set-up for None, in a fresh process."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks", case.name, "--scale", str(scale)]
    command += ["--child", name or "", str(folder)]
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(threads, str(CORES))
    # A group of its own, so that the processes that it started end with it.
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = running.communicate(timeout=CHILD_SECONDS)
    except BaseException as error:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ContestantFailed(f"stopped after {CHILD_SECONDS} s") from None
        raise
    if running.returncode:
        raise ContestantFailed(_last_line(said.strip().splitlines() or [f"exit code {running.returncode}"]))
    return json.loads(answer.read_text()) if name else {}


def child(case: Case, name: str, scale: float, folder: Path) -> None:
    """Do in this process what `run_child` asked for."""
    use_two_cores()
    if name:
        (folder / "answer.json").write_text(json.dumps(measure(case, name, scale, folder)))
    else:
        _set_up(case, scale, folder)


def _set_up(case: Case, scale: float, folder: Path) -> None:
    if case.setup is not None:
        case.setup(case.workload.tiny(), folder)
        case.setup(case.workload.scaled(scale), folder)


@dataclass(frozen=True)
class Effort:
    """How much is run."""

    repeat: int = 3
    """Turns."""
    seconds: float = math.inf
    """A contestant that has used as much in earlier turns takes part in no further one."""
    scale: float = 1.0
    """Factor on every extent."""
    only: Sequence[str] = ()
    """Patterns of the contestants that run; none: all."""
    here: bool = False
    """Whether all run in this process."""

    def names(self, case: Case) -> list[str]:
        """Return the contestants that run."""
        names = [c.name for c in case.contestants]
        return [n for n in names if not self.only or any(fnmatchcase(n, p) for p in self.only)]


def put_aside(path: Path) -> None:
    """Empty the files under `path` and give it another name, instead of removing it.

    ext4 without a journal passes over every file number that was freed in the last minutes, so whoever
    writes after a removal pays for it.

    Source: recently_deleted in fs/ext4/ialloc.c of Linux.
    """
    for file in path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            os.truncate(file, 0)
    path.rename(tempfile.mkdtemp(prefix=f"{path.name}-", dir=path.parent))


def run_case(case: Case, effort: Effort, tell: Callable[[str], None], place: Path) -> Outcome:
    """Let the contestants run in turn, A B A B, so that a change of load meets all of them.

    What they write stays in `place`, emptied.
    """
    folder = place / case.name
    folder.mkdir()
    try:
        return _run_case(case, effort, tell, folder)
    finally:
        put_aside(folder)


def _run_case(case: Case, effort: Effort, tell: Callable[[str], None], folder: Path) -> Outcome:
    outcome = Outcome(case, effort.scale)
    run = run_here if effort.here else run_child
    used = dict.fromkeys(effort.names(case), 0.0)
    if case.setup is not None:
        tell(f"{case.name}: set-up")
        try:
            run(case, None, effort.scale, folder)
        except ContestantFailed as failure:
            outcome.failures = dict.fromkeys(used, f"set-up: {failure}")
            return outcome
    turns = min(effort.repeat, case.turns or effort.repeat)
    for turn in range(turns):
        for name in used:
            if name in outcome.failures or used[name] > effort.seconds:
                continue
            tell(f"{case.name}: {name}, {turn + 1} of {turns}")
            start = time.perf_counter()
            try:
                figures = run(case, name, effort.scale, folder)
            except ContestantFailed as failure:
                outcome.failures[name] = str(failure)
                outcome.samples.pop(name, None)
            else:
                outcome.samples.setdefault(name, []).append(figures)
            used[name] += time.perf_counter() - start
    return outcome
