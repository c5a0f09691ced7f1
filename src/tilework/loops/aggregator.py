"""`Aggregator`: merges patches into one array, with the interface of Patchly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from tilework._checks import as_dtype, as_numbers, flag, noted, of_type, one_of, warn, whole, wholes
from tilework._types import Array, Index
from tilework.engine.canvas import check_dtype
from tilework.engine.notices import report
from tilework.errors import ContractError, TilingError, TilingWarning
from tilework.function.calling import as_array, is_tensor
from tilework.function.output import scales
from tilework.loops.common import Locked, raises_as_ancestors
from tilework.loops.merging import Gatherer, Merge, addable, blend_of, gatherer_of, gaussian
from tilework.loops.reader import check_apart
from tilework.loops.sampler import GridSampler
from tilework.loops.writer import Sink

__all__ = ["Aggregator", "gaussian"]


class Aggregator(Locked):
    """Merges patches into one array; where they overlap, into their weighted average.

    A replacement for ``patchly.Aggregator`` with the arguments of version 0.0.19. It also takes any dtype and
    any number of overlapping patches, keeps NaN and inf, rounds and clips integers, raises errors where they
    occur, reports missing patches, writes into arrays of any kind, and takes patches from several threads.

    Parameters
    ----------
    sampler : GridSampler
        The sampler of the patches. If it has a ``chunk_size``, each chunk is finished, written and dropped
        when its last patch arrives.
    output_size : sequence of int, samples
        Shape of the result, which is allocated: a torch tensor if the patches are tensors, else a numpy
        array. Not needed with ``output``.
    output : array, optional
        The array to write into: numpy, memmap, torch, Zarr v2 and v3, h5py, anything with shape, dtype and
        item assignment. Storage chunks are written whole. It must not be the sampler's image.
    weights : str, callable, array of a patch's shape, or one 1-D array per tiled axis
        "avg", "gaussian" (as in Patchly) or a word of ``blend`` in `tiled_map`. A callable maps a length in
        samples to 1-D weights.
    softmax_dim : int, optional
        Axis of a patch with scores: the result is the index of the largest score along it. ``output`` and
        ``output_size`` may have that axis or not; an ``output`` that has it receives the scores.
    has_batch_dim : bool
        Whether `append` gets batches of patches and boxes.
    spatial_first : bool
        Whether the tiled axes come first in a patch, or last.
    chunk_postprocess_func : callable, optional
        Maps each finished chunk (all axes of a patch, already divided by the weights) to the values to write;
        replaces the argmax.
    device : str
        Device of a torch result.
    dtype : dtype, optional
        Dtype of the allocated result; default: float32, or a wider one if the patches need its precision;
        int64 for class indices.
    fill_value : scalar
        Value of samples where no patch has weight.
    accumulate : bool
        Whether the result is added to the values of ``output``, or overwrites them.
    missing : {"warn", "error", "ignore"}
        Reaction of `get_output` to missing patches.
    scale : int, Fraction or tuple of them, result samples per image sample
        For a function that makes patches larger or smaller.

    Raises
    ------
    TilingError
        For sizes that do not fit the sampler; the message names the axis and the values.
    TypeError
        For arguments of a wrong type.

    Examples
    --------
    >>> image = np.arange(100.0).reshape(10, 10)
    >>> sampler = GridSampler(image, (10, 10), (4, 4), (2, 2))
    >>> aggregator = Aggregator(sampler, output_size=(10, 10), weights="gaussian")
    >>> for patch, box in sampler:
    ...     aggregator.append(patch * 2, box)
    >>> bool(np.allclose(aggregator.get_output(), image * 2))
    True
    """

    @raises_as_ancestors
    def __init__(
        self,
        sampler: GridSampler,
        output_size: Sequence[int] | None = None,
        output: Any = None,
        weights: Any = "avg",
        softmax_dim: int | None = None,
        has_batch_dim: bool = False,
        spatial_first: bool = True,
        chunk_postprocess_func: Callable[[Any], Any] | None = None,
        device: Any = "cpu",
        *,
        dtype: Any = None,
        fill_value: Any = 0,
        accumulate: bool = False,
        missing: Literal["warn", "error", "ignore"] = "warn",
        scale: Any = 1,
    ) -> None:
        self._batched, spatial_first = (
            flag("has_batch_dim", has_batch_dim),
            flag("spatial_first", spatial_first),
        )
        accumulate = flag("accumulate", accumulate)
        of_type("sampler", sampler, GridSampler, "the GridSampler of the patches")
        if output is None and output_size is None:
            raise TilingError("give output_size, or output to write into.")
        if accumulate and output is None:
            raise TilingError("accumulate adds to output; give one.")
        if chunk_postprocess_func is not None and not callable(chunk_postprocess_func):
            raise TypeError(f"chunk_postprocess_func must be callable; got {chunk_postprocess_func!r}.")
        self._sampler, self._device = sampler, device
        self._sink = None if output is None else Sink(output, accumulate)
        check_apart(output, sampler.readers.values())
        size = wholes("output_size", output_size) if self._sink is None else self._sink.shape
        wanted = None if dtype is None else as_dtype(dtype)
        if self._sink is not None:
            if output_size is not None and wholes("output_size", output_size) != size:
                raise TilingError(f"output has shape {size}; output_size is {tuple(output_size)}.")
            if wanted is not None and wanted != self._sink.dtype:
                raise TilingError(f"output has dtype {self._sink.dtype}; got dtype={dtype!r}.")
            wanted = self._sink.dtype
        self._post = None if chunk_postprocess_func is None else _Post(chunk_postprocess_func)
        self._merge = Merge(
            grids=sampler.grids,
            padded=sampler.spatial_size,
            blend=blend_of(weights),
            scale=scales(scale, len(sampler.grids)),
            spatial_first=spatial_first,
            size=size,
            dtype=wanted,
            softmax=None if softmax_dim is None else whole("softmax_dim", softmax_dim),
            post=self._post,
            fill_value=fill_value,
            given=output is not None,
        )
        self._whole = sampler.chunk_size is None
        self._missing = one_of("missing", missing, ("warn", "error", "ignore"))
        super().__init__()
        self._gatherer: Gatherer | None = None
        self._tensors = False
        self._dtypes: set[Any] = set()

    # -- appending --------------------------------------------------------------------------------------

    @raises_as_ancestors
    def append(self, patch: Any, patch_bbox: Any) -> None:
        """Add a patch, or a batch of them; safe in several threads.

        Parameters
        ----------
        patch : array, shape of a patch or (batch, ...)
            A numpy array, a torch tensor on any device, or anything that `numpy.asarray` accepts.
        patch_bbox : array of int, shape (axes, 2) or (batch, axes, 2), samples
            Box of the patch, as the sampler returned it.

        Raises
        ------
        ContractError
            If the patch does not have the shape of its box, or the result cannot hold its dtype.
        TilingError
            If the sampler has no such box, or its chunk is finished.

        Notes
        -----
        An error of ``output``, or of ``chunk_postprocess_func``, is raised, and the patch is kept: the chunk
        is written again at the next call, or by `get_output`. Appending the same patch again does no harm.
        """
        boxes, values = as_numbers("patch_bbox", patch_bbox), as_array(patch, "patch is a")
        self._tensors = self._tensors or is_tensor(patch)
        if not self._batched or boxes.ndim != 3:
            boxes, values = boxes[None], values[None]
        if len(values) != len(boxes):
            raise ContractError(f"a batch of {len(values)} patches came with {len(boxes)} boxes.")
        positions = [self._sampler.position(box) for box in boxes]
        with self._lock:
            if self._gatherer is None and len(values):
                self._gatherer = self._start(values[0])
            if self._gatherer is not None:
                # All are checked before the first is added, so that the call can be repeated.
                columns = zip(positions, values, boxes, strict=True)
                checked = [(p, self._checked(self._gatherer, p, v, b)) for p, v, b in columns]
                self._gatherer.take(checked)

    def _checked(self, gatherer: Gatherer, position: Index, values: Array, box: Array) -> Array:
        """Return the values of a patch in the dtype of the sums, after a check of shape and dtype."""
        output, expected = gatherer.output, gatherer.expected(position)
        if values.shape != expected:
            raise ContractError(
                f"the patch with box {box.tolist()} has shape {values.shape}; expected {expected}."
            )
        values = addable(values, output.kind)
        # Except for "trim", the checks depend only on the dtype: one check per dtype is enough.
        if values.dtype not in self._dtypes or output.kind == "trim":
            check_dtype(output, values)
            known = output.accumulator()
            if not np.can_cast(values.dtype, known, "same_kind"):
                raise ContractError(
                    f"the patch with box {box.tolist()} has dtype {values.dtype}; after the first patch, "
                    f"sums are {known}. Append patches of one dtype."
                )
            self._dtypes.add(values.dtype)
        return values

    def _start(self, values: Array) -> Gatherer:
        """Return the gatherer for patches like the first one."""
        if self._post is not None:
            self._post.tensors = self._tensors
        unit = None if self._sink is None else self._sink.unit
        return gatherer_of(self._merge.spec(values, self._sampler.chunk_size, unit), self._sink)

    # -- results ----------------------------------------------------------------------------------------

    @property
    def missing(self) -> list[list[list[int]]]:
        """Boxes of the missing patches, sorted: start and stop per tiled axis, samples."""
        times = {} if self._gatherer is None else self._gatherer.times
        if len(times) == len(self._sampler):
            return []
        every = (self._sampler.get_bbox(i) for i in range(len(self._sampler)))
        numbers = self._sampler.number
        return sorted(box.tolist() for box in every if numbers(self._sampler.position(box)) not in times)

    @raises_as_ancestors
    def get_output(self, inplace: bool = False) -> Any:
        """Return the result of the patches appended so far.

        Without chunks, more patches may be appended afterwards, for another result.

        Parameters
        ----------
        inplace : bool
            Whether to return a given ``output`` of any kind itself. It holds the result in either case.

        Returns
        -------
        array, shape ``output_size`` without the axis of an argmax
            Without ``output``, a torch tensor if patches were tensors, else a numpy array. With an ``output``
            of numpy or torch, or with chunks, that array. With one of Zarr, h5py or another store, and
            without chunks, a numpy array with its values.

        Warns
        -----
        TilingWarning
            If patches are missing: where only they have weight, the result is ``fill_value``. If samples of
            an integer result are NaN: they are ``fill_value``.

        Raises
        ------
        TilingError
            If patches are missing and ``missing="error"``.
        """
        inplace = flag("inplace", inplace)
        self._report()
        with self._lock:
            if self._gatherer is None:
                self._gatherer = self._start(np.zeros(self._merge.patch_shape(), np.float32))
            result = self._gatherer.result()
            axis = self._merge.argmax_left(self._gatherer.output)
            unknown = self._gatherer.unknown
        if unknown:
            report(unknown)
        if self._sink is not None:
            if axis is not None:
                return result[...].argmax(axis)
            stored = self._sink.view is None and not is_tensor(result)
            return np.asarray(result[...]) if stored and self._whole and not inplace else result
        return sys.modules["torch"].from_numpy(result).to(self._device) if self._tensors else result

    def _report(self) -> None:
        """Warn of missing patches, or raise, according to ``missing``."""
        if self._missing == "ignore" or not (boxes := self.missing):
            return
        some = ", ".join(map(str, boxes[:3])) + (", ..." if len(boxes) > 3 else "")
        text = f"{len(boxes)} of {len(self._sampler)} patches did not come, with boxes {some}."
        if self._missing == "error":
            raise TilingError(f'{text} Append them, or say missing="ignore".')
        warn(f"{text} Where no other patch has weight, the result is fill_value.", TilingWarning)


class _Post:
    """The user's function of a chunk, called with a tensor if the patches are tensors."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self.tensors = False

    def __call__(self, chunk: Array) -> Array:
        given = sys.modules["torch"].from_numpy(chunk) if self.tensors else chunk
        note = f"called as chunk_postprocess_func, with a chunk of shape {chunk.shape}"
        return as_array(noted(note, self._function, given))
