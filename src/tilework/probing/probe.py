"""`probe`: what a function needs to see, found by calling it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilework._checks import as_dtype, positive, wholes
from tilework.errors import TilingError
from tilework.function.calling import check_function
from tilework.plan.arguments import lengths
from tilework.plan.request import Request, make_layout
from tilework.probing.auto import probe_layout
from tilework.probing.report import ProbeReport
from tilework.source.base import Source
from tilework.source.opening import open_source

__all__ = ["ProbeReport", "probe"]


def probe(
    fn: Callable[..., Any],
    crop: int | Sequence[int],
    array: Any = None,
    *,
    shape: Sequence[int] | None = None,
    dtype: Any = "float32",
    axes: Any = None,
    each: Any = (),
    batch_size: int | None = None,
    values: tuple[float, float] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> ProbeReport:
    """Return how much context a function needs: the smallest exact overlap, found by calling it.

    Parts of a crop are replaced, and what changes elsewhere tells how far results depend on inputs; crops
    are rolled, and what moves along tells on which multiples the function commutes with translation.

    Parameters
    ----------
    fn : callable
        As for `tiled_map`; called 15 to 60 times on whole crops, in this process; what `load_once` or
        `from_torch` builds on a worker of the active cluster, if there is one.
    crop : int or tuple of int, samples per tiled axis
        What ``fn`` receives. It should be at least four times as long as the expected overlap.
    array : array, path or tuple of them, optional
        As for `tiled_map`. Gives shape and dtype, and its middle crop as an input; a dask array is not
        computed.
    shape : tuple of int, samples per axis, optional
        Shape of the image without one: ``(3, 512, 512)`` for crops with 3 channels; default: the crop.
    dtype : dtype
        Of the image, where no array is given.
    axes, each, batch_size
        As for `tiled_map`.
    values : (low, high), optional
        Range of the random inputs. Default: that of the array's middle crop; else 0 to 1 for floats, and at
        most 12 bits for integers.
    tolerance : float, optional
        Change that counts as none, as a share of the largest result, for inputs within ``values``: 1e-3
        for a gaussian whose tail may be cut. Default: rounding.
    seed : int
        Of the random inputs.

    Returns
    -------
    ProbeReport
        Prints as a table. ``overlap``, ``multiple`` and ``output`` go into `tiled_map` as they are; a blend
        is exact with ``rim=report.rim`` and at least as much overlap beyond the margin.

    Raises
    ------
    TilingError
        When crop, shape and axes do not fit together, or no declaration describes the result.
    TypeError
        For arguments of a wrong type.

    Notes
    -----
    A reach that was seen is certain: some result changed. That nothing reaches farther is as sure as the
    number of draws and places in the report, and holds for inputs like those. Results are compared to
    rounding, 64 units in the last place of the largest result.

    Examples
    --------
    >>> import numpy as np
    >>> report = probe(lambda x: x + np.vstack([x[:3] * 0, x[:-3]]), (64, 64))
    >>> report.overlap, report.sides, report.multiple, report.exact
    ((3, 0), ((3, 0), (0, 0)), (1, 1), True)
    """
    check_function(fn)
    if tolerance is not None and not positive("tolerance", tolerance):
        raise TilingError(f"tolerance must be a positive share of the largest result; got {tolerance!r}.")
    if array is not None:
        if shape is not None:
            raise TilingError("give array or shape, not both: an array has its shape.")
        given = tuple(array) if isinstance(array, tuple) else (array,)
        sources = tuple(map(open_source, given))
    else:
        whole = lengths(crop) if shape is None else wholes("shape", shape)
        if whole is None:
            raise TilingError(
                f"give the crop's length per axis, or shape= of the image: crop={crop} has any dimension."
            )
        sources = (Source(None, whole, as_dtype(dtype), token="probe"),)
    request = Request(crop=crop, overlap=0, axes=axes, each=each, batch_size=batch_size)
    layout = make_layout(sources, request, None)
    return probe_layout(
        fn, sources, layout, batched=batch_size is not None, values=values, tolerance=tolerance, seed=seed
    )
