"""Torch networks as functions of numpy crops.

A network that a user holds stays as it is: it is in evaluation mode during a call only, and another device
gets a copy. A process makes one call at a time on each device, so that no call sees the training mode that
another one restores, and the memory of a device holds the values of one batch.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import multiprocessing
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import cloudpickle
import numpy as np

from tilework._checks import brief, flag, one_of, whole
from tilework._types import Array
from tilework.errors import TilingError
from tilework.function.calling import as_array, from_tensor, is_tensor
from tilework.function.compiling import compiled
from tilework.function.devices import device_lock
from tilework.function.load_once import LoadOnce, load_once

__all__ = ["TorchFunction", "from_torch"]


_ACTIVATIONS = ("softmax", "sigmoid", "argmax")
# Kinds of devices that torch names without a plug-in, and on which a network can run.
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla")
# Dtypes in which networks calculate; weights of 8 bits are unpacked by the network.
_FLOATS = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")

# Copies of networks on other devices: by network, then by device, with the stamps of the weights.
_COPIES: WeakKeyDictionary[Any, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()


class TorchFunction:
    """A torch network that takes and returns numpy batches; made by `from_torch`."""

    __tilework_batched__ = True
    # An attribute of an instance only where it is given, because names and fingerprints contain these.
    _compile = False

    def __init__(
        self,
        module: Any,
        device: str | tuple[str, ...] = "auto",
        autocast: str | None = None,
        add_channel: bool | None = None,
        channel_axis: int | None = None,
        activation: str | Callable[[Any], Any] | None = None,
        compiles: bool = False,
    ) -> None:
        if compiles:
            self._compile = True
        self._module, self._device, self._autocast = module, device, autocast
        self._add_channel, self._channel_axis, self._activation = (
            add_channel,
            channel_axis,
            activation,
        )

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @property
    def __tilework_device__(self) -> int:
        """Number of devices that work at the same time."""
        return len(self._device) if isinstance(self._device, tuple) else 1

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
        dtype = _dtype(self._module, torch)
        given = [_tensor(crop[None], dtype, torch) for crop in crops]
        there = [_tensor(result[None], torch.float32, torch).to(place) for result in results]
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
        return [_place(self._module, one, torch) for one in wanted]

    def __dask_tokenize__(self) -> Any:
        return "tilework.from_torch", _digest(self.__dict__)

    def __call__(self, batch: Array) -> Any:
        """Return the network's result for a batch of crops as numpy, ``(batch, ...)``."""
        import torch

        _one_thread(os.getpid())
        given = batch.shape[1:]
        if self._channel_axis is not None:
            batch = np.moveaxis(batch, _after_batch(self._channel_axis, batch.ndim), 1)
        dtype = _dtype(self._module, torch)
        crops = _tensor(batch, dtype, torch)
        add = _wants_channel(self._module, crops.ndim) if self._add_channel is None else self._add_channel
        places = {str(place): (place, moves) for place, moves in self._places(torch)}
        with device_lock(list(places)) as name:
            device, moves = places[name]
            module = _copy_on(self._module, device, torch) if moves else self._module
            run = compiled(module, torch) if self._compile else module
            x = crops.to(device=device, dtype=dtype)
            # Not in inference mode: what the network keeps of a call could not be used in training.
            with _evaluating(module), torch.no_grad(), self._casting(device, torch):
                try:
                    y = run(x.unsqueeze(1) if add else x)
                except Exception as error:
                    if note := _channel_note(module, given, self._channel_axis, added=add):
                        error.add_note(note)
                    raise
                return _each(y, lambda t: self._finish(t, add, torch))

    def _casting(self, device: Any, torch: Any) -> Any:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self._autocast))

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


def _dtype(module: Any, torch: Any) -> Any:
    """Return the dtype in which a network calculates."""
    known = [getattr(torch, name) for name in _FLOATS]
    return next((t.dtype for t in _weights(module) if t.dtype in known), torch.float32)


def _tensor(batch: Array, dtype: Any, torch: Any) -> Any:
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
    elif own.itemsize > 8 or own.kind not in "bif":
        # Torch has no numbers of 128 bits, and long unsigned integers since 2.3 only.
        own = np.dtype(np.float32 if own.itemsize <= 2 else np.float64)
    return torch.from_numpy(np.ascontiguousarray(batch, dtype=own.newbyteorder("=")))


# -- networks and devices ---------------------------------------------------------------------------------


def _weights(module: Any) -> Iterator[Any]:
    """Yield parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


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


def _place(module: Any, wanted: str, torch: Any) -> tuple[Any, bool]:
    """Return the device on which a network runs, and whether it has to be moved there."""
    places = [_numbered(w.device, torch) for w in _weights(module)]
    if wanted == "auto":
        stays = any(place.type != "cpu" for place in places)
        wanted = str(places[0]) if stays else _best(module, torch)
        places = [] if stays else places
    if problem := _problem(wanted, torch):
        raise TilingError(problem)
    device = _numbered(torch.device(wanted), torch)
    return device, any(place != device for place in places)


def _best(module: Any, torch: Any) -> str:
    """Return the fastest kind of device that there is."""
    if torch.cuda.is_available():
        return "cuda"
    # This kind has no numbers of 64 bits.
    if torch.backends.mps.is_available() and _dtype(module, torch).itemsize < 8:
        return "mps"
    return "cpu"


def _numbered(device: Any, torch: Any) -> Any:
    """Return a device in the one way in which it is written here."""
    if device.type in ("cpu", "mps"):
        return torch.device(device.type)
    current = torch.cuda.current_device() if device.type == "cuda" and device.index is None else 0
    return torch.device(device.type, current if device.index is None else device.index)


def _problem(device: str, torch: Any) -> str | None:
    """Return why a device cannot be used in this process, and what to do; None if it can."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        return f"device={device!r} is not the name of a device: {error}"
    kind, number = found.type, found.index or 0
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        why = "torch finds no CUDA device" if built else "this build of torch has no CUDA"
    elif kind == "cuda" and number >= (count := torch.cuda.device_count()):
        why = f"torch finds {count}, " + ", ".join(f"'cuda:{i}'" for i in range(count))
    elif kind == "mps" and not torch.backends.mps.is_available():
        why = "torch finds no Metal device"
    elif kind == "meta":
        why = "its tensors have no values; load the weights first"
    elif (known := getattr(torch, kind, None)) is not None and not getattr(
        known, "is_available", lambda: True
    )():
        why = f"torch finds no {kind} device"
    else:
        return None
    return (
        f"device={device!r} cannot be used in this process ({why}). device='auto' takes cuda, mps or cpu, "
        "whichever the process that calls the network has."
    )


def _check_devices(device: Any) -> str | tuple[str, ...]:
    """Return the name of a device, or a tuple of several; raise as `_check_device` does."""
    if not isinstance(device, list | tuple):
        return _check_device(device)
    names = tuple(map(_check_device, device))
    if not names or len(set(names)) < len(names) or (len(names) > 1 and "auto" in names):
        raise TilingError(f"device must be one name, or different names of devices; got {brief(device)}.")
    return names if len(names) > 1 else names[0]


def _check_device(device: Any) -> str:
    """Return the name of a device; raise if it is known here that it cannot be used."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(device, torch.device):
        device = str(device)
    if not isinstance(device, str):
        raise TypeError(f"device must be a name, such as 'auto', 'cpu' or 'cuda:0'; got {device!r}.")
    kind, colon, number = device.partition(":")
    if device == "auto" or torch is None:
        one_of("device", kind, _DEVICES)
        if colon and not (number.isdecimal() and kind != "auto"):
            raise TilingError(f"device must be a name such as 'cuda' or 'cuda:0'; got {device!r}.")
    elif (problem := _problem(device, torch)) and not (kind in _DEVICES and _has_cluster()):
        raise TilingError(problem)
    return device


def _has_cluster() -> bool:
    """Return whether there is a distributed client: its workers may have other devices."""
    distributed: Any = sys.modules.get("distributed")
    try:
        return distributed is not None and distributed.default_client() is not None
    except ValueError:
        return False


def _copy_on(module: Any, device: Any, torch: Any) -> Any:
    """Return the one copy of a network on another device; it is made again if the weights have changed."""
    stamps = list(map(_stamp, _weights(module)))
    copies = _COPIES.setdefault(module, {})
    found = copies.pop(str(device), None)
    if found is None or found[0] != stamps:
        del found  # its memory, before more is taken
        found = stamps, _moved(module, device, torch)
    copies[str(device)] = found
    return found[1]


def _stamp(tensor: Any) -> tuple[int, ...]:
    """Return what changes when values are put into a tensor, as training does in place."""
    try:
        return id(tensor), tensor.data_ptr(), tensor._version
    except RuntimeError:  # made in inference mode, or not made yet
        return (id(tensor),)


def _moved(module: Any, device: Any, torch: Any) -> Any:
    """Return a copy of a network on another device; its weights are copied there only."""
    memo: dict[int, Any] = {}
    try:
        for part in module.modules():
            if isinstance(part, torch.jit.ScriptModule):
                continue  # it copies its weights itself
            # Tensors that are plain attributes go along; some are computed from parameters.
            for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
                if not isinstance(tensor, torch.Tensor) or torch.nn.parameter.is_lazy(tensor):
                    continue
                moved = tensor.detach().to(device)
                if isinstance(tensor, torch.nn.Parameter):
                    moved = torch.nn.Parameter(moved, tensor.requires_grad)
                memo[id(tensor)] = moved
        return copy.deepcopy(module, memo).to(device)
    except Exception as error:
        raise TilingError(
            f"the network cannot be copied to {device} ({type(error).__name__}: {error}). Move it yourself, "
            f'module.to("{device}"), or give a callable that builds it.'
        ) from error


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


def _channel_note(module: Any, crop: Sequence[int], channel_axis: int | None, *, added: bool) -> str:
    """Return what to say of the channels when a network fails; empty if they are as many as it takes.

    Parameters
    ----------
    crop : sequence of int, samples per axis
        Shape of the crops, as they were given.
    """
    first = _first_convolution(module)
    wanted = None if first is None else first[1]
    if added:
        return "" if wanted in (None, 1) else (
            f"the crops of shape {tuple(crop)} got a channel axis of length 1; the first convolution takes "
            f"{wanted} channels: give crops with an axis of {wanted}."
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
) -> TorchFunction | LoadOnce:
    """Return a torch network as a function of numpy crops.

    The network runs in evaluation mode and without gradients. It always gets a batch; without ``batch_size``
    in `tiled_map`, a batch of one crop. Crops of any integer, bool or floating dtype are cast to the dtype of
    the network: that of its first floating parameter or buffer, or float32 if it has none. A network that
    needs integers casts them back itself, ``x.long()``.

    A process makes one call at a time on each device, for a network as for a callable that builds one.
    `to_zarr` and `compute` start at least eight threads for it, of which the others read and write meanwhile.

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

    Returns
    -------
    TorchFunction or LoadOnce

    Raises
    ------
    TypeError
        If ``compile`` is not True or False, or ``add_channel`` not one of them or None; if the argument is
        neither a module nor a callable.
    TilingError
        If the device is not known, or this process does not have it.

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
    places = _check_devices(device)
    options: tuple[Any, ...] = (places, autocast, add_channel, channel_axis, activation)
    if flag("compile", compile):
        options += (True,)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(module_or_factory, torch.nn.Module):
        return TorchFunction(module_or_factory, *options)
    if not callable(module_or_factory):
        raise TypeError(
            "module_or_factory must be a torch module or a callable that builds one; got "
            f"{brief(module_or_factory)}."
        )
    # A proxy of a network is called with crops; what it builds is wanted here.
    factory = module_or_factory.get if isinstance(module_or_factory, LoadOnce) else module_or_factory
    built: Any = load_once(functools.partial(_build, factory, options))
    built.__tilework_batched__ = True
    # One call has a device, while the crops of the next one become a tensor.
    n = len(places) if isinstance(places, tuple) else 1
    built = built.at_most(2 * n)
    if n > 1:
        built.__tilework_device__ = n
    if compile:
        built.__tilework_whole_batches__ = True
    proxy: LoadOnce = built
    return proxy


def _build(factory: Callable[[], Any], options: tuple[Any, ...]) -> TorchFunction:
    import torch

    module = factory()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"the callable must build a torch module; it returned {type(module).__name__}. Give "
            "lambda: module, if it is the network itself."
        )
    if isinstance(options[0], tuple):
        return TorchFunction(module, *options)
    place, moves = _place(module, options[0], torch)
    # Whoever holds the module that was built keeps it as it is; otherwise its memory is freed here.
    return TorchFunction(_moved(module, place, torch) if moves else module, *options)
