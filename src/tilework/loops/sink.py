"""`Sink`: an array of any kind that finished blocks are put into."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework.errors import TilingError
from tilework.loops.writer import ChunkWriter

__all__ = ["Sink", "is_tensor"]

Array = np.ndarray[Any, Any]
Part = tuple[Array, Array]


def is_tensor(array: Any) -> bool:
    """Return whether ``array`` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


class Sink:
    """An array to write into: numpy, memmap, torch on any device, Zarr, h5py, or anything alike."""

    def __init__(self, array: Any, *, accumulate: bool = False) -> None:
        if not all(hasattr(array, name) for name in ("shape", "dtype", "__setitem__")):
            raise TypeError(f"output must have shape, dtype and item assignment; got {type(array).__name__}.")
        self.array, self._accumulate = array, accumulate
        self.shape = tuple(map(int, array.shape))
        self.view: Array | None = None
        """The same memory as a numpy array, where there is one."""
        if is_tensor(array):
            self.dtype = np.asarray(_empty_like(array)).dtype
            if array.device.type == "cpu" and str(array.dtype) != "torch.bfloat16":
                self.view = array.detach().numpy()
        else:
            self.dtype = np.dtype(array.dtype)
            self.view = array if isinstance(array, np.ndarray) else None
        if self.view is not None and not self.view.flags.writeable:
            raise TilingError("output is read-only; open it for writing (mode='r+' for a memmap).")
        self._writer: ChunkWriter | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A tensor's memory is shared with its view only as long as both are not pickled.
        return self.__dict__ | {"view": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["array"], accumulate=state["_accumulate"])  # type: ignore[misc]
        self._writer = state["_writer"]

    @property
    def unit(self) -> tuple[int, ...] | None:
        """Lengths of what is written at once, samples per axis; None where every sample stands alone."""
        unit = getattr(self.array, "shards", None) or getattr(self.array, "chunks", None)
        return tuple(map(int, unit)) if self.view is None and isinstance(unit, tuple) else None

    def expect(self, parts: Sequence[Part | None]) -> None:
        """Say where blocks will stand, so that each storage chunk is written once: see `ChunkWriter`."""
        if self.unit is not None:
            self._writer = ChunkWriter(self.array, parts)

    def store(self, place: tuple[slice, ...], block: Array) -> None:
        """Put a finished block into its place."""
        if self._accumulate:
            block = (np.asarray(self.array[place]) + block).astype(self.dtype)
        if self.view is not None:
            self.view[place] = block
        elif is_tensor(self.array):
            torch = sys.modules["torch"]
            self.array[place] = torch.from_numpy(block).to(self.array.device, self.array.dtype)
        elif self._writer is not None:
            self._writer[place] = block
        else:
            self.array[place] = block

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def _empty_like(tensor: Any) -> Any:
    """Return an empty tensor on the CPU, of a dtype that numpy knows."""
    empty = tensor.new_empty(0).detach().cpu()
    return empty.float() if str(empty.dtype) == "torch.bfloat16" else empty
