"""Claims: which run may write an array, and whether the process of that run is alive.

A run owns an array from `Claims.take` to `Claims.release`. In between, the object ``claim`` of the array
names the run, and every task reads it before and after it writes a block. A claim is taken in these steps:

1. Create ``claim``, if there is none. Read it back: who wrote what is there has won.
2. If another run is there, judge its owner. Alive: refuse. On this machine and dead: go to 3 at once. On
   another machine: watch its beat. A beat that changes shows life, and the call is refused. One that does not
   change through three intervals, by the clock of this process, shows that the owner is dead.
3. Create ``after-<run>``, named for the run to be replaced, so that only one run can replace it. Who wrote
   what is there has won, replaces ``claim``, and deletes ``after-<run>``.

A store that cannot create an object only where there is none lets two runs that begin at the same moment both
win. The tasks of the one whose claim was replaced then give up at their next check.
"""

from __future__ import annotations

import _thread
import gc
import itertools
import os
import platform
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tilework.errors import TilingError
from tilework.execution.progress import LOG
from tilework.source.held import this_boot
from tilework.writing.objects import Objects, creates, dump, load

__all__ = ["Claim", "Claims", "Owner", "owner_alive", "refuse_if_owned"]

# Seconds between two beats of a run, and how many beats must be missed before its owner counts as dead.
BEAT, MISSED = 10.0, 3


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, described such that others on its machine can tell whether it is alive."""

    host: str
    """Name of the machine."""
    boot: str
    """Id of the boot and of the namespace of process ids: a number means a process only within both."""
    pid: int
    start: float
    """Time when the process started, as its system tells it; a number may be used again."""

    @classmethod
    def here(cls) -> Owner:
        """Return this process."""
        return cls(platform.node(), this_boot(), os.getpid(), _started(os.getpid()) or 0.0)

    def state(self) -> Literal["here", "alive", "dead", "elsewhere"]:
        """Return what is known: this process, alive or dead on this machine, or on another one."""
        here = Owner.here()
        if (self.host, self.boot) != (here.host, here.boot):
            return "elsewhere"
        if self == here:
            return "here"
        return "alive" if _started(self.pid) == self.start else "dead"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _started(pid: int) -> float | None:
    """Return the time when a process started; None: there is no such process."""
    try:
        # The 22nd field, in ticks since the boot; psutil adds the time of the boot, which may be corrected.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else float(fields[19])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError, ValueError):
        return None
    import psutil

    try:
        return float(round(psutil.Process(pid).create_time()))
    except psutil.Error:
        return None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of one run to write one array, as its tasks get it."""

    objects: Objects
    """The objects of the array."""
    run: str
    """Id of the run."""

    def holds(self) -> bool:
        """Return whether the array still belongs to the run; reads one small object."""
        found = load(self.objects.read("claim"))
        return found is not None and found.get("run") == self.run


@dataclass(eq=False)
class Claims:
    """The claims of one run on its arrays, and the thread that shows that the run is alive."""

    active: ClassVar[set[str]] = set()
    """Runs of this process that hold claims."""
    leaving: ClassVar[dict[str, _thread.LockType]] = {}
    """Runs of this process whose claims are let go at the moment, each with a lock until they are."""

    run: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    """Id of the run."""
    held: list[Objects] = field(default_factory=list)
    """Objects of the arrays that are claimed."""
    _ended: threading.Event = field(default_factory=threading.Event)
    _beating: threading.Thread | None = None

    def take(self, objects: Objects, address: str) -> None:
        """Claim an array, and begin to beat.

        Raises
        ------
        TilingError
            If another run that is alive writes the array.
        """
        if not creates(objects.store):
            LOG.info(
                "%s: this store cannot create an object only where there is none; of two runs that begin at "
                "the same moment, one stops at its first block",
                address,
            )
        value = dump({"run": self.run, "owner": asdict(Owner.here()), "beat": BEAT})
        self.active.add(self.run)
        try:
            while not objects.create("claim", value):
                _replace(objects, value, address)
        except BaseException:
            if not self.held:
                self.active.discard(self.run)
            raise
        # Before the beat, which writes such a file of its own.
        objects.remove_partial()
        self.held.append(objects)
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat, name="tilework-beat", daemon=True)
            self._beating.start()

    def _beat(self) -> None:
        for number in itertools.count():
            for objects in list(self.held):
                try:
                    if not Claim(objects, self.run).holds():
                        self.held.remove(objects)
                    else:
                        objects.write("beat", dump({"run": self.run, "beat": number}))
                except Exception as error:
                    LOG.warning("the run cannot show that it is alive (%r)", error)
            if not self.held or self._ended.wait(BEAT):
                return

    def release(self) -> None:
        """Give up all claims that still are this run's; a store that fails keeps a claim of a dead run."""
        self.active.discard(self.run)
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
            self._beating = None
        while self.held:
            objects = self.held.pop()
            try:
                release(objects, self.run)
            except Exception as error:
                LOG.warning(
                    "the claim on %s could not be let go (%r); the next run takes it over",
                    objects.path,
                    error,
                )

    @classmethod
    def settle(cls, run: str) -> None:
        """Wait until claims of a run of this process that nothing refers to any more are let go."""
        if run in cls.active:
            # A run that dask computes by itself is let go with its results, which may be in a cycle.
            gc.collect()
        if (lock := cls.leaving.get(run)) is not None:
            with lock:
                pass

    def leave(self, objects: Objects) -> None:
        """Give up the claim on one array."""
        self.held = [held for held in self.held if held != objects]
        release(objects, self.run)

    def let_go(self) -> None:
        """Give up all claims in a thread, without waiting: for a finalizer.

        The garbage collector may call it anywhere, in the middle of zarr or of a lock. What reads or writes a
        store there waits for ever for the thread of zarr, which waits for that lock.
        """
        lock = _thread.allocate_lock()
        lock.acquire()
        self.leaving[self.run] = lock
        self.active.discard(self.run)

        def leave() -> None:
            try:
                self.release()
            finally:
                self.leaving.pop(self.run, None)
                lock.release()

        # `threading.Thread` takes a lock of its own to start.
        _thread.start_new_thread(leave, ())


def release(objects: Objects, run: str) -> None:
    """Give up the claim of a run on an array, if it still has it."""
    if Claim(objects, run).holds():
        objects.delete("claim", "beat")


def refuse_if_owned(objects: Objects, address: str) -> None:
    """Raise a `TilingError` if a run that is alive writes the array."""
    if (value := objects.read("claim")) is not None:
        _judge(objects, "claim", value, address)


def owner_alive(objects: Objects) -> Owner | None:
    """Return the process of this machine that writes the array; None if there is none, or it is dead."""
    owner, run, _ = _parts(load(objects.read("claim")) or {})
    if owner is None:
        return None
    state = owner.state()
    return owner if state == "alive" or (state == "here" and run in Claims.active) else None


def _replace(objects: Objects, mine: bytes, address: str) -> None:
    """Replace the claim of a dead run by ``mine``, or raise; return if the claim changed meanwhile."""
    before = objects.read("claim")
    if before is None:
        return
    _judge(objects, "claim", before, address)
    # Named for the claim that it replaces. A part of a claim names no run, but its bytes do.
    name = f"after-{(load(before) or {}).get('run') or before.hex()[:32] or 'nothing'}"
    if not objects.create(name, mine):
        if (successor := objects.read(name)) is not None:
            _judge(objects, name, successor, address)
            objects.delete(name)
        return
    if objects.read("claim") == before:
        LOG.info("%s: the run that wrote it is dead; this one takes over", address)
        objects.delete("beat")
        objects.write("claim", mine)
    objects.delete(name)


def _parts(claim: Mapping[str, Any]) -> tuple[Owner | None, str, float]:
    """Return the owner of a claim, its run, and the seconds between its beats; None: it cannot be named."""
    try:
        return Owner(**claim["owner"]), claim["run"], float(claim["beat"])
    except (KeyError, TypeError, ValueError):
        return None, "", BEAT


def _judge(objects: Objects, name: str, value: bytes, address: str) -> None:
    """Raise a `TilingError` if the run of the claim that is called ``name`` is alive."""
    owner, run, interval = _parts(load(value) or {})
    state = "elsewhere" if owner is None else owner.state()
    if state == "here":
        Claims.settle(run)
    if state == "dead" or (state == "here" and run not in Claims.active):
        return
    said = "a run that cannot be named" if owner is None else str(owner)
    if state == "elsewhere" and not _beats(objects, name, value, interval, said, address):
        return
    raise TilingError(
        f"{address} is being written by another run ({said}); wait until it has ended, or stop it."
    )


def _beats(objects: Objects, name: str, value: bytes, interval: float, said: str, address: str) -> bool:
    """Return whether the beat of a run changes within three intervals; False also if its claim has gone."""
    first, seconds = objects.read("beat"), interval * MISSED
    LOG.warning("%s is claimed by %s; watching for up to %.0f s whether it is alive", address, said, seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(interval / 4, 1.0))
        if objects.read(name) != value:
            return False
        if objects.read("beat") not in (first, None):
            return True
    LOG.warning("%s: %s missed %d beats and counts as dead", address, said, MISSED)
    return False
