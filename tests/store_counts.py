"""Counts of the chunks of Zarr arrays that are read and written, decoded and encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarr.codecs import BytesCodec
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


@contextmanager
def counted_codecs(dtype: Any) -> Iterator[Counter[str]]:
    """Count the chunks of ``dtype`` that are "decoded" and "encoded" while the block runs."""
    counts: Counter[str] = Counter()
    decode, encode = BytesCodec._decode_single, BytesCodec._encode_single

    async def counting_decode(codec: Any, data: Any, chunk: Any) -> Any:
        counts["decoded"] += chunk.dtype.to_native_dtype() == dtype  # the index of a shard has another one
        return await decode(codec, data, chunk)

    async def counting_encode(codec: Any, data: Any, chunk: Any) -> Any:
        counts["encoded"] += chunk.dtype.to_native_dtype() == dtype
        return await encode(codec, data, chunk)

    BytesCodec._decode_single, BytesCodec._encode_single = counting_decode, counting_encode
    try:
        yield counts
    finally:
        BytesCodec._decode_single, BytesCodec._encode_single = decode, encode
