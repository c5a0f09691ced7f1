"""Grids and weights of MONAI and nnU-Net, as arguments of `tiled_map`."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework._checks import brief, flag, one_of, positive, sequence, whole, wholes
from tilework._types import Array, Floats, Index
from tilework.errors import GridError, TilingError

__all__ = ["monai_options", "monai_weights", "nnunet_options"]

PADDING_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""Boundaries by torch's names, which MONAI uses."""
# The smallest weight of MONAI's gaussian.
LEAST = 1e-3
# nnU-Net's gaussian: its standard deviation over the patch, and its largest value.
NNUNET_SIGMA, NNUNET_PEAK = 1 / 8, 10
# Standard deviations at which scipy.ndimage.gaussian_filter, with which nnU-Net makes its weights, ends.
TRUNCATE = 4


def monai_weights(crop: Sequence[int], sigma_scale: float | Sequence[float] = 0.125) -> Array:
    """Return the weights of MONAI's ``mode="gaussian"``, for ``blend=``.

    They are the product of one gaussian per axis, and nowhere less than 0.001 (or than the smallest product,
    if that is more), so corners weigh more than with ``blend="gaussian"``.

    Parameters
    ----------
    crop : sequence of int, samples per tiled axis
    sigma_scale : float, or one per tiled axis
        Standard deviation as a fraction of the crop.

    Returns
    -------
    numpy.ndarray, shape ``crop``, float32

    Raises
    ------
    TilingError, TypeError
        For lengths or scales that are not positive.

    Examples
    --------
    >>> weights = monai_weights((4, 6))
    >>> weights.shape, float(weights.min())
    ((4, 6), 0.0010000000474974513)
    """
    lengths = _lengths("crop", crop)
    scales = _per_axis("sigma_scale", sigma_scale, len(lengths))
    if not all(positive("sigma_scale", scale) for scale in scales):
        raise TilingError(f"sigma_scale must be positive; got {brief(sigma_scale)}.")
    along = []
    for n, scale in zip(lengths, scales, strict=True):
        # torch's exponents are in single precision, its exponentials those of double precision, rounded.
        x = (np.arange(n) - (n - 1) / 2).astype(np.float32)
        exponent = x * x / np.float32(-2 * (n * scale) ** 2)
        along.append(np.exp(exponent.astype(np.float64)).astype(np.float32))
    values: Array = functools.reduce(np.multiply.outer, along)
    return np.maximum(values, np.float32(LEAST))


def monai_options(
    shape: Sequence[int],
    roi_size: int | Sequence[int | None],
    overlap: float | Sequence[float] = 0.25,
    mode: str = "constant",
    sigma_scale: float | Sequence[float] = 0.125,
    padding_mode: str = "constant",
    cval: float = 0.0,
) -> dict[str, Any]:
    """Return the arguments of `tiled_map` that give the numbers of MONAI's ``sliding_window_inference``.

    Parameters have MONAI's meaning.

    Parameters
    ----------
    shape : sequence of int, samples
        Shape of the image. The last ones, as many as ``roi_size`` has, are those of the tiled axes; all, if
        ``roi_size`` is one int.
    roi_size : int, or one int or None per tiled axis, samples
        Shape of the window. None, 0 or less: the image's own extent.
    overlap : float, or one per tiled axis
        Fraction of the window that neighbours share, at least 0 and less than 1.
    mode : {"constant", "gaussian"}
        Weights of the samples of a window.
    sigma_scale : float, or one per tiled axis
        As in `monai_weights`.
    padding_mode : {"constant", "reflect", "replicate", "circular"}
        How an image that is smaller than the window is padded, on both sides.
    cval : float
        The value for ``padding_mode="constant"``.

    Returns
    -------
    dict
        ``axes``, the last ones, ``crop``, ``stride``, ``blend``, ``boundary``, ``cval`` and ``pad_side``.

    Raises
    ------
    TilingError, TypeError
        For arguments that MONAI refuses, too.

    Examples
    --------
    >>> options = monai_options((1, 300, 400), (96, -1), overlap=0.5)
    >>> options["crop"], options["stride"], options["blend"]
    ((96, 400), (48, 400), 'average')
    """
    extents = _extents(shape, roi_size)
    n = len(extents)
    given = roi_size if sequence(roi_size) else (roi_size,) * n
    wanted = [0 if r is None else whole("roi_size", r) for r in given]  # type: ignore[union-attr]
    roi = tuple(r if r > 0 else extent for r, extent in zip(wanted, extents, strict=True))
    shared = _per_axis("overlap", overlap, n)
    if not all(0 <= o < 1 for o in shared):
        raise GridError(f"overlap must be at least 0 and less than 1, as in MONAI; got {brief(overlap)}.")
    columns = zip(roi, extents, shared, strict=True)
    stride = tuple(r if r >= extent else max(1, int(r * (1 - o))) for r, extent, o in columns)
    gaussian = one_of("mode", mode, ("constant", "gaussian")) == "gaussian"
    return {
        "axes": tuple(range(-n, 0)),
        "crop": roi,
        "stride": stride,
        "blend": monai_weights(roi, sigma_scale) if gaussian else "average",
        "boundary": PADDING_MODES[one_of("padding_mode", padding_mode, PADDING_MODES)],
        "cval": cval,
        "pad_side": "both",
    }


def nnunet_options(
    shape: Sequence[int], patch_size: Sequence[int], step: float = 0.5, *, gaussian: bool = True
) -> dict[str, Any]:
    """Return the arguments of `tiled_map` that give the grid and the weights of nnU-Net's predictor.

    Parameters
    ----------
    shape : sequence of int, samples
        Shape of the image. The last ones, as many as ``patch_size`` has, are those of the tiled axes.
    patch_size : sequence of int, samples per tiled axis
        Shape of the patch. For a 2-D network on a volume, these are two numbers; give the axis of the slices
        as ``each=``.
    step : float
        nnU-Net's ``tile_step_size``: largest distance of neighbouring patches, as a fraction of the patch.
    gaussian : bool
        Whether weights are nnU-Net's gaussian, or all equal.

    Returns
    -------
    dict
        ``axes``, the last ones, ``crop``, ``starts``, ``blend``, ``boundary``, ``cval`` and ``pad_side``.

    Raises
    ------
    TilingError, TypeError
        For a step that is not above 0 and up to 1, or with which patches would lie on one another.

    Notes
    -----
    The rules are those of ``compute_steps_for_sliding_window`` and ``compute_gaussian`` in
    ``nnunetv2/inference/sliding_window_prediction.py``: starts are rounded to the nearest sample, and weights
    to half precision. nnU-Net also adds up in half precision; sums here are in single precision or better.
    Mirroring is not part of it.

    Examples
    --------
    >>> options = nnunet_options((111, 40), (64, 64))
    >>> options["crop"], options["starts"]
    ((64, 64), ((0, 24, 47), (0,)))
    """
    flag("gaussian", gaussian)
    patch = _lengths("patch_size", patch_size)
    extents = _extents(shape, patch)
    if not (positive("step", step) and step <= 1):
        raise GridError(f"step must be above 0 and up to 1, a fraction of the patch; got {brief(step)}.")
    columns = zip(extents, patch, strict=True)
    return {
        "axes": tuple(range(-len(patch), 0)),
        "crop": patch,
        "starts": tuple(_steps(max(extent, p), p, float(step)) for extent, p in columns),
        "blend": _nnunet_weights(patch) if gaussian else "average",
        "boundary": "constant",
        "cval": 0,
        "pad_side": "both",
    }


def _steps(extent: int, patch: int, step: float) -> Index:
    """Return where nnU-Net's patches start along one axis, samples of the padded image."""
    count = math.ceil((extent - patch) / (patch * step)) + 1
    if count - 1 > extent - patch:
        raise GridError(
            f"step {step:g} of patch {patch} is less than a sample, so that patches would lie on one "
            f"another; use at least {1 / patch:.3g}."
        )
    distance = (extent - patch) / max(1, count - 1)
    return tuple(int(np.round(distance * i)) for i in range(count))


def _nnunet_weights(patch: Index) -> Floats:
    """Return what `scipy.ndimage.gaussian_filter` makes of a point in the middle of a patch, rounded."""
    along = []
    for n in patch:
        sigma = n * NNUNET_SIGMA
        radius = int(TRUNCATE * sigma + 0.5)
        kernel = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
        kernel /= kernel.sum()
        distance = np.arange(n) - n // 2
        # The kernel ends within a sample of the patch.
        inside = np.abs(distance) <= radius
        along.append(np.where(inside, kernel[np.clip(distance + radius, 0, 2 * radius)], 0.0))
    values: Floats = functools.reduce(np.multiply.outer, along)
    values /= values.max() / NNUNET_PEAK
    # torch rounds double to half precision by way of single precision.
    rounded = values.astype(np.float32).astype(np.float16)
    rounded[rounded == 0] = rounded[rounded > 0].min()
    return rounded.astype(np.float64)


def _lengths(what: str, value: Any) -> Index:
    """Return lengths, one per tiled axis; raise unless they are positive."""
    if not sequence(value):
        raise TypeError(f"{what} must have one length per tiled axis, such as (96, 96); got {brief(value)}.")
    found = wholes(what, value)
    if not found or min(found) < 1:
        raise GridError(f"{what} must be at least one length, each at least 1; got {brief(value)}.")
    return found


def _extents(shape: Any, crop: Any) -> Index:
    """Return the extents of the tiled axes: the last ones of a shape, as many as ``crop`` has."""
    extents = _lengths("shape", shape)
    if not sequence(crop):
        return extents
    if len(crop) > len(extents):
        raise GridError(f"{brief(crop)} has {len(crop)} lengths, the image {len(extents)} axes: {extents}.")
    return extents[len(extents) - len(crop) :]


def _per_axis(what: str, value: Any, n: int) -> tuple[Any, ...]:
    """Return one value per tiled axis."""
    found = tuple(value) if sequence(value) else (value,) * n
    if len(found) != n:
        raise GridError(f"{what} needs one number per tiled axis, {n}; got {brief(value)}.")
    return found
