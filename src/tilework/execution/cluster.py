"""Execution of pieces on a cluster, in a bounded window."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from tilework.execution.progress import Tracker
from tilework.execution.where import Where
from tilework.graph.layer import Key
from tilework.writing.jobs import Piece

__all__ = ["Cluster"]

# Blocks that a cluster's scheduler knows at a time, at least and per thread: enough that no worker waits for
# the client, few enough that a million of them never stand in its memory.
CLUSTER_BLOCKS, BLOCKS_PER_THREAD = 512, 16


class Cluster:
    """Submits pieces so that a bounded number of blocks is outstanding."""

    def __init__(self, where: Where, tracker: Tracker) -> None:
        from distributed import as_completed

        self.where, self.client, self.tracker = where, where.client, tracker
        threads = sum(w["nthreads"] for w in where.workers())
        self.window = max(CLUSTER_BLOCKS, BLOCKS_PER_THREAD * threads)
        self.running: dict[Key, Piece] = {}
        self.futures: dict[Key, Any] = {}
        self.seams: dict[Key, tuple[int, int, Any]] = {}
        self.shared: dict[int, tuple[Mapping[Key, Any], list[Any]]] = {}
        self.users: Counter[int] = Counter()
        self.current = 0
        self.completed = as_completed(loop=where.client.loop)

    def run(self, pieces: Iterator[Piece]) -> None:
        """Run all pieces."""
        try:
            more = True
            while more or self.running:
                while more and len(self.running) <= self.window * 3 // 4:
                    batch = list(itertools.islice(pieces, self.window // 4))
                    more = bool(batch)
                    if batch:
                        self._submit(batch)
                if self.running:
                    self._collect(next(self.completed))
        finally:
            if self.futures:
                self.client.cancel(list(self.futures.values()), reason="the run ended", force=True)

    def _submit(self, batch: list[Piece]) -> None:
        light: dict[Key, Any] = {}
        heavy: dict[Key, Any] = {}
        keys: list[Key] = []
        keep: dict[Key, tuple[int, int]] = {}
        for piece in batch:
            self._share(piece)
            for key, task in piece.tasks.items():
                calls = isinstance(key, tuple) and key[0].endswith(("-group", "-block"))
                (heavy if calls and self.where.resources else light)[key] = task
            keys += piece.writes
            keep |= {key: (id(piece.shared), end) for key, end in piece.keep.items()}
            self.running |= dict.fromkeys(piece.writes, piece)
            self.users[id(piece.shared)] += len(piece.writes)
        graph = HighLevelGraph(
            {
                "light": MaterializedLayer(light),
                "heavy": MaterializedLayer(heavy, {"resources": dict(self.where.resources or {})}),
            },
            {"light": {"heavy"}, "heavy": set()},
        )
        found = self._get(graph if heavy else light, [*keys, *keep])
        for key, future in zip([*keys, *keep], found, strict=True):
            if key in keep:
                self.seams[key] = (*keep[key], future)
            else:
                self.futures[key] = future
                self.completed.add(future)
        last = batch[-1]
        self.current = id(last.shared)
        self.seams = {
            key: (owner, end, future)
            for key, (owner, end, future) in self.seams.items()
            if owner == self.current and end > last.position
        }

    def _get(self, graph: Any, keys: list[Key]) -> list[Any]:
        found: list[Any] = self.client.get(
            graph, keys, sync=False, retries=self.where.retries or None, priority=self.where.priority
        )
        return found

    def _share(self, piece: Piece) -> None:
        """Submit what pieces share, once."""
        if id(piece.shared) not in self.shared:
            keys = list(piece.shared)
            self.shared[id(piece.shared)] = piece.shared, self._get(dict(piece.shared), keys)

    def _collect(self, future: Any) -> None:
        key = future.key
        piece = self.running.pop(key)
        del self.futures[key]
        if future.status == "finished":
            self.tracker.finished(piece, key, future.result())
        else:
            self.tracker.failed(piece, self._error(future, piece))
        future.release()
        owner = id(piece.shared)
        self.users[owner] -= 1
        if not self.users[owner] and owner != self.current:
            del self.users[owner], self.shared[owner]

    def _error(self, future: Any, piece: Piece) -> BaseException:
        from distributed import CancelledError, KilledWorker

        try:
            error: BaseException | None = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        if error is None:
            error = CancelledError(f"task {future.key} was cancelled from elsewhere")
        if isinstance(error, KilledWorker):
            self._name_killer(error, piece)
        return error

    def _name_killer(self, error: Any, piece: Piece) -> None:
        """Run the tiles of tasks that lost their workers one by one, to name the one that kills them."""
        from distributed import KilledWorker

        if piece.job.error is not None:
            return  # named once
        for key in self._suspects(_key_of(error.task, piece)):
            for tile, alone in piece.job.culprits(key):
                held = self._get(dict(alone.shared), list(alone.shared))
                [future] = self._get(alone.tasks, list(alone.writes))
                found = future.exception()
                del held
                if found is not None:
                    kills = "kills its worker" if isinstance(found, KilledWorker) else f"fails: {found!r}"
                    error.add_note(f"{tile} {kills} whenever it runs")
                    return
        error.add_note("no tile kills its worker when it runs alone; perhaps they do together")

    def _suspects(self, blamed: Key) -> list[Key]:
        """Return the task that is blamed, then those that ran beside it when workers died."""
        try:
            counts = self.client.run_on_scheduler(_suspicious)
        except Exception:  # a scheduler that lets nobody look
            counts = {}
        others = sorted((k for k in counts if k != blamed), key=lambda k: (-counts[k], str(k)))
        return [blamed, *others]


def _suspicious(dask_scheduler: Any) -> dict[Key, int]:
    return {key: ts.suspicious for key, ts in dask_scheduler.tasks.items() if ts.suspicious}


def _key_of(task: Any, piece: Piece) -> Key:
    """Return the key that a `KilledWorker` names, which it may hold as text."""
    return next((key for key in piece.tasks if key == task or str(key) == str(task)), task)
