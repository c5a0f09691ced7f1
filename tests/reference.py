"""The naive oracle: what `tiled_map` must return, by loops over whole arrays in memory.

It shares no code with the package; its parameters are those of `tiled_map` and `Output`, and are
not checked. Letters, for values along one axis: extent n, crop c, overlap o, stride s, multiple m,
scale f with denominator q, rim r, margin (lo, hi). Three coordinates:

- *image*: 0 .. n;
- *P*, the padded image: P[i] is image[i - lo]. `fn` maps P[a:b] to the samples a .. b - lo - hi of
  the image: a tile has one start, in P, where it reads, as in the image, where its result stands.
  It is negative where the image is padded on both sides;
- *output*: image coordinates times f.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, product
from math import ceil, floor, lcm
from typing import Any

import numpy as np


def walk(
    n: int, c: int, s: int, m: int, q: int, lo: int, hi: int, edge: str, trim: bool,
    side: str = "end", given: Any = None,
) -> list[tuple[int, int, int, int]]:  # fmt: skip
    """Return each tile of one axis: start and stop in P, start and stop of its core in the image.

    Starts and stops never decrease; a core ends where the next one starts, and means nothing for
    a blend. `given`: the starts, from the first sample of P and of what it is padded with.
    """
    o, p, end = (c - s) // 2, n + lo + hi, n  # p: extent of P; end: of the last core
    while edge in ("shift", "squeeze") and (p < c or (p - c) % m):
        p += 1
    before = (p - n - lo - hi) // 2 if side == "both" else 0
    cores = list(range(0, n + before, s))
    starts = [x - (o - lo) if trim or edge == "pad" else x for x in cores]
    if edge == "shift":
        starts = [min(max(x, 0), p - c) for x in starts]
    if given is not None or (edge == "squeeze" and n > 0):
        gaps = len(range(0, p - c, s))
        starts = [0] + [m * (j * ((p - c) // m) // gaps) for j in range(1, gaps + 1)]
        starts = starts if given is None else list(given)
        starts = [x - before for x in starts]
        cores = [0] + [((x + y + c) // 2 - lo) // q * q for x, y in pairwise(starts)]
    elif before:
        starts, cores = [x - before for x in starts], [max(0, x - before) for x in cores]
    if edge == "drop":
        starts = list(range(0, p - c + 1, s))
        cores = [x + o - lo if x > 0 else 0 for x in starts]
        end = n if not starts or starts[-1] + c == p else starts[-1] + c - o - lo
    reads = [(max(x, 0), min(x + c, p)) if edge == "clip" else (x, x + c) for x in starts]
    # A tile inside its predecessor is not made, and its core goes to the predecessor.
    made = [j for j in range(len(reads)) if j == 0 or reads[j][1] > reads[j - 1][1]]
    bounds = [*(cores[j] for j in made), end]
    return [(*reads[j], bounds[i], bounds[i + 1]) for i, j in enumerate(made)]


def window(blend: Any, axis: int, length: int, r: int, sigma_scale: float) -> Any:
    """Return the weights along one axis of a whole crop's result, the rim not yet cleared."""
    if not isinstance(blend, str):
        return np.asarray(blend(length) if callable(blend) else blend[axis])
    x, k, m = np.arange(length), np.arange(length) - r, length - 2 * r
    bell = np.exp(-(((x - (length - 1) / 2) / (sigma_scale * length)) ** 2) / 2)
    return {
        "linear": np.minimum(k + 1, m - k),
        "hann": np.sin(np.pi * (k + 0.5) / m) ** 2,
        "gaussian": np.maximum(bell, bell[bell > 0].min()),
    }.get(blend, np.ones(length))


@np.errstate(invalid="ignore", over="ignore")
def reference(
    fn: Callable[..., Any], image: np.ndarray, crop: Any, overlap: Any = None, *,
    axes: tuple[int, ...], stride: Any = None, multiple: Any = 1, edge: str = "shift",
    boundary: Any = "reflect", cval: float = 0, blend: Any = "trim", rim: Any = 0,
    sigma_scale: float = 0.125, pad_side: str = "end", starts: Any = None, margin: Any = 0, scale: Any = 1,
    out_axes: tuple[int, ...] | None = None, mask: np.ndarray | None = None,
    fill_value: Any = 0, pass_tile: bool = False, dtype: Any = None,
) -> np.ndarray:  # fmt: skip
    """Return what fn makes of the image; a count is an int or a tuple with one for each axis."""
    d, dims, kind = len(axes), range(len(axes)), blend if isinstance(blend, str) else "own"
    last = range(-d, 0)  # where the tiled axes stand in all arrays but those of the caller and fn

    def per_axis(value: Any) -> Any:
        return value if isinstance(value, tuple) else (value,) * d

    def run(crop: np.ndarray, index: int) -> Any:
        crop = np.moveaxis(crop, last, axes).copy()
        result = fn(crop, index) if pass_tile else fn(crop)
        return np.moveaxis(np.asarray(result), out_axes or axes, last)

    # 1. Every value along each tiled axis; the tiles; the weights of a whole crop's result.
    n, c, f = [image.shape[a] for a in axes], per_axis(crop), [Fraction(x) for x in per_axis(scale)]
    # Given starts: no matter.
    o = per_axis(0 if overlap is None else overlap)
    s = [c[k] - 2 * o[k] if stride is None else per_axis(stride)[k] for k in dims]
    lo, hi = np.broadcast_to(np.transpose(margin), (2, d)).tolist()
    q = [x.denominator for x in f]
    m = [lcm(per_axis(multiple)[k], q[k]) for k in dims]
    r = [0 if kind == "trim" else int(per_axis(rim)[k] * f[k]) for k in dims]  # in the output
    size = [int((c[k] - lo[k] - hi[k]) * f[k]) for k in dims]
    more = [(pad_side, None if starts is None else starts[k]) for k in dims]
    grid = [walk(n[k], c[k], s[k], m[k], q[k], lo[k], hi[k], edge, kind == "trim", *more[k]) for k in dims]
    nominal = np.array(blend if isinstance(blend, np.ndarray) else 1.0, float)
    for k in [] if isinstance(blend, np.ndarray) else dims:
        nominal = np.multiply.outer(nominal, window(blend, k, size[k], r[k], sigma_scale))

    # 2. P, with c samples more on each side: what no tile reads has no effect.
    image = np.moveaxis(image, axes, last)
    untiled = image.shape[:-d]
    widths = [(0, 0) for _ in untiled] + [(lo[k] + c[k], hi[k] + m[k] + c[k]) for k in dims]
    extra = {"constant_values": cval} if boundary == "constant" else {}
    padded: Any = np.pad(image, widths, boundary, **extra) if all(n) else image

    # 3. Run the tiles whose support holds a wanted sample; keep the part of each result that goes
    #    to a box of the output: the core when trimming, else all that lies in the array.
    wanted = np.full(n, mask is None)
    if mask is not None:
        w = [Fraction(n[k], mask.shape[k]) for k in dims]  # image samples to a mask sample
        for j in np.argwhere(mask).tolist():
            wanted[tuple(slice(floor(j[k] * w[k]), ceil((j[k] + 1) * w[k])) for k in dims)] = True
    done: list[Any] = []
    for index, tile in enumerate(product(*grid)):
        weight, read, box, part = nominal.copy(), [], [], []
        for k, (start, stop, *core) in enumerate(tile):
            end, inner = stop - lo[k] - hi[k], size[k] - r[k]  # end: of the result, in the image
            along = np.moveaxis(weight, k, 0)
            along[: r[k]] = along[r[k]] if start <= 0 and edge != "pad" else 0
            along[inner:] = along[inner - 1] if end >= n[k] and edge != "pad" else 0
            a, b = core if kind == "trim" else (max(start, 0), min(end, n[k]))
            read.append(slice(start + c[k], stop + c[k]))
            box.append(slice(ceil(a * f[k]), ceil(b * f[k])))
            part.append(slice(ceil((a - start) * f[k]), ceil((b - start) * f[k])))
        weight, support = weight[tuple(part)], []
        for k, at in enumerate(np.nonzero(weight > 0)):
            a, b = box[k].start + at.min().item(), box[k].start + at.max().item() + 1
            support.append(slice(floor(a / f[k]), ceil(b / f[k])))
        if wanted[tuple(support)].any():
            done.append((tuple(box), weight, run(padded[..., *read], index)[..., *part]))

    # 4. Put them together: trim, max and min copy; all other blends are sums in double precision.
    example = done[0][2] if done else run(np.zeros((*untiled, *c), image.dtype), 0)
    shape = [*example.shape[:-d], *(ceil(n[k] * f[k]) for k in dims)]
    copies = kind in ("trim", "max", "min")
    value: Any = np.zeros(shape, example.dtype if copies else np.result_type(example.dtype, float))
    total = np.zeros(shape[-d:])
    for target, weight, result in done:
        here, use, new = value[..., *target], weight > 0, result
        if kind in ("max", "min"):
            better = np.maximum(here, new) if kind == "max" else np.minimum(here, new)
            new = np.where(total[target] > 0, better, new)
        if copies:
            np.copyto(here, new, where=use)
        else:
            here += np.multiply(new, weight, where=use, out=np.zeros(new.shape, value.dtype))
        total[target] += weight
    if not copies and kind != "sum":
        np.divide(value, total, where=total > 0, out=value)
    out = np.full(shape, fill_value, example.dtype if dtype is None else dtype)
    if kind != "trim" and out.dtype.kind in "iu" and out.dtype != value.dtype:
        value = np.clip(np.rint(value), np.iinfo(out.dtype).min, np.iinfo(out.dtype).max)
    np.copyto(out, value.astype(out.dtype), where=total > 0)
    return np.moveaxis(out, last, out_axes or axes)
