"""A place for a result that is wanted in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["place_of"]


@contextmanager
def place_of(store: Any) -> Iterator[Any]:
    """Yield a store as given; for None a place in a folder that is deleted at the end."""
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="tilework-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "result.zarr"
