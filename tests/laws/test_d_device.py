"""D1 to D4: on a device, sums are those of the host, memory may end anywhere, and little crosses back.

The device is the CPU as torch sees it: the same operations, whose numbers a device that adds and multiplies
as IEEE 754 says has as well.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilework as tw
from tests.full_devices import without_canvases
from tests.laws.engine_functions import LAYOUTS, Called
from tests.laws.engine_strategies import ALL, Case, assert_same_bits, cases, masks
from tests.laws.test_e_invariance import Rough, dull
from tests.networks import dncnn_module, kodim23
from tests.sampling import share
from tilework.engine.products import Products
from tilework.function import bound, device_array, device_memory
from tilework.function.device_array import DeviceArray
from tilework.plan.output_plan import PRODUCTS

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore::tilework.errors.TilingWarning")

RNG = np.random.default_rng(0)
IMAGE = RNG.random((47, 52), dtype=np.float32)


class There:
    """A function whose results are tensors that stay where they are."""

    __tilework_on_device__ = True

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, *crops: np.ndarray, **tile: Any) -> Any:
        return _tensors(self.fn(*crops, **tile))


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tensors(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_tensors, value))
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))


def there(case: Case, one: Callable[..., Any], **options: Any) -> Any:
    """Return `tiled` for results that stay on the device."""
    wanted = {"axes": case.axes, "each": case.each, **case.grid, **case.weights, **case.run}
    wanted |= {"pass_tile": True, **options}
    fn = There(Called(one, wanted["batch_size"] is not None, numbered=True))
    return tw.tiled_map(fn, wanted.pop("image", case.image), **wanted)


# -- D1: the numbers of the host --------------------------------------------------------------------------


@given(
    case=cases(words=ALL, margins=True, scales=(1, 2), multiples=(1, 2)), layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(("float32", "float64", "float16", "int32", "uint8")), masked=st.booleans(),
    plain=st.sampled_from((1, 32)), skips=st.booleans(), scheduler=st.sampled_from(("sync", "threads")),
    data=st.data(),
)  # fmt: skip
def test_D1_sums_on_a_device_are_those_of_the_host(
    case: Case, layout: str, dtype: str, masked: bool, plain: int, skips: bool, scheduler: str, data: Any
) -> None:
    """``plain``: the most crops on a sample whose sums keep nothing of what rounding takes."""
    from tests.laws.engine_strategies import tiled

    fn = Rough(case, layout, dtype)
    options: dict[str, Any] = {"output": fn.output(), "fill_value": 7}
    options |= {"skip": dull if skips else None} | (data.draw(masks(case)) if masked else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bound, "PLAIN", plain)
        on_host = tiled(case, fn, numbered=True, **options)
        on_device = there(case, fn, **options)
    assert on_device.chunks == on_host.chunks
    with dask.config.set(scheduler=scheduler):
        assert_same_bits(on_device.compute(), on_host.compute())


class Classes(torch.nn.Module):  # type: ignore[misc]
    """Many classes, of which several are largest, NaN here and there, and large numbers."""

    def __init__(self, n: int = 5, dtype: Any = torch.float32) -> None:
        super().__init__()
        self.n, self.dtype = n, dtype

    def forward(self, x: Any) -> Any:
        k = torch.arange(self.n, device=x.device).reshape(1, -1, 1, 1)
        y = torch.round(3 * torch.sin(40 * x.unsqueeze(1) + k))
        y = torch.where((k + 1) * x.unsqueeze(1) % 0.1 > 0.097, torch.nan, y)
        largest = torch.sign(y) * torch.finfo(torch.float32).max
        return torch.where(x.unsqueeze(1) > 0.7, largest, y).to(self.dtype)


MAP = np.outer(*[np.hanning(18)[1:-1]] * 2)
ENDS = {"trim": "trim", "sum": "sum", "average": "average", "gaussian": "gaussian", "max": "max", "map": MAP,
        "zeros": (np.hanning(16),) * 2, "holes": MAP * (np.arange(16) != 8)}  # fmt: skip


@pytest.mark.parametrize("blend", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(("reduce", "plain"), [(None, 32), ("argmax", 32), (None, 2), ("argmax", 2)])
def test_D1_ends_of_the_type_ties_and_nan(
    blend: Any, dtype: str, reduce: Any, plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "PLAIN", plain)
    net, found = Classes(dtype=getattr(torch, dtype)), []
    mask = np.ones((47, 52), bool)
    mask[20:33, 5:40] = False
    output = tw.Output("u1" if reduce else "f4", channels=5, reduce=reduce)
    for on_device in (False, True):
        fn = tw.from_torch(net, device="cpu", on_device=on_device)
        with np.errstate(all="ignore"):
            out = tw.tiled_map(
                fn, IMAGE, 16, stride=7, blend=blend, output=output, mask=mask, chunks=20, batch_size=3
            )
            found.append(out.compute(scheduler="sync"))
    assert_same(found[1], found[0])


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Assert equal bits, but for the sign of NaN, which means nothing."""
    if expected.dtype.kind == "f":
        got, expected = (np.where(np.isnan(a), np.float32(np.nan), a) for a in (got, expected))
    assert_same_bits(got, expected)


@pytest.mark.parametrize("blend", ["max", "trim", "gaussian", "sum"])
@pytest.mark.parametrize("plain", [32, 1])
@pytest.mark.parametrize("first", ["i2", "f4"])
def test_D1_results_may_have_other_dtypes_from_crop_to_crop(
    blend: str, plain: int, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "PLAIN", plain)
    dtypes = ("f4", "i2") if first == "i2" else ("f8", "f4")

    def mixed(crop: np.ndarray, tile: Any) -> np.ndarray:
        # Large numbers cancel, so that the digits of what rounding took show.
        scores = np.stack([crop, 1 - crop, np.full_like(crop, 0.5)]) * (3, 1e17, -1e17)[tile.index % 3]
        return scores.astype(dtypes[tile.index % 3 == 0])

    for reduce in ("argmax", None):
        output = tw.Output("u1" if reduce else "f8", channels=3, reduce=reduce)
        outs = [
            tw.tiled_map(fn, IMAGE, 16, 3, blend=blend, output=output, chunks=47, pass_tile=True)
            for fn in (mixed, There(mixed))
        ]
        if reduce and first == "i2" and blend == "max":
            for out in outs:
                with pytest.raises(tw.ContractError, match="float32 for one crop and int16 for another"):
                    out.compute(scheduler="sync")
        else:
            assert_same_bits(*(out.compute(scheduler="sync") for out in outs))


@pytest.mark.parametrize("blend", ["max", "min"])
@pytest.mark.parametrize("first", ["?", "u1", "i2", "f4"])
@pytest.mark.parametrize("declared", ["u1", "i2", "i4", "f4", "f8"])
def test_D1_extremes_of_other_dtypes_from_crop_to_crop_are_those_of_one_dtype(
    blend: str, first: str, declared: str
) -> None:
    """The neutral value of the first dtype must not stay where a later one lies beyond it."""

    def mixed(crop: np.ndarray, tile: Any) -> np.ndarray:
        far = -300 if blend == "max" else 300
        scores = np.rint(100 * crop)
        return scores * far if tile.index % 3 else scores.astype(first)

    def same(crop: np.ndarray, tile: Any) -> np.ndarray:
        return mixed(crop, tile).astype("f8")

    for fn in (mixed, There(mixed)):
        found, expected = (
            tw.tiled_map(one, IMAGE, 16, stride=7, blend=blend, dtype=declared, chunks=20, pass_tile=True)
            for one in (fn, same)
        )
        np.testing.assert_array_equal(*(out.compute(scheduler="sync") for out in (found, expected)))


@pytest.mark.parametrize("dtype", ["i8", "u8", "i2", "u2", "u1"])
def test_D1_sums_of_integers_stay_at_the_end_of_their_type(dtype: str) -> None:
    info = np.iinfo(dtype)
    ends = np.array([info.min, info.min // 2, 0, 1, info.max // 3, info.max // 2 + 1, info.max], dtype)
    image, found = RNG.choice(ends, (30, 33)), []
    for fn in (np.copy, There(np.copy)):
        out = tw.tiled_map(fn, image, 8, stride=3, blend="sum", chunks=15, dtype=dtype)
        found.append(out.compute(scheduler="sync"))
    assert_same_bits(found[1], found[0])


@pytest.mark.parametrize("plain", [1, 32])
def test_D1_sums_of_complex_numbers(plain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "PLAIN", plain)
    image = (IMAGE - 0.5 + 1j * np.cbrt(IMAGE)).astype("c8")
    image[20, 30], image[40, 5], image[:5] = np.inf, complex(1, np.nan), image[:5] * 1e7
    found = []
    for fn in (np.copy, There(np.copy)):
        out = tw.tiled_map(fn, image, 16, stride=5, blend="sum", chunks=20, dtype="c8")
        with np.errstate(all="ignore"):
            found.append(out.compute(scheduler="sync"))
    for part in ("real", "imag"):
        assert_same(getattr(found[1], part).copy(), getattr(found[0], part).copy())


@pytest.mark.parametrize("blend", ["sum", "average", "gaussian", MAP], ids=lambda b: str(b)[:8])
@pytest.mark.parametrize("reuse", ["share", "recompute"])
def test_D1_many_crops_on_a_sample(blend: Any, reuse: Any) -> None:
    """So many that sums keep what rounding takes from them: nine tenths of a crop overlap."""
    found = [
        classes(
            stride=2, n=2, blend=blend, output=tw.Output("f4", channels=2), on_device=on_device, reuse=reuse
        )
        for on_device in (False, True)
    ]
    assert_same(found[1], found[0])


def test_D1_a_crop_that_is_multiplied_in_parts() -> None:
    """So large that not all weights are one product: further axes are multiplied as scalars."""
    volume, found = RNG.random((60, 90, 80), dtype=np.float32), []
    for on_device in (False, True):
        fn = tw.from_torch(
            lambda: torch.nn.Conv3d(1, 2, 1), device="cpu", on_device=on_device, channels_last=True
        )
        torch.manual_seed(0)
        out = tw.tiled_map(fn, volume, (48, 80, 72), stride=(30, 40, 40), blend="hann",
                           output=tw.Output("f4", channels=2))  # fmt: skip
        found.append(out.compute(scheduler="sync"))
    assert_same_bits(found[1], found[0])


@pytest.mark.parametrize("piece", [100, 2**24])
def test_D1_canvases_are_added_to_piece_by_piece(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_array, "PIECE", piece)
    assert_same_bits(classes(on_device=True), classes(on_device=False))
    found = []
    for on_device in (False, True):
        fn = tw.from_torch(torch.nn.Tanh(), device="cpu", on_device=on_device)
        out = tw.tiled_map(fn, IMAGE, 16, stride=9, blend="hann", chunks=20, dtype="f4")
        found.append(out.compute(scheduler="sync"))
    assert_same_bits(found[1], found[0])


def classes(*, n: int = 5, on_device: bool = True, **options: Any) -> np.ndarray:
    fn = tw.from_torch(Classes(n), device="cpu", on_device=on_device)
    given: dict[str, Any] = {"chunks": 20, "batch_size": 3, "blend": "gaussian", "reuse": "share"}
    given |= {"stride": 9, "output": tw.Output("u1", channels=n, reduce="argmax")}
    with np.errstate(all="ignore"):
        out = tw.tiled_map(fn, IMAGE, 16, **(given | options))
        return np.asarray(out.compute(scheduler="sync"))


def test_D1_a_real_network() -> None:
    """A denoiser, blended, on both: its canvases, and those of a view and of a store."""
    image, found = kodim23()[:150, :170], []
    for on_device in (False, True):
        fn = tw.from_torch(dncnn_module, device="cpu", on_device=on_device)
        out = tw.tiled_map(fn, image, 64, 10, blend="gaussian", dtype="f4", batch_size=2)
        found.append(out.compute(scheduler="sync"))
        assert_same_bits(tw.view(out)[20:120, 33:140], found[0][20:120, 33:140])
        assert_same_bits(tw.to_zarr(out, {}, progress=False)[...], found[0])
    assert_same_bits(found[1], found[0])


# -- D2: memory ends anywhere -----------------------------------------------------------------------------


class Ends(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]
    """Memory ends at operation number ``k`` of torch that takes some, and at as many after it."""

    def __init__(self, k: int, times: int = 1) -> None:
        super().__init__()
        self.k, self.times, self.n = k, times, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        takes = all(one.alias_info is None for one in func._schema.returns)  # neither view nor in place
        self.n += takes
        if takes and self.k < self.n <= self.k + self.times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(device_memory, "gc", SimpleNamespace(collect=lambda: 0))
    device_memory.LIMITS.clear()
    yield
    device_memory.LIMITS.clear()


@pytest.mark.parametrize(
    "options",
    [{}, {"plain": 2}, {"blend": "sum", "plain": 2}, {"blend": "sum"},
     {"batch_size": None, "output": tw.Output("u1", channels=2, reduce="argmax")},
     {"blend": "trim", "stride": None, "overlap": 3}, {"blend": "max"}, {"blend": MAP},
     {"reuse": "recompute"}],
    ids=["gaussian", "compensated", "compensated sum", "sum", "alone", "trim", "max", "map", "recompute"],
)  # fmt: skip
def test_D2_the_result_is_the_same_wherever_the_memory_ends(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(options)
    monkeypatch.setattr(bound, "PLAIN", options.pop("plain", 32))
    given = {"n": 2, "chunks": (47, 26), "output": tw.Output("f4", channels=2)} | options
    whole = classes(on_device=False, **given)
    with Ends(10**9) as counts:
        assert_same(classes(**given), whole)
    assert counts.n > 50
    for k in RNG.permutation(counts.n)[: share(40)].tolist():
        device_memory.LIMITS.clear()
        with Ends(k) as ends:
            assert_same(classes(**given), whole)
        assert ends.n > k


@contextmanager
def canvases(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Give what was done to canvases: made on the device, made on the host, or moved."""
    seen: list[str] = []
    full, leave = torch.full, DeviceArray.leave

    def made(shape: Any, *args: Any, device: Any, **options: Any) -> Any:
        if shape:
            seen.append("host" if device == "cpu" else "device")  # the device is `torch.device("cpu")`
        return full(shape, *args, device=device, **options)

    def left(self: DeviceArray, device: str) -> bool:
        moved = leave(self, device)
        seen.extend(["moved"] * moved)
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(torch, "full", made)
        patch.setattr(DeviceArray, "leave", left)
        yield seen


class Fails(Classes):
    """Memory ends in one of its calls, whichever thread makes it."""

    def __init__(self, k: int) -> None:
        super().__init__(2)
        self.k, self.calls = k, itertools.count()

    def forward(self, x: Any) -> Any:
        if next(self.calls) == self.k:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def test_D2_with_one_crop_the_canvases_move_to_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = classes(n=2, batch_size=None, on_device=False)
    fn = tw.from_torch(Fails(8), device="cpu", on_device=True)
    output = tw.Output("u1", channels=2, reduce="argmax")
    with np.errstate(all="ignore"), canvases(monkeypatch) as seen:
        out = tw.tiled_map(fn, IMAGE, 16, stride=9, output=output, chunks=20, blend="gaussian", reuse="share")
        assert_same_bits(out.compute(scheduler="sync"), whole)
    first = seen.index("moved")
    assert set(seen[:first]) == {"device"}
    assert "device" not in seen[first:]
    assert "host" in seen[first:]
    assert [r.message for r in caplog.records] == [
        "cpu ran out of memory: the canvases of this result are on the host from now on"
    ]
    # Another result begins on the device again.
    with canvases(monkeypatch) as seen:
        classes()
    assert set(seen) == {"device"}


def test_D2_a_canvas_that_the_device_cannot_hold_is_made_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = classes(n=2, on_device=False)
    tried = without_canvases(monkeypatch)
    assert_same(classes(n=2), whole)
    assert len(tried) == 1


@pytest.mark.parametrize(("batch_size", "plain"), [(None, 32), (3, 32), (3, 2)])
def test_D2_canvases_of_other_threads_move_between_two_operations(
    batch_size: int | None, plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is added to the memory that a canvas leaves would be lost."""

    monkeypatch.setattr(bound, "PLAIN", plain)
    add = device_array._sum

    def slowly(*operands: Any) -> Any:
        time.sleep(0.002)
        return add(*operands)

    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    monkeypatch.setattr(device_array, "_sum", slowly)
    output = tw.Output("f4", channels=2)
    whole = classes(n=2, batch_size=batch_size, output=output, on_device=False)
    for k in RNG.permutation(30)[: share(20)].tolist():
        device_memory.LIMITS.clear()
        fn = tw.from_torch(Fails(k), device="cpu", on_device=True)
        with np.errstate(all="ignore"):
            out = tw.tiled_map(
                fn, IMAGE, 16, stride=9, blend="gaussian", output=output, chunks=20, reuse="share",
                batch_size=batch_size,
            )  # fmt: skip
            assert_same(out.compute(scheduler="threads", num_workers=6), whole)


def test_D2_memory_that_does_not_come_back_ends_with_the_figures() -> None:
    with Ends(120, times=10**9), pytest.raises(tw.TilingError, match="cpu has not enough memory for"):
        classes()


def test_D2_weights_on_a_device_are_bounded() -> None:
    held, products = PRODUCTS, Products()
    for key in range(5):
        products._hold_there(key, device_array.Weights(np.ones(held // 2, "u1"), positive=True), None)
        assert products._bytes_there == len(products._there) * (held // 2) <= held
    assert len(products._there) == 1


# -- D3: what crosses -------------------------------------------------------------------------------------


def test_D1_batches_that_are_filled_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with canvases(monkeypatch) as seen:
        got = classes(batch_size=4, pad_batch=True)
    assert_same_bits(got, classes(batch_size=4, on_device=False))
    assert set(seen) == {"device"}


@pytest.fixture
def crossed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Bytes that cross from the device: those of tensors that are asked to be on the CPU."""
    found: list[int] = []
    cpu = torch.Tensor.cpu

    def counted(self: Any) -> Any:
        found.append(self.numel() * self.itemsize)
        return cpu(self)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    return found


def test_D3_only_the_reduced_block_crosses(crossed: list[int]) -> None:
    """100 classes: a byte per sample instead of 400 per sample and tile."""
    options = {"n": 100, "chunks": IMAGE.shape, "pad_batch": True}
    classes(on_device=True, **options)
    assert crossed == [IMAGE.size]
    crossed.clear()
    classes(on_device=False, **options)
    assert sum(crossed) > 1000 * IMAGE.size


def test_D3_seams_wait_on_the_host(crossed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from tilework.engine import block

    cut = block.cut_seams
    seams: list[Any] = []

    def kept(*args: Any) -> Any:
        found = cut(*args)
        seams.extend(p.array for groups in found.values() for g in groups for p in g.partials)
        return found

    monkeypatch.setattr("tilework.graph.tasks.cut_seams", kept)
    assert_same_bits(classes(chunks=20), classes(chunks=20, on_device=False))
    arrays = [a for a in seams if a is not None]
    assert len(arrays) > 4
    assert all(type(a) is np.ndarray for a in arrays)
    # Own memory, not a view that keeps a whole canvas.
    assert all(a.base is None or a.base.nbytes <= 2 * a.nbytes for a in arrays)


def test_D3_in_another_process_a_canvas_is_on_the_host() -> None:
    array = DeviceArray(torch.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array[1])), [3, 4, 5])


# -- D3 again: a device that is not the CPU ---------------------------------------------------------------


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A device whose tensors have no values: torch checks where they are, and which of them meet."""
    from torch._subclasses import FakeTensorMode

    def crossed(self: DeviceArray) -> np.ndarray:
        assert self.tensor.cpu().device.type == "cpu"
        return np.zeros(self.shape, _numpy(self.tensor))

    monkeypatch.setattr(DeviceArray, "host", crossed)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("meta")


def _numpy(tensor: Any) -> np.dtype[Any]:
    return np.dtype(str(tensor.dtype)[6:])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "uint16", "complex64", "bool"])
def test_D3_operations_stay_on_their_device(dtype: str, other: Any) -> None:
    values = DeviceArray(torch.zeros((4, 6), dtype=getattr(torch, dtype), device=other))
    assert (values.home, values.dtype, values[1:].shape) == (other, np.dtype(dtype), (3, 6))
    held: dict[Any, Any] = {}
    real = np.dtype(np.float32)
    weights = device_array.Weights(np.ones((4, 1), "f4"), False, np.ones((1, 6), "f4"))
    for home in ("meta", "cpu"):
        canvas = device_array.full(values, (4, 6), values.dtype, 0, held)
        sums = device_array.full(values, (4, 6), real, 0, held)
        assert (str(canvas.tensor.device), str(sums.tensor.device)) == (home, home)
        seam = np.ones((3, 6), dtype)
        device_array.put(canvas, values)
        device_array.put(canvas[1:], seam)
        if values.dtype.kind in "fi":
            device_array.choose(canvas, values, largest=True)
        if values.dtype.kind != "c":
            device_array.add_weighted(sums[1:], values[1:], weights, (slice(1, 4), slice(None)))
        lost = device_array.full(values, (4, 6), real, 0, held)
        device_array.plus(sums[1:], np.ones((3, 6), "f4"), average=True, lost=lost[1:])
        device_array.plus(sums, DeviceArray(torch.zeros((4, 6), device=other)), average=False)
        assert device_array.restored(sums, lost).tensor.device.type == home
        assert device_array.divided(sums, np.ones((4, 1), "f4")).tensor.device.type == home
        assert device_array.largest(sums, 0).dtype == np.uint8
        if home != "cpu":  # canvases move, and so do later ones
            assert all(one.leave("meta") for one in (canvas, sums, lost))
            assert not canvas.leave("meta")
            device_array.put(canvas[1:], values[1:])
            assert str(canvas.tensor.device) == "cpu"


@pytest.mark.parametrize("blend", ["trim", "gaussian", "max", "sum", MAP], ids=lambda b: str(b)[:8])
@pytest.mark.parametrize("reuse", ["share", "recompute"])
@pytest.mark.parametrize(("reduce", "plain"), [(None, 32), ("argmax", 32), (None, 1)])
def test_D3_nothing_of_the_device_meets_the_host(
    blend: Any, reuse: Any, reduce: Any, plain: int, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "PLAIN", plain)

    def fn(batch: np.ndarray) -> Any:
        return torch.zeros((len(batch), 3, 16, 16), device=other)

    mask = np.ones((47, 52), bool)
    mask[20:33, 5:40] = False  # so that sums are divided
    output = tw.Output("f4", channels=3, reduce=reduce)
    out = tw.tiled_map(
        There(fn), IMAGE, 16, stride=9, blend=blend, reuse=reuse, chunks=20, output=output, batch_size=2,
        mask=mask, fill_value=7,
    )  # fmt: skip
    got = out.compute(scheduler="sync")
    assert got.shape == (*(3,) * (reduce is None), 47, 52)
    assert 0 in got
    assert set(np.unique(got)) <= {0, 7}


# -- D4: what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blend": "average", "disagreement": True}, "disagreement=True"),
        ({"output": tw.Output("f4", reduce=np.abs)}, "callable of numpy arrays"),
        ({"output": tw.Output("i4", labels="own")}, "labels are painted on the host"),
        ({"output": tw.Output("i4", labels="join")}, "labels are painted on the host"),
        ({"nodata": 0}, "where= and nodata="),
        ({"where": np.ones((47, 52), bool)}, "where= and nodata="),
        ({"dtype": "g"}, "torch has no dtype float128"),
        ({"dtype": "u4", "blend": "max"}, "does not compare uint32"),
        ({"dtype": "c8", "blend": "average"}, "complex64 results can only be trimmed or summed"),
    ],
)  # fmt: skip
def test_D4_what_is_not_for_a_device_is_refused_when_the_result_is_built(
    options: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"overlap": 3} | ({} if "output" in options else {"dtype": "f4"}) | options
    for fn in (
        tw.from_torch(torch.nn.Identity(), device="cpu", on_device=True),
        tw.from_torch(torch.nn.Identity, device="cpu", on_device=True),
    ):
        with pytest.raises(tw.TilingError, match=f"on_device=True.*{message}.*Use on_device=False"):
            tw.tiled_map(fn, IMAGE, 16, **given)


@pytest.mark.parametrize(("scheduler", "by"), [("threads", "module"), ("processes", "factory")])
def test_D4_every_scheduler(scheduler: str, by: str) -> None:
    given = Classes() if by == "module" else Classes
    fn = tw.from_torch(given, device="cpu", on_device=True)
    assert type(pickle.loads(pickle.dumps(fn))) is type(fn)
    output = tw.Output("u1", channels=5, reduce="argmax")
    with np.errstate(all="ignore"):
        out = tw.tiled_map(fn, IMAGE, 16, stride=9, blend="gaussian", output=output, chunks=30)
        got = out.compute(scheduler=scheduler, num_workers=2)
    assert_same_bits(got, classes(chunks=30, on_device=False))
