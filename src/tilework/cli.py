"""The command line: ``tilework demo``, ``stats``, ``probe``, ``plan``, ``run`` and ``status``."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import signal
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from tilework._installed import version_of
from tilework._options import Fractions, Lengths, NoData, Overlap, Place, axes_of, in_options
from tilework.engine.pyramid import PYRAMIDS
from tilework.errors import AlignmentError, GridError, MemoryBudgetError, TilingError, TilingWarning
from tilework.execution.started import connected, prepare, safe_start
from tilework.function.output import LABELS, Output
from tilework.function.user_file import UserFile
from tilework.grid.axis import EDGES, PAD_SIDES
from tilework.grid.weights import BLENDS
from tilework.source.padding import BOUNDARIES

__all__ = ["main"]

# Where installed code lies: a line there is not the user's.
_INSTALLED = tuple(
    os.path.realpath(place)
    for place in (str(Path(__file__).parent), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)
# Frames of a traceback as text.
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in .*\n +(.*)')


# -- endings ----------------------------------------------------------------------------------------------


class _Main(click.Group):
    """The commands; a signal ends them with its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with _signals(ctx), _log():
            return super().invoke(ctx)


def _traceback_option(command: Any) -> Any:
    """Add ``--traceback``, which is kept for the errors of all commands."""

    def keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        del param
        ctx.find_root().meta[_TRACEBACK] = value or ctx.find_root().meta.get(_TRACEBACK, False)

    option = click.option(
        "--traceback", is_flag=True, expose_value=False, callback=keep, help="Show the traceback of an error."
    )
    return option(command)


_TRACEBACK = "tilework.traceback"


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    help="Show the version and exit.",
    callback=lambda ctx, _, asked: _show_version(ctx) if asked else None,
)
@_traceback_option
def main() -> None:
    """Run functions on huge images, crop by crop."""


def _show_version(ctx: click.Context) -> None:
    """Show the version, also where nothing is installed, which `click.version_option` does not."""
    click.echo(f"{ctx.find_root().info_name}, version {version_of('tilework')}")
    ctx.exit()


@contextmanager
def _signals(ctx: click.Context) -> Iterator[None]:
    """Return a context that Ctrl-C and SIGTERM end: with exit code 130 or 143, after the tiles in flight.

    A second signal ends the process at once; so does the end of the context if a tile still runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def end(number: int, frame: Any) -> None:
        del frame
        if came:
            os._exit(128 + number)
        came.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException as error:
        # Whoever caught the interruption may have raised something else, as the making of a class does.
        if not came and not isinstance(error, KeyboardInterrupt):
            raise
        code = 128 + (came[0] if came else signal.SIGINT)
        again = "; run the same command again to resume" if ctx.invoked_subcommand == "run" else ""
        click.echo(f"Error: interrupted{again}.", err=True)
        from tilework.execution.stop import in_flight

        if in_flight():  # the interpreter would wait for its thread
            sys.stdout.flush()
            os._exit(code)
        raise click.exceptions.Exit(code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Lines(logging.Handler):
    """Writes log records to the standard error, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _log() -> Iterator[None]:
    """Return a context in which the lines of the log, such as progress without a terminal, are shown."""
    log, lines = logging.getLogger("tilework"), _Lines()
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level, passes = log.level, log.propagate
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.setLevel(level)
        log.propagate = passes


@contextmanager
def _plainly(*usage: type[Exception], store: str | None = None) -> Iterator[None]:
    """Show an error as one message, with exit code 1; or 2, in words of the command line, for its arguments.

    Parameters
    ----------
    usage : type of exception
        Errors that are mistakes in the arguments, unless the user's code raised them.
    store : str, optional
        A place of which other errors may tell. One that begins with an option is a mistake in the arguments,
        and one that begins with the store is not.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except Exception as error:
        context = click.get_current_context()
        if context.find_root().meta.get(_TRACEBACK):
            click.echo("".join(traceback.format_exception(error)), err=True)
        notes = [n.partition("\n")[0] for n in getattr(error, "__notes__", ()) if "\nTraceback" not in n]
        words, ours = _in_options(str(error)), isinstance(error, usage)
        if store is not None and isinstance(error, TilingError | TypeError):
            ours = ours or (words.startswith("--") and not str(error).startswith(store))
        if ours and not notes and words != str(error):
            raise click.UsageError(words, context) from error
        text = _text_of(error)
        if isinstance(error, TilingError) and not notes:
            text = _in_options(text, bare=False)
        raise click.ClickException(" | ".join([text, *notes, *_own_line(error)])) from error


def _text_of(error: BaseException) -> str:
    """Return an error in one line; what Python says of a file in the words of the others."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    own = isinstance(message, TilingWarning)
    click.echo(f"Warning: {_in_options(str(message), bare=False) if own else message}", err=True)


def _own_line(error: BaseException) -> list[str]:
    """Return the innermost line of the user's own code in a traceback, if there is any."""
    text = "".join(traceback.format_exception(error, chain=False))
    for file, number, line in reversed(_FRAME.findall(text)):
        place = os.path.realpath(file)
        if not file.startswith("<") and not any(place.startswith(root + os.sep) for root in _INSTALLED):
            shown = os.path.relpath(place) if place.startswith(os.getcwd() + os.sep) else file  # noqa: PTH109
            return [f"{shown}:{number}: {line}"]
    return []


def _in_options(text: str, *, bare: bool = True) -> str:
    """Return a message about arguments in the words of the command line, as `in_options` does."""
    options = [p for c in main.commands.values() for p in c.params if isinstance(p, click.Option)]
    return in_options(text, options, bare=bare)


@main.command()
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), default=Path("tilework-demo"),
    show_default=True, help="Folder for the Zarr arrays and the picture.",
)  # fmt: skip
@click.option("--crop", default=256, show_default=True, help="Length of a crop, samples.")
@click.option("--overlap", default=48, show_default=True, help="Context per side, enough for the filter.")
@click.option("--small", default=8, show_default=True, help="A second overlap, too small for the filter.")
def demo(folder: Path, crop: int, overlap: int, small: int) -> None:
    """Filter a photograph tile by tile, compare with the untiled result, and draw both."""
    try:
        from tilework.diagnostics.demo import run_demo
    except ImportError as error:
        raise click.ClickException(f'{error}; the demo needs pip install "tilework[demo]".') from error
    with _plainly(GridError):
        for line in run_demo(folder, crop, overlap, small):
            click.echo(line)


# -- probe, plan and run ----------------------------------------------------------------------------------


def _choice(name: str, words: Sequence[str], text: str) -> Callable[[Any], Any]:
    """Return an option that takes one of ``words``, of which the first is the default."""
    return click.option(name, type=click.Choice(words), default=words[0], show_default=True, help=text)


def _tiling(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that `tiled_map` and `plan_tiles` share."""
    for option in reversed(
        [
            click.option("--crop", type=Lengths(), required=True, help="Lengths of a crop, samples."),
            click.option("--overlap", type=Overlap(), help="Context on each side, samples."),
            click.option("--stride", type=Lengths(), help="Distance between crops, instead of --overlap."),
            click.option("--axes", help="Tiled axes: numbers (0,1) or names (yx); default: the last."),
            click.option("--each", help="Axes of which FN receives one index per call, as --axes."),
            _choice("--edge", EDGES, "Treatment of crops that stick out of the image."),
            _choice("--boundary", BOUNDARIES, "Padding of the image, where crops need it."),
            _choice("--blend", BLENDS, "Treatment of samples in several crops."),
            _choice("--pad-side", PAD_SIDES, "Where an image that is too short for whole crops is padded."),
            click.option("--rim", type=Lengths(), default=0, help="Outermost samples without weight."),
            click.option("--multiple", type=Lengths(), default=1, help="Crops start at multiples of this."),
            click.option("--batch-size", type=int, help="Crops per call of FN."),
            click.option("--dtype", help="Dtype of the result, if FN keeps the crop's shape."),
            click.option("--labels", type=click.Choice(LABELS), help="FN returns ids of objects."),
            click.option("--connectivity", type=int, help="What touches is one object, for --labels join."),
            click.option("--memory-limit", help='Memory of a process, as "4GB".'),
        ]
    ):
        command = option(command)
    return command


@main.command()
@_traceback_option
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=Place())
@click.option(
    "--quantiles", type=Fractions(), default="0.01,0.5,0.99", show_default=True, help="From 0 to 1."
)
@click.option("--axes", help="Axes of positions, for --where and --nodata: numbers (0,1) or names (yx).")
@click.option("--each", help="Axes whose every index is measured for itself, as --axes.")
@click.option("--where", metavar="MASK", multiple=True, help="Which samples count; one for each IMAGE.")
@click.option("--nodata", type=NoData(), help='Value that does not count; "meta": what IMAGE says.')
@click.option("--sample", type=click.IntRange(1), help="Measure this many chunks, drawn at random.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the draw.")
@click.option("--level", type=int, help="Level of an OME-Zarr image; -1 is the coarsest.")
@click.option("--memory-limit", help='Memory of a process, as "4GB".')
@click.option("--cluster", metavar="ADDRESS", help="Scheduler of a running cluster, tcp://host:8786.")
@click.option("--workers", type=click.IntRange(1), help="Number of worker processes to start here.")
@click.option("--progress/--no-progress", default=None, help="Show progress; default: in a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for ImageStatistics.from_json.")
def stats(images: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Measure IMAGE, or several together: mean, deviation, extremes and exact quantiles.

    \b
    tilework stats volume.zarr --each c --quantiles 0.001,0.998
    """  # noqa: D301 -- click wants the character itself
    from tilework.source.opening import open_source
    from tilework.statistics.measuring import image_statistics

    with _plainly():
        cluster, workers = options.pop("cluster"), options.pop("workers")
        progress = options.pop("progress")
        options["where"] = list(options["where"]) or None
        opened = list(images) if options["level"] is not None else [open_source(one) for one in images]
        given = _options(options) | {"progress": "auto" if progress is None else progress}
        with _client(cluster, workers) as client, _plainly(TilingError, TypeError):
            found = image_statistics(opened, client=client, **given)
    click.echo(found.to_json() if as_json else str(found))


@main.command()
@_traceback_option
@click.argument("function", metavar="MODULE:FN")
@click.argument("source", metavar="[IN]", required=False, type=Place())
@click.option("--crop", type=Lengths(), required=True, help="Lengths of a crop, samples.")
@click.option("--axes", help="Tiled axes of IN: numbers (0,1) or names (yx); default: the last.")
@click.option("--each", help="Axes of IN of which FN receives one index per call, as --axes.")
@click.option("--batch-size", type=int, help="Crops per call of FN, if it takes batches.")
@click.option("--dtype", help="Dtype of the crops if there is no IN; default: float32.")
@click.option("--tolerance", type=float, help="Change to ignore, as a fraction of the largest result.")
@click.option("--nan", is_flag=True, help="Call FN with NaN too, on which compiled code may crash.")
@click.option("--extremes", is_flag=True, help="Call FN with values far outside those of IN too.")
@click.option("--seed", default=0, help="Seed of the random inputs.")
def probe(function: str, source: str | None, **options: Any) -> None:
    """Find the overlap that FN needs by calling it on crops like those of IN.

    Without IN the crops are random. The exit code is 1 if no overlap is exact.

    \b
    tilework probe filters.py:denoise volume.zarr --crop 128
    """  # noqa: D301 -- click wants the character itself
    from tilework.probing.probe import probe as ask
    from tilework.source.opening import open_source

    if source is None:
        if given := [f"--{name}" for name in ("axes", "each") if options[name] is not None]:
            raise click.UsageError(f"{given[0]} is about the axes of IN; give IN too.")
        if isinstance(options["crop"], int):
            raise click.UsageError(
                f"--crop {options['crop']} has any number of axes without IN; give one length per axis, as "
                f"--crop {options['crop']},{options['crop']}."
            )
    elif options["dtype"] is not None:
        raise click.UsageError("--dtype is that of crops without IN; leave it out.")
    with _plainly():
        fn = _function(function)
        image = None if source is None else open_source(source)
        with _plainly(TilingError, TypeError):
            report = ask(fn, array=image, **_options(options))
    click.echo(str(report))
    if not report.exact:
        raise click.exceptions.Exit(1)


@main.command()
@_traceback_option
@click.argument("function", metavar="MODULE:FN")
@click.argument("source", metavar="IN", type=Place())
@click.argument("target", metavar="OUT", type=Place())
@_tiling
@click.option("--chunks", type=Lengths(), help="Chunks of OUT, samples.")
@click.option("--shards", type=Lengths(), help="Shards of OUT, samples.")
@click.option("--ome", type=click.Choice(["0.5", "0.4"]), help="Write an OME-Zarr image of this version.")
@click.option("--levels", type=click.IntRange(1), help="Levels of the image; default: as many as it needs.")
@click.option("--pyramid", type=click.Choice(PYRAMIDS), help="How coarser levels are made.")
@click.option("--label-name", metavar="NAME", help="Write labels of this name into the image OUT.")
@click.option("--table", metavar="FILE", help="Write a table of the objects of labels, .csv or .parquet.")
@click.option("--intensity", metavar="IMAGE", help="Image whose values the table has.")
@click.option("--properties", metavar="NAME", multiple=True, help="A column of the table; repeatable.")
@click.option("--cluster", metavar="ADDRESS", help="Scheduler of a running cluster, tcp://host:8786.")
@click.option("--workers", type=click.IntRange(1), help="Number of worker processes to start here.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Compute only what OUT lacks.")
@click.option("--overwrite", is_flag=True, help="Delete what is in OUT.")
@click.option("--version", "fn_version", help="Identifies FN in place of its code.")
@click.option("--accept", metavar="PART", multiple=True, help="Resume OUT although PART changed; repeatable.")
@_choice("--on-error", ("raise", "fill"), "Whether a tile that fails ends the run or is left out.")
@click.option("--retries", type=click.IntRange(0), default=0, help="Further attempts at what has failed.")
@click.option("--lanes", type=click.IntRange(1), help="Threads that read, call FN and write here.")
@click.option("--progress/--no-progress", default=None, help="Show progress; default: in a terminal.")
def run(function: str, source: str, target: str, **options: Any) -> None:
    """Run FN on every crop of IN and write the result to OUT.

    MODULE:FN is a function in a module or a file: filters:denoise, or ./filters.py:denoise. IN is anything
    that Zarr opens, OUT a path or URL. After an interruption, run the same command again to resume.

    \b
    tilework run filters.py:denoise volume.zarr out.zarr --crop 128 --overlap 16 --blend gaussian
    """  # noqa: D301 -- click wants the character itself
    from tilework.writing.status import statuses
    from tilework.writing.store import to_zarr

    with _plainly():
        cluster, workers = options.pop("cluster"), options.pop("workers")
        progress = options.pop("progress")
        writing = {
            name: options.pop(name)
            for name in ("chunks", "shards", "resume", "overwrite", "accept", "on_error", "retries", "lanes")
        } | {name: options.pop(name) for name in ("ome", "levels", "pyramid", "label_name")}
        writing |= {name: options.pop(name) for name in ("table", "intensity", "properties")}
        writing["ome"] = writing["ome"] or False
        version = options.pop("fn_version")
        out = _mapped(_function(function), source, options)
        usage = AlignmentError, GridError, MemoryBudgetError
        with _client(cluster, workers) as client, _plainly(*usage, store=target):
            written = to_zarr(
                out,
                target,
                client=client,
                version=version,
                memory_limit=options["memory_limit"],
                progress="auto" if progress is None else progress,
                **writing,
            )
        found = statuses(written)
        for one in found:
            click.echo(f"{one.place.removeprefix('file://')}: {one.done} of {one.units} units done")
        if not all(one.complete for one in found):
            raise click.ClickException("some tiles failed; run the same command again to try them again.")


@main.command()
@_traceback_option
@click.argument("source", metavar="IN", type=Place())
@_tiling
@click.option("--function", metavar="MODULE:FN", help="Called once on zeros to find its output.")
def plan(source: str, function: str | None, **options: Any) -> None:
    """Show the plan and the cost of a run on IN, without writing."""
    import numpy as np

    from tilework.graph.build import plan_of

    with _plainly():
        if function is None:
            if options["overlap"] == "auto":
                raise click.UsageError("--overlap auto has to call the function; give --function too.")
            if options["labels"] is None:
                options["dtype"] = options["dtype"] or "float32"
        fn = np.asarray if function is None else _function(function)
        out = _mapped(fn, source, options)
        if not hasattr(out, "dask"):
            out = next(iter(out.values() if isinstance(out, dict) else out))
        click.echo(plan_of(out).explain())


@main.command("status")
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=Place())
@click.option("--verify", is_flag=True, help="Read all units that are done; list the missing and unreadable.")
@click.option("--drop", is_flag=True, help="Drop the marks of those, so that the next run computes them.")
def show_status(stores: tuple[str, ...], *, verify: bool, drop: bool) -> None:
    """Show how much of each STORE is done; the exit code is 1 if something is missing."""
    from tilework.errors import TilingError
    from tilework.writing.status import statuses

    rows = []
    for store in stores:
        try:
            found = statuses(store, verify=verify, drop=drop)
        except (TilingError, ImportError, OSError) as error:  # of one store among others
            rows.append((store, "-", "-", "-", _in_options(_text_of(error), bare=False)))
            continue
        for one in found:
            state = "complete" if one.complete else "incomplete"
            if one.broken:
                shown = ", ".join(map(str, one.broken[:3]))
                state = f"{len(one.broken)} units missing or unreadable: {shown}"
            share = f"{one.done / max(1, one.units):.1%}"
            rows.append((one.place.removeprefix("file://"), f"{one.done}/{one.units}", share,
                         str(one.n_failed), state))  # fmt: skip
        if not found:
            rows.append((store, "-", "-", "-", "nothing that tilework wrote"))
    head = ("store", "units", "done", "failed tiles", "state")
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    for row in [head, *rows]:
        click.echo("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    if any(row[4] != "complete" for row in rows):
        raise click.exceptions.Exit(1)


def _mapped(fn: Any, source: str, options: dict[str, Any]) -> Any:
    """Return the result of `tiled_map`; its errors about arguments are those of the command line."""
    from tilework.api import tiled_map
    from tilework.source.opening import open_source

    image = open_source(source)
    with _plainly(TilingError, TypeError):
        return tiled_map(fn, image, **_options(options))


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the command line as those of `tiled_map`."""
    found = {name: value for name, value in options.items() if value is not None}
    if "stride" in found and "overlap" not in found:
        found["overlap"] = None
    for name in ("axes", "each"):
        if name in found:
            found[name] = axes_of(found[name])
    given = {name: found.pop(name) for name in ("labels", "connectivity") if name in found}
    if given:
        found["output"] = Output(found.pop("dtype", None), **given)
    return found


def _function(name: str) -> Any:
    """Return the function that ``MODULE:FN`` or ``FILE.py:FN`` names."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise click.UsageError(f"{name!r} names no function; give MODULE:FN, such as filters:denoise.")
    if not place.endswith(".py") and ("/" in place or place.startswith(".")):
        raise click.UsageError(f"{place} is no module; give MODULE:FN, or a file: ./filters.py:denoise.")
    try:
        found: Any = _file(place) if place.endswith(".py") else _module(place)
    except ImportError as error:
        raise click.UsageError(f"{error}; give a module that can be imported, or a file.") from error
    file = getattr(found, "__file__", None)
    for part in attribute.split("."):
        if not hasattr(found, part):
            there = f" ({file})" if file else ""
            hint = f" For the file here: ./{place}.py:{attribute}." if Path(f"{place}.py").is_file() else ""
            raise click.UsageError(f"{place}{there} has no {attribute}.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise click.UsageError(f"{name} is no function; it is of type {type(found).__name__}.")
    return found


def _file(place: str) -> Any:
    """Return the module of a file."""
    import dask

    if not Path(place).is_file():
        raise click.UsageError(f"there is no file {place}.")
    file = UserFile.read(place)
    context = click.get_current_context()
    context.meta[_FILES] = [file]
    # For a scheduler "processes" in dask's configuration.
    ready = functools.partial(prepare, [], [file], started=True)
    context.with_resource(dask.config.set({"multiprocessing.initializer": ready}))
    context.with_resource(safe_start())
    return file.load()


def _module(place: str) -> Any:
    """Return a module: an installed one, else one in this folder."""
    if not {"", (here := str(Path.cwd()))} & set(sys.path):
        sys.path.append(here)
    return importlib.import_module(place)


_FILES = "tilework.files"


@contextmanager
def _client(address: str | None, workers: int | None) -> Iterator[Any]:
    """Return a context with a client of the cluster at ``address``, or of one started here, or None."""
    if address and workers:
        raise click.UsageError("--cluster and --workers exclude each other.")
    with ExitStack() as stack:
        try:
            files = click.get_current_context().meta.get(_FILES, [])
            client = stack.enter_context(connected(address, workers, files))
        except ValueError as error:  # a text that is no address
            raise click.UsageError(f"--cluster {address}: {error}; give tcp://host:8786.") from error
        yield client
