"""`check`: compares windows of a tiled result with the function on the same places with more context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework._checks import Report, at_least, brief, warn
from tilework._types import Function
from tilework.diagnostics.causes import Case, Cause, causes_of
from tilework.diagnostics.closeness import ROUNDING, conditioning, gap_between, judge
from tilework.diagnostics.label_windows import LabelFindings, Look, advice, findings, is_labels, looks_at
from tilework.diagnostics.offsets import off_centre
from tilework.diagnostics.places import PLACES, Place, around, places_of
from tilework.diagnostics.untiled import Untiled, Window
from tilework.diagnostics.viewing import View, members_of, view
from tilework.engine.spec import Spec
from tilework.errors import TilingError, TilingWarning
from tilework.graph.build import find_spec
from tilework.grid.tiles import Box
from tilework.labels.hints import INDEPENDENT

__all__ = ["CheckReport", "check"]

UNKNOWN = "the cause was not found: compare with the untiled function where it differs (tw.compare)"


@dataclass(frozen=True, slots=True, repr=False)
class CheckReport(Report):
    """The findings of `check`; prints as a table."""

    largest: float
    """The same difference between the tiled result and the function with more context, as it is."""
    relative: float
    """The difference that exceeds rounding most, as a fraction of the spread of the values: of their mean
    distance from the median, per channel. An offset of the values does not count. If all outputs are labels,
    the share of compared objects that differ."""
    where: tuple[int, ...]
    """Index of that difference in the result; of labels, the first sample of the box of a wrong object."""
    output: int | str | None
    """Key of the output with that difference; None if there is only one output."""
    windows: tuple[tuple[str, Box, float], ...]
    """Per window: kind of place, box (image samples of the tiled axes), largest difference."""
    context: tuple[int, ...]
    """Context per side of the function's windows, image samples per tiled axis."""
    crops: int
    """Number of crops of the tiled result that ran."""
    rounding: float = ROUNDING
    """Largest fraction of the spread that counts as rounding: 1e-5, or what the dtype of the values can
    hold."""
    causes: tuple[str, ...] = ()
    """Why the results differ, as far as it was found: "overlap", "multiple", "offset", "size", "global",
    "far" (a reach that does not end), "border", "wraps", "labels", "large" (objects that are longer than the
    crop), "random", "batch" (a function that mixes the crops of a batch), "other" (what was given is not what
    was tiled)."""
    offset: tuple[int, ...] = ()
    """Image samples, per tiled axis, by which results lie after the place that they respond to.

    A margin is then split wrongly; the tiles agree on it, and so do the windows. If all of the margin is on
    one side, the function may be meant so, and it is no cause."""
    help: str = ""
    """What to change, one sentence per cause."""
    labels: tuple[LabelFindings, ...] = ()
    """What was found about the objects, one entry per output of labels."""

    @property
    def ok(self) -> bool:
        """Whether the results differ only by rounding and lie where the function looked.

        Of labels, whether objects were compared and all of them have the same samples.
        """
        same = self.relative <= self.rounding and "offset" not in self.causes
        return same and all(found.ok for found in self.labels)

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values."""
        kinds = dict.fromkeys(kind for kind, _, _ in self.windows)
        found = {kind: [d for k, _, d in self.windows if k == kind] for kind in kinds}
        which = "" if self.output is None else f" of output {self.output!r}"
        word = "differs"
        if self.relative <= self.rounding and all(one.ok for one in self.labels):
            word = f"{'equal to rounding' if self.windows else 'the same objects'}, where it was looked"
        elif self.relative <= self.rounding and not any(one.differing or one.wide for one in self.labels):
            word = "unknown, because no objects were compared"
        same = word != "differs"
        if self.help:
            word += f"{': ' if not same else '; but ' if self.causes else '; '}{self.help}"
        numbers = [
            *((kind, f"{max(gaps):.3g} at most, in {len(gaps)} windows") for kind, gaps in found.items()),
            (
                "largest",
                f"{self.largest:.3g} ({self.relative:.1e} of the spread) at {self.where}{which}",
            ),
        ]
        return [
            *(numbers if self.windows else ()),
            *(row for one in self.labels for row in one.rows()),
            ("context", f"{self.context} samples per side around each window; {self.crops} crops ran"),
            ("verdict", word),
        ]


def check(
    out: Any,
    fn: Function | None = None,
    array: Any = None,
    *,
    where: Any = PLACES,
    places: int = 3,
    size: int = 16,
    context: int | Sequence[int] | None = None,
    seed: int = 0,
) -> CheckReport:
    """Compare windows of a tiled result with the function on the same places with far more context.

    Only the tiles of the windows run. If a mask or ``skip`` leaves a tile out, another place is tried. If a
    window differs, the function is called on changed windows (some dozens of times) to find the cause, and
    `CheckReport.help` says what to change. If the function has a margin, it is called a few times more, to
    see whether results lie where they should.

    Of an output of labels, the sets of samples of objects are compared, and their ids are not: all objects
    that lie wholly inside a window of a crop with its context, without an overlap at each side. If some
    differ, the tiles around three of them are painted again from larger crops, to find an overlap that does.

    Unusual places are found by reading a part of the image: all of it up to 128 MiB; of a larger one,
    that much at random, in at most 256 parts, 64 storage chunks or 16 blocks of dask. So a single NaN in a
    large image may be missed.

    Parameters
    ----------
    out : dask.array.Array, or tuple or dict of them
        Unmodified result of `tiled_map`.
    fn : callable, optional
        The function, which must accept windows larger than its crop. Default: the function of ``out``.
    array : array, path, URL, `load_once`, or tuple of them, optional
        The image. Default: the image of ``out``.
    where : word, tuple of words, or tuple of points
        Kinds of places: "corners" of tiles, the image's "borders", "random", and unusual places: "nonfinite"
        (NaN and infinities), "extremes" (the smallest and largest value) and "background" (the most frequent
        value, where it fills a part of the image). A point is a tuple of int, image samples per tiled axis.
    places : int
        Number of windows of each kind. Of an unusual place, the first is at the nearest cut between tiles.
    size : int, image samples per tiled axis
        Length of a compared window; of labels, a crop if that is more and does not get too large.
    context : int or tuple of int, image samples per side and tiled axis, optional
        Context of ``fn`` around a window. Default: four overlaps, or half a crop if that is more.
    seed : int
        Seed of the random places.

    Returns
    -------
    CheckReport
        The largest difference, its place and its causes; prints as a table.

    Raises
    ------
    TilingError
        If ``out`` is not an unmodified result of one `tiled_map`, if its function takes its tile, if
        ``array`` has another shape, or if no tile ran at any place that was tried.
    TypeError
        For arguments of a wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> from tilework import tiled_map
    >>> def smooth(x):
    ...     return (x + np.roll(x, 3, 0) + np.roll(x, -3, 0)) / 3
    >>> image = np.random.default_rng(0).random((200, 200))
    >>> check(tiled_map(smooth, image, 64, 3), where="random").ok
    True
    >>> check(tiled_map(smooth, image, 64, 2), where="corners").ok
    False
    """
    members = members_of(out)
    spec = _spec_of(list(members.values()))
    views = view(members, verbose=False)
    shown = next(iter(views.values()))
    # Results below are read tile by tile.
    untiled = Untiled(shown.tiles.spec, spec.fn if fn is None else fn, array, context)
    rng = np.random.default_rng(at_least("seed", seed, 0))
    # A place of each tile is enough.
    places, size = min(at_least("places", places, 0), len(spec.plan)), at_least("size", size, 1)
    found, tried = places_of(spec, untiled.sources, where, places, shown, rng)
    if not found:
        why = "no tile ran at any place that was tried" if tried else f"where={brief(where)}, places={places}"
        raise TilingError(f"there is nothing to compare: {why}.")
    numbers = {k: v for k, v in views.items() if not is_labels(spec.outputs[v.number])}
    cases = [_compared(untiled, numbers, place, size) for place in found] if numbers else []
    for column in zip(*cases, strict=True):
        judge([case.gap for case in column])
    looks = list(looks_at(untiled, views, found, size)) if len(numbers) < len(views) else []
    crops = shown.ran
    given = fn is not None or array is not None
    labels, causes = _objects(untiled, looks, given=given)
    flat = [case for row in cases for case in row]
    causes += _causes(untiled, flat, given=given) if flat else []
    offset, note = _offset(untiled, flat)
    # All of the margin on one side is a choice, of a filter that looks only back for example.
    split = any(k and 0 not in g.margin for k, g in zip(offset, untiled.grids, strict=False))
    if split and not any(cause.word == "offset" for cause in causes):
        causes.append(Cause("offset", note))
    if any(cause.word == "labels" for cause in causes):
        warn(f"the function numbers objects: {INDEPENDENT}.", TilingWarning)
    worst = max(flat, key=lambda case: (case.excess, case.largest), default=None)
    unknown = UNKNOWN if worst is not None and worst.excess > 1 else note
    return CheckReport(
        **(_worst_of_labels(looks, labels) if worst is None else _worst(worst, list(numbers))),
        windows=tuple(
            (p.kind, r[0].box, max(c.largest for c in r)) for p, r in zip(found, cases, strict=bool(cases))
        ),
        context=untiled.context,
        crops=crops,
        causes=tuple(dict.fromkeys(cause.word for cause in causes)),
        offset=offset,
        help="; besides, ".join(dict.fromkeys(cause.help for cause in causes)) or unknown,
        labels=tuple(labels),
    )


def _worst(case: Case, keys: Sequence[Any]) -> dict[str, Any]:
    """Return what a report says of the worst window."""
    return {
        "largest": case.largest,
        "relative": case.relative,
        "rounding": case.relative / case.excess if 0 < case.excess < np.inf else ROUNDING,
        "where": case.where,
        "output": keys[case.member],
    }


def _worst_of_labels(looks: Sequence[Look], labels: Sequence[LabelFindings]) -> dict[str, Any]:
    """Return what a report says of the worst window of labels."""
    worst = max(looks, key=lambda look: look.found.differing)
    share = max(1 - found.share if found.compared else 0.0 for found in labels)
    return {"largest": 0.0, "relative": share, "rounding": 0.0, "where": worst.where, "output": worst.key}


def _objects(
    untiled: Untiled, looks: Sequence[Look], *, given: bool
) -> tuple[list[LabelFindings], list[Cause]]:
    """Return what was found about each output of labels, and why it differs."""
    labels, causes = list[LabelFindings](), list[Cause]()
    for number in dict.fromkeys(look.number for look in looks):
        own = [look for look in looks if look.number == number]
        labels.append(findings(untiled, own))
        causes += advice(untiled, own, labels[-1], given=given)
    return labels, causes


def _compared(untiled: Untiled, views: Mapping[Any, View], place: Place, size: int) -> list[Case]:
    """Return the comparison of a place, one entry per member of the result."""
    spec = untiled.spec
    box = around(spec, place.point, [size] * len(untiled.grids))
    window = Window(untiled, untiled.spans(box), place.each)
    expected = window.results(box)
    cases = []
    for member, shown in enumerate(views.values()):
        output, want, n = spec.outputs[shown.number], expected[shown.number], spec.plan.n_each
        spans = [slice(i, i + 1) for i in place.each]
        columns = zip(output.weights[n:], box.start, box.stop, strict=True)
        spans += [slice(w.scaled(low), w.scaled(high)) for w, low, high in columns]
        index = output.place(Box.of((s.start, s.stop) for s in spans))
        got = np.asarray(shown[index])
        axes = [n + a for a in output.reduced_axes]
        gap = gap_between(got, want, axes, conditioning(window.crops, want.dtype))
        start = tuple(s.start or 0 for s in index)
        cases.append(Case(box, place.each, shown.number, got, want, gap, start, member))
    return cases


def _causes(untiled: Untiled, cases: Sequence[Case], *, given: bool) -> list[Cause]:
    """Return the causes of the differences: of the worst window inside, and of the worst at the border."""
    differing = sorted((c for c in cases if c.excess > 1), key=lambda c: -min(c.excess, 1e300))
    inside = [c for c in differing if not _at_border(untiled, c.box)]
    border = [c for c in differing if _at_border(untiled, c.box)]
    found: dict[str, Cause] = {}
    for group in (inside, border):
        for case in group[:2]:
            causes = causes_of(untiled, case, given=given)
            for cause in causes:
                known = found.get(cause.word)
                if known is None or cause.amount > known.amount:
                    found[cause.word] = cause
            # The next worst only if the worst tells nothing but what the border does.
            if any(cause.word not in ("border", "wraps") for cause in causes):
                break
    # What makes all values differ, or needs another function, hides all other causes.
    whole = next(
        (found[w] for w in ("random", "batch", "labels", "offset", "other", "global") if w in found), None
    )
    return list(found.values()) if whole is None else [whole]


def _at_border(untiled: Untiled, box: Box) -> bool:
    """Return whether a box touches the image's border, image samples."""
    columns = zip(untiled.grids, box.start, box.stop, strict=True)
    return any(a == 0 or b == g.covered for g, a, b in columns)


def _offset(untiled: Untiled, cases: Sequence[Case]) -> tuple[tuple[int, ...], str]:
    """Return by how many image samples results lie too late per tiled axis, and what to say of it.

    Nothing is returned if they lie right, or if that cannot be seen.
    """
    grids = untiled.grids
    if not any(sum(g.margin) for g in grids):
        return (), ""
    # Where the result varies, it shows a response.
    for case in sorted(cases, key=lambda c: -float(c.gap.spread.max(initial=0.0)))[:3]:
        seen = off_centre(untiled, case.box, case.each)
        if any(k is not None for k in seen):
            break
    else:
        return (), "whether results lie where the function looked could not be seen"
    moved = tuple(k or 0 for k in seen)
    if not any(moved):
        return (), ""
    split = [(g.margin[0] - k, g.margin[1] + k) for g, k in zip(grids, moved, strict=True)]
    names = untiled.spec.plan.names[untiled.spec.plan.n_each :]
    late = ", ".join(
        f"{abs(k)} sample{'s' * (abs(k) > 1)} too {'late' if k > 0 else 'early'} along axis {name}"
        for k, name in zip(moved, names, strict=True)
        if k
    )
    text = f"results lie {late}: what changes in the image changes the result around another place"
    if all(min(pair) >= 0 for pair in split):
        text += f"; margin={tuple(split)} puts it right"
    if any(k and 0 in g.margin for k, g in zip(moved, grids, strict=True)):
        text += ", unless the function is meant to look to one side"
    return moved, text


def _spec_of(arrays: Sequence[Any]) -> Spec:
    """Return the `Spec` of the one call that made all ``arrays``, if it can be compared."""
    found = [find_spec(array) for array in arrays]
    specs = [f.spec for f in found if f is not None]
    if not specs or len(specs) < len(arrays) or any(s is not specs[0] for s in specs):
        raise TilingError(
            "out must be an unmodified result of one tiled_map: what it returned, not computed or changed; "
            f"got {', '.join(map(brief, arrays))}."
        )
    spec = specs[0]
    if spec.pass_tile:
        raise TilingError("a function that takes its tile has no untiled result to compare with.")
    if not spec.plan.n_runs:
        raise TilingError("there is nothing to compare: no tile of this result runs.")
    return spec
