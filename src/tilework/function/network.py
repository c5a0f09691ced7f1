"""Torch networks as functions of numpy crops."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tilework._checks import flag, one_of
from tilework._types import Array
from tilework.function.calling import as_array
from tilework.function.load_once import LoadOnce, load_once

__all__ = ["TorchFunction", "from_torch"]


_ACTIVATIONS = ("softmax", "sigmoid", "argmax")


class TorchFunction:
    """A torch network that takes and returns numpy batches; made by `from_torch`."""

    batched = True

    def __init__(
        self,
        module: Any,
        device: str = "auto",
        autocast: str | None = None,
        add_channel: bool | None = None,
        channel_axis: int | None = None,
        activation: str | Callable[[Any], Any] | None = None,
    ) -> None:
        self._module, self._device, self._autocast = module, device, autocast
        self._add_channel, self._channel_axis, self._activation = (
            add_channel,
            channel_axis,
            activation,
        )
        self._ready: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_ready", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _ready=None, _lock=threading.Lock())

    def _prepare(self) -> tuple[Any, str, Any]:
        """Return the network in evaluation mode, its device, and torch."""
        import torch

        with self._lock:
            if self._ready is None:
                device = self._device
                if device == "auto":
                    device = "cuda" if torch.cuda.is_available() else "cpu"
                _one_thread(torch)
                module = self._module.to(device).eval()
                self._ready = module, device
            return (*self._ready, torch)

    def __call__(self, batch: Array) -> Any:
        """Return the network's result for a batch of crops as numpy, ``(batch, ...)``."""
        module, device, torch = self._prepare()
        if self._channel_axis is not None:
            batch = np.moveaxis(batch, _after_batch(self._channel_axis, batch.ndim), 1)
        x = torch.from_numpy(np.ascontiguousarray(batch)).to(device)
        parameter = next(module.parameters(), None)
        if parameter is not None and x.is_floating_point() and not self._autocast:
            x = x.to(parameter.dtype)
        add = _wants_channel(module, x.ndim) if self._add_channel is None else self._add_channel
        with (
            torch.inference_mode(),
            torch.autocast(
                device,
                dtype=getattr(torch, self._autocast or "float32"),
                enabled=self._autocast is not None,
            ),
        ):
            y = module(x.unsqueeze(1) if add else x)
        return _each(y, lambda t: self._finish(t, add, torch))

    def _finish(self, y: Any, added: bool, torch: Any) -> Array:
        if callable(self._activation):
            y = self._activation(y)
        elif self._activation is not None:
            act = getattr(torch, self._activation)
            y = act(y) if self._activation == "sigmoid" else act(y, dim=1)
        if added and y.ndim > 1 and y.shape[1] == 1 and self._activation != "argmax":
            y = y.squeeze(1)
        array = as_array(y)
        if self._channel_axis is not None and self._activation != "argmax":
            array = np.moveaxis(array, 1, _after_batch(self._channel_axis, array.ndim))
        return array


def _one_thread(torch: Any) -> None:
    """Limit torch to one thread in a child process, unless OMP_NUM_THREADS is set."""
    if multiprocessing.parent_process() is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _after_batch(axis: int, ndim: int) -> int:
    return axis + 1 if axis >= 0 else ndim + axis


def _each(value: Any, act: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {k: act(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(act(v) for v in value)
    return act(value)


def _wants_channel(module: Any, ndim: int) -> bool:
    """Return whether the first convolution takes one axis more than the batch has."""
    for part in module.modules():
        name = type(part).__name__
        if name in ("Conv1d", "Conv2d", "Conv3d"):
            return int(name[4]) + 2 == ndim + 1
    return False


def from_torch(
    module_or_factory: Any,
    *,
    device: str = "auto",
    autocast: str | None = None,
    add_channel: bool | None = None,
    channel_axis: int | None = None,
    activation: str | Callable[[Any], Any] | None = None,
) -> TorchFunction | LoadOnce:
    """Return a torch network as a function of numpy crops.

    The network runs in evaluation and inference mode. It always gets a batch; without ``batch_size`` in
    `tiled_map`, a batch of one crop.

    Parameters
    ----------
    module_or_factory : torch.nn.Module or callable
        The network, or preferably a callable without arguments that builds it: each process then builds it
        once, and the graph does not contain it.
    device : str
        "auto" uses the first CUDA device if there is one, otherwise the CPU.
    autocast : str, optional
        "float16" or "bfloat16".
    add_channel : bool, optional
        Whether to add a channel axis of length 1 in front of each crop, and to remove it from the result. By
        default, the dimension of the network's first convolution decides.
    channel_axis : int, optional
        Position of the channel axis in a crop, batch excluded, if it is not in front; the result has its
        channels at the same position.
    activation : "softmax", "sigmoid", "argmax" or callable, optional
        Applied to each result, along the channel axis.

    Returns
    -------
    TorchFunction or LoadOnce

    Raises
    ------
    TypeError
        If ``add_channel`` is not True, False or None, or the argument is neither a module nor a callable.
    """
    if add_channel is not None:
        flag("add_channel", add_channel)
    if isinstance(activation, str):
        one_of("activation", activation, _ACTIVATIONS)
    if autocast is not None:
        one_of("autocast", autocast, ("float16", "bfloat16"))
    torch = sys.modules.get("torch")
    options = (device, autocast, add_channel, channel_axis, activation)
    if torch is not None and isinstance(module_or_factory, torch.nn.Module):
        return TorchFunction(module_or_factory, *options)
    if not callable(module_or_factory):
        raise TypeError(
            f"give a torch module or a callable that builds one; got {type(module_or_factory).__name__}."
        )
    built = load_once(functools.partial(_build, module_or_factory, options))
    built.batched = True
    return built


def _build(factory: Callable[[], Any], options: tuple[Any, ...]) -> TorchFunction:
    return TorchFunction(factory(), *options)
