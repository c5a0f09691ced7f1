"""The parameters of `tiled_map` and `plan_tiles`: what editors see, and what a wrong one is told."""

from __future__ import annotations

import inspect
import re
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tilework as tw
from tilework._checks import _ELSEWHERE as WORDS_ELSEWHERE
from tilework._checks import one_of
from tilework.grid.axis import EDGES
from tilework.grid.weights import BLENDS
from tilework.plan.arguments import _ELSEWHERE
from tilework.source.padding import BOUNDARIES

IMAGE = np.zeros((40, 30))
ONLY_MAP = (
    "fn", "array", "cval", "disagreement", "where", "nodata", "nodata_fill", "skip", "fill_value",
    "pass_tile", "meta", "name",
)  # fmt: skip


@pytest.mark.parametrize("function", [tw.tiled_map, tw.plan_tiles], ids=lambda f: f.__name__)
def test_the_signature_names_every_parameter_and_its_type(function: Any) -> None:
    """No ``**kwargs``: editors and type checkers see a misspelt keyword."""
    parameters = inspect.signature(function).parameters
    assert {p.kind for p in parameters.values()} == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY,
    }  # fmt: skip
    hints = typing.get_type_hints(function)
    assert set(hints) == {*parameters, "return"}
    assert {n for n, hint in hints.items() if hint is Any} <= {"array", "return"}


def test_both_have_the_same_parameters_with_the_same_types() -> None:
    both = [typing.get_type_hints(f) for f in (tw.tiled_map, tw.plan_tiles)]
    assert set(both[0]) - set(both[1]) == set(ONLY_MAP)
    assert set(both[1]) - set(both[0]) == {"shape", "source_chunks"}
    assert {n for n in set(both[0]) & set(both[1]) if both[0][n] != both[1][n]} <= {
        "overlap",
        "dtype",
        "return",
    }


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("depth", "overlap"),
        ("halo", "overlap"),
        ("mode", "blend (MONAI's mode) or edge (Patchly's mode)"),
        ("patch_size", "crop"),
        ("roi_size", "crop"),
        ("crop_size", "crop"),
        ("sw_batch_size", "batch_size"),
        ("step_size", "stride"),
        ("patch_offset", "stride"),
        ("patch_overlap", "stride=crop - patch_overlap (for samples that neighbours share)"),
        ("padding_mode", "boundary"),
        ("weights", "blend"),
        ("lanes", "to_zarr(out, store, lanes=...)"),
        ("on_device", "from_torch(network, on_device=True)"),
        ("use_mirroring", "augmented(fn)"),
        ("normalize", "normalized(fn, image_statistics(image))"),
        ("overlp", "overlap"),
        ("chunk", "chunks"),
        ("axis", "axes"),
    ],
)
def test_an_unknown_keyword_is_told_what_it_may_have_meant(name: str, meant: str) -> None:
    with pytest.raises(TypeError) as caught:
        tw.tiled_map(np.copy, IMAGE, 16, 2, dtype=float, **{name: 3})
    own = f"What fn itself needs goes in by functools.partial(fn, {name}=3)."
    assert str(caught.value) == f"tiled_map has no argument {name!r}; did you mean {meant}? {own}"
    with pytest.raises(TypeError) as caught:
        tw.plan_tiles(IMAGE.shape, 16, 2, **{name: 3})
    assert str(caught.value) == f"plan_tiles has no argument {name!r}; did you mean {meant}?"


@pytest.mark.parametrize("name", ["xyz", "kernel_size", "footprint", "model"])
def test_an_unknown_keyword_like_no_other_gets_no_hint(name: str) -> None:
    with pytest.raises(TypeError, match=f"has no argument '{name}'. What fn itself needs .*{name}=array"):
        tw.tiled_map(np.copy, IMAGE, 16, 2, dtype=float, **{name: IMAGE})
    with pytest.raises(TypeError, match=f"plan_tiles has no argument '{name}'.$"):
        tw.plan_tiles(IMAGE.shape, 16, 2, **{name: 3})


def test_every_word_of_other_tools_leads_to_one_that_exists() -> None:
    parameters = inspect.signature(tw.tiled_map).parameters
    assert not set(_ELSEWHERE) & set(parameters)
    for meant in _ELSEWHERE.values():
        name, sign = re.match(r"(\w+)(\W?)", meant).groups()  # type: ignore[union-attr]
        assert name in parameters or (sign == "(" and name in tw.__all__) or meant.startswith("out.compute(")
    assert {here for _, _, here in WORDS_ELSEWHERE} <= {*EDGES, *BOUNDARIES, *BLENDS}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"edge": "mirror"}, """got 'mirror'; 'mirror' is scipy's name for boundary="reflect"."""),
        ({"edge": "Nearest"}, """got 'Nearest'; 'Nearest' is scipy's name for boundary="edge"."""),
        ({"boundary": "none"}, """got 'none'; 'none' is dask's name for edge="clip"."""),
        ({"blend": "periodic"}, """got 'periodic'; 'periodic' is dask's name for boundary="wrap"."""),
        ({"boundary": "trim"}, """got 'trim'; 'trim' is a word of blend: blend="trim"."""),
        ({"edge": "reflect"}, """got 'reflect'; 'reflect' is a word of boundary: boundary="reflect"."""),
        ({"blend": "squeeze"}, """got 'squeeze'; 'squeeze' is a word of edge: edge="squeeze"."""),
        ({"edge": "crop"}, "got 'crop'; did you mean 'drop'?"),
        ({"edge": "EDGE"}, "got 'EDGE'; did you mean 'shift'?"),
        ({"edge": "Shift"}, "got 'Shift'; did you mean 'shift'?"),
        ({"blend": "crop"}, "got 'crop'; did you mean 'trim'?"),
        ({"blend": "constant"}, "got 'constant'; did you mean 'average'?"),
        ({"boundary": "replicate"}, "got 'replicate'; did you mean 'edge'?"),
        ({"edge": "shfit"}, "got 'shfit'; did you mean 'shift'?"),
        ({"edge": "stop"}, "got 'stop'"),
        ({"boundary": "mirrored image"}, "got 'mirrored image'"),
        ({"reuse": "never"}, "got 'never'"),
    ],
    ids=str,
)  # fmt: skip
def test_an_unknown_word_gets_a_hint_only_where_there_is_one(given: dict[str, Any], told: str) -> None:
    with pytest.raises(tw.TilingError) as caught:
        tw.plan_tiles(IMAGE.shape, 16, 4, **given)
    assert str(caught.value).endswith(f"; {told}")


def test_a_word_of_another_argument_needs_to_be_told_of_it() -> None:
    with pytest.raises(tw.TilingError, match=r"got 'mirror'$"):
        one_of("missing", "mirror", ("warn", "ignore"))


def warned(call: Any) -> list[tuple[str, int]]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [(w.filename, w.lineno) for w in found]


def test_warnings_point_at_the_line_of_the_caller() -> None:
    """However many calls of the package lie between."""

    def drops() -> None:
        tw.tiled_map(np.copy, IMAGE, 64, 4, edge="drop", dtype=float)

    def masks() -> None:
        tw.tiled_map(np.copy, IMAGE, 16, 4, mask=np.zeros((4, 3), bool), dtype=float)

    def plans() -> None:
        tw.plan_tiles((40, 30), 16, 4, mask=np.zeros((4, 3), bool))

    def probes() -> None:
        tw.tiled_map(lambda x: x + x.mean(), IMAGE, 24, "auto", dtype=float)

    for call in (drops, masks, plans, probes):
        line = call.__code__.co_firstlineno + 1
        assert (__file__, line) in warned(call), call


# -- flags -----------------------------------------------------------------------------------------------


def _aggregator(**options: Any) -> Any:
    return tw.Aggregator(tw.GridSampler(IMAGE, IMAGE.shape, (16, 16)), IMAGE.shape, **options)


def _never() -> Any:
    raise AssertionError("something was looked at before the flags")
    yield  # a generator


class _Untouchable:
    """Raises as soon as anything about it is looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was looked at before the flags")


CALLS: dict[str, Any] = {
    "Aggregator.__init__": lambda **flags: _aggregator(**flags),
    "Aggregator.get_output": lambda **flags: _aggregator(missing="ignore").get_output(**flags),
    "GridSampler.__init__": lambda **flags: tw.GridSampler(_Untouchable(), IMAGE.shape, (16, 16), **flags),
    "Slicer.__init__": lambda **flags: tw.Slicer(_Untouchable(), 16, 2, **flags),
    "Table.write": lambda **flags: tw.Table({"a": [1]}).write("/none/a.csv", **flags),
    "TilePlan.explain": lambda **flags: tw.plan_tiles(IMAGE.shape, 16, 2).explain(**flags),
    "compute": lambda **flags: tw.compute(_Untouchable(), **flags),
    "explain": lambda **flags: tw.explain(_Untouchable(), **flags),
    "from_torch": lambda **flags: tw.from_torch(_Untouchable(), **flags),
    "measure_labels": lambda **flags: tw.measure_labels(_Untouchable(), **flags),
    "merge_labels": lambda **flags: tw.merge_labels(_Untouchable(), _Untouchable(), **flags),
    "nnunet_options": lambda **flags: tw.nnunet_options(_Untouchable(), _Untouchable(), **flags),
    "normalized": lambda **flags: tw.normalized(np.copy, _Untouchable(), **flags),
    "plan_tiles": lambda **flags: tw.plan_tiles(_Untouchable(), 16, 2, batch_size=2, **flags),
    "probe": lambda **flags: tw.probe(np.copy, _Untouchable(), _Untouchable(), **flags),
    "sample_crops": lambda **flags: tw.sample_crops(_Untouchable(), 1, 1, **flags),
    "status": lambda **flags: tw.status(_Untouchable(), **flags),
    "tiled_map": lambda **flags: tw.tiled_map(np.copy, _Untouchable(), 16, 2, **flags),
    "to_zarr": lambda **flags: tw.to_zarr(_Untouchable(), _Untouchable(), **flags),
    "view": lambda **flags: tw.view(_Untouchable(), **flags),
    "write_many": lambda **flags: tw.write_many(_never(), **flags),
}  # fmt: skip
REPORTS = ("ProbeReport", "CheckReport")  # made by tilework alone


def _public() -> Iterator[tuple[str, Any]]:
    for name in tw.__all__:
        found = getattr(tw, name)
        if not inspect.isclass(found):
            yield name, found
        elif not issubclass(found, BaseException) and name not in REPORTS:
            for method, function in inspect.getmembers(found, callable):
                own = not hasattr(dict, method) or method == "__init__"  # those of dict have no signature
                if own and (method == "__init__" or not method.startswith("_")):
                    yield f"{name}.{method}", function


def _flags() -> list[tuple[str, str]]:
    """Return function and name of every public parameter that is, or may be, a bool."""
    return [
        (name, p.name)
        for name, function in _public()
        if callable(function)
        for p in inspect.signature(function).parameters.values()
        if isinstance(p.default, bool)
        or re.search(r"\bbool\b", str(p.annotation))
        or (name in ("compute", "to_zarr", "write_many") and p.name == "progress")
    ]


def test_all_flags_are_found() -> None:
    """The law below quantifies over these; a new function needs an entry in `CALLS`."""
    found = _flags()
    assert {name for name, _ in found} == set(CALLS)
    assert {("to_zarr", "overwrite"), ("view", "verbose"), ("from_torch", "add_channel")} <= set(found)
    assert len(found) >= 19


@pytest.mark.parametrize(("function", "name"), _flags(), ids=".".join)
def test_a_flag_is_true_or_false_or_is_refused(function: str, name: str) -> None:
    """Before anything else is looked at: "false" is true for Python, and `overwrite` deletes."""
    wrong: list[Any] = ["false", "", "True", 1, 0, 1.0, [True], np.array([True, False]), b"no", None]
    for value in wrong[:-1] if name in ("add_channel", "pad_batch") else wrong:
        with pytest.raises(TypeError, match=rf"^{name} must be True(, False,| or False)") as caught:
            CALLS[function](**{name: value})
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("function", "name"), _flags(), ids=".".join)
def test_bools_of_python_and_numpy_are_flags(function: str, name: str) -> None:
    """They get as far as what is looked at next."""
    for value in (True, False, np.True_, np.False_):
        said = ""
        try:
            CALLS[function](**{name: value})
        except Exception as error:
            said = str(error)
        assert f"{name} must be True" not in said


def test_overwrite_false_as_a_word_deletes_nothing(tmp_path: Path) -> None:
    """A foreign array is still there, and so is a result."""
    zarr.create_array(str(tmp_path / "a.zarr"), data=np.full((40, 30), 7.0), chunks=(8, 8))
    out = tw.tiled_map(np.negative, IMAGE, 16, 2, dtype=float)
    for word in ("false", "no", 0, None):
        with pytest.raises(TypeError, match=f"overwrite must be True or False; got {word!r}"):
            tw.to_zarr(out, tmp_path / "a.zarr", overwrite=word)
        with pytest.raises(TypeError, match="overwrite"):
            tw.write_many([(out, tmp_path / "a.zarr")], overwrite=word)
    assert (zarr.open(str(tmp_path / "a.zarr"))[:] == 7).all()
    tw.to_zarr(out, tmp_path / "a.zarr", overwrite=np.True_, progress=np.False_)
    assert (zarr.open(str(tmp_path / "a.zarr"))[:] == 0).all()
