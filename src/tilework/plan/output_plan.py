"""What a plan knows about one output: where its results have weight, and what adding them up takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from tilework._derived import Holder, derived
from tilework.function.bound import BoundOutput

__all__ = ["PRODUCT", "PRODUCTS", "SUMS", "OutputPlan", "valid_bytes"]

# Most samples of weights that are kept as one product, and bytes of products that a result keeps.
PRODUCT, PRODUCTS = 2**18, 2**24
# Bytes of sums of importance maps that an output keeps: those of a few pieces serve nearly all blocks.
SUMS = 2**25


@dataclass(frozen=True, slots=True)
class OutputPlan(Holder):
    """Facts about one output that a plan needs."""

    rim: tuple[int, ...] | None = None
    """Image samples at each end of a crop that get no weight, per grid axis; None for a trimmed output."""
    scale: tuple[Fraction, ...] = ()
    """Result samples per image sample, per grid axis."""
    sample_bytes: int = 1
    """Bytes of one result sample while it is accumulated, over all channels."""
    final_bytes: int = 1
    """Bytes of one sample of the returned array, over all channels."""
    blend: str = "trim"
    """The word of the blend, or "window" for weights given by the caller; for pictures."""
    sigma_scale: float = 0.125
    """Standard deviation of a gaussian window, as a fraction of the crop."""
    finish_bytes: int = 0
    """Bytes that finishing a block takes per result sample, besides its sums and the block."""
    gap_bytes: int = 0
    """The same where tiles may be left out."""
    kept_bytes: int = 0
    """Bytes of weights that a process keeps for it."""

    @derived
    def per_sample(self) -> float:
        """Result samples per image sample, over all axes."""
        return float(math.prod(self.scale))

    @classmethod
    def of(cls, output: BoundOutput) -> OutputPlan:
        """Return the facts that a plan, and its JSON, keep about an output with weights."""
        tiled = _tiled(output)
        rims = tuple(w.rim or 0 for w in output.weights)
        return cls(
            rim=None if output.kind == "trim" else rims,
            scale=tuple(w.scale for w in output.weights),
            sample_bytes=math.prod(output.shape) // tiled * output.sum_bytes,
            final_bytes=math.prod(output.reduced_shape) // tiled * output.dtype.itemsize,
            blend=output.kind,
            sigma_scale=output.sigma_scale,
            finish_bytes=_finishing(output, gaps=output.importance is not None),
            gap_bytes=_finishing(output, gaps=True),
            kept_bytes=_kept(output),
        )


def _tiled(output: BoundOutput) -> int:
    """Return the number of samples of a result over the tiled axes."""
    return max(1, math.prod(output.shape[a] for a in output.axes))


def _finishing(output: BoundOutput, *, gaps: bool) -> int:
    """Return the most bytes per tiled sample that `engine.canvas.finish` holds beside sums and result.

    With ``gaps``, sums are divided by the weights that were added, and samples without any are filled.
    """
    tiled, dtype = _tiled(output), output.accumulator()
    values = math.prod(output.shape) // tiled * dtype.itemsize
    reduced = math.prod(output.reduced_shape) // tiled
    # A copy of the sums: with what rounding took from them; and rounded, where the result is an integer.
    restored = values * output.compensated
    last = values * (output.reduce is None and output.dtype.kind in "iu" and dtype.kind == "f")
    last += reduced * np.dtype(np.intp).itemsize * (output.reduce == "argmax")
    if not gaps:
        return restored + last
    # Bits: where a tile has weight, where one is missing, and where the sum of weights is positive.
    bits, filled = 3, reduced * output.dtype.itemsize
    if not output.weighted:
        return restored + max(bits, last + 1 + filled)
    weight, total = _weight_bytes(output), 8 * (1 + output.compensated)
    summing, dividing = weight + total + bits, 2 * weight + bits + values + last
    return restored + max(summing, dividing + filled)


def _kept(output: BoundOutput) -> int:
    """Return the most bytes of products of weights, and of sums of them, that a process keeps."""
    if not output.weighted:
        return 0
    tiled, weight = _tiled(output), _weight_bytes(output)
    if output.importance is None:
        # Weights are other ones where fewer tiles lie on a tile, or a shifted one: near the ends of an axis.
        kinds = math.prod(min(len(w.grid), 2 * w.most) for w in output.weights)
        return min(PRODUCTS, int(kinds) * min(PRODUCT, tiled) * weight)
    # Likewise sums: over about a crop at each end of an axis, and over one stride between.
    sums = math.prod([3] * len(output.axes)) * tiled * weight
    return min(PRODUCTS, tiled * weight) + min(SUMS, sums)


def _weight_bytes(output: BoundOutput) -> int:
    """Return the bytes of one weight while results are added."""
    real: Any = np.empty(0, output.accumulator()).real
    return int(real.dtype.itemsize)


def valid_bytes(output: OutputPlan) -> int:
    """Return the bytes per result sample of which image samples are valid: one for each of these."""
    return math.ceil(1 / math.prod(output.scale))
