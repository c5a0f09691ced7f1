"""Where a network runs: the devices that a process has, and the copies of networks on them."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from tilework._checks import brief, one_of
from tilework.errors import TilingError
from tilework.function.scripts import constants

__all__ = ["check_devices", "copy_on", "dtype_of", "moved", "place_of", "unusable", "weights_of"]

# Kinds of devices that torch names without a plug-in, and on which a network can run.
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla")
# Dtypes in which networks calculate; weights of 8 bits are unpacked by the network.
_FLOATS = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")

# Copies of networks on other devices: by network, then by device, with the stamps of the weights.
_COPIES: WeakKeyDictionary[Any, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()
# Tensors in the graphs of scripts, which are walked once; they stay where they are when a network is moved.
_CONSTANTS: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


def weights_of(module: Any) -> Iterator[Any]:
    """Yield parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def dtype_of(module: Any, torch: Any) -> Any:
    """Return the dtype in which a network calculates."""
    known = [getattr(torch, name) for name in _FLOATS]
    values = itertools.chain(weights_of(module), _constants_of(module, torch))
    return next((t.dtype for t in values if t.dtype in known), torch.float32)


def _constants_of(module: Any, torch: Any) -> list[Any]:
    """Return the tensors in the graphs of scripts, as weights of frozen networks; scalars run anywhere."""
    found = []
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            if part not in _CONSTANTS:
                tensors = [c for c in constants(part) if isinstance(c, torch.Tensor) and c.ndim]
                _CONSTANTS[part] = tensors
            found += _CONSTANTS[part]
    return found


# -- devices ----------------------------------------------------------------------------------------------


def place_of(module: Any, wanted: str, torch: Any) -> tuple[Any, bool]:
    """Return the device on which a network runs, and whether it has to be moved there."""
    places = [_numbered(w.device, torch) for w in weights_of(module)]
    fixed = {_numbered(c.device, torch) for c in _constants_of(module, torch)}
    if wanted == "auto":
        stays = any(place.type != "cpu" for place in places)
        first = places[0] if stays else next(iter(fixed), None)
        wanted = _best(module, torch) if first is None else str(first)
        places = [] if stays else places
    if problem := _problem(wanted, torch):
        raise TilingError(problem)
    device = _numbered(torch.device(wanted), torch)
    moves = any(place != device for place in places)
    if fixed - {device} and (moves or not places):
        raise TilingError(
            f"device={str(device)!r} is not where the constants of this TorchScript network are "
            f"({', '.join(sorted(map(str, fixed)))}), which cannot be moved. Move the network before "
            "torch.jit.freeze or torch.jit.trace, or give device='auto', which stays there."
        )
    return device, moves


def _best(module: Any, torch: Any) -> str:
    """Return the fastest kind of device that there is."""
    if torch.cuda.is_available():
        return "cuda"
    # This kind has no numbers of 64 bits.
    if torch.backends.mps.is_available() and dtype_of(module, torch).itemsize < 8:
        return "mps"
    return "cpu"


def _numbered(device: Any, torch: Any) -> Any:
    """Return a device in the one way in which it is written here."""
    if device.type in ("cpu", "mps"):
        return torch.device(device.type)
    current = torch.cuda.current_device() if device.type == "cuda" and device.index is None else 0
    return torch.device(device.type, current if device.index is None else device.index)


def unusable(device: str, torch: Any) -> str | None:
    """Return why a device cannot be used in this process; None if it can.

    Raises
    ------
    RuntimeError
        If it is not the name of a device.
    """
    found = torch.device(device)
    kind, number = found.type, found.index or 0
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        return "torch finds no CUDA device" if built else "this build of torch has no CUDA"
    if kind == "cuda" and number >= (count := torch.cuda.device_count()):
        return f"torch finds {count}, " + ", ".join(f"'cuda:{i}'" for i in range(count))
    if kind == "mps" and not torch.backends.mps.is_available():
        return "torch finds no Metal device"
    if kind == "meta":
        return "its tensors have no values; load the weights first"
    known = getattr(torch, kind, None)
    missing = known is not None and not getattr(known, "is_available", lambda: True)()
    return f"torch finds no {kind} device" if missing else None


def _problem(device: str, torch: Any) -> str | None:
    """Return why a device cannot be used in this process, and what to do; None if it can."""
    try:
        why = unusable(device, torch)
    except RuntimeError as error:
        return f"device={device!r} is not the name of a device: {error}"
    return why and (
        f"device={device!r} cannot be used in this process ({why}). device='auto' takes cuda, mps or cpu, "
        "whichever the process that calls the network has."
    )


def check_devices(device: Any) -> str | tuple[str, ...]:
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


# -- copies -----------------------------------------------------------------------------------------------


def copy_on(module: Any, device: Any, torch: Any) -> Any:
    """Return the one copy of a network on another device; it is made again if the weights have changed."""
    stamps = list(map(_stamp, weights_of(module)))
    copies = _COPIES.setdefault(module, {})
    found = copies.pop(str(device), None)
    if found is None or found[0] != stamps:
        del found  # its memory, before more is taken
        found = stamps, moved(module, device, torch)
    copies[str(device)] = found
    return found[1]


def _stamp(tensor: Any) -> tuple[int, ...]:
    """Return what changes when values are put into a tensor, as training does in place."""
    try:
        return id(tensor), tensor.data_ptr(), tensor._version
    except RuntimeError:  # made in inference mode, or not made yet
        return (id(tensor),)


def moved(module: Any, device: Any, torch: Any) -> Any:
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
                there = tensor.detach().to(device)
                if isinstance(tensor, torch.nn.Parameter):
                    there = torch.nn.Parameter(there, tensor.requires_grad)
                memo[id(tensor)] = there
        return copy.deepcopy(module, memo).to(device)
    except Exception as error:
        raise TilingError(
            f"the network cannot be copied to {device} ({type(error).__name__}: {error}). Move it yourself, "
            f'module.to("{device}"), or give a callable that builds it.'
        ) from error
