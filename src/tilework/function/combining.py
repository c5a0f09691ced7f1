"""`augmented` and `ensemble`: several predictions for each crop, combined into one.

Both are one class. It calls each of its functions on each variant of a crop, puts the results back in place
and folds them. Where tiled axes lie in crops and results is known only where the function is tiled, so
`tiled_map` gives it `Places`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from tilework._checks import attribute, brief, check_calls, one_of, sequence, whole
from tilework._types import Array, Function, Index
from tilework.errors import ContractError, GridError, TilingError
from tilework.function.calling import as_results, check_function, is_batched
from tilework.function.folding import REDUCES, Combine, Fold, folded_dtype
from tilework.function.variants import Variant, variants_of

__all__ = [
    "Combined", "Places", "Predictions", "augmented", "ensemble", "functions_in", "moments_of",
    "predictions_of",
]  # fmt: skip

Inverse = Callable[[Any, Variant], Any]
Call = Callable[..., list[Array]]
Views = Sequence[Sequence[Array]]
"""For each variant, a crop of each source."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where the tiled axes are in the crops and results of one `tiled_map`."""

    crops: tuple[Index, ...]
    """Per source, the positions of the tiled axes in a crop, batch excluded."""
    results: tuple[Index, ...]
    """Per output, the positions of the tiled axes in a result, batch excluded."""
    keys: tuple[Any, ...]
    """Keys of the outputs; one None for a single array."""
    wide: tuple[bool, ...]
    """Per output, whether a mean of integers stays a float."""
    batches: bool
    """Whether all functions get batches, because ``batch_size`` says so."""
    names: tuple[str, ...] = ()
    """Names of the tiled axes."""

    def call(self, keys: Sequence[Any], fn: Function, *crops: Array, **tile: Any) -> list[Array]:
        """Return the results of a function as arrays in the order of ``keys``."""
        own: list[dict[str, int]] = []
        if not isinstance(fn, Combined):
            batched = self.batches or is_batched(fn)
            own = [dict(zip(self.names, (a + batched for a in axes), strict=False)) for axes in self.results]
        return as_results(fn(*crops, **tile), keys, places=own)


@dataclass(frozen=True, eq=False, repr=False)
class Combined:
    """A function that combines several predictions for each crop; made by `augmented` and `ensemble`."""

    members: tuple[Function, ...]
    """The functions that are called."""
    reduce: Combine = "mean"
    """How predictions are combined."""
    flips: Index | Literal["all"] = ()
    """Tiled axes that are mirrored, in all combinations."""
    plane: tuple[int, int] | None = None
    """Tiled axes of quarter turns."""
    inverse: Inverse | None = None
    """Corrects the values of a result that was put back in place."""
    places: Places | None = None
    """Where the tiled axes are; None outside `tiled_map`."""

    @property
    def __tilework_batched__(self) -> bool:
        return any(map(is_batched, self.members))

    def variants(self, n_axes: int) -> tuple[Variant, ...]:
        """Return the variants of a crop with ``n_axes`` tiled axes."""
        flips = tuple(range(n_axes)) if isinstance(self.flips, str) else self.flips
        if outside := [axis for axis in (*flips, *(self.plane or ())) if axis >= n_axes]:
            raise GridError(
                f"flips and rotations are numbers of tiled axes, from 0 to {n_axes - 1}; got {outside[0]}."
            )
        return variants_of(n_axes, flips, self.plane)

    def at(self, places: Places, n_axes: int) -> Combined:
        """Return the function as one call of `tiled_map` needs it."""
        flips = tuple(range(n_axes)) if isinstance(self.flips, str) else self.flips
        members = tuple(m.at(places, n_axes) if isinstance(m, Combined) else m for m in self.members)
        return replace(self, members=members, flips=flips, places=places)

    def parts(self) -> dict[str, Any]:
        """Return what the results depend on, by name."""
        members = {f"function {k}" if k else "function": m for k, m in enumerate(self.members)}
        axes = {"flips": self.flips, "rotations": self.plane}
        given = {name: str(value) for name, value in axes.items() if value}
        values = {"reduce": self.reduce, "inverse": self.inverse}
        return members | given | {name: value for name, value in values.items() if value is not None}

    def trial(
        self, shapes: Sequence[Sequence[Index]], dtypes: Sequence[Sequence[np.dtype[Any]]], n_axes: int
    ) -> list[np.dtype[Any]]:
        """Return the dtype of each combined output.

        Parameters
        ----------
        shapes, dtypes : per function, a sequence with one entry per output
            What the functions return.
        n_axes : int
            Number of tiled axes.

        Raises
        ------
        TilingError
            If the functions return arrays of different shapes.
        """
        for number, own in enumerate(shapes):
            if list(own) != list(shapes[0]):
                raise TilingError(
                    "the functions of an ensemble must return arrays of the same shapes; function 0 returns "
                    f"{list(shapes[0])}, function {number} {list(own)}."
                )
        times = len(self.variants(n_axes))
        columns = zip(zip(*dtypes, strict=True), shapes[0], strict=True)
        return [folded_dtype(self.reduce, own * times, shape) for own, shape in columns]

    # -- calls ----------------------------------------------------------------------------------------------

    def __call__(self, *crops: Array, **tile: Any) -> Any:
        """Return the combined predictions for crops, or for batches of them."""
        places, variants = self._known()
        count, several = len(self.members) * len(variants), len(self.members) > 1
        folds = [Fold(self.reduce, count, any_order=several) for _ in places.keys]
        for results in self._predictions(crops, tile, functools.partial(places.call, places.keys)):
            for fold, result in zip(folds, results, strict=True):
                fold.add(result)
        found = [fold.result(wide=wide) for fold, wide in zip(folds, places.wide, strict=True)]
        return found[0] if places.keys == (None,) else dict(zip(places.keys, found, strict=True))

    def moments(self, *crops: Array, **tile: Any) -> tuple[Array, Array, Array]:
        """Return the result, the mean of all predictions and that of their squares, in double precision.

        For functions with one output.
        """
        places, variants = self._known()
        count, several = len(self.members) * len(variants), len(self.members) > 1
        result = Fold(self.reduce, count, any_order=several)
        mean, square = (Fold("mean", count, any_order=several) for _ in range(2))
        n_axes = len(places.crops[0])
        weights = [own for m in self.members for own in [_weights(m, n_axes)] * len(variants)]
        found = self._predictions(crops, tile, functools.partial(_with_leaves, places))
        for own, (first, *leaves) in zip(weights, found, strict=True):
            result.add(first)
            inner = [Fold("mean", len(leaves)) for _ in range(2)]
            for weight, leaf in zip(own, leaves, strict=True):
                wide, factor = leaf.astype(np.float64), float(weight * len(leaves))
                inner[0].add(wide * factor)
                inner[1].add(wide * wide * factor)
            mean.add(inner[0].result())
            square.add(inner[1].result())
        return result.result(wide=places.wide[0]), mean.result(), square.result()

    def predictions(self, *crops: Array, **tile: Any) -> list[Array]:
        """Return the result, then all predictions of which it is made; for functions with one output."""
        places, variants = self._known()
        fold = Fold(self.reduce, len(self.members) * len(variants), any_order=len(self.members) > 1)
        found: list[Array] = []
        for first, *leaves in self._predictions(crops, tile, functools.partial(_with_leaves, places)):
            fold.add(first)
            found += map(np.array, leaves)
        return [fold.result(wide=places.wide[0]), *found]

    def _known(self) -> tuple[Places, tuple[Variant, ...]]:
        if self.places is None:
            raise TilingError(
                f"{self!r} was called outside tiled_map, where it cannot know which axes of a crop are "
                "tiled. Give it to tiled_map or probe as fn itself. Wrap the functions in it, not the "
                "result: augmented(functools.partial(fn, ...)), augmented(load_once(...))."
            )
        return self.places, self.variants(len(self.places.crops[0]))

    def _predictions(
        self, crops: Sequence[Array], tile: Mapping[str, Any], call: Call
    ) -> Iterator[list[Array]]:
        """Yield the arrays of each prediction, put back in place.

        ``call`` calls a function and returns arrays: one per output, or several of the one output.
        """
        places, variants = self._known()
        batched = places.batches or is_batched(self)
        axes = [tuple(a + batched for a in own) for own in places.crops]
        views = [[v.apply(crop, own) for crop, own in zip(crops, axes, strict=True)] for v in variants]
        for member in self.members:
            if places.batches or is_batched(member):
                found: Any = self._together(member, views, tile, call)
            else:
                found = self._apart(member, views, tile, call, batched=batched)
            for variant, results in zip(variants, found, strict=True):
                yield self._back(results, variant, batched=batched)

    def _together(
        self, member: Function, views: Views, tile: Mapping[str, Any], call: Call
    ) -> list[list[Array]]:
        """Return the results for all variants of a batch, by one call for all of one shape.

        A crop that is turned may have another shape, if it is the whole image.
        """
        size = len(views[0][0])
        alike: dict[Any, list[int]] = {}
        for number, own in enumerate(views):
            alike.setdefault(tuple(view.shape for view in own), []).append(number)
        found: list[list[Array]] = [[] for _ in views]
        for numbers in alike.values():
            batches = [np.concatenate(column) for column in zip(*(views[n] for n in numbers), strict=True)]
            results = call(member, *batches, **{key: tiles * len(numbers) for key, tiles in tile.items()})
            if short := [a.shape for a in results if a.shape[:1] != (size * len(numbers),)]:
                raise ContractError(
                    f"the function got a batch of {size * len(numbers)} crops, {len(numbers)} variants of "
                    f"{size}, and returned shape {short[0]}; the first axis must be the batch."
                )
            for k, number in enumerate(numbers):
                own = [a[k * size : (k + 1) * size] for a in results]
                # The next call may return the same memory again.
                found[number] = own if len(alike) == 1 else [np.array(a) for a in own]
        return found

    def _apart(
        self, member: Function, views: Views, tile: Mapping[str, Any], call: Call, *, batched: bool
    ) -> Iterator[list[Array]]:
        """Yield the results for each variant of a crop, by a call each.

        Where others get batches, which this function does not take, it gets their crops one by one.
        """
        tiles = tile.get("tiles", ())
        for own in views:
            if not batched:
                yield call(member, *map(_own, own), **tile)
                continue
            results = []
            for number, crops in enumerate(zip(*own, strict=True)):
                extra = {"tile": tiles[number]} if tiles else {}
                # The function may return the same memory again.
                results.append([np.array(a) for a in call(member, *map(_own, crops), **extra)])
            yield [np.stack(column) for column in zip(*results, strict=True)]

    def _back(self, results: list[Array], variant: Variant, *, batched: bool) -> list[Array]:
        """Return the results for a variant, put back in place."""
        places = self._known()[0]
        if variant == Variant():
            return results
        found = []
        for number, result in enumerate(results):
            own = places.results[min(number, len(places.results) - 1)]
            if result.ndim - batched <= max(own):
                raise ContractError(
                    f"the function returned shape {result.shape[batched:]}; its tiled axes must be {own}."
                )
            back = variant.undo(result, tuple(a + batched for a in own))
            found.append(back if self.inverse is None else np.array(back))  # it may write into its own
        if self.inverse is None:
            return found
        if places.keys == (None,):
            return [_results((None,), self.inverse, array, variant)[0] for array in found]
        return _results(places.keys, self.inverse, dict(zip(places.keys, found, strict=True)), variant)

    def __repr__(self) -> str:
        names = ", ".join(attribute(m, "__name__") or brief(m) for m in self.members)
        if len(self.members) != 1 or not (self.flips or self.plane):
            return f"ensemble([{names}], reduce={brief(self.reduce)})"
        return (
            f"augmented({names}, flips={self.flips!r}, rotations={self.plane}, reduce={brief(self.reduce)})"
        )


def _own(crop: Array) -> Array:
    """Return a copy of a crop: the function may write into it."""
    return np.array(crop, order="C")


def _results(keys: Sequence[Any], fn: Callable[..., Any], *args: Any, **tile: Any) -> list[Array]:
    return as_results(fn(*args, **tile), keys)


def _with_leaves(places: Places, fn: Function, *crops: Array, **tile: Any) -> list[Array]:
    """Return the result of a function, then the predictions of which it is made."""
    if isinstance(fn, Combined):
        return fn.predictions(*crops, **tile)
    return places.call((None,), fn, *crops, **tile) * 2


def _weights(fn: Function, n_axes: int) -> list[Fraction]:
    """Return the weight of each prediction of ``fn`` in a mean of means, in the order of `predictions`."""
    if not isinstance(fn, Combined):
        return [Fraction(1)]
    times = len(fn.variants(n_axes))
    parts = [weight for m in fn.members for _ in range(times) for weight in _weights(m, n_axes)]
    return [weight / (times * len(fn.members)) for weight in parts]


def functions_in(fn: Function) -> list[Function]:
    """Return the functions that ``fn`` calls, itself if it combines none."""
    return [leaf for m in fn.members for leaf in functions_in(m)] if isinstance(fn, Combined) else [fn]


class Predictions(NamedTuple):
    """How many predictions a function makes for a crop, and what it holds of them."""

    made: int = 1
    """Predictions for a crop."""
    together: int = 1
    """How many of them are made in one call."""
    waiting: int = 0
    """How many results, or sums of results, are held beside those of a call."""


def predictions_of(fn: Function, n_axes: int, *, batches: bool) -> Predictions:
    """Return how many predictions ``fn`` makes for a crop.

    Parameters
    ----------
    fn : callable
    n_axes : int
        Number of tiled axes.
    batches : bool
        Whether all functions get batches.
    """
    if not isinstance(fn, Combined):
        return Predictions()
    times = len(fn.variants(n_axes))
    inner = [predictions_of(m, n_axes, batches=batches) for m in fn.members]
    stacks = [times if batches or is_batched(m) else 1 for m in fn.members]
    count = times * len(inner)
    all_at_once = callable(fn.reduce) or (len(inner) > 2 and fn.reduce in ("mean", "gmean"))
    own = 0 if count == 1 else count if all_at_once else count.bit_length()
    return Predictions(
        times * sum(p.made for p in inner),
        max(n * p.together for n, p in zip(stacks, inner, strict=True)),
        own + max(n * p.waiting for n, p in zip(stacks, inner, strict=True)),
    )


def moments_of(fn: Function, *crops: Array, **tile: Any) -> tuple[Array, Array, Array]:
    """Return the result of ``fn``, the mean of its predictions and that of their squares, as float64."""
    if isinstance(fn, Combined):
        return fn.moments(*crops, **tile)
    result = _results((None,), fn, *crops, **tile)[0]
    wide = result.astype(np.float64)
    return result, wide, wide * wide


def augmented(
    fn: Function,
    flips: Sequence[int] | Literal["all"] = "all",
    rotations: Sequence[int] | None = None,
    *,
    reduce: Combine = "mean",
    inverse: Inverse | None = None,
) -> Combined:
    """Return a function that combines the results of ``fn`` for mirrored and turned crops.

    This is test-time augmentation, tile by tile: `tiled_map` calls ``fn`` on every variant of a crop, puts
    the results back in place and combines them, so no volume is held per variant. Where ``fn`` takes batches,
    all variants of a batch go in one call: with ``batch_size=2`` and 8 variants, ``fn`` gets 16 crops.

    The result equals that of ``fn`` augmented on the whole image, under the same conditions as without
    augmentation; an image that `tiled_map` pads to a ``multiple`` is mirrored with its padding.

    Parameters
    ----------
    fn : callable
        As for `tiled_map`; also one of `load_once`, `from_torch` or `ensemble`.
    flips : tuple of int or "all"
        Tiled axes that are mirrored, in all combinations: ``(0, 1)`` gives 4 variants. 0 is the first tiled
        axis. Default: all.
    rotations : (int, int), optional
        Two tiled axes in whose plane crops are turned by quarter turns. With one or both axes in ``flips``,
        8 different variants. Crop, overlap, stride, multiple, margin, rim and scale of these axes must be
        equal; overlap and stride not where ``starts`` are given.
    reduce : {"mean", "max", "min", "gmean"} or callable
        How predictions are combined, before `tiled_map` blends tiles. "gmean" is the geometric mean, for
        probabilities. A callable gets the stack of all predictions, ``(variants, ...)``, and removes the
        first axis; all predictions of a call are then held. Means of integers are rounded half to even
        unless the result of `tiled_map` is declared as a float.
    inverse : callable, optional
        For results whose values have directions, such as flows: called with the result of a variant, put back
        in place, and its `Variant`; returns the corrected result, for example
        ``lambda flow, variant: variant.vectors(flow, axis=-3)``. It gets what ``fn`` returns, with its batch
        axis; several arrays as a dict by key or number.

    Returns
    -------
    Combined
        For `tiled_map`, `probe` and `check`; only they know which axes of a crop are tiled.

    Raises
    ------
    TilingError
        If axes are repeated or negative. `tiled_map` raises for what cannot be combined: labels, booleans
        and integers of 64 bits in a mean, margins that differ between the sides, ``edge="clip"`` with
        rotations.
    TypeError
        For arguments of a wrong type.

    See Also
    --------
    ensemble : combine several functions.

    Examples
    --------
    >>> from tilework import tiled_map
    >>> def later(x):  # looks one sample back along the second axis
    ...     return np.hstack([x[:, :1], x[:, :-1]])
    >>> image = np.arange(48.0).reshape(6, 8)
    >>> out = tiled_map(augmented(later, flips=(1,)), image, crop=4, overlap=1)
    >>> bool((out[:, 1:-1].compute() == image[:, 1:-1]).all())  # (one back + one ahead) / 2
    True
    """
    check_function(fn)
    if isinstance(flips, str) and flips == "all":
        mirrored: Index | Literal["all"] = "all"
    else:
        mirrored = tuple(sorted(_axes("flips", flips)))
    plane = None
    if rotations is not None:
        found = _axes("rotations", rotations)
        if len(found) != 2:
            raise TilingError(f"rotations must be two tiled axes, the plane of the turns; got {found}.")
        plane = (min(found), max(found))
    if inverse is not None:
        check_calls("inverse", inverse, "result", "variant")
    return Combined((fn,), _reduce(reduce), mirrored, plane, inverse)


def ensemble(functions: Sequence[Function], *, reduce: Combine = "mean") -> Combined:
    """Return a function that combines the results of several functions for each crop.

    Each tile is read once, and each function is called on it. The order of the functions changes no bit of
    the result, unless ``reduce`` is a callable to which it matters.

    Parameters
    ----------
    functions : sequence of callable
        As for `tiled_map`, for the same crops; also of `load_once`, `from_torch` or `augmented`. Those of
        `load_once` are all kept in each process.
    reduce : {"mean", "max", "min", "gmean"} or callable
        As for `augmented`.

    Returns
    -------
    Combined
        For `tiled_map`, `probe` and `check`. Several times the same function count several times.

    Raises
    ------
    TilingError
        If there is no function.
    TypeError
        For arguments of a wrong type.

    See Also
    --------
    augmented : combine the results for mirrored and turned crops.

    Examples
    --------
    >>> from tilework import tiled_map
    >>> both = ensemble([np.floor, np.ceil])
    >>> tiled_map(both, np.full((4, 4), 2.2), crop=2, overlap=0).compute()[0, 0]
    np.float64(2.5)
    """
    if callable(functions) or not sequence(functions):
        raise TypeError(f"functions must be a sequence of functions; got {brief(functions)}.")
    if not len(functions):
        raise TilingError("an ensemble needs at least one function; got none.")
    for fn in functions:
        check_function(fn)
    return Combined(tuple(functions), _reduce(reduce))


def _axes(what: str, value: Any) -> list[int]:
    """Return numbers of tiled axes."""
    if not sequence(value) or any(isinstance(axis, str) for axis in value):
        every = ', or "all"' if what == "flips" else ""
        raise TypeError(
            f"{what} must be a tuple of numbers of tiled axes, such as (0, 1){every}; got {brief(value)}. "
            "0 is the first tiled axis, whatever it is called."
        )
    found = [whole(what, axis) for axis in value]
    if min(found, default=0) < 0 or len(set(found)) != len(found):
        raise TilingError(f"{what} must be different tiled axes, counted from 0; got {tuple(found)}.")
    return found


def _reduce(reduce: Any) -> Combine:
    if callable(reduce):
        return reduce  # type: ignore[no-any-return]
    one_of("reduce", reduce, REDUCES)
    return reduce  # type: ignore[no-any-return]
