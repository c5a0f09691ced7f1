"""Counts of the chunk files of a Zarr array that are read and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore


@dataclass
class Counts:
    """How often each chunk file was read and written."""

    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)


@contextmanager
def counted(array: Any) -> Iterator[Counts]:
    """Count while the block runs; by the class, because a recipe opens the store again by its path."""
    counts, root = Counts(), Path(array.store.root)
    get, put = LocalStore.get, LocalStore.set

    def own(store: Any, key: str) -> bool:
        return Path(store.root) == root and not key.rpartition("/")[2].startswith(("zarr.json", "."))

    async def counting_get(store: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        found = await get(store, key, *args, **kwargs)
        if own(store, key) and found is not None:
            counts.reads[key] += 1
        return found

    async def counting_set(store: Any, key: str, *args: Any, **kwargs: Any) -> None:
        if own(store, key):
            counts.writes[key] += 1
        await put(store, key, *args, **kwargs)

    LocalStore.get, LocalStore.set = counting_get, counting_set
    try:
        yield counts
    finally:
        LocalStore.get, LocalStore.set = get, put
