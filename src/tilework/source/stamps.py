"""Stamps of files: what shows that a file is the one that was seen before."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass

from tilework.errors import TilingError
from tilework.source.held import Process, this_machine, this_process

__all__ = ["Files", "Seen", "Stamp", "check_files", "seen", "settle"]

# A file that is rewritten within one tick of its filesystem's clock keeps its times, and the tick of a kernel
# is up to 16 ms. Some filesystems (FAT, ext3, some servers) count whole seconds, FAT two.
TICK, COARSE_TICK = 25_000_000, 2_000_000_000

Seen = tuple[int, ...] | None
"""Inode, size, times of the last write and of the last change; None: there is no file."""


def seen(path: str) -> tuple[Seen, int]:
    """Return what a file looks like, and for how long that proves nothing yet, nanoseconds.

    A later change is certain to show in the first value only after that time. A wait of more than `TICK` is
    not worth it. The absence of a file is a proof, too.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 -- 3x faster than pathlib, and called once per chunk
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    written, changed = found.st_mtime_ns, found.st_ctime_ns
    coarse = not (written % 10**9 or changed % 10**9)
    wait = max(written, changed) + (COARSE_TICK if coarse else TICK) - time.time_ns()
    return (found.st_ino, found.st_size, written, changed), max(0, wait)


@dataclass(frozen=True, slots=True)
class Stamp:
    """Facts that change when a file is replaced or rewritten."""

    size: int
    """Bytes."""
    written: int
    """Time of the last write, nanoseconds since 1970."""
    inode: int
    """Number in its filesystem; another machine may know the file by another."""
    machine: str
    """The machine that saw it."""

    @classmethod
    def of(cls, file: str | int) -> Stamp | None:
        """Return the stamp of a path or of an open file; None if there is no such file."""
        try:
            found = os.stat(file)  # noqa: PTH116 -- a path or a descriptor
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ino, this_machine())

    @property
    def token(self) -> tuple[int, ...]:
        """Equal for the same file, unchanged."""
        return self.size, self.written, self.inode

    def differs(self, other: Stamp) -> bool:
        """Return whether the files of two stamps are certain not to be one, unchanged."""
        inodes = {self.inode, other.inode} if self.machine == other.machine else {self.inode}
        return (self.size, self.written) != (other.size, other.written) or len(inodes) > 1

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.written / 1e9))
        return f"{self.size} bytes written at {when}.{self.written % 10**9:09d} (inode {self.inode})"


def settle(path: str) -> None:
    """Write to a file what memory maps hold for it, of any process, so that a later write changes its time.

    A page that waits to be written takes further writes without a trace, for half a minute or so. Where
    nothing waits, this takes microseconds. A filesystem in memory (tmpfs) counts no write of a map after its
    first.
    """
    with suppress(OSError):  # filesystems without it
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


Files = tuple[tuple[str, Stamp | None], ...]
"""Paths of the files of a source, with their stamps when it was opened."""


def check_files(files: Files) -> tuple[Stamp, ...]:
    """Return the stamps of files as they are; raise unless every file is the one that was stamped.

    Raises
    ------
    TilingError
        If a file cannot be seen in this process, or was replaced or rewritten.
    """
    found = []
    for path, old in files:
        new = Stamp.of(path)
        if new is None:
            raise TilingError(not_visible(path, this_process()))
        if old is None or old.differs(new):
            raise TilingError(
                f"{path} is not the file that the array was opened from: it was {old or 'missing'}, and here "
                f"({this_process()}) it is {new}. It was replaced or rewritten after the result was built; "
                "build the result again."
            )
        found.append(new)
    return tuple(found)


def not_visible(path: str, here: Process) -> str:
    """Return the message for a source that a process cannot find."""
    return (
        f"{path} cannot be seen in {here}: it was renamed or deleted after the result was built, or its "
        "folder is not mounted there. Put it back or mount it under the same path, or build the result again."
    )
