"""Processes that the command line starts, and the clusters that it uses."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask

from tilework.function.user_file import UserFile

__all__ = ["KEPT_MEMORY", "connected", "prepare", "safe_start"]

_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"
# dask's workers give all memory that was freed back to the system at once, and the system clears it before it
# gives it out again: half of the processor time of a blend, see docs/clusters.md.
KEPT_MEMORY = {f"{_ENVIRONMENT}.MALLOC_TRIM_THRESHOLD_": None, f"{_ENVIRONMENT}.MALLOC_ARENA_MAX": 1}
"""Settings of dask with which workers that start keep memory that was freed, in one place for all threads."""

_SAFE = "PYTHONSAFEPATH"


@contextmanager
def safe_start() -> Iterator[None]:
    """Return a context in which processes start although a file here has the name of a standard module.

    Python looks for the modules that start a process in the current folder first.
    """
    hiding = any(file.stem in sys.stdlib_module_names for file in Path().glob("*.py"))
    if not hiding or _SAFE in os.environ:
        yield
        return
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_SAFE, None)


def prepare(folders: list[str], files: list[UserFile], *, started: bool = False) -> None:
    """Make a process able to load what belongs to the function.

    One that the command has started leaves Ctrl-C, which reaches it too, to the command.
    """
    sys.path.extend(p for p in folders if p not in sys.path)
    if started:
        os.environ.pop(_SAFE, None)
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    for file in files:
        file.load()


@contextmanager
def connected(address: str | None, workers: int | None, files: list[UserFile]) -> Iterator[Any]:
    """Return a context with a client of the cluster at ``address``, or of one started here, or None."""
    if address is None and workers is None:
        yield None
        return
    from distributed import Client, LocalCluster

    if address is not None:
        with Client(address) as client:
            _share(client, files)
            yield client
        return
    with safe_start(), dask.config.set(KEPT_MEMORY):
        cluster = LocalCluster(n_workers=workers, dashboard_address=":0")
        with cluster, Client(cluster) as client:
            _share(client, files, [p for p in sys.path if p])
            yield client


def _share(client: Any, files: list[UserFile], folders: list[str] | None = None) -> None:
    """Prepare the processes of a cluster: with ``folders``, one that was started here."""
    if files or folders:
        ready = functools.partial(prepare, folders or [], files, started=folders is not None)
        client.register_worker_callbacks(ready)
    if files:  # the scheduler reads graphs, and so the functions in them
        client.run_on_scheduler(functools.partial(prepare, [], files))
