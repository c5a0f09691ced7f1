"""How many functions run in a call: the same number on every machine, however busy it is."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from tilework import _machine as machine


def calls_of(function: Callable[[], Any], *events: str) -> int:
    """Return how often one of `events` of `sys.setprofile` is seen while ``function()`` runs.

    The garbage collector waits: finalizers of other tests' objects, and its callbacks, are calls as well. The
    limits of this process, which are read once a second, are left out.
    """
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in events

    before = sys.getprofile()
    gc.collect()
    gc.disable()
    with patch.object(machine, "_limits", lambda controller, names: ()):
        sys.setprofile(count)
        try:
            function()
        finally:
            sys.setprofile(before)
            gc.enable()
    return calls
