"""`Cluster` runs pieces on a cluster, in a bounded window."""

from __future__ import annotations

import bisect
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from dask.base import get_annotations
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from tilework.execution.piece import Piece, Shared, needed_in
from tilework.execution.progress import LOG, Tracker, add_note
from tilework.execution.stop import PATIENCE
from tilework.execution.where import BUSY, Where
from tilework.graph.tasks import Key

__all__ = ["Cluster"]

# Pieces submitted to a cluster at a time, at least and per thread: enough that no worker waits for the
# client, few enough that a million blocks are never in the scheduler's memory.
CLUSTER_BLOCKS, BLOCKS_PER_THREAD = 512, 16
# Annotations with which the user says where tasks run.
KEPT_BY_USER = {"workers", "allow_other_workers", "resources"}
GONE = (
    "the client was closed or lost its scheduler during the run; call again with another, and what was "
    "finished is not computed again."
)
# Time between two questions whether cancelled tasks have ended, seconds.
POLL = 0.05


class Cluster:
    """Submits pieces such that a bounded number of them is outstanding."""

    def __init__(self, where: Where, tracker: Tracker) -> None:
        from distributed import as_completed

        self.where, self.client, self.tracker = where, where.client, tracker
        threads = sum(w["nthreads"] for w in where.workers)
        self.window = max(CLUSTER_BLOCKS, BLOCKS_PER_THREAD * threads)
        self.running: dict[Key, tuple[Piece, Any]] = {}
        """Pieces and futures of the last tasks that are outstanding."""
        self.shared: dict[Shared, list[Any]] = {}
        """Shared nodes, and the futures that hold them on the cluster."""
        self.users: Counter[Shared] = Counter()
        """Number of last tasks that refer to the shared nodes."""
        self.current: Shared | None = None
        """Shared nodes of the piece that was submitted last."""
        self.seams: dict[Key, tuple[int, Any]] = {}
        """Seams that later pieces of `current` need: the position of the last such piece, and the future."""
        self.inputs: dict[Key, list[Any]] = {}
        """Futures of what the last seams of a batch are cut from, until its last task is finished."""
        self.held = False
        """Whether the next piece is that of a further job."""
        self.completed = as_completed(loop=where.client.loop)

    def run(self, pieces: Iterator[Piece | None]) -> None:
        """Compute all pieces."""
        enough = BUSY * self.where.at_a_time
        more = True
        try:
            while more or self.running:
                if more and len(self.running) <= self.window * 3 // 4:
                    batch, more = self._next(pieces, enough)
                    if batch:
                        self._submit_or_tell(batch)
                        continue
                if self.running:
                    self._collect(next(self.completed))
        except BaseException as error:
            self._end(error)
            raise
        finally:
            self._release()

    def _next(self, pieces: Iterator[Piece | None], enough: int) -> tuple[list[Piece], bool]:
        """Return pieces to submit, and whether there may be more.

        A further job is taken only to keep all workers busy, because a job may have an image in memory.
        """
        batch: list[Piece] = []
        if self.held and len(self.running) >= enough:
            return batch, True
        for piece in pieces:
            self.held = piece is None
            if piece is not None:
                batch.append(piece)
            if len(batch) >= self.window // 4 or (piece is None and len(self.running) + len(batch) >= enough):
                return batch, True
        return batch, False

    def _end(self, error: BaseException) -> None:
        """Cancel the tasks and wait for those in flight; note what fails on the error that ended the run."""
        if self.client.status != "running":
            return  # which releases its tasks
        futures = [future for _, future in self.running.values()]
        names = {str(key) for piece, _ in self.running.values() for key in piece.tasks}
        try:
            self.client.cancel(futures, reason="the run ended", force=True)
            end = time.monotonic() + PATIENCE
            said = False
            while left := self._in_flight(names, max(1.0, end - time.monotonic())):
                if not said:
                    LOG.info("stopping: waiting up to %.0f s for %d tasks in flight", PATIENCE, left)
                    said = True
                if time.monotonic() > end:
                    LOG.warning("%d tasks still run after %.0f s; they write nothing later",
                                left, PATIENCE)  # fmt: skip
                    break
                time.sleep(POLL)
        except Exception as later:
            add_note(error, "cancelling the tasks", later)

    def _in_flight(self, names: set[str], seconds: float) -> int:
        """Return how many tasks of ``names`` occupy a thread of a worker."""
        found = self.client.sync(self.client._run, _occupied, on_error="ignore", callback_timeout=seconds)
        return sum(key in names for keys in found.values() for key in keys)

    def _submit_or_tell(self, batch: list[Piece]) -> None:
        """Submit a batch; raise a `ConnectionError` if the client has been closed."""
        try:
            self._submit(batch)
        except Exception as error:
            if self.client.status == "running":
                raise
            raise ConnectionError(GONE) from error

    def _submit(self, batch: list[Piece]) -> None:
        for piece in batch:
            if piece.shared not in self.shared:
                nodes = dict(piece.shared.nodes)
                self.shared[piece.shared] = self._get(nodes, list(nodes))
            self.users[piece.shared] += len(piece.writes)
        tasks = {key: task for piece in batch for key, task in piece.tasks.items()}
        writes = {key: piece for piece in batch for key in piece.writes}
        seams = {key: piece for piece in batch for key in piece.keep}
        # dask first computes what needs the fewest roots, so a seam that no task of the batch needs comes in
        # a graph of its own. If it needed the last task of the batch, cancelling this one would cancel the
        # seam and all that need it, and the scheduler drops a client that cancels one of these too (2026.8).
        ends, needed = list(writes)[-1:], needed_in(tasks)
        later = {key: tasks.pop(key) for key in seams if key not in needed} if ends else {}
        inputs = needed_in(later) & tasks.keys()
        asked = [*writes, *(seams.keys() - later.keys()), *inputs]
        found = dict(zip(asked, self._get(self._graph(tasks, batch), asked), strict=True))
        if later:
            found.update(zip(later, self._get(later, list(later)), strict=True))
            self.inputs[ends[0]] = [found[key] for key in inputs]
        for key, piece in writes.items():
            self.running[key] = piece, found[key]
            self.completed.add(found[key])
        last = batch[-1]
        kept = {} if last.shared is not self.current else self.seams
        for key, piece in seams.items():
            if piece.shared is last.shared:
                kept[key] = piece.keep[key], found[key]
        before, self.current = self.current, last.shared
        if before is not None:
            self._forget_unused(before)
        self.seams = {key: (end, future) for key, (end, future) in kept.items() if end > last.position}

    def _graph(self, tasks: dict[Key, Any], batch: list[Piece]) -> Any:
        """Return the tasks of a batch; those that need resources are in a layer annotated with them."""
        heavy = {key: tasks.pop(key) for piece in batch for key in piece.heavy}
        if not heavy:
            return self._by_worker(batch, tasks)
        resources = {"resources": dict(self.where.resources or {})}
        return HighLevelGraph(
            {"light": MaterializedLayer(tasks), "heavy": MaterializedLayer(heavy, resources)},
            {"light": {"heavy"}, "heavy": set()},
        )

    def _by_worker(self, batch: list[Piece], tasks: dict[Key, Any]) -> Any:
        """Return the tasks of a batch; those of pieces with a lane are in layers for one worker each.

        So a worker decodes a chunk for all blocks that read it. The scheduler gives blocks to whoever is
        free, and four workers decoded the chunks of a trim 3.8 times, and do so 1.3 times in lanes. Another
        worker may still take what waits too long.
        """
        if all(piece.lane is None for piece in batch) or get_annotations().keys() & KEPT_BY_USER:
            return tasks
        threads = sorted(self.client.nthreads().items())
        ends = list(itertools.accumulate(n for _, n in threads))
        layers: dict[str, dict[Key, Any]] = {}
        for piece in batch:
            if len(threads) > 1 and piece.lane is not None and piece.lane.of >= len(threads):
                address, _ = threads[bisect.bisect_right(ends, piece.lane.place * ends[-1])]
                layers.setdefault(address, {}).update((key, tasks.pop(key)) for key in piece.tasks)
        if not layers:
            return tasks
        found = {"any": MaterializedLayer(tasks)}
        for address, own in layers.items():
            found[address] = MaterializedLayer(own, {"workers": [address], "allow_other_workers": True})
        return HighLevelGraph(found, {name: set() for name in found})

    def _get(self, graph: Any, keys: list[Key]) -> list[Any]:
        """Submit a graph, and return the futures of ``keys``."""
        # Each graph comes after those before it. By default those of a minute run together, the first tasks
        # of each first: five batches of 128 blocks decoded each chunk 4.5 times, and held the seams of all.
        found: list[Any] = self.client.get(
            graph, list(map(_askable, keys)), sync=False, retries=self.where.retries or None,
            priority=self.where.priority, fifo_timeout=0,
        )  # fmt: skip
        return found

    def _collect(self, future: Any) -> None:
        piece, _ = self.running.pop(future.key)
        result = failure = None
        if future.status == "finished":
            try:
                result = future.result()
            except Exception as error:  # lost with its worker, and the task failed when it ran again
                failure = error
        if future.status in ("pending", "lost"):
            # A worker left with the result before it was taken; the task runs again.
            self.running[future.key] = piece, future
            self.completed.add(future)
            return
        self.inputs.pop(future.key, None)
        try:
            if future.status == "finished" and failure is None:
                self.tracker.finished(piece, future.key, result)
            elif self.client.status != "running":
                raise ConnectionError(GONE)
            else:
                self.tracker.failed(piece, self._error(future, piece, failure))
        finally:
            future.release()
        self.users[piece.shared] -= 1
        self._forget_unused(piece.shared)

    def _forget_unused(self, shared: Shared) -> None:
        """Let shared nodes go to which no task refers any more, and no later piece will."""
        if not self.users[shared] and shared is not self.current:
            del self.users[shared], self.shared[shared]

    def _release(self) -> None:
        """Release all futures that are left.

        The traceback of an error keeps them, and a cluster gives the errors of tasks that somebody still
        wants to the next run that needs them. It would fail with the error of this one.
        """
        futures = [future for _, future in (*self.running.values(), *self.seams.values())]
        for future in itertools.chain(futures, *self.shared.values(), *self.inputs.values()):
            future.release()

    def _error(self, future: Any, piece: Piece, failure: BaseException | None) -> BaseException:
        """Return the reason why a task has no result; ``failure``: why the client did not get it."""
        from distributed import CancelledError, KilledWorker

        try:
            error: BaseException | None = future.exception() or failure
        except CancelledError as cancelled:
            error = cancelled
        if error is None:
            error = CancelledError(f"task {future.key} was cancelled from elsewhere")
        if isinstance(error, KilledWorker) and piece.job.error is None:
            error.add_note(self._killer(_key_of(error.task, piece), piece))
        return error

    def _killer(self, blamed: Key, piece: Piece) -> str:
        """Run the tiles of tasks that lost their workers one by one; return a note on the first to fail."""
        from distributed import KilledWorker

        for key in self._suspects(blamed):
            for tile, alone in piece.job.culprits(key):
                held = self._get(alone.shared.nodes, list(alone.shared.nodes))
                [future] = self._get(alone.tasks, list(alone.writes))
                found = future.exception()
                del held
                if found is not None:
                    kills = "kills its worker" if isinstance(found, KilledWorker) else f"fails: {found!r}"
                    return f"{tile} {kills} whenever it runs"
        return "no tile kills its worker when it runs alone; perhaps they do together"

    def _suspects(self, blamed: Key) -> Iterable[Key]:
        """Return the blamed task, then the tasks that ran when workers died."""
        try:
            counts = self.client.run_on_scheduler(_suspicious)
        except Exception:  # a scheduler that does not allow it
            counts = {}
        others = sorted((k for k in counts if k != blamed), key=lambda k: (-counts[k], str(k)))
        return [blamed, *others]


def _occupied(dask_worker: Any) -> list[str]:
    """Return the tasks that occupy a thread of a worker, cancelled ones too; it passes itself by name."""
    return [str(task.key) for task in dask_worker.state.all_running_tasks]


def _suspicious(dask_scheduler: Any) -> Mapping[Key, int]:
    """Return how many workers died while running each task; the scheduler passes itself by argument name."""
    return {key: ts.suspicious for key, ts in dask_scheduler.tasks.items() if ts.suspicious}


def _key_of(task: Any, piece: Piece) -> Key:
    """Return the key that a `KilledWorker` names, possibly as text."""
    return next((key for key in piece.tasks if key == task or str(key) == str(task)), task)


def _askable(key: Key) -> Key:
    """Return an equal key that a cluster can be asked for: dask's ``vindex`` has numpy's integers in keys."""
    if not isinstance(key, tuple):
        return key
    return tuple([int(part) if isinstance(part, np.integer) else part for part in key])
