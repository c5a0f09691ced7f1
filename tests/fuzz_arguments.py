"""Random arguments to every public entry: an error is ours and says what to change.

``python -m tests.fuzz_arguments 20000 --seed 0`` prints every call that ended in somebody else's error.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import os
import random
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr

import tilework as tw

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

MEMORY = 6 * 2**30
"""Most bytes of address space that the calls may add: what asks for more ends as a MemoryError."""
LONGEST = 20
"""Most seconds of the processor for a call; the slowest ones run a function a few hundred times."""
SOURCES = str(Path(tw.__file__).parent)
# Numbers of the instruction `raise`, by which an explicit error is told from one of an operation.
RAISES = {number for name, number in __import__("dis").opmap.items() if name in ("RAISE_VARARGS", "RERAISE")}


FAILED, GONE = "a method of the object failed", "the file of the array is gone"


class Broken:
    """An object whose comparisons, truth, length and iteration fail."""

    __hash__ = None  # type: ignore[assignment]

    def _fails(self, *_: Any) -> Any:
        raise RuntimeError(FAILED)

    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = _fails  # type: ignore[assignment]
    __len__ = __bool__ = __iter__ = __getitem__ = __contains__ = _fails


class Words(dict[str, Any]):
    """A dictionary whose keys are attributes, as many configurations are: other names raise KeyError."""

    __getattr__ = dict.__getitem__


class Lying:
    """An object that looks like an array, and is none."""

    shape, dtype, ndim, chunks = "shape", "dtype", 2, "chunks"

    def __getitem__(self, key: Any) -> Any:
        return self


class Half:
    """An object with the shape and dtype of an array that cannot be read."""

    shape, dtype, ndim = (12, 10), np.dtype("f4"), 2

    def __getitem__(self, key: Any) -> Any:
        raise OSError(GONE)


def _function(x: Any) -> Any:
    return x


VALUES: Mapping[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "numpy bool": lambda: np.bool_(False),
    "zero": lambda: 0,
    "one": lambda: 1,
    "seven": lambda: 7,
    "negative": lambda: -3,
    "huge": lambda: 10**9,
    "beyond 64 bits": lambda: 10**30,
    "negative beyond 64 bits": lambda: -(10**30),
    "beyond floats": lambda: 10**400,
    "half": lambda: 0.5,
    "float": lambda: 3.0,
    "huge float": lambda: 1e308,
    "nan": lambda: float("nan"),
    "inf": lambda: float("-inf"),
    "complex": lambda: 1 + 2j,
    "numpy int": lambda: np.int16(2),
    "numpy uint": lambda: np.uint64(2**63),
    "numpy float": lambda: np.float64("nan"),
    "numpy float32": lambda: np.float32(2.5),
    "numpy time": lambda: np.datetime64("2020-01-01"),
    "numpy no time": lambda: np.timedelta64("NaT", "s"),
    "numpy string": lambda: np.str_("auto"),
    "fraction": lambda: Fraction(1, 3),
    "decimal": lambda: Decimal("NaN"),
    "datetime": lambda: datetime(2020, 1, 1),
    "string": lambda: "x",
    "empty string": lambda: "",
    "auto": lambda: "auto",
    "number as string": lambda: "12",
    "bytes as string": lambda: "1e400MB",
    "null character": lambda: "a\0b",
    "bytes": lambda: b"auto",
    "bytearray": lambda: bytearray(b"ab"),
    "empty tuple": tuple,
    "empty list": list,
    "empty dict": dict,
    "empty set": set,
    "tuple": lambda: (1, 2),
    "tuple of huge": lambda: (10**9, 10**30),
    "tuple beyond floats": lambda: (10**400, -(10**400)),
    "tuple of floats": lambda: (0.5, float("nan")),
    "tuple of strings": lambda: ("x", "y"),
    "mixed tuple": lambda: (1, None),
    "long tuple": lambda: (1, 2, 3, 4, 5),
    "nested tuple": lambda: ((1, 2), (3, (4,))),
    "ragged list": lambda: [[1], [1, 2]],
    "set": lambda: {1, 2},
    "dict": lambda: {"x": 1},
    "dict by number": lambda: {0: None, 1: "y"},
    "range": lambda: range(2),
    "slice": lambda: slice(0, 3),
    "ellipsis": lambda: Ellipsis,
    "function": lambda: _function,
    "lambda without arguments": lambda: lambda: 3,
    "builtin": lambda: len,
    "type": lambda: int,
    "class": lambda: Broken,
    "generator": lambda: (i for i in range(3)),
    "module": lambda: os,
    "object": object,
    "broken object": Broken,
    "words": lambda: Words(sigma=1, net=Words()),
    "lying object": Lying,
    "half an array": Half,
    "path": lambda: Path("nothing") / "here",
    "0-d array": lambda: np.array(3),
    "0-d float array": lambda: np.array(2.5),
    "empty array": lambda: np.empty((0, 3)),
    "1-d array": lambda: np.array([2, 1]),
    "2-d array": lambda: np.ones((12, 10), "f4"),
    "3-d array": lambda: np.ones((2, 3, 4), "i2"),
    "bool array": lambda: np.zeros((3, 5), bool),
    "array of NaN": lambda: np.full((6, 4), np.nan),
    "object array": lambda: np.array([None, "x"], object),
    "string array": lambda: np.array(["x", "y"]),
    "structured array": lambda: np.zeros(3, "i4,f4"),
    "masked array": lambda: np.ma.masked_equal(np.arange(6).reshape(2, 3), 2),
    "time array": lambda: np.zeros((4, 4), "M8[s]"),
    "dask array": lambda: da.ones((12, 10), chunks=5),
    "0-d dask array": lambda: da.ones(()),
    "unknown dask array": lambda: da.ones(9, chunks=3)[da.ones(9, chunks=3) > 0],
    "zarr array": lambda: zarr.zeros((12, 10), chunks=(4, 4), store=zarr.storage.MemoryStore()),
    "zarr array of one axis": lambda: zarr.zeros(7, chunks=3, store=zarr.storage.MemoryStore()),
    "zarr group": lambda: zarr.group(store=zarr.storage.MemoryStore()),
    "store": zarr.storage.MemoryStore,
    "dtype": lambda: np.dtype("i4,f4"),
    "object dtype": lambda: object,
    "Output": lambda: tw.Output("f4", channels=2),
    "tuple of Output": lambda: (tw.Output("f4"), tw.Output("u1")),
    "result": lambda: _result(),
    "plan": lambda: tw.plan_tiles((12, 10), 6, 1),
    "Slicer": lambda: tw.Slicer,
}


def _image() -> Any:
    return np.arange(120.0, dtype="f4").reshape(12, 10)


def _result(**options: Any) -> Any:
    return tw.tiled_map(np.sqrt, _image(), 6, 1, dtype="f4", chunks=6, **options)


def _pair() -> Any:
    return tw.tiled_map(
        lambda x: (x, x > 1), _image(), 6, 1, output=(tw.Output("f4"), tw.Output("bool")), chunks=6
    )


def _stencil(x: Any) -> Any:
    return x + np.roll(x, 1, 0)


def _sampler(**options: Any) -> tw.GridSampler:
    return tw.GridSampler(**{"image": _image(), "spatial_size": (12, 10), "patch_size": (4, 4)} | options)


def _aggregated(**options: Any) -> Any:
    sampler = options.pop("sampler") if "sampler" in options else _sampler()
    aggregator = tw.Aggregator(sampler, **options)
    for patch, box in _sampler():
        aggregator.append(patch, box)
    return aggregator.get_output()


def _appended(patch: Any, patch_bbox: Any) -> Any:
    aggregator = tw.Aggregator(_sampler(), (12, 10))
    aggregator.append(patch, patch_bbox)
    return aggregator


def _network() -> Any:
    """Return a network, or where torch is missing, what would build one."""
    try:
        import torch
    except ModuleNotFoundError:
        return _function
    return torch.nn.Conv2d(1, 1, 3, padding=1)


def _bound(**options: Any) -> Any:
    """Return a result whose output has the given declaration."""
    return tw.tiled_map(_function, _image(), 6, 2, output=tw.Output(**options))


@dataclass(frozen=True)
class Entry:
    """One public entry with arguments that work."""

    call: Callable[..., Any]
    """Called with keywords."""
    base: Mapping[str, Callable[[], Any]]
    """Makers of arguments that are always given."""
    more: Sequence[str] = ()
    """Names of further arguments."""
    use: Callable[[Any], Any] = lambda made: made
    """What is done with the result, so that late errors are seen too."""


GRID = (
    "axes", "each", "stride", "multiple", "edge", "boundary", "blend", "rim", "sigma_scale", "output",
    "dtype", "batch_size", "pad_batch", "mask", "mask_scale", "chunks", "memory_limit", "reuse",
)  # fmt: skip
WRITE = (
    "path", "chunks", "shards", "overwrite", "resume", "version", "accept", "on_error", "retries",
    "memory_limit", "lanes", "client", "scheduler", "resources", "priority",
)  # fmt: skip
FIXED = {"crop": lambda: 6, "overlap": lambda: 1}
QUIET = {"progress": lambda: False}

ENTRIES: Mapping[str, Entry] = {
    "tiled_map": Entry(
        tw.tiled_map,
        {"fn": lambda: _function, "array": _image, **FIXED},
        (*GRID, "cval", "disagreement", "where", "nodata", "nodata_fill", "skip", "fill_value", "pass_tile",
         "name"),
        repr,
    ),
    "tiled_map, a blend": Entry(
        tw.tiled_map,
        {"fn": lambda: _function, "array": _image, "crop": lambda: (6, 4), "stride": lambda: 3,
         "blend": lambda: "hann"},
        ("overlap", "rim", "sigma_scale", "output", "dtype", "disagreement", "cval", "fill_value", "edge"),
        repr,
    ),
    "tiled_map, auto": Entry(
        tw.tiled_map,
        {"fn": lambda: _function, "array": _image, "crop": lambda: 6, "overlap": lambda: "auto"},
        ("axes", "each", "multiple", "batch_size", "output", "dtype", "blend", "rim", "stride"),
        repr,
    ),
    "plan_tiles": Entry(
        tw.plan_tiles, {"shape": lambda: (12, 10), **FIXED}, (*GRID, "source_chunks"), lambda p: p.explain()
    ),
    "Output": Entry(
        _bound,
        {"dtype": lambda: "f4"},
        ("channels", "channel_axis", "scale", "margin", "shape", "axes", "blend", "reduce", "fill_value"),
    ),
    "load_once": Entry(
        tw.load_once, {"factory": lambda: _image}, ("args", "kwargs", "concurrent", "version"), repr
    ),
    "from_torch": Entry(
        tw.from_torch, {"module_or_factory": _network},
        ("device", "autocast", "add_channel", "channel_axis", "activation", "compile"), repr,
    ),
    "to_zarr": Entry(
        tw.to_zarr, {"out": _result, "store": zarr.storage.MemoryStore, **QUIET}, (*WRITE, "compute")
    ),
    "to_zarr, several": Entry(tw.to_zarr, {"out": _pair, "store": zarr.storage.MemoryStore, **QUIET}, WRITE),
    "to_zarr, dask": Entry(
        tw.to_zarr,
        {"out": lambda: da.ones((12, 10), chunks=5), "store": zarr.storage.MemoryStore, **QUIET},
        (*WRITE, "compute"),
    ),
    "to_zarr, options": Entry(
        tw.to_zarr,
        {"out": _result, "store": zarr.storage.MemoryStore, **QUIET},
        ("compressors", "fill_value", "dimension_names", "attributes", "zarr_format", "storage_options",
         "filters", "unknown", "progress"),
    ),
    "write_many": Entry(
        tw.write_many,
        {"jobs": lambda: [(_result(), zarr.storage.MemoryStore())], "on_error": lambda: "raise", **QUIET},
        (*WRITE,),
    ),
    "write_many, a job": Entry(
        lambda **a: tw.write_many(
            [(a["out"], a["store"], a["options"])], on_error="raise", progress=a["progress"]
        ),
        {"out": _result, "store": zarr.storage.MemoryStore, "options": dict, "progress": lambda: False},
    ),
    "view": Entry(tw.view, {"out": _result}, ("cache", "verbose"), repr),
    "probe": Entry(
        tw.probe,
        {"fn": lambda: _stencil, "crop": lambda: (12, 8)},
        ("array", "shape", "dtype", "axes", "each", "batch_size", "values", "tolerance", "seed"),
    ),
    "check": Entry(
        tw.check,
        {"out": _result, "fn": lambda: np.sqrt, "array": _image},
        ("where", "places", "size", "context", "seed"),
    ),
    "explain": Entry(tw.explain, {"out": _result}, ("measure",)),
    "status": Entry(
        tw.status,
        {"store": lambda: tw.to_zarr(_result(), zarr.storage.MemoryStore(), progress=False)},
        ("verify", "drop", "storage_options"),
    ),
    "compare": Entry(tw.compare, {"whole_result": _image, "tiled": _result}, ("centre", "size")),
    "plot_plan": Entry(tw.plot_plan, {"plan": lambda: tw.plan_tiles((12, 10), 6, 1)}, ("ax",)),
    "plot_window": Entry(tw.plot_window, {"plan": lambda: tw.plan_tiles((12, 10), 6, 1)}, ("axis", "ax")),
    "plot_labels": Entry(
        tw.plot_labels, {"labels": lambda: np.arange(120).reshape(12, 10)}, ("image", "centre", "size", "ax")
    ),
    "plot_seams": Entry(tw.plot_seams, {"out": _result}, ("centre", "size")),
    "Slicer": Entry(
        tw.Slicer,
        {"image": _image, "crop_size": lambda: 6, "overlap": lambda: 1},
        ("batch_size", "pad", "stride_offset", "output_transform", "collate", "axes", "boundary", "cval",
         "scale", "memory_limit"),
        lambda s: (len(s), s[0], s.plan),
    ),
    "Slicer.writer": Entry(
        lambda **a: tw.Slicer(_image(), 6, 1).writer(**a), {"output": lambda: np.empty((12, 10), "f4")}
    ),
    "GridSampler": Entry(
        tw.GridSampler,
        {"image": _image, "spatial_size": lambda: (12, 10), "patch_size": lambda: (4, 4)},
        ("step_size", "chunk_size", "spatial_first", "mode", "pad_kwargs", "patch_offset", "memory_limit"),
        lambda s: (len(s), s[0], s.plan),
    ),
    "GridSampler.position": Entry(
        lambda **a: _sampler().position(**a), {"bbox": lambda: _sampler().get_bbox(0)}
    ),
    "Aggregator": Entry(
        _aggregated,
        {"output_size": lambda: (12, 10)},
        ("sampler", "output", "weights", "softmax_dim", "has_batch_dim", "spatial_first",
         "chunk_postprocess_func", "device", "dtype", "fill_value", "accumulate", "missing", "scale"),
    ),
    "Aggregator.append": Entry(
        _appended, {"patch": lambda: _sampler()[0][0], "patch_bbox": lambda: _sampler()[0][1]}
    ),
    "SamplingMode": Entry(lambda **a: tw.SamplingMode.of(**a), {"mode": lambda: "sample_edge"}),
    "TilePlan.from_json": Entry(
        lambda **a: tw.TilePlan.from_json(*a.values()),
        {"text": lambda: tw.plan_tiles((12, 10), 6, 1).to_json()},
    ),
    "TilePlan.calls": Entry(
        lambda **a: tw.plan_tiles((12, 10), 6, 1).calls(*a.values()), {"box": lambda: None}
    ),
}  # fmt: skip

# What messages call an argument beside its name.
OTHER_WORDS: Mapping[str, Sequence[str]] = {
    "array": ("opened", "fill_value", "axis"),
    "batch_size": ("batch",),
    "blend": ("importance map", "window"),
    "boundary": ("padding mode",),
    "crop": ("axis to tile",),
    "fn": ("the function",),
    "each": ("axes to tile",),
    "image": ("array", "opened", "axis", "spatial_size"),
    "jobs": ("job",),
    "out": ("the dask array",),
    "patch_offset": ("step_size",),
    "options": ("zarr.create_array",),
    "pad_kwargs": ("numpy.pad",),
    "patch": ("cannot combine values",),
    "patch_bbox": ("bbox",),
    "scale": ("the output",),
    "patch_size": ("crop", "stride"),
    "shape": ("axis",),
    "shards": ("units",),
    "spatial_size": ("patch_size",),
    "store": ("write into", "is not empty", "is a Zarr group", "no Zarr array or group"),
    "weights": ("importance map", "window"),
    "channels": ("memory_limit",),
    "crop_size": ("crop",),
    "output_size": ("the output",),
    "where": ("a place",),
}


@dataclass(frozen=True)
class Foreign:
    """A call that ended in somebody else's error."""

    entry: str
    arguments: str
    error: BaseException

    def __str__(self) -> str:
        return f"{self.entry}({self.arguments}): {type(self.error).__name__}: {str(self.error)[:160]}"

    @property
    def place(self) -> str:
        """The innermost line of the package, and what was raised there."""
        frame = self.error.__traceback__
        found = ""
        while frame is not None:
            name = frame.tb_frame.f_code.co_filename
            if name.startswith(SOURCES):
                found = f"{name[len(SOURCES) + 1 :]}:{frame.tb_lineno}"
            frame = frame.tb_next
        return f"{found} {type(self.error).__name__}"


def _innermost(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def is_foreign(error: BaseException, arguments: Collection[str] = ()) -> bool:
    """Return whether an error is neither ours, raised on purpose, nor the noted one of a user's function."""
    if getattr(error, "__notes__", ()):
        return False
    if str(error) == FAILED and "jobs" in arguments:
        return False  # an iterable of jobs is the caller's own code
    if isinstance(error, MemoryError) and "crop_size" in arguments:
        return False  # a loop reads a crop of any size as soon as it is asked for it
    if isinstance(error, OSError) and str(error) == GONE:
        return False
    last = _innermost(error.__traceback__)
    assert last is not None
    own = last.tb_frame.f_code.co_filename.startswith(SOURCES)
    raised = last.tb_frame.f_code.co_code[last.tb_lasti] in RAISES
    return not (isinstance(error, tw.TilingError | TypeError) and own and raised)


def is_unclear(error: BaseException, argument: str) -> bool:
    """Return whether an error that is ours does not name the argument, or a part of what it means."""
    if getattr(error, "__notes__", ()) or str(error) == GONE:
        return False
    return not any(word in str(error) for word in (argument, *OTHER_WORDS.get(argument, ())))


def draw(generator: random.Random) -> tuple[str, dict[str, str]]:
    """Return an entry and which arguments get which values."""
    name = generator.choice(list(ENTRIES))
    entry = ENTRIES[name]
    names = list(dict.fromkeys((*entry.base, *entry.more)))
    count = min(len(names), generator.choices((1, 2, 3), (6, 3, 1))[0])
    return name, {argument: generator.choice(list(VALUES)) for argument in generator.sample(names, count)}


def call(name: str, chosen: Mapping[str, str]) -> BaseException | None:
    """Call an entry with the chosen values; return its error."""
    entry = ENTRIES[name]
    arguments = {k: make() for k, make in entry.base.items()}
    arguments |= {k: VALUES[value]() for k, value in chosen.items()}
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, _stop)
        signal.setitimer(signal.ITIMER_PROF, LONGEST)  # not of the clock: the machine may be busy
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            entry.use(entry.call(**arguments))
    except Exception as error:
        return error
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
    return None


class TookTooLong(Exception):
    """A call whose arguments are refused, or answered, in far less time."""


def _stop(*_: Any) -> None:
    raise TookTooLong(f"the call took more than {LONGEST} s")


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """Refuse memory beyond `MEMORY`: a call that takes all would end other processes of the machine."""
    used = Path("/proc/self/statm")
    if resource is None or not used.exists():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = int(used.read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most if limits[1] < 0 else min(most, limits[1]), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Work in an empty folder, because a word may be taken for a path, on one thread and in little memory."""
    before, log = Path.cwd(), logging.getLogger("tilework")
    level = log.level
    log.setLevel(logging.CRITICAL)
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set(scheduler="synchronous"),
        _little_memory(),
    ):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
            log.setLevel(level)
            gc.collect()  # what zarr leaves behind warns here, and in no other test


def fuzz(calls: int, seed: int, *, show: bool = False, unclear: bool = False) -> Iterator[Foreign]:
    """Yield the calls that end in somebody else's error."""
    generator = random.Random(seed)
    for number in range(calls):
        name, chosen = draw(generator)
        text = ", ".join(f"{k}=<{v}>" for k, v in chosen.items())
        if show:
            sys.stderr.write(f"{number} {name}({text})\n")
        error = call(name, chosen)
        if error is not None and (
            is_foreign(error, chosen) or (unclear and len(chosen) == 1 and is_unclear(error, *chosen))
        ):
            yield Foreign(name, text, error)
        with contextlib.suppress(ImportError):
            sys.modules.get("matplotlib.pyplot") and sys.modules["matplotlib.pyplot"].close("all")


def main() -> int:
    """Print the foreign errors by the line that let them through; return how many there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unclear", action="store_true", help="also errors that do not name the argument")
    parser.add_argument("--show", action="store_true", help="print every call before it is made")
    asked = parser.parse_args()
    with elsewhere():
        found = list(fuzz(asked.calls, asked.seed, show=asked.show, unclear=asked.unclear))
    places = Counter(one.place for one in found)
    for place, count in places.most_common():
        sys.stdout.write(f"{count:5d} {place}\n")
        for one in [one for one in found if one.place == place][:3]:
            sys.stdout.write(f"        {one}\n")
    sys.stdout.write(
        f"{len(found)} of {asked.calls} calls ended in somebody else's error (seed {asked.seed})\n"
    )
    return min(len(found), 1)


if __name__ == "__main__":
    raise SystemExit(main())
