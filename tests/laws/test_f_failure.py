"""F: what is wrong is refused at the call, by name and value, or names the tile; the rest still runs."""

from __future__ import annotations

import contextlib
import math
import re
import traceback
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tilework import (
    ContractError,
    GridError,
    MemoryBudgetError,
    Output,
    TilingError,
    TilingWarning,
    plan_tiles,
    tiled_map,
)

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = np.arange(20 * 18.0).reshape(20, 18)

# -- F1 -----------------------------------------------------------------------------------------------------

SILLY = [
    -1, 0, 1, 2, 3, 4, 8, 10**12, 10**30, -(10**30), True, 2.0, 0.25, math.nan, -math.inf, 1 + 2j, None, "",
    "8", "y", "auto", "float", "object", "U3", "M8[s]", "128MiB", "1.2.3MB", "nanGB", b"8", (), (4,), (4, 4),
    (3, 2), (4, 4, 4), [4, 4], (4, "x"), (4, None), (4, 2.5), ((1, 1), (0, 1)), (5, 5), (2, 5, 5), range(2),
    np.int64(4), np.float32(4), np.array(4), np.array([4, 4]), np.eye(2), {}, {4}, {"a": 1}, ..., slice(4),
    float, abs, object(), Fraction(1, 2), Fraction(-1, 2), (Fraction(1, 3), 2), np.ones(5), da.ones((3, 3)),
    np.zeros((3, 3), bool), (np.ones(5),) * 2, np.ones((5, 5)), np.ones((11, 9), bool), np.ones((0, 3)),
    Output(float), (Output(float),), {"a": Output("f4")}, {0: Output(float)}, np.dtype([("a", int)]),
]  # fmt: skip
WORDS = ["shift", "squeeze", "pad", "clip", "drop", "constant", "wrap", "trim", "hann", "max", "sum", "share"]
ARRAYS = [
    np.ones((11, 9)), np.ones((3, 11, 9), "f4"), np.ones((11, 9), np.int32), np.ones((11, 9), complex),
    np.ones(()), np.ones((0, 9)), np.ones((11, 9), "M8[s]"), np.full((11, 9), "a"), np.full((11, 9), None),
    np.ma.ones((11, 9)), np.ones((11, 9), [("a", int)]), (), (np.ones((11, 9)), np.ones((11, 8))), 5, None,
    (np.ones((11, 9)), 5), [[1, 2]], "no/such.zarr", da.ones((11, 9), chunks=4), int,
    da.from_array(np.ones(9))[np.ones(9, bool)],
]  # fmt: skip
ARGUMENTS = [*(n for n in tiled_map.__wrapped__.__kwdefaults__ if n != "skip"), "crop", "overlap"]
PLAN = [*plan_tiles.__wrapped__.__kwdefaults__, "shape", "crop", "overlap"]
DECLARED = list(Output.__dataclass_fields__)


def silly(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    values = st.sampled_from(SILLY) | st.sampled_from(WORDS)
    return st.dictionaries(st.sampled_from(names), values, min_size=1, max_size=3)


def flat(out: Any) -> list[Any]:
    return list(out.values() if isinstance(out, dict) else out if isinstance(out, tuple) else [out])


def check(call: Callable[[], Any], names: list[str]) -> Any:
    """Return what a call returns; an exception must be ours, on purpose, and name what it is about."""
    caught = None
    try:
        return call()
    except (TilingError, TypeError) as error:
        caught = error
    frame, message = traceback.extract_tb(caught.__traceback__)[-1], str(caught)
    assert "tilework" in frame.filename, (frame, message)
    assert any(word in message for word in [*names, "axis", "axes", "array", "block"]), message
    assert re.search(r"[0-9'()]|False|True|None|got|give|dtype object", message), message
    return None


@pytest.mark.filterwarnings("ignore::tilework.TilingWarning")
@settings(max_examples=8 * settings.default.max_examples)
@given(silly(ARGUMENTS), st.none() | silly(DECLARED), st.just(ARRAYS[0]) | st.sampled_from(ARRAYS))
@example({"crop": 10**30}, None, ARRAYS[0])
@example({"scale": np.int64(4)}, {"scale": np.int64(4)}, ARRAYS[0])
def test_F1_no_argument_fails_otherwise(
    changes: dict[str, Any], output: dict[str, Any] | None, array: Any
) -> None:
    call: dict[str, Any] = {"crop": 5, "overlap": 1, "dtype": float} | changes
    if output is not None:
        declared = check(lambda: Output(**{"dtype": float} | output), DECLARED)
        call |= {} if declared is None else {"output": declared, "dtype": None}
    out = check(lambda: tiled_map(lambda *crops, **_: crops[0], array, **call), [*ARGUMENTS, *DECLARED])
    for result in [] if out is None else flat(out):
        with contextlib.suppress(TilingError):  # where the function's result is not what was declared
            assert result.compute().shape == result.shape


@pytest.mark.filterwarnings("ignore::tilework.TilingWarning")
@settings(max_examples=8 * settings.default.max_examples)
@given(silly(PLAN))
def test_F1_no_argument_of_a_plan_fails_otherwise(changes: dict[str, Any]) -> None:
    call: dict[str, Any] = {"shape": (11, 9), "crop": 5, "overlap": 1} | changes
    plan = check(lambda: plan_tiles(**call), [*PLAN, "window"])
    if plan is not None:
        assert plan.from_json(plan.to_json()) == plan
        assert str(len(plan)) in plan.explain()


# -- F2 -----------------------------------------------------------------------------------------------------


class Fussy:
    """A function that fails where a crop holds the last sample of the image."""

    def __init__(self, fail: Callable[[np.ndarray], Any]) -> None:
        self.fail = fail

    def __call__(self, crop: np.ndarray) -> Any:
        return self.fail(crop) if (crop == IMAGE[-1, -1]).any() else crop


def boom(crop: np.ndarray) -> Any:
    raise LookupError("no such weight")


FAILURES: dict[str, tuple[Callable[[np.ndarray], Any], type[Exception], str]] = {
    "raises": (boom, LookupError, "no such weight"),
    "shape": (lambda x: x[1:], ContractError, r"shape \(9, 10\).* expected \(10, 10\)"),
    "dtype": (lambda x: x * 1j, ContractError, "dtype complex128; the declared dtype is float64"),
    "number": (lambda x: (x, x), ContractError, "a tuple of 2; one array was declared"),
    "None": (lambda _: None, ContractError, "the function returned None; it must return an array"),
    "masked": (np.ma.masked_invalid, ContractError, r"masked array; fill it first: result.filled"),
    "sparse": (scipy.sparse.csr_array, ContractError, "sparse array; make it a dense one"),
}


@pytest.mark.parametrize("blend", ["trim", "hann"])
@pytest.mark.parametrize(("fail", "kind", "message"), FAILURES.values(), ids=FAILURES)
def test_F2_a_failing_tile_is_named_and_the_others_run(
    blend: str, fail: Callable[..., Any], kind: type[Exception], message: str
) -> None:
    options: dict[str, Any] = {"overlap": 0, "stride": 10} if blend == "trim" else {"stride": 8}
    out = tiled_map(Fussy(fail), IMAGE, 10, dtype=float, blend=blend, chunks=10, **options)
    with pytest.raises(kind, match=message) as caught:
        out.compute()
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    first = re.search(r"tile (\d+) at \((\d), (\d)\), reading \[(\d+):(\d+), (\d+):(\d+)\], crop", told)
    assert first is not None, told
    a, b, c, d = map(int, first.groups()[3:])
    assert (b, d) == IMAGE.shape
    assert f"crop ({b - a}, {d - c})" in told
    np.testing.assert_allclose(out[:10].compute(), IMAGE[:10], rtol=1e-12)


def test_F2_a_failing_batch_names_its_tiles() -> None:
    out = tiled_map(Fussy(boom), IMAGE, 10, 1, dtype=float, batch_size=3, chunks=20)
    with pytest.raises(LookupError) as caught:
        out.compute()
    assert re.search(r"a batch of 3 tiles, from tile \d+ at .* to tile \d+ at", caught.value.__notes__[0])
    short = tiled_map(lambda x: x[:1], IMAGE, 10, 1, dtype=float, batch_size=2, chunks=20)
    with pytest.raises(
        ContractError, match=r"batch of 2 crops and returned shape \(1, 10, 10\).*batch of 2 tiles"
    ):
        short.compute()


def test_F2_a_failing_skip_is_named() -> None:
    out = tiled_map(np.copy, IMAGE, 10, 1, dtype=float, skip=lambda crop: crop > 3)
    with pytest.raises(ValueError, match="ambiguous") as caught:
        out.compute()
    assert re.match(r"raised by skip= on tile \d+ at", caught.value.__notes__[0])


def test_F2_outputs_that_were_not_declared_name_the_tile() -> None:
    out = tiled_map(lambda x: {"a": x}, IMAGE, 8, 2, output={"b": Output(float)})["b"]
    with pytest.raises(ContractError, match=r"outputs \['a'\]; the declared ones are \['b'\].*tile \d+ at"):
        out.compute()


@pytest.mark.parametrize("returned", ["raises", "masked", "None", "sparse"])
def test_F2_a_wrong_result_is_told_at_the_call_where_fn_is_tried(returned: str) -> None:
    fail, kind, _ = FAILURES[returned]
    with pytest.raises(kind) as caught:
        tiled_map(fail, IMAGE, 8, 2)
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "called on zeros to find its output; declare output= or dtype=" in told


# -- bad input, one by one ----------------------------------------------------------------------------------

HOLED = np.ones((8, 8))
HOLED[0] = 0
UP = np.arange(1.0, 9.0)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "crop 0": ({"crop": 0}, GridError, "crop .* at least 1.* crop 0, .* axis 0"),
    "crop negative": ({"crop": (8, -3)}, GridError, "crop .* at least 1.* crop -3, .* axis 1"),
    "crop float": ({"crop": 8.0}, TypeError, "crop must be a whole number; got 8.0"),
    "crop too long": ({"crop": (8, 8, 8)}, GridError, r"crop \(8, 8, 8\) has 3 lengths.* \(20, 18\)"),
    "crop too short": ({"crop": (8,), "axes": (0, 1)}, GridError, r"one length per tiled axis; got 1"),
    "crop over memory": ({"crop": 10**6}, MemoryBudgetError, r"crop of \(1000000, 1000000\).* 8e\+12 bytes"),
    "no overlap, no stride": ({"overlap": None}, GridError, "give overlap .* 0 if you mean it.* or stride"),
    "rim without overlap": (
        {"overlap": 0, "blend": "hann", "rim": 1}, GridError, "rim must not exceed .* rim 1, overlap 0"
    ),
    "channels behind": (
        {"array": np.ones((20, 18, 3))}, GridError, r"axis 2 has extent 3.* 8;.* axes=\(0, 1\)"
    ),
    "channels in front": ({"array": np.ones((3, 20, 18))}, GridError, r"axis 0 has extent 3.* axes=\(1, 2\)"),
    "crop of twice overlap": (
        {"overlap": 4}, GridError, "crop 8 and overlap 4 on axis 0. .* at most 3 .* at least 9"
    ),
    "stride over crop": (
        {"overlap": None, "stride": 9}, GridError, "stride 9 and crop 8 on axis 0.* at most 8"
    ),
    "stride 0": ({"overlap": None, "stride": (4, 0)}, GridError, "stride .* at least 1; got 0 on axis 1"),
    "two strides": ({"stride": 5}, GridError, "crop 8 with overlap 2 has stride 4; got 5 on axis 0"),
    "edge": ({"edge": "sqeeze"}, TilingError, "got 'sqeeze'; did you mean 'squeeze'"),
    "blend": ({"blend": "gausian"}, TilingError, "got 'gausian'; did you mean 'gaussian'"),
    "blend of others": ({"blend": "mean"}, TilingError, "got 'mean'; did you mean 'average'"),
    "boundary of dask": ({"boundary": "periodic"}, TilingError, "got 'periodic'; did you mean 'wrap'"),
    "boundary of scipy": ({"boundary": "nearest"}, TilingError, "got 'nearest'; did you mean 'edge'"),
    "boundary far off": ({"boundary": "xyz"}, TilingError, "one of 'reflect', .*'constant'; got 'xyz'$"),
    "reuse": ({"reuse": "shared"}, TilingError, "'recompute'; got 'shared'; did you mean 'share'"),
    "window length": ({"blend": (UP, UP[1:])}, GridError, r"got shape \(7,\) for a crop of 8 samples"),
    "window of a callable": ({"blend": lambda _: UP[1:]}, GridError, r"shape \(7,\) for a crop of 8"),
    "window negative": ({"blend": (UP, -UP)}, GridError, "not negative.* from -8.0 to -1.0"),
    "window NaN": ({"blend": (UP, UP * np.nan)}, GridError, "finite.* from nan to nan"),
    "window zero": ({"blend": (UP, UP - 1)}, GridError, "positive weight.* sample 0 on axis 1 has none"),
    "windows missing": ({"blend": (UP,)}, GridError, "one window per tiled axis; got 1 for 2 axes"),
    "map shape": ({"blend": np.ones((8, 7))}, GridError, r"the result's crop, \(8, 8\); got \(8, 7\)"),
    "map negative": ({"blend": -HOLED}, GridError, "not negative.* from -1.0"),
    "rim": ({"blend": "hann", "rim": 3}, GridError, "rim 3, overlap 2, .* axis 0"),
    "rim of trim": ({"rim": 1}, TilingError, 'rim=1 with blend="trim"'),
    "mask dimension": (
        {"mask": np.ones((5, 5, 5), bool)}, GridError, r"axes \(0, 1\); got shape \(5, 5, 5\)"
    ),
    "mask transposed": (
        {"array": np.ones((200, 100)), "mask": np.ones((100, 200), bool)}, GridError,
        r"mask of shape \(100, 200\) over extents \(200, 100\).* transposed\? Say mask_scale=",
    ),
    "mask float": ({"mask": np.ones((5, 5))}, TypeError, "mask must be bool or integer; got dtype float64"),
    "mask lazy": ({"mask": da.ones((20, 18), dtype=bool)}, TypeError, r"mask\.compute\(\)"),
    "mask scale": (
        {"mask": np.ones((5, 5), bool), "mask_scale": 3}, GridError, "3 on axis 0 with 5 .* extent 20"
    ),
    "object array": ({"array": np.full((20, 18), None)}, TilingError, r"dtype object; .* astype\(\)"),
    "empty array": ({"array": np.ones((20, 0))}, GridError, "not be empty; got extent 0 on axis 1"),
    "masked records": (
        {"array": np.ma.masked_all((20, 18), "i4,f4")}, TypeError, "each field has a mask"
    ),
    "masked where": (
        {"where": np.ma.masked_all((20, 18), bool)}, TypeError, r"only as the image of .*array\.filled"
    ),
    "where float": ({"where": np.ones((5, 5))}, TypeError, "where must be bool or integer; got dtype"),
    "where dimension": ({"where": np.ones(5, bool)}, GridError, r"tiled axes \(0, 1\).*got shape \(5,\)"),
    "where empty": ({"where": np.ones((0, 5), bool)}, GridError, r"must not be empty; got shape \(0, 5\)"),
    "where transposed": (
        {"array": np.ones((200, 100)), "where": np.ones((100, 200), bool)}, GridError,
        r"where of shape \(100, 200\) over extents \(200, 100\).* transposed\? Name its axes",
    ),
    "where of other channels": (
        {"array": np.ones((3, 20, 18)), "axes": (1, 2), "where": np.ones((2, 20, 18), bool)}, GridError,
        "2 samples on axis 0, which is not tiled; the image has 3",
    ),
    "nodata True": ({"nodata": True}, TilingError, "and it says none: give the value"),
    "nodata False": ({"nodata": False}, TypeError, "say nodata=0 for False samples"),
    "nodata of another dtype": (
        {"array": np.ones((20, 18), "u1"), "nodata": -9999}, TilingError, "nodata -9999 .*held by dtype uint8"
    ),
    "nodata NaN": (
        {"array": np.ones((20, 18), "i2"), "nodata": np.nan}, TilingError, "nodata nan .*held by dtype int16"
    ),
    "nodata array": ({"nodata": np.ones(3)}, TypeError, "nodata must be one number"),
    "nodata per array": ({"nodata": (0, 1)}, TilingError, r"one value per array, 1; got \(0, 1\)"),
    "nodata_fill alone": ({"nodata_fill": 0}, TilingError, "give nodata_fill with where= or nodata="),
    "nodata_fill of another dtype": (
        {"array": np.ones((20, 18), "u1"), "nodata": 0, "nodata_fill": 0.5}, TilingError,
        "nodata_fill 0.5 .*held by dtype uint8",
    ),
    "list": ({"array": [[1.0, 2.0]]}, TypeError, "shape, dtype and slicing, or be a path; got .*list"),
    "no such path": ({"array": "no/such.zarr"}, TilingError, "opened at 'no/such.zarr'"),
    "unequal arrays": ({"array": (IMAGE, IMAGE[1:])}, GridError, r"\[20, 18\], array 1 has \[19, 18\]"),
    "overlap float": (
        {"overlap": 0.25, "crop": 96}, TypeError, "got 0.25. .* crop 96: stride=72, or overlap=12"
    ),
    "overlaps float": ({"overlap": (2, 0.5)}, TypeError, "got 0.5. .* crop 8: stride=4, or overlap=2"),
    "overlap 2.0": ({"overlap": 2.0}, TypeError, r"overlap must be a whole number; got 2.0 \(float\)"),
    "unknown keyword": ({"sigma": 3}, TypeError, r"no argument 'sigma'; .* functools.partial\(fn, sigma=3\)"),
    "batch size": ({"batch_size": 0}, TilingError, "batch_size .* at least 1; got 0"),
    "multiple": (
        {"multiple": 3}, GridError, "multiples of 3 on axis 0.* stride 4, overlap 2.* stride 3, overlap 3"
    ),
    "axes": ({"axes": (0, 5)}, GridError, "axis 5 is out of range for 2 dimensions"),
    "axes twice": ({"axes": (0, -2)}, GridError, r"axes=\(0, -2\) names an axis twice"),
    "axes by name": ({"axes": "yx"}, GridError, "axes='yx' gives names, but the array has none"),
    "axes and each": ({"each": 0, "axes": (0, 1)}, GridError, r"axis 0 is in axes=\(0, 1\) and in each=0"),
    "fill value": ({"fill_value": 300, "dtype": "u1"}, TilingError, "fill_value 300 .* dtype uint8"),
    "fill value complex": ({"fill_value": 1 + 2j}, TilingError, r"fill_value \(1\+2j\) .* dtype float64"),
    "cval": ({"cval": "x", "boundary": "constant"}, TilingError, "cval 'x' .* dtype float64"),
    "labels": ({"dtype": int, "blend": "hann"}, TilingError, 'dtype int64: .* must not be averaged. Use'),
    "memory": ({"memory_limit": "1kB"}, MemoryBudgetError, "memory_limit is 1 kB.*smaller crop"),
    "memory words": ({"memory_limit": "lots"}, TilingError, "memory_limit .* \"128MiB\"; got 'lots'"),
    "chunks": ({"chunks": (5,)}, GridError, r"chunks .* \('0', '1'\).* got \(5,\)"),
    "share": ({"chunks": 3, "reuse": "share"}, GridError, "blocks of 3 and a support of 4 on axis 0"),
    "no function": ({"fn": 3}, TypeError, "fn must be callable; got int"),
    "no tile": ({"fn": np.copy, "pass_tile": True}, TypeError, "calls fn with tile=.*no argument 'tile'"),
    "dtype and output": ({"output": Output(float)}, TilingError, "dtype or output, not both"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*could cover the image:tilework.CostWarning")
@pytest.mark.parametrize(("changes", "kind", "message"), BAD.values(), ids=BAD)
def test_F1_bad_input(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    call = {"fn": abs, "array": IMAGE, "crop": 8, "overlap": 2, "dtype": float} | changes
    with pytest.raises(kind, match=message):
        tiled_map(**call)


def test_F1_an_importance_map_without_cover_is_refused_with_the_sample() -> None:
    with pytest.raises(GridError, match=r"positive weight.* sample 0 on axis 0, \d+ on axis 1 has none"):
        tiled_map(np.copy, IMAGE, 8, 2, dtype=float, blend=HOLED).compute()


def test_F1_a_mask_without_a_sample_warns_and_fills() -> None:
    with pytest.warns(TilingWarning, match="mask is False everywhere.*fill_value"):
        out = tiled_map(abs, IMAGE, 8, 2, dtype=float, mask=np.zeros((5, 5), bool), fill_value=7)
    assert (out.compute() == 7).all()


def test_F1_a_bare_torch_module_is_told_to_use_from_torch() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"bare torch module.*tw\.from_torch\(module\)"):
        tiled_map(torch.nn.Conv2d(1, 1, 3), IMAGE, 8, 2)


def test_F1_an_undeclared_scale_or_margin_is_answered_with_the_lines_that_fit() -> None:
    with pytest.raises(ContractError, match=r"\(8, 8\) to shape \(16, 16\)(.|\n)*Output\(scale=2\)"):
        tiled_map(lambda x: x.repeat(2, 0).repeat(2, 1), IMAGE, 8, 2)
    with pytest.raises(ContractError, match=r"\(8, 8\) to shape \(6, 6\)(.|\n)*Output\(margin=1\)"):
        tiled_map(lambda x: x[1:-1, 1:-1], IMAGE, 8, 2)
    with pytest.raises(ContractError, match=r"more than one place(.|\n)*axes=\(0, 2\)\)"):
        tiled_map(lambda x: np.stack([x] * 8), IMAGE, 8, 2)
