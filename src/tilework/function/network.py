"""Torch networks as functions of numpy crops.

A network that a user holds stays as it is: it is in evaluation mode during a call only, and another device
gets a copy. A process starts one call at a time on each device, so that no call sees the training mode that
another one restores, and the memory of a device holds the values of one batch.
"""

from __future__ import annotations

import functools
import hashlib
import io
import multiprocessing
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import cloudpickle
import numpy as np

from tilework._checks import brief, flag, one_of, whole
from tilework._types import Array, Index
from tilework.errors import TilingError
from tilework.function.calling import as_array, from_tensor, is_tensor, joined, plain_tensor
from tilework.function.compiling import compiled
from tilework.function.crossing import AHEAD, Crossing, calls_on
from tilework.function.device_memory import LIMITS, in_batches, with_room
from tilework.function.devices import bound_to, device_lock, working
from tilework.function.load_once import LoadOnce, load_once
from tilework.function.network_places import check_devices, copy_on, dtype_of, moved, place_of, weights_of
from tilework.function.tensors import as_tensor, channels_last, is_module

__all__ = ["TorchFunction", "from_torch"]


_ACTIVATIONS = ("softmax", "sigmoid", "argmax")


class TorchFunction:
    """A torch network that takes and returns numpy batches; made by `from_torch`."""

    __tilework_batched__ = True
    # The options that are not asked for.
    _compile = _on_device = _channels_last = _deterministic = False

    def __init__(
        self,
        module: Any,
        device: str | tuple[str, ...] = "auto",
        autocast: str | None = None,
        add_channel: bool | None = None,
        channel_axis: int | None = None,
        activation: str | Callable[[Any], Any] | None = None,
        **more: Any,
    ) -> None:
        self._module, self._device, self._autocast = module, device, autocast
        self._add_channel, self._channel_axis, self._activation = (
            add_channel,
            channel_axis,
            activation,
        )
        # Only what was asked for: stores know a network by its state, and earlier ones have none of these.
        self.__dict__.update({f"_{name}": value for name, value in more.items() if value})

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @property
    def __tilework_device__(self) -> int:
        """Number of devices that work at the same time."""
        return len(self._device) if isinstance(self._device, tuple) else 1

    @property
    def __tilework_calls__(self) -> int:
        """Number of calls that run at the same time, as far as the devices are here."""
        torch: Any = sys.modules.get("torch")
        try:
            return sum(calls_on(place) for place, _ in self._places(torch))
        except TilingError:
            return AHEAD * self.__tilework_device__

    @property
    def __tilework_whole_batches__(self) -> Any:
        """True if it is compiled, for one shape; otherwise a method that tells where it runs."""
        return True if self._compile else self._leaves_the_cpu

    def _leaves_the_cpu(self) -> bool:
        import torch

        return any(place.type != "cpu" for place, _ in self._places(torch))

    def __tilework_transfer__(self, crops: Sequence[Array], results: Sequence[Array]) -> float:
        """Return the seconds of moving crops to the device and results back."""
        import torch

        place = self._places(torch)[0][0]
        if place.type == "cpu":
            return 0.0
        dtype = dtype_of(self._module, torch)
        given = [as_tensor(crop[None], dtype, torch) for crop in crops]
        there = [as_tensor(result[None], torch.float32, torch).to(place) for result in results]
        taken = []
        for _ in range(3):  # the first one starts the device
            start = time.perf_counter()
            for crop in given:
                crop.to(place)
            for result in there:
                result.cpu()  # waits for what was begun
            taken.append(time.perf_counter() - start)
        return min(taken)

    def _places(self, torch: Any) -> list[tuple[Any, bool]]:
        """Return the devices on which the network may run, and whether it has to be moved there."""
        wanted = self._device if isinstance(self._device, tuple) else (self._device,)
        return [place_of(self._module, one, torch) for one in wanted]

    def __dask_tokenize__(self) -> Any:
        return "tilework.from_torch", _digest(self.__dict__)

    @property
    def __tilework_on_device__(self) -> bool:
        """Whether results stay on the device."""
        return self._on_device

    def __call__(self, batch: Array) -> Any:
        """Return the network's result for a batch of crops as numpy, ``(batch, ...)``."""
        import torch

        _one_thread(os.getpid())
        given, size = batch.shape[1:], len(batch)
        if self._channel_axis is not None:
            batch = np.moveaxis(batch, _after_batch(self._channel_axis, batch.ndim), 1)
        dtype = dtype_of(self._module, torch)
        crops = as_tensor(batch, dtype, torch)
        add = _wants_channel(self._module, crops.ndim) if self._add_channel is None else self._add_channel
        places = {str(place): (place, moves) for place, moves in self._places(torch)}
        with bound_to({name: calls_on(place) for name, (place, _) in places.items()}) as (name, alone):
            device, moves = places[name]

            def kind() -> Any:
                return str(device), _size_of(self._module), given, self._autocast

            # A batch that is halved crosses in halves.
            halved = bool(LIMITS) and LIMITS.get(kind(), (size,))[0] < size
            crossing = Crossing(crops, device, dtype, torch, alone=alone or halved)

            def call(start: int, stop: int) -> Any:
                x = crossing.crops(start, stop)
                x = x.unsqueeze(1) if add else x
                x = channels_last(x, torch) if self._channels_last else x
                # Not in inference mode: what the network keeps of a call could not be used in training.
                with _evaluating(module), torch.no_grad(), self._casting(device, torch):
                    try:
                        y = run(x)
                    except Exception as error:
                        if note := _channel_note(module, (size, *given), self._channel_axis, added=add):
                            error.add_note(note)
                        raise
                    made = _each(y, lambda t: self._finish(t, add, torch))
                stays = self._on_device or crossing.crosses_later(start, stop)
                return made if stays else _each(made, as_array)

            with crossing:
                with working(name):
                    with device_lock([name]), _DETERMINISTIC if self._deterministic else nullcontext():
                        module = copy_on(self._module, device, torch) if moves else self._module
                        run = compiled(module, torch) if self._compile else module
                        parts = in_batches(
                            call, size, kind, crop=lambda: f"one crop of shape {tuple(given)}", device=device
                        )
                        made = joined(parts) if len(parts) == 1 else with_room(lambda: joined(parts), device)
                        crossing.queued()
                    crossing.wait()
                if not self._on_device:
                    # Nothing refers to what is on the device when the context ends.
                    parts = made = crossing.back(lambda: _each(made, as_array))
            return made

    def _casting(self, device: Any, torch: Any) -> Any:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self._autocast))

    def _finish(self, y: Any, added: bool, torch: Any) -> Any:
        """Return one result where it is."""
        if callable(self._activation):
            y = self._activation(y)
        elif self._activation is not None:
            act = getattr(torch, self._activation)
            y = act(y) if self._activation == "sigmoid" else act(y, dim=1)
        if added and y.ndim > 1 and y.shape[1] == 1 and self._activation != "argmax":
            y = y.squeeze(1)
        if not is_tensor(y):
            y = np.array(as_array(y))  # memory of its own, as of tensors
            return y if (axis := self._channels_at(y.ndim)) is None else np.moveaxis(y, 1, axis)
        y = plain_tensor(y)
        if not isinstance(self._activation, str):
            y = y.clone()  # a network may write the next result into the same memory, as CUDA graphs do
        return y if (axis := self._channels_at(y.ndim)) is None else y.movedim(1, axis)

    def _channels_at(self, ndim: int) -> int | None:
        """Return the axis of a result to which its channels move; None if they stay, or there are none."""
        if self._channel_axis is None or self._activation == "argmax":
            return None
        return _after_batch(self._channel_axis, ndim)


@functools.cache
def _one_thread(process: int) -> None:
    """Limit torch to one thread in a child process, unless OMP_NUM_THREADS is set; once per process."""
    del process
    if multiprocessing.parent_process() is not None and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


class _Digests(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler that replaces tensors by digests of their values."""

    def persistent_id(self, value: Any) -> Any:
        """Return what stands for a tensor; None for anything else."""
        if not is_tensor(value):
            return None
        values = np.ascontiguousarray(from_tensor(value))
        digest = hashlib.blake2b(values.reshape(-1).view(np.uint8).data, digest_size=20).hexdigest()
        return type(value).__name__, str(value.dtype), tuple(value.shape), value.requires_grad, digest


def _digest(value: Any) -> str:
    """Return a digest of the state of a network; a random one if it cannot be pickled.

    dask's own token pickles the weights and loads them again, which takes their memory twice, and gives new
    methods to a class that was defined in a notebook.
    """
    try:
        _Digests(file := io.BytesIO()).dump(value)
    except Exception:
        return uuid.uuid4().hex
    return hashlib.blake2b(file.getvalue(), digest_size=20).hexdigest()


# -- samples ----------------------------------------------------------------------------------------------


def _size_of(module: Any) -> tuple[str, int]:
    """Return what networks have in common that need as much memory: the class and the number of weights."""
    return type(module).__qualname__, sum(t.numel() for t in weights_of(module))


class _Deterministic:
    """A context in which convolutions take algorithms that give the same bits each time.

    The flags belong to the process. Calls on several devices overlap, so the first one sets them and the last
    one sets back what it found.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: list[tuple[Any, str, bool]] = []

    def __enter__(self) -> None:
        from torch import backends

        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            wanted = [
                (backends.cudnn, "deterministic", True), (backends.cudnn, "benchmark", False),
                (backends.mkldnn, "deterministic", True),
            ]  # fmt: skip
            for module, name, value in wanted:
                if hasattr(module, name):
                    self._before.append((module, name, getattr(module, name)))
                    setattr(module, name, value)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            while not self._inside and self._before:
                module, name, value = self._before.pop()
                setattr(module, name, value)


_DETERMINISTIC = _Deterministic()


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Put a network into evaluation mode; afterwards every part is in the mode in which it was.

    The flags are set one by one: ``eval`` and ``train`` of a network may do more, such as merging weights.
    """
    training = [part for part in module.modules() if getattr(part, "training", False)]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


# -- shapes -----------------------------------------------------------------------------------------------


def _after_batch(axis: int, ndim: int) -> int:
    return axis + 1 if axis >= 0 else ndim + axis


def _each(value: Any, act: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {k: act(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(act(v) for v in value)
    return act(value)


def _first_convolution(module: Any) -> tuple[int, int] | None:
    """Return the numbers of spatial axes and of channels that the first convolution takes; None without."""
    for part in module.modules():
        name = getattr(part, "original_name", type(part).__name__)  # of a scripted module
        if name in ("Conv1d", "Conv2d", "Conv3d"):
            return int(name[4]), part.in_channels
    return None


def _wants_channel(module: Any, ndim: int) -> bool:
    """Return whether the first convolution takes one axis more than the batch has."""
    first = _first_convolution(module)
    return first is not None and first[0] + 2 == ndim + 1


def _channel_note(module: Any, shape: Index, channel_axis: int | None, *, added: bool) -> str:
    """Return what to say of the channels when a network fails; empty if they are as many as it takes.

    Parameters
    ----------
    shape : tuple of int
        Shape of the batch, as it was given.
    """
    first = _first_convolution(module)
    wanted = None if first is None else first[1]
    size, *crop = shape
    alone = f"If the array of shape {shape} is one crop, not a batch of them, call net(crop[None])[0]."
    if first is not None and len(crop) < first[0]:
        return f"a network of from_torch takes batches. {alone}"
    if added:
        return "" if wanted in (None, 1) else (
            f"the crops of shape {tuple(crop)} got a channel axis of length 1; the first convolution takes "
            f"{wanted} channels: give crops with an axis of {wanted}." + f" {alone}" * (size == wanted)
        )  # fmt: skip
    if not crop:
        return ""
    read = (channel_axis or 0) % len(crop)
    if crop[read] == wanted:
        return ""
    takes = "" if wanted is None else f"; the first convolution takes {wanted}"
    text = f"from_torch reads axis {read} of the crops of shape {tuple(crop)} as channels{takes}."
    # The last axis first: few networks of a user have their channels between.
    fits = [a for a in (len(crop) - 1, *range(len(crop) - 1)) if a != read and wanted in (None, crop[a])]
    if fits:
        axis = -1 if fits[0] == len(crop) - 1 else fits[0]
        sure = "If they are the last axis, say" if wanted is None else "Say"
        return f"{text} {sure} from_torch(..., channel_axis={axis})."
    if wanted == 1:
        return f"{text} With each= of tiled_map it gets the channels one by one."
    return text


def from_torch(
    module_or_factory: Any,
    *,
    device: str | Sequence[str] = "auto",
    autocast: str | None = None,
    add_channel: bool | None = None,
    channel_axis: int | None = None,
    activation: str | Callable[[Any], Any] | None = None,
    compile: bool = False,
    on_device: bool = False,
    channels_last: bool = False,
    deterministic: bool = False,
) -> TorchFunction | LoadOnce:
    """Return a torch network as a function of numpy crops.

    The network runs in evaluation mode and without gradients. It always gets a batch; without ``batch_size``
    in `tiled_map`, a batch of one crop. Crops of any integer, bool or floating dtype are cast to the dtype of
    the network: that of its first floating parameter or buffer, or float32 if it has none. A network that
    needs integers casts them back itself, ``x.long()``. They cross to the device in the smaller of the two
    dtypes: uint8 and uint16 images as they are.

    A device works on one call at a time, for a network as for a callable that builds one. On CUDA, two more
    calls are under way, whose crops or results cross the bus meanwhile. `to_zarr` and `compute` start at
    least eight threads, of which the others read and write.

    If the memory of the device is full, the batch is halved, and the process keeps to what was possible for
    this network and this shape of crops. One crop too many is an error with the figures; nothing runs on the
    CPU unasked.

    Parameters
    ----------
    module_or_factory : torch.nn.Module, callable or `load_once`
        The network, or preferably a callable without arguments that builds it: each process then builds it
        once, and the graph does not contain it. A network is not changed: during a call it is in evaluation
        mode, and after it every part is in the mode in which it was. On its own device it is not copied.
        On another device a process makes one copy, which takes the memory of the weights there as long as the
        network lives, and makes it anew when the weights have changed. Of what a callable builds, a process
        keeps the weights on that device only.
    device : str, or sequence of str
        "cpu", "cuda", "cuda:1", "mps" or another name that torch knows; an error if this process does not
        have it, unless a distributed client is connected. "auto" leaves a network on the device on which it
        is, unless that is the CPU; from there it uses "cuda" if there is one, otherwise "mps", otherwise
        the CPU. Of several, such as ``("cuda:0", "cuda:1")``, each call takes one that is free; each has a
        copy of the network. If they are of different kinds, runs may differ by rounding.
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
    compile : bool
        Whether torch compiles the network, once for each shape of a batch in each process; short batches are
        filled, see ``pad_batch`` of `tiled_map`. The first call takes from seconds to a minute.
    on_device : bool
        Whether results stay on the device as tensors, where `tiled_map` adds them up, normalises and takes
        the argmax, so that only finished blocks cross back. For ``fn=`` of `tiled_map` itself, with every
        blend; labels, callables as ``reduce``, ``where``, ``nodata`` and ``disagreement=True`` are refused
        when the result is built. A canvas is a block with its overlap and all channels; the device holds one
        for every thread that computes, or two if more than 32 crops lie on a sample, which no memory limit of
        tilework counts.
    channels_last : bool
        Whether crops of two and three spatial axes are laid out with their channels last in memory, which
        convolutions in half precision need to be fast on CUDA. The weights keep their layout.
    deterministic : bool
        Whether convolutions take algorithms that give the same bits each time, during a call only. Batches
        of another size may still get other bits. Operations that torch lists under
        ``torch.use_deterministic_algorithms`` are not included: call that in each process if they matter.

    Returns
    -------
    TorchFunction or LoadOnce

    Raises
    ------
    TypeError
        If a flag is not True or False, or ``add_channel`` not one of them or None; if the argument is neither
        a module nor a callable.
    TilingError
        If the device is not known, or this process does not have it; in a call, if its memory is full.

    Examples
    --------
    >>> def network():  # a callable is called once in every process, at the first crop
    ...     import torch
    ...
    ...     return torch.nn.Conv2d(1, 1, 3, padding=1)
    >>> import numpy as np
    >>> from tilework import tiled_map
    >>> net = from_torch(network, device="cpu")
    >>> tiled_map(net, np.zeros((300, 200), "uint8"), 64, 1, dtype="float32").shape
    (300, 200)
    """
    if add_channel is not None:
        flag("add_channel", add_channel)
    if autocast is not None:
        one_of("autocast", autocast, ("float16", "bfloat16"))
    if channel_axis is not None:
        channel_axis = whole("channel_axis", channel_axis)
    if not (activation is None or callable(activation)):
        one_of("activation", activation, _ACTIVATIONS)
    flags = {
        "compile": compile, "on_device": on_device, "channels_last": channels_last,
        "deterministic": deterministic,
    }  # fmt: skip
    for name, value in flags.items():
        flag(name, value)
    more: dict[str, Any] = {name: value for name, value in flags.items() if value}
    places = check_devices(device)
    options: tuple[Any, ...] = (places, autocast, add_channel, channel_axis, activation)
    if is_module(module_or_factory):
        return TorchFunction(module_or_factory, *options, **more)
    if not callable(module_or_factory):
        cure = ""
        if isinstance(module_or_factory, Mapping):
            cure = " Load weights into the network first: network.load_state_dict(weights)."
        elif isinstance(module_or_factory, str | os.PathLike):
            cure = " Give a callable that loads it, such as lambda: torch.jit.load(path)."
        raise TypeError(
            "module_or_factory must be a torch module or a callable that builds one; got "
            f"{brief(module_or_factory)}.{cure}"
        )
    # A proxy of a network is called with crops; what it builds is wanted here.
    factory = module_or_factory.get if isinstance(module_or_factory, LoadOnce) else module_or_factory
    built = load_once(functools.partial(_build, factory, options, **more))
    n = len(places) if isinstance(places, tuple) else 1
    known = {
        "__tilework_batched__": True, "__tilework_device__": n, "__tilework_whole_batches__": compile,
        "__tilework_on_device__": on_device,
    }  # fmt: skip
    # The calls that have a device, while the crops of the next one become a tensor.
    return built.known_as((AHEAD + 1) * n, {name: value for name, value in known.items() if value})


def _build(factory: Callable[[], Any], options: tuple[Any, ...], **more: Any) -> TorchFunction:
    import torch

    module = factory()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"the callable must build a torch module; it returned {type(module).__name__}. Give "
            "lambda: module, if it is the network itself."
        )
    if isinstance(options[0], tuple):
        return TorchFunction(module, *options, **more)
    place, moves = place_of(module, options[0], torch)
    # Whoever holds the module that was built keeps it as it is; otherwise its memory is freed here.
    return TorchFunction(moved(module, place, torch) if moves else module, *options, **more)
