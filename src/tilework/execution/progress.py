"""Progress in tiles: a bar where somebody sees it, else a line a minute to the log."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["LOG", "Progress", "bar"]

Progress = bool | str | Callable[[int, int], Any]
LOG = logging.getLogger("tilework")
LOG_SECONDS = 60.0


@contextmanager
def bar(progress: Progress, title: str) -> Iterator[Callable[[int, int], Any]]:
    """Give a function that shows how many tiles are done, and of how many."""
    if callable(progress):
        yield progress
    elif progress is False:
        yield lambda done, total: None
    elif progress == "auto" and not _watched():
        yield _logger(title)
    else:
        with warnings.catch_warnings():
            # A notebook without ipywidgets gets a bar of text; tqdm says so where it is imported.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm

        with tqdm(total=0, desc=title, unit="tile") as shown:

            def show(done: int, total: int) -> None:
                shown.total = total
                shown.update(done - shown.n)

            yield show


def _watched() -> bool:
    """Return whether somebody sees a bar: in a terminal or a notebook."""
    if hasattr(sys.stderr, "isatty") and sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _logger(title: str) -> Callable[[int, int], Any]:
    start = said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LOG_SECONDS:
            said = now
            rate = done / (now - start)
            left = (total - done) / rate if rate else float("inf")
            LOG.info("%s: %d of %d tiles, %.3g a second, %.0f s left", title, done, total, rate, left)

    return show
