"""Whatever the user's code raises, a run ends with an ordinary error that names the tile."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import tilework as tw
from tilework.engine.stopping import Stopped
from tilework.function import guard
from tilework.function.guard import Guard

IMAGE = np.arange(32 * 32, dtype="f4").reshape(32, 32)
BAD = 580  # a sample of tile 2


class Own(BaseException):
    """Of a user."""


class Unfit(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def calls_exit() -> None:
    sys.exit(3)


def is_interrupted() -> None:
    raise KeyboardInterrupt


def raises_its_own() -> None:
    raise Own("of a user")


def exhausts() -> None:
    next(iter(()))


def exhausts_async() -> None:
    raise StopAsyncIteration


def closes() -> None:
    raise GeneratorExit


def cancels() -> None:
    raise asyncio.CancelledError


def interrupts_in_a_group() -> None:
    raise BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()])


def recurses() -> None:
    recurses()


def recurses_and_raises() -> None:
    try:
        recurses_and_raises()
    except RecursionError as error:
        raise RecursionError("again") from error


def fails_deep(n: int = 700) -> None:
    if not n:
        raise ValueError("deep")
    fails_deep(n - 1)


def raises_what_cannot_be_sent() -> None:
    raise Unfit("unfit")


def raises_because_of_what_cannot_be_sent() -> None:
    try:
        raises_what_cannot_be_sent()
    except Unfit as error:
        raise ValueError("outer") from error


def raises_a_book() -> None:
    raise ValueError("word " * 5000)


UNUSUAL = [
    calls_exit, is_interrupted, raises_its_own, exhausts, exhausts_async, closes, cancels,
    interrupts_in_a_group,
]  # fmt: skip
DEEP = [recurses, recurses_and_raises, fails_deep]
ODD = [raises_what_cannot_be_sent, raises_because_of_what_cannot_be_sent, raises_a_book]
each_kind = pytest.mark.parametrize("act", UNUSUAL + DEEP + ODD, ids=lambda act: act.__name__)


def acting(act: Callable[[], Any], crop: np.ndarray) -> np.ndarray:
    if (crop == BAD).any():
        act()
    return crop * 2


def mapped(act: Callable[[], Any], **options: Any) -> Any:
    fn = functools.partial(acting, act)
    return tw.tiled_map(fn, IMAGE, 16, 0, **{"dtype": "f4", "chunks": 16} | options)


def named(error: BaseException) -> bool:
    notes = getattr(error, "__notes__", ())
    return any("raised by fn on tile 2 at (1, 0), reading [16:32, 0:16], crop (16, 16)" in n for n in notes)


@each_kind
def test_computing_raises_an_ordinary_error_that_names_the_tile(
    act: Callable[[], Any], scheduler: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- whichever; that it is an Exception is the law
        mapped(act).compute()
    assert named(caught.value)
    assert act.__name__ in "".join(traceback.format_exception(caught.value))
    if act in UNUSUAL:
        assert type(caught.value).__mro__[-4:-1] == RuntimeError.__mro__[:-1]
        assert "the function raised" in str(caught.value)
    elif act in DEEP:
        assert isinstance(caught.value, RecursionError | ValueError)


@each_kind
@pytest.mark.parametrize("on_error", ["raise", "fill", "callable"])
def test_writing_treats_it_as_any_failure_of_a_tile(
    act: Callable[[], Any], on_error: str, scheduler: str, tmp_path: Path
) -> None:
    write = functools.partial(
        tw.to_zarr, mapped(act, fill_value=-1), tmp_path / "a", progress=False, version="1"
    )
    if on_error == "raise":
        with pytest.raises(Exception) as caught:  # noqa: PT011
            write()
        assert named(caught.value)
        return
    treatment = functools.partial(note_down, tmp_path / "seen") if on_error == "callable" else "fill"
    with pytest.warns(tw.TilingWarning, match=r"tile 2 at \(1, 0\)"):
        written = write(on_error=treatment)
    values = written[...]
    assert (values[16:, :16] == -1).all()
    np.testing.assert_array_equal(values[:16], IMAGE[:16] * 2)
    if on_error == "callable":
        assert (tmp_path / "seen").read_text() == "2 True"


def note_down(file: Path, tile: tw.Tile, error: BaseException) -> None:
    file.write_text(f"{tile.index} {isinstance(error, Exception)}")


def test_the_cause_is_kept() -> None:
    with pytest.raises(RuntimeError, match="SystemExit: 3") as caught:
        mapped(calls_exit).compute(scheduler="threads")
    assert isinstance(caught.value.__cause__, SystemExit)
    assert caught.value.__cause__.code == 3


@pytest.mark.parametrize("batch_size", [None, 3])
def test_retries_try_it_again(batch_size: int | None, tmp_path: Path) -> None:
    tried: list[int] = []

    def flaky(crop: np.ndarray) -> np.ndarray:
        tried.append(1)
        if len(tried) < 3:
            sys.exit("not yet")
        return crop

    out = tw.tiled_map(flaky, IMAGE, 16, 0, dtype="f4", chunks=32, batch_size=batch_size)
    for on_error in ("fill", "raise"):
        tried.clear()
        written = tw.to_zarr(
            out, tmp_path / on_error, progress=False, retries=2, on_error=on_error, version="1",
            scheduler="synchronous",
        )  # fmt: skip
        np.testing.assert_array_equal(written[...], IMAGE)


def test_other_code_of_the_user_is_guarded_too(tmp_path: Path) -> None:
    """The call on zeros, factories, predicates, reductions, sources, and what on_error calls."""

    class Broken:
        shape, dtype = IMAGE.shape, IMAGE.dtype

        def __getitem__(self, index: Any) -> Any:
            sys.exit("closed")

    def leave(*args: Any) -> Any:
        sys.exit("out")

    def fail(crop: np.ndarray) -> np.ndarray:
        raise ValueError("no")

    def found(note: str, call: Callable[[], Any]) -> None:
        with pytest.raises(RuntimeError, match="the function raised SystemExit") as caught:
            call()
        assert any(note in n for n in caught.value.__notes__), caught.value.__notes__

    def made(fn: Any = np.negative, image: Any = IMAGE, **options: Any) -> Any:
        return tw.tiled_map(fn, image, 16, 0, **{"dtype": "f4"} | options)

    def reduce(block: np.ndarray) -> Any:
        return leave() if block.any() else block[0]

    reduced = tw.Output("f4", channels=2, reduce=reduce)
    zeros = tw.Output("f4", channels=2, reduce=leave)
    found("by reduce= on a small block of zeros", lambda: made(dtype=None, output=zeros))
    found("called on zeros", lambda: made(leave, dtype=None))
    found("by the factory", lambda: made(tw.load_once(leave)).compute(scheduler="threads"))
    found("by skip= on tile", lambda: made(skip=leave).compute(scheduler="threads"))
    found("while reading samples [", lambda: made(image=Broken()).compute(scheduler="threads"))
    found(
        "by reduce= on samples",
        lambda: made(lambda c: np.stack([c, c]), dtype=None, output=reduced).compute(scheduler="threads"),
    )
    found(
        "by on_error= for tile",
        lambda: tw.to_zarr(made(fail), tmp_path / "a", on_error=leave, progress=False, scheduler="threads"),
    )


def test_control_c_still_interrupts() -> None:
    """Also if the program has a handler of its own, or stops itself by SIGTERM."""

    def press(number: int) -> Callable[[], None]:
        return lambda: signal.raise_signal(number)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    def end(*args: Any) -> None:
        sys.exit(143)

    out, before = mapped(press(signal.SIGINT)), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        out.compute(scheduler="synchronous")
    own = signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, functools.partial(end))
    try:
        with pytest.raises(KeyboardInterrupt):
            out.compute(scheduler="synchronous")
        with pytest.raises(SystemExit):
            mapped(press(signal.SIGTERM)).compute(scheduler="synchronous")
    finally:
        signal.signal(signal.SIGINT, own)
        signal.signal(signal.SIGTERM, before)


def test_what_ends_a_task_from_outside_passes() -> None:
    with pytest.raises(Stopped) as caught, Guard(lambda: "raised by fn"):
        raise Stopped("over")
    assert not hasattr(caught.value, "__notes__")


def test_a_long_traceback_is_short_and_can_be_sent() -> None:
    for act in DEEP:
        with pytest.raises((RecursionError, ValueError)) as caught, Guard(lambda: "raised by fn"):
            act()
        error: BaseException | None = caught.value
        assert len(list(traceback.walk_tb(error.__traceback__))) <= 2 * guard.FRAMES + 1
        length = 0
        while error is not None:
            error, length = error.__cause__ or error.__context__, length + 1
        assert length <= guard.CAUSES
        assert pickle.loads(cloudpickle.dumps(caught.value)).__notes__ == ["raised by fn"]


class Held(np.ndarray):
    """An array to which weak references can be made."""


@pytest.mark.parametrize("act", [calls_exit, exhausts, recurses], ids=lambda act: act.__name__)
def test_the_error_does_not_keep_crops_for_the_garbage_collector(act: Callable[[], Any]) -> None:
    alive: list[Any] = []

    def call() -> None:
        mine = IMAGE.copy().view(Held)
        alive.append(weakref.ref(mine))
        with Guard(lambda: "raised by fn"):
            act()

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(RuntimeError):
            call()
        assert alive[0]() is None
    finally:
        gc.enable()


# -- calls that run for long ------------------------------------------------------------------------------


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a watch that names calls after a moment."""
    watch = guard._Watch()
    monkeypatch.setattr(guard, "LONG", 0.05)
    monkeypatch.setattr(guard, "_WATCH", watch)
    yield watch
    wait_for(lambda: watch._thread is None)


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not there() and time.monotonic() < end:
        time.sleep(0.01)
    assert there()


def test_a_long_call_is_named_in_the_log_now_and_then(
    quick_watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """By the tile, while it runs; at intervals that double, so that the log stays short."""

    def named() -> list[logging.LogRecord]:
        # A busy machine may keep another tile, or this one after its third line, for long as well.
        return [one for one in list(caplog.records) if "by fn on tile 2 at (1, 0)" in one.getMessage()]

    def slow(crop: np.ndarray) -> np.ndarray:
        if crop[0, 0] == IMAGE[16, 0]:
            wait_for(lambda: len(named()) >= 3)
        return crop

    with caplog.at_level(logging.WARNING, "tilework"):
        tw.tiled_map(slow, IMAGE, 16, 0, dtype="f4").compute(scheduler="threads")
    assert len(named()) >= 3
    for number, record in enumerate(named()):
        assert isinstance(record.args, tuple)
        assert record.args[0] >= guard.LONG * 2**number


def test_a_function_that_is_always_slow_is_not_named_for_every_tile(quick_watch: Any) -> None:
    """A call is long if it takes twice as long as the longest before."""
    with Guard(lambda: "raised by fn on tile 0") as _:
        pass
    quick_watch._longest = 1000.0
    call = Guard(lambda: "raised by fn on tile 1")
    with call:
        assert call.due - call.start == pytest.approx(2000)


def test_one_thread_watches_and_ends(quick_watch: Any) -> None:
    def watchers() -> int:
        return sum(thread.name == "tilework-watch" for thread in threading.enumerate())

    before = watchers()
    for _ in range(3):
        tw.tiled_map(np.negative, IMAGE, 4, 0, dtype="f4").compute(scheduler="threads")
        assert watchers() <= before + 1
    wait_for(lambda: quick_watch._thread is None)
    with Guard(lambda: "raised by fn"):
        assert quick_watch._thread is not None
    assert not quick_watch._calls


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_starts_its_own(quick_watch: Any) -> None:
    with Guard(lambda: "raised by fn"):
        child = os.fork()
        if not child:
            with Guard(lambda: "raised by fn"):
                os._exit(0 if quick_watch._thread.is_alive() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
