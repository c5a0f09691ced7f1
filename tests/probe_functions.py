"""Functions of scipy, scikit-image and numpy, sorted by what an image tiled with them needs.

Each has a kind that follows from its definition:

=========  =============================================================================================
local      depends on inputs up to a fixed distance, whatever the image is
content    depends on inputs as far as structures of the image lead: objects, holes, distances, plateaus
size       depends on the crop's shape
global     depends on all inputs, through a statistic of the crop
place      depends on the place in the crop
wraps      depends on the opposite side of the crop
=========  =============================================================================================

Only "local" may be called exact. Run as a script, this module probes all of them and prints a table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from scipy import ndimage as ndi
from scipy import signal
from skimage import data, exposure, feature, filters, measure, morphology, restoration, segmentation

Array = np.ndarray[Any, Any]
CROSS = ndi.generate_binary_structure(2, 1)
FULL = ndi.generate_binary_structure(2, 2)
RNG = np.random.default_rng(7)
KERNEL = RNG.random((5, 5))


@dataclass(frozen=True)
class Sample:
    """A function with what is true of it."""

    name: str
    kind: str
    fn: Callable[[Array], Any]
    dtype: str = "float32"
    crop: tuple[int, ...] = (64, 64)


def pooled(x: Array, m: int) -> Array:
    """Return the mean of each group of m by m, at full resolution."""
    a, b = (n // m for n in x.shape)
    return x.reshape(a, m, b, m).mean((1, 3)).repeat(m, 0).repeat(m, 1)


def until_stable(step: Callable[[Array], Array], x: Array) -> Array:
    """Return ``x`` after as many steps as change it."""
    while not np.array_equal(after := step(x), x):
        x = after
    return x


def sized(binary: Array, least: int) -> Array:
    """Return the objects of at least ``least`` samples."""
    labels, _ = ndi.label(binary)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= least)[labels])


def peaks(x: Array, **options: Any) -> Array:
    """Return an image that is 1 at the peaks."""
    out = np.zeros(x.shape, np.uint8)
    out[tuple(feature.peak_local_max(x, exclude_border=False, **options).T)] = 1
    return out


def run_lengths(binary: Array) -> Array:
    """Return for each sample the length of its run along the rows."""
    out = np.zeros(binary.shape, np.int32)
    for row, target in zip(binary, out, strict=True):
        ends = np.flatnonzero(np.diff(np.r_[0, row.astype(np.int8), 0]))
        for a, b in ends.reshape(-1, 2):
            target[a:b] = b - a
    return out


def filled_gaps(x: Array) -> Array:
    """Return ``x`` with its zeros replaced by the nearest sample that is not 0."""
    near = ndi.distance_transform_edt(x == 0, return_distances=False, return_indices=True)
    return np.asarray(x[tuple(near)])


def flooded(x: Array, level: float) -> Array:
    """Return the samples below ``level`` that can be reached from the top row."""
    seed = np.zeros(x.shape, bool)
    seed[0] = True
    return np.asarray(ndi.binary_propagation(seed & (x < level), mask=x < level))


def by_rows(x: Array) -> Array:
    """Smooth by a width that grows with the number of rows."""
    return np.asarray(ndi.gaussian_filter(x, x.shape[0] / 48))


def branching(x: Array) -> Array:
    """Smooth less in crops that are short."""
    return np.asarray(ndi.uniform_filter(x, 3 if min(x.shape) < 100 else 5))


def local() -> Iterator[Sample]:
    """Yield functions of a fixed reach."""

    def add(name: str, fn: Callable[[Array], Any], dtype: str = "float32", crop: Any = (64, 64)) -> Sample:
        return Sample(name, "local", fn, dtype, crop)

    yield add("copy", lambda x: x.copy())
    yield add("square root", np.sqrt)
    yield add("clip", lambda x: np.clip(x, 0.2, 0.7))
    yield add("threshold", lambda x: x > 0.5)
    yield add("threshold of uint8", lambda x: x > 100, "uint8")
    yield add("digitize", lambda x: np.digitize(x, [0.2, 0.5, 0.8]))
    yield add("invert", lambda x: 255 - x, "uint8")
    yield add("gamma", lambda x: exposure.adjust_gamma(x, 2))
    for size in (3, 5, 9):
        yield add(f"uniform {size}", lambda x, s=size: ndi.uniform_filter(x, s))
        yield add(f"median {size}", lambda x, s=size: ndi.median_filter(x, s))
        yield add(f"maximum {size}", lambda x, s=size: ndi.maximum_filter(x, s))
    for sigma in (0.8, 1.5, 3):
        yield add(f"gaussian {sigma}", lambda x, s=sigma: ndi.gaussian_filter(x, s), crop=(96, 96))
    yield add("gaussian of uint8", lambda x: ndi.gaussian_filter(x, 1.0), "uint8")
    yield add("gaussian of float64", lambda x: ndi.gaussian_filter(x, 1.0), "float64")
    yield add("uniform of uint16", lambda x: ndi.uniform_filter(x, 5), "uint16")
    yield add("median of uint8", lambda x: ndi.median_filter(x, 5), "uint8")
    yield add("minimum of int16", lambda x: ndi.minimum_filter(x, 7), "int16")
    yield add("rank 20 %", lambda x: ndi.percentile_filter(x, 20, 5))
    yield add("sobel", lambda x: ndi.sobel(x, 0))
    yield add("sobel magnitude", filters.sobel)
    yield add("scharr", filters.scharr)
    yield add("laplace", ndi.laplace)
    yield add("laplacian of gaussian", lambda x: ndi.gaussian_laplace(x, 2), crop=(96, 96))
    yield add("gradient magnitude", lambda x: ndi.gaussian_gradient_magnitude(x, 1.5))
    yield add("difference of gaussians", lambda x: ndi.gaussian_filter(x, 1) - ndi.gaussian_filter(x, 2))
    yield add("unsharp", lambda x: x + (x - ndi.gaussian_filter(x, 1)))
    yield add("correlate", lambda x: ndi.correlate(x, KERNEL))
    yield add("convolve constant", lambda x: ndi.convolve(x, KERNEL, mode="constant"))
    yield add("fftconvolve", lambda x: signal.fftconvolve(x, KERNEL, "same"))
    yield add("oaconvolve", lambda x: signal.oaconvolve(x, KERNEL, "same"))
    yield add("savgol", lambda x: signal.savgol_filter(x, 7, 2, axis=0, mode="nearest"))
    yield add("dilation", lambda x: ndi.grey_dilation(x, 5))
    yield add("opening", lambda x: ndi.grey_opening(x, 5))
    yield add("closing of uint8", lambda x: ndi.grey_closing(x, 5), "uint8")
    yield add("white tophat", lambda x: ndi.white_tophat(x, 7))
    yield add("disk opening", lambda x: morphology.opening(x, morphology.disk(3)))
    yield add("binary dilation", lambda x: ndi.binary_dilation(x, FULL, 3), "bool")
    yield add("binary erosion", lambda x: ndi.binary_erosion(x, CROSS, 2), "bool")
    yield add("binary opening", lambda x: ndi.binary_opening(x, FULL), "bool")
    yield add("binary closing", lambda x: ndi.binary_closing(x, FULL, 2), "bool")
    yield add("hit or miss", lambda x: ndi.binary_hit_or_miss(x, CROSS), "bool")
    yield add("majority", lambda x: ndi.uniform_filter(x.astype("f4"), 5) > 0.5, "bool")
    yield add("local variance", lambda x: ndi.uniform_filter(x * x, 7) - ndi.uniform_filter(x, 7) ** 2)
    yield add("local contrast", lambda x: (x - ndi.uniform_filter(x, 9)) / (0.1 + np.abs(x)))
    yield add("adaptive threshold", lambda x: x > ndi.uniform_filter(x, 11))
    yield add("niblack", lambda x: x > filters.threshold_niblack(x, 9))
    yield add("peaks", lambda x: (x == ndi.maximum_filter(x, 5)).astype("u1"))
    yield add("laws texture", lambda x: ndi.uniform_filter(np.abs(ndi.correlate1d(x, [-1, 0, 2, 0, -1])), 7))
    yield add("hessian", lambda x: feature.hessian_matrix(x, 1, use_gaussian_derivatives=False)[0])
    yield add("structure tensor", lambda x: feature.structure_tensor(x, 1)[0])
    yield add("ten steps of diffusion", lambda x: _diffused(x, 10))
    yield add("shift by 3", lambda x: ndi.shift(x, (3, -2), order=0))
    yield add("channel stack", lambda x: np.stack([x, ndi.uniform_filter(x, 3)]))
    yield add("pool 2", lambda x: pooled(x, 2))
    yield add("pool 8", lambda x: ndi.uniform_filter(pooled(x, 8), 3), crop=(96, 96))
    yield add("half", lambda x: x[::2, ::2])
    yield add("binned", lambda x: x.reshape(x.shape[0] // 4, 4, x.shape[1] // 4, 4).mean((1, 3)))
    yield add("doubled", lambda x: ndi.uniform_filter(x, 3).repeat(2, 0).repeat(2, 1))
    yield add("valid", lambda x: ndi.uniform_filter(x, 7)[3:-3, 3:-3])
    yield add("1-D median", lambda x: ndi.median_filter(x, 9), crop=(256,))
    yield add("1-D difference", lambda x: np.diff(x, append=x[-1:]), crop=(256,))
    yield add("3-D uniform", lambda x: ndi.uniform_filter(x, 3), crop=(24, 24, 24))
    yield add("3-D median of uint8", lambda x: ndi.median_filter(x, 3), "uint8", (24, 24, 24))
    yield add("3-D binary closing", lambda x: ndi.binary_closing(x), "bool", (24, 24, 24))
    yield add("rows only", lambda x: ndi.uniform_filter1d(x, 9, axis=0))


def _diffused(x: Array, steps: int) -> Array:
    for _ in range(steps):
        x = x + 0.2 * ndi.laplace(x)
    return x


def content() -> Iterator[Sample]:
    """Yield functions that follow structures of the image."""

    def add(name: str, fn: Callable[[Array], Any], dtype: str = "float32", crop: Any = (64, 64)) -> Sample:
        return Sample(name, "content", fn, dtype, crop)

    def marked(x: Array) -> Array:
        return np.asarray(ndi.binary_propagation(x > 0.95, mask=x > 0.6))

    yield add("binary propagation", marked)
    yield add("binary propagation of uint8", lambda x: ndi.binary_propagation(x > 240, mask=x > 150), "uint8")
    yield add("hysteresis", lambda x: filters.apply_hysteresis_threshold(x, 0.4, 0.9))
    yield add("hysteresis of uint8", lambda x: filters.apply_hysteresis_threshold(x, 90, 220), "uint8")
    yield add("hysteresis of sobel", lambda x: filters.apply_hysteresis_threshold(filters.sobel(x), 0.1, 0.3))
    yield add("canny", lambda x: feature.canny(x, 1.0))
    yield add("canny of uint8", lambda x: feature.canny(x, 1.5), "uint8", (96, 96))
    yield add("fill holes", lambda x: ndi.binary_fill_holes(x), "bool")
    yield add("fill holes of float", lambda x: ndi.binary_fill_holes(x > 0.4))
    yield add("fill holes of uint8", lambda x: ndi.binary_fill_holes(x > 180), "uint8")
    yield add("remove small objects", lambda x: sized(x, 40), "bool")
    yield add("remove small objects of float", lambda x: sized(x > 0.7, 30))
    yield add("remove small objects of uint8", lambda x: sized(x > 200, 64).astype("u1"), "uint8")
    yield add("remove small holes", lambda x: ~sized(~x, 25), "bool")
    yield add("area opening", lambda x: morphology.area_opening(x, 40), "uint8")
    yield add("area closing", lambda x: morphology.area_closing(x, 30), "uint8")
    yield add("diameter opening", lambda x: morphology.diameter_opening(x, 12), "uint8")
    yield add("distance transform", lambda x: ndi.distance_transform_edt(x), "bool")
    yield add("distance transform of float", lambda x: ndi.distance_transform_edt(x > 0.1))
    yield add("distance transform, inverted", lambda x: ndi.distance_transform_edt(~x), "bool")
    yield add("chamfer distance", lambda x: ndi.distance_transform_cdt(x), "bool")
    yield add("distance transform of uint8", lambda x: ndi.distance_transform_edt(x < 250), "uint8")
    yield add(
        "signed distance", lambda x: ndi.distance_transform_edt(x) - ndi.distance_transform_edt(~x), "bool"
    )
    yield add("nearest fill of gaps", filled_gaps, "uint8")
    yield add("nearest fill of dark", lambda x: filled_gaps(np.where(x < 0.3, 0, x)))
    yield add("skeleton", lambda x: morphology.skeletonize(x), "bool")
    yield add("skeleton of float", lambda x: morphology.skeletonize(x > 0.3))
    yield add("skeleton, lee", lambda x: morphology.skeletonize(x, method="lee"), "bool")
    yield add("medial axis", lambda x: morphology.medial_axis(x), "bool")
    yield add("thin", lambda x: morphology.thin(x), "bool")
    yield add("convex hull of objects", lambda x: morphology.convex_hull_object(x), "bool")
    yield add("labels", lambda x: ndi.label(x)[0], "bool")
    yield add("labels of float", lambda x: ndi.label(x > 0.6)[0])
    yield add("largest object", lambda x: measure.label(x) == _largest(x), "bool")
    yield add("clear border", lambda x: segmentation.clear_border(x), "bool")
    yield add("local maxima with plateaus", lambda x: morphology.local_maxima(x), "uint8")
    yield add("local minima with plateaus", lambda x: morphology.local_minima(x), "uint8")
    yield add("h maxima", lambda x: morphology.h_maxima(x, 40), "uint8")
    yield add("h maxima of float", lambda x: morphology.h_maxima(x, 0.2))
    yield add("opening by reconstruction", lambda x: morphology.reconstruction(ndi.grey_erosion(x, 5), x))
    yield add("reconstruction by dilation", lambda x: morphology.reconstruction(x - 0.3, x))
    yield add(
        "reconstruction of uint8", lambda x: morphology.reconstruction(ndi.grey_erosion(x, 3), x), "uint8"
    )
    yield add("peaks, at most 5", lambda x: peaks(x, num_peaks=5))
    yield add("peaks, at most 20", lambda x: peaks(x, min_distance=2, num_peaks=20))
    yield add("peaks apart", lambda x: peaks(x, min_distance=4, threshold_abs=0.5))
    yield add("watershed", lambda x: segmentation.watershed(x, _markers(x)))
    yield add("watershed of smooth", lambda x: segmentation.watershed(ndi.gaussian_filter(x, 2)))
    yield add("watershed lines", lambda x: segmentation.watershed(x, watershed_line=True) == 0, "uint8")
    yield add("flood from the top", lambda x: flooded(x, 0.6))
    yield add("runs", run_lengths, "bool")
    yield add("runs of bright", lambda x: run_lengths(x > 0.5))
    yield add("majority until stable", lambda x: until_stable(
        lambda y: ndi.uniform_filter(y.astype("f4"), 3) > 0.5, x), "bool")  # fmt: skip
    yield add("cumulated maximum", lambda x: np.maximum.accumulate(x, 0))
    yield add("forward fill", lambda x: _carried(x, 0.8))
    yield add("size of objects", lambda x: _sizes(x > 0.55))
    yield add("mean of objects", lambda x: _means(x, x > 0.55))
    yield (
        add("3-D labels", lambda x: ndi.label(x)[0] > 0, "bool", (24, 24, 24))
        if False
        else add("3-D small objects", lambda x: sized(x, 30), "bool", (24, 24, 24))
    )
    yield add("3-D fill holes", lambda x: ndi.binary_fill_holes(x), "bool", (24, 24, 24))
    yield add("3-D distance", lambda x: ndi.distance_transform_edt(x), "bool", (24, 24, 24))
    yield add("1-D runs", lambda x: run_lengths(x[None] > 0.4)[0], "float32", (256,))
    yield add("1-D hysteresis", lambda x: filters.apply_hysteresis_threshold(x, 0.3, 0.95), "float32", (256,))


def _largest(x: Array) -> int:
    labels = measure.label(x)
    return int(np.bincount(labels.ravel())[1:].argmax()) + 1 if labels.max() else -1


def _markers(x: Array) -> Array:
    return np.asarray(ndi.label(x == ndi.minimum_filter(x, 9))[0])


def _carried(x: Array, level: float) -> Array:
    """Carry the last sample above ``level`` along the rows."""
    place = np.where(x > level, np.arange(x.shape[1]), 0)
    return np.asarray(np.take_along_axis(x, np.maximum.accumulate(place, 1), 1))


def _sizes(binary: Array) -> Array:
    labels, _ = ndi.label(binary)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(sizes[labels].astype(np.float32))


def _means(x: Array, binary: Array) -> Array:
    labels, n = ndi.label(binary)
    means = np.r_[0, ndi.mean(x, labels, np.arange(1, n + 1))] if n else np.zeros(1)
    return np.asarray(means[labels].astype(np.float32))


def other() -> Iterator[Sample]:
    """Yield functions of the crop's size, its statistics, places in it, and its opposite side."""
    yield Sample("sigma by rows", "size", by_rows)
    yield Sample("a branch on the shape", "size", branching)
    yield Sample("sigma by the longest side", "size", lambda x: ndi.gaussian_filter(x, max(x.shape) / 64))
    yield Sample("width by columns", "size", lambda x: ndi.uniform_filter(x, 1 + x.shape[1] // 32))
    yield Sample("scaled by size", "size", lambda x: x / x.size)
    yield Sample("scaled by rows, 1-D", "size", lambda x: x * len(x), crop=(128,))
    yield Sample("steps by size", "size", lambda x: _diffused(x, x.shape[0] // 16))
    yield Sample("less its mean", "global", lambda x: x - x.mean())
    yield Sample("standardised", "global", lambda x: (x - x.mean()) / x.std())
    yield Sample("stretched", "global", lambda x: (x - x.min()) / (x.max() - x.min()))
    yield Sample("equalised", "global", exposure.equalize_hist)
    yield Sample("otsu", "global", lambda x: x > filters.threshold_otsu(x) if x.min() < x.max() else x > 0)
    yield Sample("otsu of uint8", "global", lambda x: x > filters.threshold_otsu(x), "uint8")
    yield Sample("percentile", "global", lambda x: x > np.percentile(x, 90))
    yield Sample("largest", "global", lambda x: x / x.max())
    yield Sample("dct", "global", lambda x: np.fft.rfft2(x).real[: x.shape[0], : x.shape[1]].astype("f4")
                 if False else np.cumsum(x, 0))  # fmt: skip
    yield Sample("sorted", "global", lambda x: np.sort(x, 0))
    yield Sample("ranked", "global", lambda x: np.argsort(np.argsort(x, None)).reshape(x.shape).astype("i4"))
    yield Sample("ramp added", "place", lambda x: x + np.linspace(0, 1, x.shape[0], dtype="f4")[:, None])
    yield Sample("vignette", "place", lambda x: x * np.hanning(x.shape[1]).astype("f4"))
    yield Sample("roll", "wraps", lambda x: x + np.roll(x, 3, 0))
    yield Sample("wrapped filter", "wraps", lambda x: ndi.uniform_filter(x, 5, mode="wrap"))
    yield Sample("fourier gaussian", "wraps", lambda x: np.fft.ifft2(
        ndi.fourier_gaussian(np.fft.fft2(x), 1)).real.astype("f4"))  # fmt: skip
    yield Sample("wiener, of the mean noise", "global", lambda x: signal.wiener(x.astype(float), 5))
    yield Sample(
        "bilateral, of tables up to the largest", "global",
        lambda x: restoration.denoise_bilateral(x, win_size=5, sigma_color=0.1, sigma_spatial=1.5, bins=50),
    )  # fmt: skip
    yield Sample("exponential smoothing", "global", lambda x: signal.lfilter([0.01], [1, -0.99], x, 0))
    yield Sample("total variation", "global", lambda x: restoration.denoise_tv_chambolle(x, 0.1))
    yield Sample("mirrored", "place", lambda x: x[::-1])
    yield Sample("transposed", "place", lambda x: x.T)


def distance(binary: Array) -> Array:
    """Return the distance to the next False; 99 if there is none, which scipy leaves undefined."""
    return np.full(binary.shape, 99.0) if binary.all() else np.asarray(ndi.distance_transform_edt(binary))


def composed(seed: int) -> Callable[[Array], Array]:
    """Return a composition of one to four steps, of which some follow structures."""
    rng = np.random.default_rng(seed)
    kinds = (_stencil, _ranked, _threshold, _pool, _follows)
    steps = [kinds[k](rng) for k in rng.choice(5, rng.integers(1, 5), p=[0.3, 0.2, 0.15, 0.1, 0.25])]
    mixed = rng.random() < 0.3

    def fn(x: Array) -> Array:
        y = x
        for step in steps:
            y = step(y)
        y = np.asarray(y, np.float32)
        return y + x * np.float32(0.1) if mixed else y

    return fn


def images(seed: int) -> Iterator[Array]:
    """Yield images of float32: noise, blobs, a photograph, and lines in flat areas; 144 samples a side."""
    rng, n = np.random.default_rng(seed), 144
    yield rng.random((n, n), np.float32)
    yield ndi.zoom(rng.random((18, 18)), 8, order=1).astype(np.float32)
    smooth = ndi.gaussian_filter(rng.random((n, n)), 4)
    yield ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)
    yield (data.coins()[:n, :n] / 255).astype(np.float32)
    lines = np.full((n, n), 0.5, np.float32)
    lines[100], lines[:, 60], lines[20:40, 20:130] = 1, 0, 0.8
    yield lines
    flat = np.full((n, n), 0.45, np.float32)
    flat[3, 5], flat[120, 130] = 1, 0
    yield flat


def _stencil(rng: np.random.Generator) -> Callable[[Array], Array]:
    kernel = rng.random(tuple(rng.integers(1, 6, 2)))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return lambda x: ndi.correlate(x.astype(np.float32), kernel, mode="nearest")


def _ranked(rng: np.random.Generator) -> Callable[[Array], Array]:
    size, rank = int(rng.integers(2, 6)), (ndi.maximum_filter, ndi.minimum_filter, ndi.median_filter)
    chosen = rank[rng.integers(3)]
    return lambda x: chosen(x, size)


def _threshold(rng: np.random.Generator) -> Callable[[Array], Array]:
    level, sharp = rng.uniform(0.25, 0.75), rng.random() < 0.5
    return lambda x: (x > level).astype(np.float32) if sharp else np.maximum(x - level, 0)


def _pool(rng: np.random.Generator) -> Callable[[Array], Array]:
    m, mean = int(rng.integers(2, 5)), rng.random() < 0.5

    def fn(x: Array) -> Array:
        a, b = (n // m for n in x.shape)
        cells = x[: a * m, : b * m].reshape(a, m, b, m)
        y = (cells.mean((1, 3)) if mean else cells.max((1, 3))).repeat(m, 0).repeat(m, 1)
        return np.pad(y, ((0, x.shape[0] - a * m), (0, x.shape[1] - b * m)), "edge")

    return fn


def _follows(rng: np.random.Generator) -> Callable[[Array], Array]:
    high = rng.uniform(0.6, 0.95)
    low = rng.uniform(0.1, high - 0.15)
    steps: tuple[Callable[[Array], Array], ...] = (
        lambda x: ndi.binary_propagation(x > high, mask=x > low),
        lambda x: ndi.binary_fill_holes(x > low),
        lambda x: distance(x > low),
        lambda x: x * filters.apply_hysteresis_threshold(x, low, high),
        lambda x: sized(x > low, 30),
        lambda x: np.maximum.accumulate(np.where(x > high, x, 0), 1),
        lambda x: np.exp(-distance(x < high) / 5),
        lambda x: morphology.reconstruction(x - 0.2, x),
    )
    chosen = steps[rng.integers(len(steps))]
    return lambda x: np.asarray(chosen(x), np.float32)


def samples() -> list[Sample]:
    """Return all functions."""
    return [*local(), *content(), *other()]


def main() -> None:
    """Probe every function; print what is called exact and is not, and what is not known."""
    import tilework as tw

    calls, unknown, wrong = [], [], []
    for sample in samples():
        began = time.perf_counter()
        try:
            report = tw.probe(sample.fn, sample.crop, dtype=sample.dtype)
            verdict, n = ("exact" if report.exact else report.verdict), report.calls
        except Exception as error:
            verdict, n = f"{type(error).__name__}: {error}", 0
        calls.append(n)
        if verdict == "exact" and sample.kind != "local":
            wrong.append(sample.name)
        if verdict != "exact" and sample.kind == "local":
            unknown.append(sample.name)
        flag = "WRONG" if sample.name in wrong[-1:] else "?" if sample.name in unknown[-1:] else ""
        spent = time.perf_counter() - began
        click.echo(f"{flag:6}{sample.kind:8} {sample.name:32} {n:3} calls {spent:5.1f} s  {verdict[:90]}")
    click.echo(f"{len(calls)} functions; called exact and are not: {wrong}")
    click.echo(f"local, not called exact: {unknown}")
    click.echo(f"median calls {int(np.median(calls))}, most {max(calls)}")


if __name__ == "__main__":
    main()
