"""`tilework.monai`: MONAI's own function beside it, and its rules written out where MONAI is missing."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from typing import Any

import dask
import numpy as np
import pytest

import tilework as tw
from tests.full_devices import without_canvases
from tests.sampling import share

torch = pytest.importorskip("torch", reason="pip install torch")

from tilework.monai import (  # noqa: E402 -- torch may be missing
    SlidingWindowInferer,
    SlidingWindowInfererAdapt,
    sliding_window_inference,
)

PADDING = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def noise(*shape: int, seed: int = 0, dtype: Any = None) -> Any:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(dtype or torch.float32)


def predicted(windows: Any, scales: Any = None) -> Any:
    """Return what depends on the whole of each window and the place in it, with a channel more."""
    ramp = torch.linspace(0.5, 2, windows.shape[-1], dtype=torch.float64).to(windows)
    mean = windows.mean(dim=tuple(range(1, windows.ndim)), keepdim=True)
    values = torch.cat([windows * ramp + mean, windows[:, :1] ** 2], 1)
    for d, scale in enumerate(scales or ()):
        if scale < 1:
            values = values[(slice(None),) * (2 + d) + (slice(None, None, round(1 / scale)),)]
        elif scale > 1:
            values = values.repeat_interleave(scale, dim=2 + d)
    return values


def close(ours: Any, theirs: Any) -> None:
    """Assert one structure, shapes and dtypes, and numbers to 1e-5."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        ours, theirs = tuple(ours.values()), tuple(theirs.values())
    if isinstance(theirs, tuple):
        for one, other in zip(ours, theirs, strict=True):
            close(one, other)
        return
    assert (ours.dtype, ours.shape, ours.device) == (theirs.dtype, theirs.shape, theirs.device)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# -- against MONAI -------------------------------------------------------------------------------------


def setting(number: int) -> tuple[Any, dict[str, Any], Any]:
    """Return inputs, arguments and a predictor: random, but the same for a number."""
    rng = random.Random(number)
    d, q = rng.choice([1, 2, 2, 3]), rng.choice([1, 1, 1, 2, 4])
    n_out = rng.choice([1, 1, 2, 3])
    longest = (40, 20, 9)[d - 1]
    roi = [rng.randint(1, longest) for _ in range(d)]
    if q > 1:
        roi = [2 * q * -(-r // (2 * q)) for r in roi]
    longer = rng.random() < 0.7
    shape = [max(1, r + rng.randint(-r, 3 * r)) if longer else rng.randint(1, r) for r in roi]
    overlap: Any = [rng.choice([0, 0.25, 0.5, 0.6, 0.75, 0.9, rng.random() * 0.95]) for _ in roi]
    if q > 1:  # places of coarser results are whole
        shape = [
            n if n >= r else r - 2 * q * rng.randint(0, (r - 1) // (2 * q))
            for n, r in zip((q * -(-n // q) for n in shape), roi, strict=True)
        ]
        overlap = [rng.choice([0, 0.5]) for _ in roi]
    window: Any = tuple(rng.choice([r, r, r, None, -1, 0]) if q == 1 else r for r in roi)
    lengths = [n if not r or r < 0 else r for r, n in zip(window, shape, strict=True)]
    if d == 1 and rng.random() < 0.5 and window[0]:
        window = window[0]
    padding = rng.choice(sorted(PADDING))
    if padding in ("reflect", "circular") and any(2 * n <= r for r, n in zip(lengths, shape, strict=True)):
        padding = "constant"  # torch pads by less than the extent
    options = {
        "roi_size": window,
        "sw_batch_size": rng.randint(1, 7),
        "overlap": overlap if rng.random() < 0.8 else overlap[0],
        "mode": rng.choice(["constant", "gaussian"]),
        "sigma_scale": rng.choice([0.125, 0.25, 1.0, [rng.uniform(0.06, 1) for _ in roi]]),
        "padding_mode": padding,
        "cval": rng.choice([0.0, -1.5]) if padding == "constant" else 0.0,
    }
    if rng.random() < 0.15:
        options["roi_weight_map"] = 0.1 + noise(*lengths, seed=number).abs()
    if rng.random() < 0.15 and n_out == 1 and q == 1:
        options["buffer_steps"] = rng.randint(1, 3)
    scaled = q > 1
    # MONAI resizes the weights of one output from those of the one before, and fails where it cannot.
    scales = [
        [rng.choice([1 / q, 2]) if scaled and (k or n_out == 1) else 1 for _ in roi] for k in range(n_out)
    ]
    named = (lambda k: f"out {k}") if scaled else (lambda k: f"out {9 - k}")  # MONAI sorts the keys
    pack = rng.choice([tuple, list, lambda found: {named(k): v for k, v in enumerate(found)}])
    dtype = rng.choice([torch.float32, torch.float32, torch.float64])
    inputs = noise(rng.choice([1, 1, 2, 3]), rng.choice([1, 2]), *shape, seed=number, dtype=dtype)

    def predictor(windows: Any) -> Any:
        found = [predicted(windows, own) + k for k, own in enumerate(scales)]
        return found[0] if n_out == 1 else pack(found)

    return inputs, options, predictor


def compare(number: int) -> None:
    """Run a setting with both; windows of all calls and results are the same."""
    theirs = pytest.importorskip("monai.inferers", reason="pip install monai").sliding_window_inference
    inputs, options, predictor = setting(number)
    calls: list[list[Any]] = [[], []]

    def logged(k: int) -> Any:
        def call(windows: Any) -> Any:
            calls[k].append(windows.clone())
            return predictor(windows)

        return call

    expected = theirs(inputs, predictor=logged(0), **options)
    close(sliding_window_inference(inputs, predictor=logged(1), **options), expected)
    if "buffer_steps" not in options:
        assert len(calls[0]) == len(calls[1])
        assert all(torch.equal(a, b) for a, b in zip(*calls, strict=True))


def test_random_settings_equal_monai():
    for number in range(share(300)):
        compare(number)


def test_weights_are_resized_one_from_the_other_as_in_monai():
    theirs = pytest.importorskip("monai.inferers", reason="pip install monai").sliding_window_inference

    def pyramid(windows: Any) -> Any:
        return predicted(windows, [0.5]), predicted(windows, [0.25]), predicted(windows, [2])

    inputs, options = noise(1, 1, 48), {"overlap": 0.5, "mode": "gaussian"}
    expected = theirs(inputs, (16,), 2, pyramid, **options)
    close(sliding_window_inference(inputs, (16,), 2, pyramid, **options), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64"])
def test_other_dtypes_equal_monai_as_far_as_they_can_say(dtype):
    """MONAI adds up in the dtype of the inputs; sums here are more exact, and rounded once."""
    theirs = pytest.importorskip("monai.inferers", reason="pip install monai").sliding_window_inference
    kind = getattr(torch, dtype)
    inputs = noise(2, 2, 15, 17).to(kind)
    seen = set()

    def doubled(windows: Any) -> Any:
        seen.add(windows.dtype)
        return windows * 2

    ours = sliding_window_inference(inputs, (6, 8), 3, doubled, 0.5, "gaussian")
    assert seen == {kind}
    expected = theirs(inputs, (6, 8), 3, doubled, 0.5, "gaussian")
    assert ours.dtype == expected.dtype == kind
    # Doubling is exact, so that an average of equal numbers is.
    exact = (inputs * 2).to(torch.complex128)
    error = (ours.to(torch.complex128) - exact).abs().max()
    assert error <= max(1e-6, float((expected.to(torch.complex128) - exact).abs().max()))


def test_meta_data_go_along():
    data = pytest.importorskip("monai.data", reason="pip install monai")
    inferers = pytest.importorskip("monai.inferers")
    inputs = data.MetaTensor(noise(2, 1, 12, 14), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    inputs.meta["name"] = "x"

    expected = inferers.sliding_window_inference(inputs, 8, 3, predicted, 0.5)
    found = sliding_window_inference(inputs, 8, 3, predicted, 0.5)
    close(found, expected)
    several = sliding_window_inference(inputs, 8, 3, lambda w: (w, -w), 0.5)  # MONAI loses the name here
    for one in (found, *several):
        assert one.meta.keys() == expected.meta.keys()
        assert one.meta["name"] == "x"
        assert torch.equal(one.affine, expected.affine)
        assert one.is_batch == expected.is_batch


# -- against the rules ---------------------------------------------------------------------------------


def by_hand(inputs: Any, roi: Any, stride: Any, predictor: Any, weights: np.ndarray, mode: str) -> np.ndarray:
    """Return the weighted average over windows of the inputs, padded on both sides, in double precision."""
    array = inputs.double().numpy()
    missing = [max(0, r - n) for r, n in zip(roi, array.shape[2:], strict=True)]
    padded = np.pad(array, [(0, 0), (0, 0), *((m // 2, m - m // 2) for m in missing)], mode)  # type: ignore[call-overload]
    starts = []
    for n, r, s in zip(padded.shape[2:], roi, stride, strict=True):
        starts.append([*range(0, n - r, s), n - r])
    total, weight = None, np.zeros(padded.shape[2:])
    for start in itertools.product(*starts):
        box = tuple(slice(a, a + r) for a, r in zip(start, roi, strict=True))
        found = predictor(torch.from_numpy(padded[(slice(None), slice(None), *box)])).numpy()
        total = np.zeros((*found.shape[:2], *padded.shape[2:])) if total is None else total
        total[(slice(None), slice(None), *box)] += weights * found
        weight[box] += weights
    assert total is not None
    inside = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, array.shape[2:], strict=True))
    return (total / weight)[(slice(None), slice(None), *inside)]


@pytest.mark.parametrize("padding", sorted(PADDING))
@pytest.mark.parametrize(
    ("shape", "roi", "stride"),
    [((30,), (8,), (4,)), ((7, 21), (10, 6), (10, 3)), ((9, 5, 12), (4, 6, 6), (2, 6, 3))],
)
def test_results_equal_the_rule(shape, roi, stride, padding):
    inputs = noise(2, 3, *shape)
    for mode, weights in (("constant", np.ones(roi)), ("gaussian", tw.monai_weights(roi, 0.2))):
        found = sliding_window_inference(inputs, roi, 4, predicted, 0.5, mode, 0.2, padding)
        expected = by_hand(inputs, roi, stride, predicted, weights, PADDING[padding])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_lazy_options_give_the_same_numbers():
    inputs = noise(2, 3, 30, 22)
    now = sliding_window_inference(inputs, (16, 24), 4, predicted, 0.5, "gaussian")
    options = tw.monai_options(inputs.shape, (16, 24), 0.5, "gaussian")

    def fn(windows: np.ndarray) -> np.ndarray:
        found: np.ndarray = predicted(torch.from_numpy(windows)).numpy()
        return found

    output = tw.Output("float32", channels=4)
    out = tw.tiled_map(fn, inputs.numpy(), **options, each=0, batch_size=4, output=output)
    np.testing.assert_allclose(out.compute(), now.numpy(), rtol=1e-5, atol=1e-6)


def test_the_predictor_is_called_as_monai_calls_it():
    """Batches go across the images, further arguments go along, coordinates are those of the padded image."""
    seen, places = [], []

    def predictor(windows: Any, coordinates: Any, plus: float, *, times: float) -> Any:
        assert not torch.is_grad_enabled()
        seen.append(windows.shape[0])
        places.extend(coordinates)
        return windows * times + plus

    inputs = noise(3, 2, 5, 12)
    found = sliding_window_inference(
        inputs, (8, 6), 4, predictor, 0.5, "constant", 0.125, "constant", 0.0, None, None, False, None, None,
        None, -1, True, 1.0, times=2.0,
    )  # fmt: skip
    torch.testing.assert_close(found, inputs * 2 + 1)
    assert seen == [4, 4, 1]
    expected = [
        [slice(b, b + 1), slice(None), slice(0, 8), slice(a, a + 6)] for b in range(3) for a in (0, 3, 6)
    ]
    assert places == expected


def test_a_condition_is_cut_like_the_inputs():
    inputs, condition = noise(2, 1, 9, 11), noise(2, 1, 9, 11, seed=1)
    inferer = SlidingWindowInferer((12, 4), 3, 0.5)
    found = inferer(inputs, lambda w, condition: w + condition, condition=condition)
    torch.testing.assert_close(found, inputs + condition)
    with pytest.raises(tw.TilingError, match="condition must have the shape of inputs"):
        inferer(inputs, lambda w, condition: w, condition=condition[:1])


def test_weights_may_change_from_call_to_call():
    """Sums of weighted predictions are divided by the weights of the first call, which is MONAI's rule."""
    rounds = itertools.count(1)

    def process(predictions: Any, windows: Any, weights: Any) -> Any:
        assert weights.shape == windows.shape[2:]
        return predictions, weights * next(rounds)

    inputs = torch.ones(1, 1, 12)
    found = sliding_window_inference(inputs, (6,), 1, lambda w: w, 0.5, process_fn=process)
    np.testing.assert_allclose(found[0, 0], [1] * 3 + [1.5] * 3 + [2.5] * 3 + [3] * 3)


def test_predictions_without_weight_are_nan():
    """As where HoVerNet's inferer leaves out the border of its windows."""

    def process(predictions: Any, windows: Any, weights: Any) -> Any:
        inner = torch.zeros_like(weights)
        inner[1:-1] = 1
        return predictions, inner

    found = sliding_window_inference(torch.ones(1, 1, 10), (6,), 2, lambda w: w, 0.5, process_fn=process)
    np.testing.assert_array_equal(found[0, 0], [np.nan, *[1] * 8, np.nan])


def test_outputs_of_any_keys_and_resolutions():
    def predictor(windows: Any) -> Any:
        return {("a", 1): windows, "b": windows[..., ::2, ::4], 3: windows.repeat_interleave(2, dim=2)}

    inputs = noise(2, 1, 16, 24)
    found = sliding_window_inference(inputs, (8, 8), 3, predictor, 0.5)
    assert list(found) == [("a", 1), "b", 3]
    torch.testing.assert_close(found["a", 1], inputs)
    torch.testing.assert_close(found["b"], inputs[..., ::2, ::4])
    torch.testing.assert_close(found[3], inputs.repeat_interleave(2, dim=2))
    one = sliding_window_inference(inputs, (8, 8), 3, lambda w: (w,), 0.5)
    torch.testing.assert_close(one, inputs)  # MONAI unpacks a tuple of one


def test_the_inferer_keeps_its_settings():
    inputs = noise(1, 1, 20, 20)
    cached = SlidingWindowInferer((8, 6), 2, 0.5, "gaussian", 0.2, cache_roi_weight_map=True, cpu_thresh=3)
    np.testing.assert_array_equal(cached.roi_weight_map, tw.monai_weights((8, 6), 0.2))
    plain = sliding_window_inference(inputs, (8, 6), 2, predicted, 0.5, "gaussian", 0.2)
    torch.testing.assert_close(cached(inputs, predicted), plain)
    torch.testing.assert_close(SlidingWindowInfererAdapt((8, 6), 2, 0.5)(inputs, lambda w: w), inputs)
    with pytest.warns(tw.TilingWarning, match="cache_roi_weight_map=True needs one positive length"):
        SlidingWindowInferer(8, cache_roi_weight_map=True)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_batch_that_is_halved_gives_the_same(mode, at):
    """Where memory ends, the parts of a batch wait for each other."""
    from tilework.function import device_memory

    def predictor(windows: Any) -> Any:
        sizes.append(len(windows))
        if len(sizes) > at and len(windows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predicted(windows)

    inputs, sizes = noise(1, 2, 50, 21), []
    whole = sliding_window_inference(inputs, 12, 8, predicted, 0.5, mode)
    device_memory.LIMITS.clear()
    found = sliding_window_inference(inputs, 12, 8, predictor, 0.5, mode)
    device_memory.LIMITS.clear()
    assert {8, 4, 2} <= set(sizes)
    torch.testing.assert_close(found, whole)


def test_sums_move_to_the_host_where_the_memory_of_their_device_ends(monkeypatch):
    inputs = noise(2, 1, 30, 21)
    whole = sliding_window_inference(inputs, 12, 3, predicted, 0.5, "gaussian")
    tried = without_canvases(monkeypatch)
    torch.testing.assert_close(sliding_window_inference(inputs, 12, 3, predicted, 0.5, "gaussian"), whole)
    assert len(tried) == 2


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_nothing_but_the_results_of_a_device_stays_there(mode, monkeypatch):
    """Tensors of the device "meta" have no values, and do not meet those of the host."""
    inputs = torch.empty(2, 1, 30, 4, device="meta")
    found = sliding_window_inference(inputs, (12, 8), 3, lambda w: (w, w[..., ::2]), 0.5, mode)
    assert [(f.device.type, f.shape[2:]) for f in found] == [("meta", (30, 4)), ("meta", (30, 2))]


def test_progress_counts_calls(capsys):
    sliding_window_inference(noise(1, 1, 20), 8, 2, lambda w: w, 0.5, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_inputs_and_network_stay_as_they_are():
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3, padding=1), torch.nn.BatchNorm1d(2))
    network.train()
    inputs = noise(1, 1, 20)
    before = inputs.clone()

    def predictor(windows: Any) -> Any:
        found = network(windows)
        windows[...] = torch.nan
        return found

    found = sliding_window_inference(inputs, 8, 2, predictor, 0.5)
    assert torch.equal(inputs, before)
    assert network.training
    assert int(network[1].num_batches_tracked) == 2, "no call more than MONAI makes"
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"inputs": np.zeros((1, 1, 9))}, TypeError, "inputs must be a tensor"),
        ({"inputs": torch.zeros(1, 9)}, tw.TilingError, r"batch, channels and spatial axes.*image\[None\]"),
        ({"inputs": torch.zeros(1, 1, 9, dtype=torch.int32)}, TypeError, r"Give inputs\.float\(\)"),
        ({"inputs": torch.zeros(1, 1, 9, requires_grad=True)}, tw.TilingError, r"no gradient.*detach"),
        ({"roi_size": (4, 4)}, tw.TilingError, r"inputs must have 4 dimensions for roi_size \(4, 4\)"),
        ({"overlap": 1.0}, tw.TilingError, "overlap must be at least 0 and less than 1"),
        ({"sw_batch_size": 0}, tw.TilingError, "sw_batch_size must be a whole number, at least 1"),
        ({"buffer_steps": 1, "buffer_dim": 3}, tw.TilingError, "buffer_dim must be in -1 to 1"),
        ({"roi_weight_map": torch.ones(3)}, tw.TilingError, "roi_weight_map must have the shape of a window"),
        ({"predictor": lambda w: w.argmax(1, keepdim=True)}, TypeError, r"must be floating.*torch\.int64"),
        ({"predictor": lambda w: w[:1]}, tw.ContractError, r"must have shape \(2, channels"),
        ({"predictor": lambda w: w[:, 0]}, tw.ContractError, r"must have shape \(2, channels"),
        ({"predictor": lambda w: None}, TypeError, "a prediction must be a tensor"),
        ({"predictor": lambda w: w[..., ::2]}, tw.TilingError,
         "output 0 has 2 samples for 4 of a window along spatial axis 0; the start 3"),
        ({"predictor": lambda w: w[..., ::2], "overlap": 0.5}, tw.TilingError, "the start 5 of the image"),
        ({"predictor": lambda w: w[..., ::4], "roi_size": 12}, tw.TilingError, "the padding 1 of the image"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_what_cannot_be_is_refused(mode, change, error, text):
    options = {"inputs": torch.zeros(1, 1, 9), "roi_size": 4, "sw_batch_size": 2, "predictor": lambda w: w}
    with pytest.raises(error, match=text):
        sliding_window_inference(**({"mode": mode} | options | change))


def test_inputs_that_record_gradients_are_taken_where_none_are_recorded():
    inputs = torch.zeros(1, 1, 9, requires_grad=True)
    with torch.no_grad():
        found = sliding_window_inference(inputs, 4, 2, lambda w: w)
    assert not found.requires_grad


@pytest.mark.distributed
def test_a_client_is_not_asked(client):
    """Windows and network are in this process."""
    inputs = noise(1, 1, 20)
    with dask.config.set(scheduler=None):
        found = sliding_window_inference(inputs, 8, 2, lambda w: w, 0.5)
    torch.testing.assert_close(found, inputs)


def test_monai_is_not_imported():
    code = "import sys, tilework.monai; assert 'torch' in sys.modules; assert 'monai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


@pytest.mark.parametrize("name", ["device", "sw_device"])
@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda", "cannot be used in this process .*CUDA"),
        (torch.device("cuda:3"), "'cuda:3' cannot be used"),
        ("nonsense", "is not the name of a device"),
    ],
)
def test_a_device_that_is_not_there_is_named(name, device, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(tw.TilingError, match=f"{name}=.*{says}"):
        sliding_window_inference(torch.ones(1, 1, 8, 8), 4, 1, lambda w: w, **{name: device})
