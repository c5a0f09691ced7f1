"""Crops on their way to a device, and results on their way back, while another call runs there.

A device with streams gets its work in three queues: crops cross in one, networks run in another, and results
cross back in a third. So it waits neither for the bus nor for the thread that starts a call: the next call is
queued while one runs. All networks run in one queue, so that their values take the memory of one call.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self, TypeVar

from tilework.function.device_memory import is_out_of_memory, register
from tilework.function.devices import device_name
from tilework.function.tensors import moved_there

__all__ = ["AHEAD", "Crossing", "calls_on"]

T = TypeVar("T")

# Calls that have a device with streams at the same time: one crosses, one runs, and one crosses back.
AHEAD = 3


def _has_streams(device: Any) -> bool:
    return bool(device.type == "cuda")


def calls_on(device: Any) -> int:
    """Return how many calls may have a device at the same time."""
    return AHEAD if _has_streams(device) else 1


@functools.cache
def _streams(device: Any, torch: Any) -> tuple[Any, Any]:
    """Return the streams of a device in which crops cross, and in which results cross back."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


class Crossing:
    """A batch of crops on its way to a device, and what a network makes of it on its way back.

    It is a context, at whose end nothing of the call is on its way any more.

    Parameters
    ----------
    crops : torch.Tensor
        The batch on the host.
    device : torch.device
        Where the network runs.
    dtype : torch.dtype
        That of the network.
    alone : bool
        Whether the crops cross in the call only: this thread has the device already, so that nothing else
        runs there, or the batch is too large for one call.
    """

    def __init__(self, crops: Any, device: Any, dtype: Any, torch: Any, *, alone: bool) -> None:
        self._crops, self._device, self._dtype, self._torch = crops, device, dtype, torch
        self._there: Any = None
        self._arrived: Any = None
        self._done: Any = None
        self._ended = threading.Event()
        self._streams = None if alone or not _has_streams(device) else _streams(device, torch)
        if self._streams is not None:
            register(self)
            self._begin(self._streams[0])

    def _begin(self, there: Any) -> None:
        """Let the whole batch cross in a stream; it crosses in the call if there is no room for it now."""
        try:
            with self._torch.cuda.stream(there):
                self._there = moved_there(self._crops, self._device, self._dtype)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return
        self._arrived = there.record_event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def leave(self, device: str) -> bool:
        """Drop the batch on the device, which needs the memory; it crosses again in the call.

        A result that is on its way back has arrived when this returns. That needs no more of the device, so
        the caller may have it.
        """
        self._there = None  # the batches of other devices need not hurry either
        if self._done is not None and device_name(self._device) == device:
            self._ended.wait()
        return False

    def crops(self, start: int, stop: int) -> Any:
        """Return a part of the batch on the device, for the stream in which networks run."""
        there, self._there = self._there, None  # kept no longer than by the first call
        if there is None or stop - start < len(self._crops):
            del there
            return moved_there(self._crops[start:stop], self._device, self._dtype)
        current = self._torch.cuda.current_stream(self._device)
        current.wait_event(self._arrived)
        there.record_stream(current)
        return there

    def crosses_later(self, start: int, stop: int) -> bool:
        """Return whether the result of a part of the batch crosses back when others may use the device."""
        return self._streams is not None and stop - start == len(self._crops)

    def queued(self) -> None:
        """Note that all work of the call is in the queue."""
        if self._streams is not None:
            # The thread sleeps meanwhile; others read and write.
            self._done = self._torch.cuda.Event(blocking=True)
            self._done.record(self._torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Wait until the device has done the call."""
        if self._done is not None:
            self._done.synchronize()

    def back(self, fetch: Callable[[], T]) -> T:
        """Return ``fetch()``, which copies results to the host."""
        with nullcontext() if self._streams is None else self._torch.cuda.stream(self._streams[1]):
            return fetch()
