"""Crops as tensors on a device, in the dtype and the layout in which a network takes them."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np

from tilework._types import Array
from tilework.function.device_memory import is_out_of_memory

__all__ = ["as_tensor", "channels_last", "is_module", "moved_there"]


def is_module(value: Any) -> bool:
    """Return whether ``value`` is a torch module; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def as_tensor(batch: Array, dtype: Any, torch: Any) -> Any:
    """Return a batch as a tensor on the CPU, in a dtype from which torch can cast to ``dtype``."""
    own = batch.dtype
    if own.kind not in "biufc" and (own.names is not None or not np.can_cast(own, np.float32)):
        raise TypeError(f"a network takes numbers; the crops have dtype {own}.")
    if own.kind == "c" and not dtype.is_complex:
        raise TypeError(
            f"the crops have dtype {own}, and the weights of the network {str(dtype)[6:]}: the "
            "imaginary part would be lost. Give np.abs(image), or real and imaginary part as two channels."
        )
    if own.kind == "c":
        own = np.dtype(np.complex64 if own.itemsize == 8 else np.complex128)
    elif own.kind == "u" and (own.itemsize == 1 or (own.itemsize == 2 and hasattr(torch, "uint16"))):
        pass  # the device casts them
    elif own.itemsize > 8 or own.kind not in "bif":
        # Torch has no numbers of 128 bits, and unsigned integers of more than 8 bits since 2.3 only.
        own = np.dtype(np.float32 if own.itemsize <= 2 else np.float64)
    return torch.from_numpy(np.ascontiguousarray(batch, dtype=own.newbyteorder("=")))


@functools.cache
def _crosses(kind: str, own: Any, dtype: Any) -> bool:
    """Return whether a kind of device takes a dtype and casts it to another one."""
    import torch

    try:
        torch.zeros(1, dtype=own).to(kind).to(dtype)
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise  # which says nothing of the dtype
        return False
    return True


def moved_there(crops: Any, device: Any, dtype: Any) -> Any:
    """Return crops on a device in ``dtype``; the smaller of the two dtypes crosses the bus.

    Asked for both at once, torch casts before it copies: uint8 would cross as float32, four times the bytes.
    """
    if crops.itemsize > dtype.itemsize or not _crosses(device.type, crops.dtype, dtype):
        crops = crops.to(dtype)
    return crops.to(device).to(dtype)


def channels_last(batch: Any, torch: Any) -> Any:
    """Return a batch of two or three spatial axes with its channels last in memory; others as they are."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    return batch.contiguous(memory_format=layouts[batch.ndim]) if batch.ndim in layouts else batch
