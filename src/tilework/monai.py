"""MONAI's sliding windows, with its arguments and its numbers, computed by tilework.

MONAI itself is not imported. This is the only module that imports torch when it is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from fractions import Fraction
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from tilework._checks import at_least, brief, flag, of_type, sequence, warn
from tilework._types import Array, Index
from tilework.api import plan_tiles, tiled_map
from tilework.engine.block import gather_tiles
from tilework.engine.canvas import combine
from tilework.engine.spec import Needs
from tilework.errors import ContractError, TilingError, TilingWarning
from tilework.function.network_places import unusable
from tilework.function.output import Output
from tilework.graph.build import find_spec
from tilework.grid.recipes import monai_options
from tilework.grid.tiles import Tile
from tilework.grid.weights import AxisWeights
from tilework.source.padding import source_index

__all__ = ["SlidingWindowInferer", "SlidingWindowInfererAdapt", "sliding_window_inference"]

# Dtypes in which sums would lose digits, and those in which predictions are added up instead.
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
# The memory limit, bytes, of a result that is wanted in memory whatever it takes.
ENOUGH = 2**62


def sliding_window_inference(
    inputs: Any,
    roi_size: Sequence[int] | int,
    sw_batch_size: int,
    predictor: Callable[..., Any],
    overlap: Sequence[float] | float = 0.25,
    mode: str = "constant",
    sigma_scale: Sequence[float] | float = 0.125,
    padding_mode: str = "constant",
    cval: float = 0.0,
    sw_device: Any = None,
    device: Any = None,
    progress: bool = False,
    roi_weight_map: Any = None,
    process_fn: Callable[..., Any] | None = None,
    buffer_steps: int | None = None,
    buffer_dim: int = -1,
    with_coord: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Any:
    r"""Return ``predictor`` applied to tensors window by window, as MONAI's function of the same name.

    Arguments have MONAI's meaning, and results are equal to rounding. The calls are the same, in the same
    order. For an image that does not fit into memory, give `monai_options` to `tiled_map`.

    Parameters
    ----------
    inputs : torch.Tensor or MetaTensor, shape (batch, channels, spatial axes...), floating or complex
        The images. If it is a MetaTensor, so are the results, with its meta data.
    roi_size : int, or one per spatial axis, samples
        Shape of the window. None, 0 or less: the image's own extent.
    sw_batch_size : int
        Windows per call.
    predictor : callable
        Maps windows, a tensor of shape (windows, channels, \\*roi), to a tensor, or to a tuple or dict of
        them, of shape (windows, channels, spatial axes...). These may have another resolution along each
        axis, if windows, padding and image then have whole samples. No gradient is recorded.
    overlap, mode, sigma_scale, padding_mode, cval
        As in `monai_options`.
    sw_device, device : torch.device or str, optional
        Where windows are predicted, and where the results are. Default: the device of ``inputs``. Sums are
        where the results are.
    progress : bool
        Whether to show a bar that counts calls.
    roi_weight_map : torch.Tensor, shape of the window, optional
        Weights of the samples of a window instead of those of ``mode``.
    process_fn : callable, optional
        Called with the predictions of a call as a tuple, its windows and the weights of a window; returns
        predictions and weights. Sums are divided by those weights that the first call returned, as in MONAI.
    buffer_steps, buffer_dim
        Accepted and without effect: MONAI's buffers on the device change no number.
    with_coord : bool
        Whether ``predictor`` also gets the place of each window, a list of slices of the padded ``inputs``.
    *args, **kwargs
        Further arguments of ``predictor``. A tensor ``condition``, of the shape of ``inputs``, is cut into
        windows like these.

    Returns
    -------
    torch.Tensor, or tuple or dict of them
        As ``predictor`` returned them, with the dtype of ``inputs``. Shape: (batch, channels, spatial
        axes...), spatial axes as long as in ``inputs``, times the resolution of the output.

    Raises
    ------
    TilingError
        For arguments that contradict each other, and for resolutions at which windows would start between
        samples, which MONAI rounds.
    TypeError
        For arguments of a wrong type: inputs that are no tensor of floats, and predictions that are integers.

    Examples
    --------
    >>> inputs = torch.arange(20.0).reshape(1, 1, 4, 5)
    >>> sliding_window_inference(inputs, (3, 3), 2, lambda windows: windows + 1, overlap=0.5)[0, 0, 3]
    tensor([16., 17., 18., 19., 20.])
    """
    _check_inputs(inputs, roi_size, buffer_steps, buffer_dim)
    condition = kwargs.pop("condition", None)
    options = monai_options(
        inputs.shape[2:], roi_size, overlap, _word(mode), sigma_scale, _word(padding_mode), cval
    )
    if roi_weight_map is not None:
        options["blend"] = _map_of(roi_weight_map, options["crop"])
    windows = _Windows(inputs, condition, options, at_least("sw_batch_size", sw_batch_size, 1))
    target = _device("device", device, inputs)
    calls = _Calls(
        windows, predictor, args, kwargs, device=_device("sw_device", sw_device, inputs), target=target,
        process=process_fn, with_coord=flag("with_coord", with_coord),
    )  # fmt: skip
    with torch.no_grad(), _bar(progress, windows.calls) as calls.bar:
        calls.first()
        results = _run(windows, calls)
    return calls.packed([_finished(r, inputs, target) for r in results])


class SlidingWindowInferer:
    """Sliding windows with settings of their own, as MONAI's class of the same name.

    Parameters
    ----------
    roi_size, sw_batch_size, overlap, mode, sigma_scale, padding_mode, cval, sw_device, device, progress, \
buffer_steps, buffer_dim, with_coord
        As in `sliding_window_inference`.
    cache_roi_weight_map : bool
        Whether to make the weights once; it needs a ``roi_size`` of positive lengths, one per spatial axis.
    cpu_thresh : int, samples, optional
        Results of images with more samples are on the CPU, unless ``device`` is given.

    Examples
    --------
    >>> inferer = SlidingWindowInferer(roi_size=(3, 3), sw_batch_size=4, overlap=0.5, mode="gaussian")
    >>> inferer(torch.ones(1, 2, 5, 6), lambda windows: windows.sum(1, keepdim=True)).shape
    torch.Size([1, 1, 5, 6])
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "constant",
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_device: Any = None,
        device: Any = None,
        progress: bool = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: int | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
    ) -> None:
        self.roi_size, self.sw_batch_size, self.overlap = roi_size, sw_batch_size, overlap
        self.mode, self.sigma_scale = mode, sigma_scale
        self.padding_mode, self.cval = padding_mode, cval
        self.sw_device, self.device, self.progress = sw_device, device, progress
        self.cpu_thresh, self.with_coord = cpu_thresh, with_coord
        self.buffer_steps, self.buffer_dim = buffer_steps, buffer_dim
        self.roi_weight_map: Any = None
        if flag("cache_roi_weight_map", cache_roi_weight_map):
            if sequence(roi_size) and min(r or 0 for r in roi_size) > 0:  # type: ignore[union-attr]
                blend = monai_options(roi_size, roi_size, 0, _word(mode), sigma_scale)["blend"]  # type: ignore[arg-type]
                plain = isinstance(blend, str)
                self.roi_weight_map = torch.ones(roi_size) if plain else torch.from_numpy(blend)
            else:
                warn(
                    f"cache_roi_weight_map=True needs one positive length per axis; got roi_size "
                    f"{brief(roi_size)}. The weights are made in each call.",
                    TilingWarning,
                )

    def __call__(self, inputs: Any, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``network`` applied to ``inputs`` window by window; further arguments go to the network.

        ``device``, ``buffer_steps`` and ``buffer_dim``, if given, take the place of those of the inferer.
        """
        device = kwargs.pop("device", self.device)
        steps, dim = kwargs.pop("buffer_steps", self.buffer_steps), kwargs.pop("buffer_dim", self.buffer_dim)
        if device is None and self.cpu_thresh is not None and inputs.shape[2:].numel() > self.cpu_thresh:
            device = "cpu"
        return sliding_window_inference(
            inputs, self.roi_size, self.sw_batch_size, network, self.overlap, self.mode, self.sigma_scale,
            self.padding_mode, self.cval, self.sw_device, device, self.progress, self.roi_weight_map, None,
            steps, dim, self.with_coord, *args, **kwargs,
        )  # fmt: skip


SlidingWindowInfererAdapt = SlidingWindowInferer
"""MONAI's class for sums that do not fit on a device; here they move to the CPU where its memory ends."""


def _device(name: str, given: Any, inputs: Any) -> Any:
    """Return a device, by default that of the inputs; raise if this process does not have it."""
    if given is None:
        return inputs.device
    try:
        found = torch.device(given)
        why = unusable(str(found), torch)
    except RuntimeError as error:
        raise TilingError(f"{name}={given!r} is not the name of a device: {error}") from None
    if why is not None:
        raise TilingError(f"{name}={str(given)!r} cannot be used in this process ({why}). Leave it out.")
    return found


def _word(value: Any) -> Any:
    """Return a word of MONAI, which may be an enumeration, as text."""
    return getattr(value, "value", value)


def _check_inputs(inputs: Any, roi_size: Any, buffer_steps: Any, buffer_dim: Any) -> None:
    of_type("inputs", inputs, torch.Tensor, "a tensor of shape (batch, channels, spatial axes...)")
    n = inputs.ndim - 2
    if n < 1:
        raise TilingError(
            f"inputs must have batch, channels and spatial axes; got shape {tuple(inputs.shape)}. Give one "
            "image as image[None], and one without channels as image[None, None]."
        )
    if sequence(roi_size) and len(roi_size) != n:
        raise TilingError(
            f"inputs must have {len(roi_size) + 2} dimensions for roi_size {tuple(roi_size)} (batch, "
            f"channels, then spatial axes); got shape {tuple(inputs.shape)}."
        )
    if not (inputs.dtype.is_floating_point or inputs.dtype.is_complex):
        raise TypeError(
            f"inputs must be floating, because results have their dtype; got {inputs.dtype}. Give "
            "inputs.float()."
        )
    if inputs.requires_grad and torch.is_grad_enabled():
        raise TilingError(
            "no gradient passes through the windows; call it under torch.no_grad(), give inputs.detach(), or "
            "train with MONAI's own function."
        )
    if buffer_steps is not None and buffer_steps > 0 and not -n <= buffer_dim <= n:
        raise TilingError(f"buffer_dim must be in {-n} to {n}; got {buffer_dim}.")


def _map_of(roi_weight_map: Any, roi: Index) -> Array:
    """Return the weights of a window as an array over the spatial axes."""
    values = torch.as_tensor(roi_weight_map).detach().cpu().to(torch.float64).numpy()
    extra = values.ndim - len(roi)
    if extra < 0 or values.shape[extra:] != roi or any(n != 1 for n in values.shape[:extra]):
        raise TilingError(
            f"roi_weight_map must have the shape of a window, {roi}; got {tuple(values.shape)}."
        )
    weights: Array = values.reshape(roi)
    return weights


class _Windows:
    """The windows of one call: where they lie, and what is in them."""

    def __init__(self, inputs: Any, condition: Any, options: dict[str, Any], batch_size: int) -> None:
        self.dtype, shape = inputs.dtype, tuple(inputs.shape)
        if condition is not None and tuple(condition.shape) != shape:
            raise TilingError(
                f"condition must have the shape of inputs, {shape}; got {tuple(condition.shape)}."
            )
        self.options, self.batch_size = options, batch_size
        self.extents, self.roi = shape[2:], options["crop"]
        missing = [max(0, r - n) for r, n in zip(self.roi, self.extents, strict=True)]
        self.before = tuple(m // 2 for m in missing)
        self._sources = [self._padded(t, missing) for t in (inputs, condition) if t is not None]
        places = {k: v for k, v in options.items() if k not in ("blend", "cval")}
        self.shape = shape[0], *self.extents
        """Extents of the grid: images, then the spatial axes."""
        self.plan = plan_tiles(
            self.shape, each=0, **places, output=Output("f4", blend="average"),
        )  # fmt: skip

    @property
    def calls(self) -> int:
        """How often the predictor is called."""
        return math.ceil(len(self.plan) / self.batch_size)

    def cut(self, tiles: Sequence[Tile]) -> list[Any]:
        """Return the windows of some tiles per source: new tensors, where the source is."""
        places = [tuple(place) for place in self.coordinates(tiles)]
        return [torch.cat([source[place] for place in places]) for source in self._sources]

    def _padded(self, tensor: Any, missing: Sequence[int]) -> Any:
        """Return a plain tensor, padded along the axes that are shorter than a window."""
        tensor = tensor.detach().as_subclass(torch.Tensor)
        boundary = self.options["boundary"]
        for d, (n, before, more) in enumerate(zip(self.extents, self.before, missing, strict=True)):
            if not more:
                continue
            index = source_index(np.arange(-before, n + more - before), n, boundary)
            outside = torch.from_numpy(np.flatnonzero(index < 0)).to(tensor.device)
            inside = torch.from_numpy(np.maximum(index, 0)).to(tensor.device)
            tensor = tensor.index_select(2 + d, inside).index_fill_(2 + d, outside, self.options["cval"])
        return tensor

    def coordinates(self, tiles: Sequence[Tile]) -> list[list[slice]]:
        """Return the place of each window in the padded inputs, as MONAI tells it."""
        found = []
        for tile in tiles:
            (image, *starts), (_, *stops) = tile.read.start, tile.read.stop
            columns = zip(starts, stops, self.before, strict=True)
            spatial = [slice(a + before, b + before) for a, b, before in columns]
            found.append([slice(image, image + 1), slice(None), *spatial])
        return found


class _Calls:
    """The predictor as a function of tiles, which cuts the windows itself, where the inputs are."""

    __tilework_on_device__ = True

    def __init__(
        self, windows: _Windows, predictor: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any],
        *, device: Any, target: Any, process: Callable[..., Any] | None, with_coord: bool,
    ) -> None:  # fmt: skip
        self._windows, self._predictor, self._args, self._kwargs = windows, predictor, args, kwargs
        self._device, self._process, self._with_coord = device, process, with_coord
        self.bar: Any = None
        self._keys: list[Any] | None = None
        self._done: tuple[Any, ...] | None = None
        self._target, self._wide = target, WIDER.get(windows.dtype, windows.dtype)
        self._rooms: dict[int, Any] = {}
        blend = windows.options["blend"]
        # How many windows lie on a sample is known.
        self._weighs = process is not None or not isinstance(blend, str)
        weights = np.ones(windows.roi, np.float32) if isinstance(blend, str) else blend
        # Weights are as exact as the windows; those of complex windows are real.
        kind = windows.dtype if windows.dtype.is_floating_point else torch.float64
        self._weights = torch.from_numpy(weights).to(device=device, dtype=kind)
        self._divisors: list[Any] = []
        self.outputs: tuple[Output, ...] = ()

    def first(self) -> None:
        """Make the first call, which tells what the predictor returns."""
        tiles = self._windows.plan[: self._windows.batch_size]
        self._done = done = self._call(tiles)
        dtype = str(self._wide).removeprefix("torch.")
        self.outputs = tuple(
            Output(dtype, channels=r.shape[1], scale=self._scale(k, r.shape[2:]), blend="sum")
            for k, r in enumerate(done)
        )

    def __call__(self, crops: Array, *, tiles: Sequence[Tile]) -> tuple[Any, ...]:
        """Return what is added up for some tiles."""
        done, self._done = self._done, None
        return self._call(tiles) if done is None else done

    def divided(self, sums: list[Any], counts: Callable[[int], Any]) -> list[Any]:
        """Return sums divided by the sums of their weights; ``counts`` returns those of equal weights."""
        if not self._weighs:
            return [one.div_(counts(k).to(one)) for k, one in enumerate(sums)]
        n = len(sums) // 2
        # NaN where no weight lies, as in MONAI.
        return [one.div_(weight) for one, weight in zip(sums[:n], sums[n:], strict=True)]

    def packed(self, results: Sequence[Any]) -> Any:
        """Return results as the predictor returns them: a tensor, a tuple or a dict."""
        if self._keys is not None:
            return dict(zip(self._keys, results, strict=True))
        return results[0] if len(results) == 1 else tuple(results)

    def _call(self, tiles: Sequence[Tile]) -> tuple[Any, ...]:
        """Return what is added up for some tiles, as tensors of one dtype where it is added up."""
        cuts = self._windows.cut(tiles)
        tensors = [cut.to(device=self._device, dtype=self._windows.dtype) for cut in cuts]
        given = (tensors[0], self._windows.coordinates(tiles)) if self._with_coord else tensors[:1]
        kwargs = self._kwargs | ({"condition": tensors[1]} if len(tensors) > 1 else {})
        values = self._flat(self._predictor(*given, *self._args, **kwargs))
        weights = self._weights
        if self._process is not None:
            values, weights = self._process(values, tensors[0], weights)
        for value in values:
            self._check(value, len(tiles))
        plain = [value.detach().as_subclass(torch.Tensor) for value in values]
        if self._weighs:
            found = self._weighted(plain, weights)
        else:
            found = tuple(self._product(k, value) for k, value in enumerate(plain))
        if self.bar is not None:
            self.bar.update()
        return found

    def _flat(self, found: Any) -> tuple[Any, ...]:
        """Return predictions as a tuple; remember the keys of a dict."""
        if isinstance(found, Mapping):
            try:
                self._keys = sorted(found)  # as MONAI, for which the order matters where weights are resized
            except TypeError:
                self._keys = list(found)
            return tuple(found[key] for key in self._keys)
        return tuple(found) if isinstance(found, list | tuple) else (found,)

    def _weighted(self, values: Sequence[Any], weights: Any) -> tuple[Any, ...]:
        """Return predictions times their weights, then the weights of the first call for each of them.

        The sums of both give the result, whatever the weights of the other calls are.
        """
        resized = _resized(weights.to(self._weights), [value.shape[2:] for value in values])
        self._divisors = self._divisors or [w.to(self._target, self._wide) for w in resized]
        divisors = (d.expand(len(v), 1, *d.shape[2:]) for v, d in zip(values, self._divisors, strict=True))
        products = [self._product(k, v, w) for k, (v, w) in enumerate(zip(values, resized, strict=True))]
        return (*products, *divisors)

    def _product(self, number: int, values: Any, weights: Any = None) -> Any:
        """Return predictions times weights, in memory that serves all whole batches: new memory takes longer.

        Whole batches are added up one after another. If memory ends, the parts of one wait for each other.
        """
        if weights is None and (values.device, values.dtype) == (self._target, self._wide):
            return values
        room = self._rooms.get(number)
        if room is None or room.shape != values.shape:
            # What crosses from CUDA does so faster into pinned memory.
            pinned = self._target.type == "cpu" and values.is_cuda
            room = torch.empty(values.shape, dtype=self._wide, device=self._target, pin_memory=pinned)
            if len(values) == self._windows.batch_size:
                self._rooms[number] = room
        if weights is not None and values.device == room.device:
            return torch.mul(values, weights, out=room)
        return room.copy_(values if weights is None else values * weights)

    def _check(self, value: Any, count: int) -> None:
        """Raise unless a prediction can be averaged."""
        of_type("a prediction", value, torch.Tensor, "a tensor")
        is_complex = value.dtype.is_complex and self._windows.dtype.is_complex
        if not (value.dtype.is_floating_point or is_complex):
            raise TypeError(
                f"predictions must be floating, like the inputs, to be averaged; got {value.dtype}. Return "
                "scores, and take the argmax of the result."
            )
        if value.ndim != len(self._windows.roi) + 2 or len(value) != count:
            raise ContractError(
                f"a prediction for {count} windows must have shape ({count}, channels, spatial axes...); got "
                f"{tuple(value.shape)}."
            )

    def _scale(self, number: int, shape: Index) -> tuple[Fraction, ...]:
        """Return the samples of a prediction per sample of a window; raise unless all places are whole."""
        w, scales = self._windows, []
        for d, (n, r) in enumerate(zip(shape, w.roi, strict=True)):
            scales.append(Fraction(n, r))
            q, grid = scales[-1].denominator, w.plan.axes[1 + d]
            places = {"start": grid.nominals() + w.before[d], "padding": w.before[d], "extent": grid.extent}
            for what, found in places.items():
                if (wrong := np.atleast_1d(found)[np.atleast_1d(found) % q > 0]).size:
                    key = number if self._keys is None else self._keys[number]
                    raise TilingError(
                        f"output {key!r} has {n} samples for {r} of a window along spatial axis {d}; the "
                        f"{what} {wrong[0]} of the image is then between samples. Choose roi_size and "
                        f"overlap so that windows start at multiples of {q}, and the image is one of {q}."
                    )
        return tuple(scales)


def _resized(weights: Any, shapes: Sequence[Sequence[int]]) -> list[Any]:
    """Return the weights of a window for each prediction, with a batch and a channel axis.

    As in MONAI, those of a resized one are made from those of the one before.
    """
    n = len(shapes[0])
    found, own = [], weights if weights.ndim == n + 2 else weights[None, None]
    last = own
    for shape in shapes:
        if tuple(shape) == tuple(own.shape[2:]):
            found.append(own)
            continue
        last = torch.nn.functional.interpolate(last, tuple(shape), mode="nearest-exact")
        found.append(last)
    return found


def _run(windows: _Windows, calls: _Calls) -> list[Any]:
    """Return all results as tensors, computed in this thread.

    A block that is finished would be on the host. Here all is one block, in which all windows run, and the
    results are its sums, where these are, divided.
    """
    # Calls cut their windows themselves: what is cut here only has the shape of the images.
    shapes = np.broadcast_to(np.zeros((), bool), windows.shape)
    options = {name: value for name, value in windows.options.items() if name not in ("blend", "cval")}
    lazy = tiled_map(
        calls, shapes, each=0, **options, output=calls.outputs, batch_size=windows.batch_size, pass_tile=True,
        blend="sum", chunks=windows.shape, memory_limit=ENOUGH, reuse="recompute",
        name=f"monai-{uuid4().hex}",
    )  # fmt: skip
    found = find_spec(lazy[0])
    assert found is not None
    spec, block = found.spec, (0,) * len(windows.shape)
    groups = gather_tiles(spec, block, Needs(spec).of(block, owned=False))
    totals = [
        combine(output, box, [group.partials[k] for group in groups])
        for k, (output, box) in enumerate(zip(spec.outputs, spec.boxes(block), strict=True))
    ]
    sums = [total.tensor for total in totals if total is not None]
    return calls.divided(sums, lambda k: _counts(spec.outputs[k].weights[1:]))


def _counts(axes: Sequence[AxisWeights]) -> Any:
    """Return how many windows lie on each sample of an image."""
    product = torch.ones(())
    for axis in axes:
        along = torch.zeros(axis.extent)
        for i in range(len(axis.grid)):
            start, stop = axis.support(i)
            along[max(0, start) : stop] += 1
        product = product[..., None] * along
    return product


def _finished(result: Any, inputs: Any, device: Any) -> Any:
    """Return a result as a tensor like the inputs."""
    tensor = result.to(device=device, dtype=inputs.dtype)
    if hasattr(inputs, "copy_meta_from"):  # a MetaTensor of MONAI
        tensor = type(inputs)(tensor)
        tensor.copy_meta_from(inputs, copy_attr=False)
    return tensor


def _bar(progress: bool, total: int) -> Any:
    """Return a bar that counts calls, or a context without one."""
    if not flag("progress", progress):
        return nullcontext()
    from tqdm.auto import tqdm

    return tqdm(total=total)
