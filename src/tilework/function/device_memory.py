"""The memory of devices: what ends there, how a call goes on with less of it, and who uses a device now.

When a call runs out of memory, the steps are, in this order:

1. What the failed call made is dropped, and the device's cache is emptied. If a library failed that does
   not know of the cache, the call is repeated once.
2. The batch is halved, down to one crop; later calls of this kind begin with what was possible.
3. With one crop, canvases and results that are on the device move to the host, and the call is repeated
   once.
4. The call ends with an error that has the figures. Nothing runs on the CPU instead.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from tilework.errors import TilingError
from tilework.function.devices import device_lock, device_name

__all__ = ["LIMITS", "in_batches", "is_out_of_memory", "register", "with_room"]

T = TypeVar("T")

_LOG = logging.getLogger("tilework")

# What libraries write when an allocation on a device fails, and only then: torch's allocators, the CUDA
# runtime and its libraries, XLA, onnxruntime and TensorFlow. Torch's allocator of the host writes
# "DefaultCPUAllocator: can't allocate memory", and TensorFlow names the CPU as the device.
_TEXTS = re.compile(
    "|".join((
        "(CUDA|HIP|XPU|MPS backend) out of memory", "(CUDA|HIP) error: out of memory",
        "(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|HIPBLAS|MIOPEN)_STATUS_ALLOC_FAILED", "CUFFT_ALLOC_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "cudaErrorMemoryAllocation",
        "CUDA_ERROR_OUT_OF_MEMORY", "CUDA failure 2: out of memory", "RESOURCE_EXHAUSTED: Out of memory",
        r"OOM when allocating tensor.*device:\w*GPU",
    ))
)  # fmt: skip
# What libraries write if anything fails; cuDNN wrote the second one on an H200 whose memory was in torch's
# cache.
_MAYBE = re.compile(
    "(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|HIPBLAS|MIOPEN)_STATUS_"
    "(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED|INITIALIZATION_FAILED)"
    "|GET was unable to find an engine"
)
# A device with less free memory is full, bytes: a library's handle with its workspace takes tens of MiB.
_NEARLY = 2**29
# Errors of what allocates beside torch, whose cache is not emptied for it.
_BESIDE = re.compile("_STATUS_|CUFFT_ALLOC_FAILED|GET was unable to find an engine")
# Classes of errors of libraries that may be loaded.
_CLASSES = (
    ("torch", "OutOfMemoryError"), ("torch.cuda", "OutOfMemoryError"),
    ("cupy.cuda.memory", "OutOfMemoryError"),
)  # fmt: skip
# Kinds of calls whose largest batch a process remembers.
_KINDS = 256
# Characters of the library's message that ours repeats.
_TOLD = 400

# The largest batch of each kind of call that ran out of memory; with what is kept so that its id stays its.
LIMITS: OrderedDict[Hashable, tuple[int, Any]] = OrderedDict()
_LOCK = threading.Lock()


class _Canvas(Protocol):
    """Memory of a device that can be given back: a canvas, or what a call has there before and after it."""

    def leave(self, device: str) -> bool:
        """Move to the host, if this is on ``device``; return whether that is worth telling."""
        ...


# Canvases that may be on a device.
_CANVASES: WeakSet[Any] = WeakSet()


def register(canvas: _Canvas) -> None:
    """Note a canvas on a device."""
    with _LOCK:
        _CANVASES.add(canvas)


def is_out_of_memory(error: BaseException | None, device: Any = None) -> bool:
    """Return whether an error, or the cause that it names, says that the memory of a device is full.

    For an error that may have other reasons, the free memory of ``device`` decides.
    """
    seen = 0
    while error is not None and seen < 8 and not isinstance(error, TilingError):
        for module, name in _CLASSES:
            kind = getattr(sys.modules.get(module), name, None)
            if isinstance(kind, type) and isinstance(error, kind):
                return True
        text = "" if isinstance(error, MemoryError) else str(error)
        if _TEXTS.search(text) or (_MAYBE.search(text) and _is_nearly_full(device)):
            return True
        error, seen = error.__cause__, seen + 1
    return False


def in_batches(
    call: Callable[[int, int], T],
    size: int,
    kind: Callable[[], Hashable],
    *,
    crop: Callable[[], str],
    device: Any = None,
    keep: Any = None,
    again: bool = True,
    told: str = "",
) -> list[T]:
    """Return the results of ``call`` for a batch: one, or several if the device's memory ends.

    Parameters
    ----------
    call : callable
        ``call(start, stop)`` returns the result for these crops of the batch. It may run several times.
    size : int
        Number of crops in the batch.
    kind : callable
        Returns what calls have in common that need as much memory per crop as this one.
    crop : callable
        Returns text about one crop, for messages.
    device : torch.device, optional
        The device, if it is known.
    keep : object, optional
        Kept as long as the kind is remembered.
    again : bool
        Whether a call with one crop may be repeated.
    told : str
        What the call with the whole batch said, if it has run out of memory already.

    Raises
    ------
    TilingError
        If a call with one crop runs out of memory, or the function fails with a smaller batch.
    """
    # Another thread may drop what is remembered at any time.
    known = LIMITS.get(kind()) if LIMITS else None
    limit = size if known is None else min(size, known[0])
    found: list[T] = []
    done, failed, repeat, emptied = 0, 0, again, device is None
    while True:
        n = min(limit, size - done)
        try:
            if not told:
                found.append(call(done, done + n))
        except Exception as error:
            if not is_out_of_memory(error, device):
                if failed > n:
                    error.add_note(
                        f"{_name(device)} had run out of memory with a batch of {failed}, and this was the "
                        f"first call with {n}. If the function takes no other batch than {failed}, give it "
                        "smaller crops."
                    )
                raise
            told = str(error) or type(error).__name__
        if not told:
            if failed > n:
                _remember(kind(), n, failed, crop(), device, keep)
            failed, repeat, done = 0, again, done + n
            if done >= size:
                return found
            continue
        # The except block has ended: its error held the frames of the call, and these its tensors.
        _let_go(device)
        if not emptied and _BESIDE.search(told):
            emptied = True  # the cache was in the way, perhaps, and not the batch
        elif n > 1:
            failed, limit = max(failed, n), n // 2
        elif repeat:
            repeat = False
            _leave(device)
        else:
            raise TilingError(_message(told, size, crop(), device))
        told = ""


def _remember(key: Hashable, n: int, before: int, crop: str, device: Any, keep: Any) -> None:
    """Keep the largest batch of a kind of call, and log it once."""
    with _LOCK:
        if key in LIMITS and LIMITS[key][0] <= n:
            return
        LIMITS[key] = n, keep
        while len(LIMITS) > _KINDS:
            LIMITS.popitem(last=False)
    _LOG.warning(
        "%s ran out of memory with a batch of %d (%s%s): batches of %d from now on in this process",
        _name(device), before, crop, _figures(device), n,
    )  # fmt: skip


def with_room(act: Callable[[], T], device: Any) -> T:
    """Return ``act()``; if the device's memory ends, move the canvases to the host and repeat it.

    ``act`` changes nothing before all that it needs is there.
    """
    told = ""
    with device_lock([device_name(device)]):
        for _ in range(2):
            try:
                return act()
            except Exception as error:
                if not is_out_of_memory(error, device):
                    raise
                last, told = told, str(error) or type(error).__name__
            _let_go(device)
            if not last:
                _leave(device, told=True)
    raise TilingError(_message(told, 1, "adding up the results of one crop", device))


def _leave(device: Any, *, told: bool = False) -> None:
    """Move all canvases on a device to the host; log it, with ``told`` also if there is none yet."""
    name = device_name(device)
    with _LOCK:
        canvases = list(_CANVASES)
    moved = [canvas.leave(name) for canvas in canvases]
    if told or any(moved):
        _LOG.warning(
            "%s ran out of memory%s: the canvases of this result are on the host from now on",
            name, _figures(device),
        )  # fmt: skip
    _let_go(device)


def _let_go(device: Any) -> None:
    """Return what nothing refers to any more to the device."""
    gc.collect()  # frames of errors refer to each other
    torch = sys.modules.get("torch")
    module = None if torch is None or device is None else getattr(torch, device.type, None)
    if torch is not None and device is None and torch.cuda.is_available() and torch.cuda.is_initialized():
        module = torch.cuda
    # Calls that failed before may be reported here; the repeated call finds out whether they matter.
    for name in ("synchronize", "empty_cache"):
        with suppress(Exception):
            getattr(module, name)()
    cupy: Any = sys.modules.get("cupy")
    if device is None and cupy is not None:
        with suppress(Exception):
            cupy.get_default_memory_pool().free_all_blocks()


def _name(device: Any) -> str:
    return "the device" if device is None else str(device)


def _is_nearly_full(device: Any) -> bool:
    """Return whether a device, by default the one that this thread uses, has hardly any free memory."""
    torch: Any = sys.modules.get("torch")
    with suppress(Exception):
        if device is not None or torch.cuda.is_initialized():
            free: int = getattr(torch, "cuda" if device is None else device.type).mem_get_info(device)[0]
            return free < _NEARLY
    return False


def _figures(device: Any) -> str:
    """Return how much memory a device has; empty if it does not say."""
    torch: Any = sys.modules.get("torch")
    with suppress(Exception):
        if device is None and not torch.cuda.is_initialized():
            return ""
        kind = "cuda" if device is None else device.type
        if kind == "mps":
            total, used = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
            return f"; {_size(total)} in all, {_size(used)} in use by this process"
        module = getattr(torch, kind)
        free, total = module.mem_get_info(device)
        own = module.memory_reserved(device)
        return f"; {_size(total)} in all, {_size(free)} free, {_size(own)} held by this process"
    return ""


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def _message(told: str, size: int, crop: str, device: Any) -> str:
    """Return what to say when one crop is too much."""
    text = told.strip().split("\n")[0]
    text = text if len(text) < _TOLD else f"{text[:_TOLD]}..."
    batch = "" if size == 1 else f", alone, from a batch of {size}"
    elsewhere = "" if device is not None and device.type == "cpu" else (
        ', or choose device="cpu" yourself: nothing runs on the CPU unasked'
    )  # fmt: skip
    return (
        f"{_name(device)} has not enough memory for {crop}{batch}{_figures(device)}. Give smaller crops, or "
        f'from_torch(autocast="bfloat16"), end what else uses the device{elsewhere}. The device says: {text}'
    )
