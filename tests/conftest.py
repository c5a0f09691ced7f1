"""Options, Hypothesis profiles and fixtures that all tests share."""

import functools
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dask
import pytest
from _pytest.doctest import DoctestModule
from dask.multiprocessing import initialize_worker_process
from dask.tokenize import normalize_token
from hypothesis import HealthCheck, settings

from tests.sampling import GATE

# ------------------------------------------------------------------------------- how much is run

# No deadlines: machines that share their cores stall. Examples are the same in every run, so that a
# failure is the fault of what changed; the profile "search" looks for new ones. Function-scoped fixtures
# are allowed, because the ones here (`counting`, the scheduler) hold nothing that one example could
# spoil for the next.
_common = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
settings.register_profile("sample", _common, max_examples=4, derandomize=True)
settings.register_profile("whole", _common, max_examples=GATE, derandomize=True)
settings.register_profile("search", _common, max_examples=1000)

CASES = 1
"""Cases of a parametrised test that run where only a sample is asked for."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole",
        action="store_true",
        help="run all examples of laws and cases of tables, not a sample",
    )
    parser.addoption(
        "--runslow", action="store_true", help="run the long laws too; with --whole, all cases of all tables"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the number of examples before the modules with the laws are imported."""
    # A shell lets what runs in its background ignore Ctrl-C, and processes of tests would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = os.environ.get("HYPOTHESIS_PROFILE")
    settings.load_profile(asked or ("whole" if config.getoption("--whole") else "sample"))


def sampled(items: list[Any], least: int = 0, *, whole: bool = False) -> list[Any]:
    """Return the items without most cases of long tables: the same in every run, in their order.

    A case that is asked for by its name is the only one of its test, and stays. Of each test, at least
    ``least`` cases stay, whatever its mark says. In a whole run all do, but for the longest tables, whose
    marks say how many.
    """
    tables: dict[str, list[Any]] = {}
    for item in items:
        tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left: set[str] = set()
    for name, cases in tables.items():
        mark = cases[0].get_closest_marker("sample")
        if whole:
            number = mark.kwargs.get("whole", len(cases)) if mark else len(cases)
        else:
            number = mark.args[0] if mark else CASES
        number = max(least, number)
        if len(cases) > number:
            ids = [case.nodeid for case in cases]
            left |= set(ids) - set(random.Random(name).sample(ids, number))
    return [item for item in items if item.nodeid not in left]


@functools.cache
def _has_cuda() -> bool:
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return torch.cuda.is_available()


@pytest.hookimpl(trylast=True)  # after -k and -m, so that what is asked for by name is not left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what this run should not or cannot execute: a skip means a missing package."""

    def wanted(item: pytest.Item) -> bool:
        if "slow" in item.keywords and not config.getoption("--runslow"):
            return False
        return "gpu" not in item.keywords or _has_cuda()

    kept = [item for item in items if wanted(item)]
    whole = config.getoption("--whole")
    if not (whole and config.getoption("--runslow")):
        # Who names a file wants to see its tests run, those of a whole run as well.
        named = any(".py" in argument for argument in config.args)
        kept = sampled(kept, least=named, whole=whole)
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Forget a test module that could not be imported, so that importing it again fails.

    It is looked at for examples first, and skipped without an error, as modules of the package are that need
    what is not installed. pytest then found half of it in `sys.modules`, and ran the tests in that half.
    """
    report = yield
    if report.skipped and isinstance(collector, DoctestModule):
        half = [n for n, m in sys.modules.items() if getattr(m, "__file__", None) == str(collector.path)]
        for name in half:
            del sys.modules[name]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where every optional package was installed (``TILEWORK_NO_SKIPS=1``), a skip is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped") if reporter else None
    if skipped and os.environ.get("TILEWORK_NO_SKIPS") == "1" and session.exitstatus == 0:
        reporter.write_line("\nTILEWORK_NO_SKIPS=1: a skip counts as a failure here", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# ------------------------------------------------------------------------------------- schedulers


@pytest.fixture(autouse=True)
def _synchronous() -> Iterator[None]:
    """Compute in this thread, where tracebacks and order are plain, unless a test chooses."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _configured_scheduler() -> Iterator[None]:
    """Put back the configured scheduler after each module.

    A client that a task gets from its worker outlives the cluster, if another cluster of this process lives.
    The client of that one then leaves "dask.distributed" in the configuration (distributed 2026.8).
    """
    before = dask.config.get("scheduler", None)
    yield
    dask.config.set(scheduler=before)


@pytest.fixture(scope="session")
def _process_pool() -> Iterator[ProcessPoolExecutor]:
    """Two spawned processes for the whole run, since starting them takes seconds.

    A test that kills processes starts its own.
    """
    with ProcessPoolExecutor(
        2, multiprocessing.get_context("spawn"), initializer=initialize_worker_process
    ) as pool:
        yield pool


@pytest.fixture(params=["sync", "threads", "processes"])
def scheduler(request: pytest.FixtureRequest, _synchronous: None) -> Iterator[str]:
    """Run the test once on each of dask's local schedulers; its value is the scheduler's id."""
    options: dict[str, Any] = {"scheduler": request.param}
    if request.param == "threads":
        options["num_workers"] = 4  # more than the cores: order must not matter
    if request.param == "processes":
        options["pool"] = request.getfixturevalue("_process_pool")
    with dask.config.set(options):
        yield request.param


@pytest.fixture
def client(_synchronous: None) -> Iterator[Any]:
    """Give a client of a cluster within this process: one worker, two threads, any free port."""
    from distributed import Client, LocalCluster  # half a second that few tests need

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def claiming() -> Callable[[], set[str]]:
    """Tell which runs of this process hold claims since the test began.

    What an earlier test left to dask lets go of its claims with its results, which may be in a cycle.
    """
    from tilework.writing.claim import Claims

    before = set(Claims.active)
    return lambda: Claims.active - before


# --------------------------------------------------------------------------------------- counting


class Counting:
    """A function that leaves one byte in a file at every call.

    So calls are counted over threads, processes, workers, and processes that were killed.
    """

    def __init__(self, fn: Callable[..., Any], log: Path) -> None:
        self.fn = fn
        self.log = log
        self.__name__ = "counted"  # else dask puts the repr, with its address, into key names
        self.reset()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.log.open("ab", buffering=0) as file:
            file.write(b".")
        return self.fn(*args, **kwargs)

    def __dask_tokenize__(self) -> Any:
        return normalize_token(("Counting", self.fn))  # not the log: each test has its own

    @property
    def calls(self) -> int:
        """Number of calls since the start or the last `reset`."""
        return self.log.stat().st_size

    def reset(self) -> None:
        """Count from zero again."""
        self.log.write_bytes(b"")


@pytest.fixture
def counting(tmp_path: Path) -> Callable[[Callable[..., Any]], Counting]:
    """Wrap functions so that their calls are counted: ``fn = counting(fn); ...; fn.calls``."""
    number = iter(range(1_000_000))
    return lambda fn: Counting(fn, tmp_path / f"calls-{next(number)}")
