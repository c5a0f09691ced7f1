"""What tasks notice of their results, reported once per run: NaN in integers, and doubtful objects."""

from __future__ import annotations

import sys
import threading
import uuid
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from tilework._checks import warn
from tilework._types import Index
from tilework.errors import TilingWarning

__all__ = ["Notice", "report", "tell"]

# Blocks, and results, that a process remembers.
BLOCKS, RESULTS = 4096, 64


def report(samples: int | None = None) -> None:
    """Warn that samples of an integer result were NaN."""
    some = "samples" if samples is None else f"{samples} samples"
    text = (
        f"{some} of the result were NaN, which an integer cannot be; they are fill_value. Declare a float "
        "dtype to keep NaN, or replace it in the function."
    )
    tell(text)


def tell(text: str) -> None:
    """Warn, where the user sees it; a worker in another process passes the warning to its client."""
    distributed: Any = sys.modules.get("distributed")
    worker = None
    if distributed is not None:
        with suppress(ValueError):  # not in a task of a worker
            worker = distributed.get_worker()
    # A worker in the process of its client has its warnings already.
    if worker is not None and not str(worker.address).startswith("inproc"):
        distributed.warn(text, TilingWarning)
    else:
        warn(text, TilingWarning)


class Notice:
    """Whether a run of one result has reported a matter; copies in one process are the same object.

    A task does not know its run. A block that is computed again belongs to another one.
    """

    def __init__(self, token: str = "") -> None:
        self.token = token or uuid.uuid4().hex
        self._lock = threading.Lock()
        self._blocks: set[Index] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return _notice, (self.token,)

    def begins(self, index: Index) -> bool:
        """Return whether block ``index``, which has something to report, is the first such block of a run."""
        with self._lock:
            first = not self._blocks or index in self._blocks
            if first:
                self._blocks = {index}
            elif len(self._blocks) < BLOCKS:
                self._blocks.add(index)
        return first


_NOTICES: OrderedDict[str, Notice] = OrderedDict()
_LOCK = threading.Lock()


def _notice(token: str) -> Notice:
    """Return the notice of a result, in a process to which its tasks come one by one."""
    with _LOCK:
        found = _NOTICES.setdefault(token, Notice(token))
        _NOTICES.move_to_end(token)
        while len(_NOTICES) > RESULTS:
            _NOTICES.popitem(last=False)
    return found
