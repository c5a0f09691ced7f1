"""Declarations of what a function returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from tilework._checks import (
    as_dtype,
    at_least,
    brief,
    check_scalar,
    is_whole,
    one_of,
    sequence,
    whole,
    wholes,
)
from tilework._types import Array, Index
from tilework.errors import GridError, TilingError
from tilework.grid.weights import (
    Blend,
)

__all__ = ["LABELS", "Output", "Outputs", "Reduce", "margins", "named", "scales"]

Reduce = Literal["argmax"] | Callable[[Array], Any]

LABELS = ("own", "join")
"""Ways to make labels of a whole image from those of crops."""
# Largest scale: positions in a result must fit into 64 bits, and an axis may hold 1e15 image samples.
LARGEST = 4096
# Most samples along an axis of a result.
LONGEST = 10**15


@dataclass(frozen=True, slots=True)
class Output:
    """Declaration of one array that the function returns.

    Parameters
    ----------
    dtype : dtype, optional
        Dtype of the returned array, after blending and reducing. By default, one call on zeros finds it
        (for ``reduce="argmax"`` it follows from ``channels``).
    channels : int, optional
        Length of the one untiled axis of the result; 0 if it has none. By default, the result has the
        untiled axes of the crop.
    channel_axis : int
        Position of the channel axis in the result, batch excluded.
    scale : int, Fraction or tuple of them
        Result samples per image sample, per tiled axis: 2 for super-resolution, ``Fraction(1, 16)`` for
        a feature map.
    margin : int, or one int or ``(before, after)`` per tiled axis, samples
        Input samples at each side of a crop for which there is no result: a network without padding that
        maps 512 to 498 has margin 7. The overlap must be at least as large.
    shape : tuple of int, optional
        Shape of the result for a full crop, batch excluded; needed for unusual layouts only.
    axes : tuple of int, optional
        Positions of the tiled axes in the result, batch excluded, in the order of the tiled axes.
    blend : str, callable or arrays, optional
        As in `tiled_map`, for this output only.
    reduce : "argmax" or callable, optional
        Applied to each block after normalising: the index of the largest channel, or any function of the
        block (axes as the function returns them) that keeps the tiled axes.
    fill_value : scalar, optional
        Value where no crop ran; overrides the ``fill_value`` of `tiled_map`.
    channel_names : sequence of str, optional
        Names of the channels that the function returns, for formats that store them and for xarray.
    labels : "own" or "join", optional
        The function returns labels: integers, 0 for the background and one id for each object of the crop.
        "own": the tile whose core holds the centre of an object's bounding box paints it, whole. The result
        equals the labels of the whole image if no object is longer than ``2 * overlap + 1`` along any axis,
        or ``2 * (overlap - r) - 1`` where the function looks ``r`` samples far. Longer objects are told of
        if their samples are connected; without overlap, all that are cut. The lazy result has dtype int64,
        and the id of an object is 1 plus the raveled position of its first sample; `to_zarr` numbers objects
        1, 2, 3... in this order and writes ``dtype``, by default uint32.
        "join": for objects of any size, such as vessels or the components of a mask. A tile keeps what lies
        in its core, and `to_zarr` joins what touches across the cuts between cores, with scipy; so objects
        that touch there become one. The lazy result has an id for each piece.
    connectivity : int
        For ``labels="join"``: the number of axes along which the positions of two samples that touch may
        differ, as in `scipy.ndimage.generate_binary_structure`.

    Examples
    --------
    >>> Output(channels=5, reduce="argmax").scale
    1
    """

    dtype: Any = None
    channels: int | None = None
    channel_axis: int = 0
    scale: Any = 1
    margin: Any = 0
    shape: Index | None = None
    axes: Index | None = None
    blend: Blend | None = None
    reduce: Reduce | None = None
    fill_value: Any = None
    channel_names: tuple[str, ...] | None = None
    labels: str | None = None
    connectivity: int = 1

    def __init__(
        self,
        dtype: Any = None,
        *,
        channels: int | None = None,
        channel_axis: int = 0,
        scale: Any = 1,
        margin: Any = 0,
        shape: Sequence[int] | None = None,
        axes: Sequence[int] | None = None,
        blend: Blend | None = None,
        reduce: Reduce | None = None,
        fill_value: Any = None,
        channel_names: Sequence[str] | None = None,
        labels: str | None = None,
        connectivity: int = 1,
    ) -> None:
        channels = None if channels is None else whole("channels", channels)
        shape = None if shape is None else wholes("shape", shape)
        axes = None if axes is None else wholes("axes", axes)
        if not all(0 <= n <= LONGEST for n in (channels or 0, *(shape or ()))):
            raise TilingError(
                f"channels (0 for none) and shape must be whole numbers up to {LONGEST:.0e}; got "
                f"channels={brief(channels)}, shape={brief(shape)}."
            )
        if not (reduce is None or callable(reduce) or str(reduce) == "argmax"):
            raise TilingError(f'reduce must be "argmax" or a callable; got {brief(reduce)}.')
        if callable(reduce) and dtype is None:
            raise TilingError("a callable reduce needs a declared dtype: Output(dtype, reduce=...).")
        if channel_names is not None:
            channel_names = _channel_names(channel_names, channels, reduce)
        if dtype is not None:
            as_dtype(dtype)
        connectivity = at_least("connectivity", connectivity, 1)
        if labels is not None:
            _check_labels(labels, dtype, blend=blend, reduce=reduce, fill_value=fill_value)
        if labels != "join" and connectivity != 1:
            raise TilingError(f'connectivity={connectivity} is for labels="join"; leave it out.')
        if fill_value is not None:
            check_scalar("fill_value", fill_value)
        for check, value in ((scales, scale), (_margin, margin)):
            check(value, len(value) if isinstance(value, list | tuple) else 1)
        values = (
            dtype, channels, whole("channel_axis", channel_axis), scale, margin, shape, axes, blend, reduce,
            fill_value, channel_names, labels, connectivity,
        )  # fmt: skip
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)


def _check_labels(labels: str, dtype: Any, **others: Any) -> None:
    """Raise unless an output of labels says nothing that contradicts it."""
    one_of("labels", labels, LABELS)
    given = {name: value for name, value in others.items() if value is not None}
    if others["fill_value"] is not None and not np.any(others["fill_value"]):
        del given["fill_value"]  # 0 is the background
    for name, value in given.items():
        raise TilingError(
            f"{name}={brief(value)} is not for labels: objects are painted whole, by one tile each, on a "
            f"background of 0. Leave {name} out."
        )
    if dtype is not None and as_dtype(dtype).kind not in "iu":
        raise TilingError(f'labels are stored as integers; got dtype {as_dtype(dtype)}. Use "uint32".')


def _channel_names(names: Any, channels: int | None, reduce: Reduce | None) -> tuple[str, ...]:
    """Return the names of channels as a tuple of text."""
    if isinstance(names, str) or not sequence(names) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"channel_names must be a sequence of text; got {brief(names)}.")
    if reduce is not None and str(reduce) == "argmax":
        raise TilingError('channel_names are of an axis that reduce="argmax" removes; leave them out.')
    if channels is not None and channels != len(names):
        raise TilingError(f"channel_names must be one per channel; got {len(names)} for channels={channels}.")
    return tuple(names)


Outputs = Output | Sequence[Output] | Mapping[Any, Output]


def named(outputs: Outputs) -> list[tuple[int | str | None, Output]]:
    """Return ``(key, Output)`` pairs of one output, a tuple or a dict of them."""
    if isinstance(outputs, Output):
        return [(None, outputs)]
    if isinstance(outputs, Mapping):
        pairs: list[tuple[int | str | None, Output]] = list(outputs.items())
    elif isinstance(outputs, list | tuple):
        pairs = list(enumerate(outputs))
    else:
        raise TypeError(f"output must be an Output, or a tuple or dict of them; got {brief(outputs)}.")
    for key, output in pairs:
        if not isinstance(output, Output):
            raise TypeError(f"output {key!r} must be an Output; got {brief(output)}.")
    if not pairs:
        raise TilingError("output must hold at least one Output; got none.")
    if len({str(key) for key, _ in pairs}) < len(pairs):
        raise TilingError(f"the keys of outputs must differ as text; got {[key for key, _ in pairs]}.")
    return pairs


def margins(outputs: Sequence[Output], n_axes: int) -> tuple[tuple[int, int], ...]:
    """Return ``(before, after)`` per tiled axis; all outputs must have the same margin."""
    found = {_margin(output.margin, n_axes) for output in outputs}
    if len(found) > 1:
        raise GridError(f"all outputs of one function must have one margin; got {sorted(found)}.")
    return found.pop()


def _margin(margin: Any, n_axes: int) -> tuple[tuple[int, int], ...]:
    per_axis = tuple(margin) if isinstance(margin, list | tuple) else (margin,) * n_axes
    if len(per_axis) != n_axes:
        raise GridError(f"margin needs one entry per tiled axis; got {margin!r} for {n_axes} axes.")
    pairs = [tuple(m) if isinstance(m, list | tuple) else (m, m) for m in per_axis]
    if any(len(p) != 2 or any(not is_whole(m) or m < 0 for m in p) for p in pairs):
        raise GridError(f"margin must be whole numbers of samples, at least 0; got {brief(margin)}.")
    return tuple((int(a), int(b)) for a, b in pairs)


def scales(scale: Any, n_axes: int) -> tuple[Fraction, ...]:
    """Return the scale per tiled axis as fractions."""
    per_axis: tuple[Any, ...] = tuple(scale) if isinstance(scale, list | tuple) else (scale,) * n_axes
    if len(per_axis) != n_axes:
        raise GridError(f"scale needs one entry per tiled axis; got {scale!r} for {n_axes} axes.")
    if not all(
        (is_whole(s) or isinstance(s, float | Fraction)) and -math.inf < s < math.inf for s in per_axis
    ):
        raise TypeError(f"scale must be positive whole numbers or Fractions; got {brief(scale)}.")
    fractions = tuple(
        Fraction(int(s) if isinstance(s, np.integer) else s).limit_denominator(4096) for s in per_axis
    )
    if any(not 0 < f <= LARGEST or float(f) != float(s) for f, s in zip(fractions, per_axis, strict=True)):
        raise GridError(
            f"scale must be positive whole numbers or Fractions, at most {LARGEST}; got {brief(scale)}."
        )
    return fractions
