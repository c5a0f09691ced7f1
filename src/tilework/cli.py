"""The command line: ``tilework demo``, ``probe``, ``plan``, ``run`` and ``status``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tilework")
def main() -> None:
    """Run functions on huge images, crop by crop."""


@contextmanager
def _plainly() -> Iterator[None]:
    """Show errors of arguments, stores and the function as one line, with exit code 1."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; run the same command again to resume.") from None
    except Exception as error:
        notes = [note.partition("\n")[0] for note in getattr(error, "__notes__", ())]
        text = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise click.ClickException(" | ".join([text, *notes])) from error


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {message}", err=True)


@main.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("tilework-demo"),
    show_default=True,
    help="Folder for the Zarr arrays and the picture.",
)
@click.option("--crop", default=256, show_default=True, help="Length of a crop, samples.")
@click.option(
    "--overlap",
    default=48,
    show_default=True,
    help="Context per side, enough for the filter, samples.",
)
@click.option("--small", default=8, show_default=True, help="A second overlap, too small for the filter.")
def demo(folder: Path, crop: int, overlap: int, small: int) -> None:
    """Filter a photograph tile by tile, compare with the untiled result, and draw both."""
    try:
        from tilework.diagnostics.demo import run_demo
    except ImportError as error:
        raise click.ClickException(f'{error}; the demo needs pip install "tilework[demo]".') from error
    with _plainly():
        for line in run_demo(folder, crop, overlap, small):
            click.echo(line)


# -- probe, plan and run ----------------------------------------------------------------------------------


class Lengths(click.ParamType[Any]):
    """One whole number for all axes, or one per axis: 256 or 64,256,256."""

    name = "N[,N...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return an int or a tuple of them."""
        if not isinstance(value, str):
            return value
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} must be a whole number, or whole numbers with commas", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


class Overlap(Lengths):
    """As `Lengths`, or "auto"."""

    name = "N[,N...]|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return an int, a tuple of them, or the word."""
        return value if value == "auto" else super().convert(value, param, ctx)


def _tiling(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that `tiled_map` and `plan_tiles` share."""
    for option in reversed(
        [
            click.option("--crop", type=Lengths(), required=True, help="Lengths of a crop, samples."),
            click.option("--overlap", type=Overlap(), help="Context on each side, samples."),
            click.option("--stride", type=Lengths(), help="Distance between crops, instead of --overlap."),
            click.option("--axes", help="Tiled axes: numbers (0,1) or names (yx); default: the last."),
            click.option("--each", help="Axes of which FN receives one index per call, as --axes."),
            click.option("--edge", default="shift", show_default=True, help="shift|squeeze|pad|clip|drop"),
            click.option("--boundary", default="reflect", show_default=True, help="Padding mode."),
            click.option(
                "--blend",
                default="trim",
                show_default=True,
                help="trim|average|linear|hann|gaussian|max|min|sum",
            ),
            click.option("--rim", type=Lengths(), default=0, help="Outermost samples without weight."),
            click.option("--multiple", type=Lengths(), default=1, help="Crops start at multiples of this."),
            click.option("--batch-size", type=int, help="Crops per call of FN."),
            click.option("--dtype", help="Dtype of the result, if FN keeps the crop's shape."),
            click.option("--memory-limit", help='Memory of a process, as "4GB".'),
        ]
    ):
        command = option(command)
    return command


@main.command()
@click.argument("function", metavar="MODULE:FN")
@click.argument("source", metavar="[IN]", required=False)
@click.option("--crop", type=Lengths(), required=True, help="Lengths of a crop, samples.")
@click.option("--axes", help="Tiled axes of IN: numbers (0,1) or names (yx); default: the last.")
@click.option("--each", help="Axes of IN of which FN receives one index per call, as --axes.")
@click.option("--batch-size", type=int, help="Crops per call of FN, if it takes batches.")
@click.option("--dtype", help="Dtype of the crops if there is no IN; default: float32.")
@click.option("--tolerance", type=float, help="Change to ignore, as a fraction of the largest result.")
@click.option("--seed", default=0, help="Seed of the random inputs.")
def probe(function: str, source: str | None, **options: Any) -> None:
    """Find the overlap that FN needs by calling it on crops like those of IN.

    Without IN the crops are random. The exit code is 1 if no overlap is exact.

    \b
    tilework probe filters.py:denoise volume.zarr --crop 128
    """  # noqa: D301 -- click wants the character itself
    from tilework.probing.probe import probe as ask

    with _plainly():
        report = ask(_function(function), array=source, **_options(options))
    click.echo(str(report))
    if not report.exact:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("function", metavar="MODULE:FN")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@_tiling
@click.option("--chunks", type=Lengths(), help="Chunks of OUT, samples.")
@click.option("--shards", type=Lengths(), help="Shards of OUT, samples.")
@click.option("--cluster", metavar="ADDRESS", help="Scheduler of a running cluster, tcp://host:8786.")
@click.option("--workers", type=click.IntRange(1), help="Number of worker processes to start here.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Compute only what OUT lacks.")
@click.option("--overwrite", is_flag=True, help="Delete what is in OUT.")
@click.option("--version", "fn_version", help="Identifies FN in place of its code.")
@click.option("--accept", metavar="PART", multiple=True, help="Resume OUT although PART changed; repeatable.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "fill"]),
    default="raise",
    show_default=True,
    help="Whether a tile that fails ends the run or is left out.",
)
@click.option("--retries", type=click.IntRange(0), default=0, help="Further attempts at a tile that fails.")
@click.option("--progress/--no-progress", default=None, help="Show progress; default: in a terminal.")
def run(function: str, source: str, target: str, **options: Any) -> None:
    """Run FN on every crop of IN and write the result to OUT.

    MODULE:FN is a function in a module or a file: filters:denoise, or ./filters.py:denoise. IN is anything
    that Zarr opens, OUT a path or URL. After an interruption, run the same command again to resume.

    \b
    tilework run filters.py:denoise volume.zarr out.zarr --crop 128 --overlap 16 --blend gaussian
    """  # noqa: D301 -- click wants the character itself
    from tilework.api import tiled_map
    from tilework.writing.status import statuses
    from tilework.writing.store import to_zarr

    with _plainly():
        cluster, workers = options.pop("cluster"), options.pop("workers")
        if cluster and workers:
            raise click.UsageError("--cluster and --workers exclude each other.")
        progress = options.pop("progress")
        writing = {
            name: options.pop(name)
            for name in ("chunks", "shards", "resume", "overwrite", "accept", "on_error", "retries")
        }
        version = options.pop("fn_version")
        out = tiled_map(_function(function), source, **_options(options))
        with _client(cluster, workers) as client:
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
@click.argument("source", metavar="IN")
@_tiling
@click.option("--function", metavar="MODULE:FN", help="Called once on zeros to find its output.")
def plan(source: str, function: str | None, **options: Any) -> None:
    """Show the plan and the cost of a run on IN, without writing."""
    import numpy as np

    from tilework.api import tiled_map
    from tilework.graph.build import plan_of

    with _plainly():
        if function is None:
            if options["overlap"] == "auto":
                raise click.UsageError("--overlap auto has to call the function; give --function too.")
            options["dtype"] = options["dtype"] or "float32"
        fn = np.asarray if function is None else _function(function)
        out = tiled_map(fn, source, **_options(options))
        if not hasattr(out, "dask"):
            out = next(iter(out.values() if isinstance(out, dict) else out))
        click.echo(plan_of(out).explain())


@main.command("status")
@click.argument("stores", metavar="STORE...", nargs=-1, required=True)
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
        except TilingError as error:
            rows.append((store, "-", "-", "-", str(error)))
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


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the command line as those of `tiled_map`."""
    found = {name: value for name, value in options.items() if value is not None}
    if "stride" in found and "overlap" not in found:
        found["overlap"] = None
    for name in ("axes", "each"):
        if name in found:
            found[name] = _axes(found[name])
    return found


def _axes(text: str) -> Any:
    """Return numbers of axes as a tuple, names as they are."""
    parts = text.split(",")
    if all(p.strip().lstrip("-").isdigit() for p in parts):
        return tuple(map(int, parts))
    return text if len(parts) == 1 else tuple(p.strip() for p in parts)


def _function(name: str) -> Any:
    """Return the function that ``MODULE:FN`` or ``FILE.py:FN`` names."""
    module, _, attribute = name.rpartition(":")
    if not module:
        raise click.UsageError(f"{name!r} names no function; give MODULE:FN, such as filters:denoise.")
    if module.endswith(".py"):
        path = Path(module)
        if not path.is_file():
            raise click.UsageError(f"there is no file {module}.")
        # Workers import the module by this name from the same folder.
        sys.path.insert(0, str(path.resolve().parent))
        module = path.stem
    elif "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{error}; give a module that can be imported, or a file.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise click.UsageError(f"{module} has no {attribute}.")
        found = getattr(found, part)
    return found


@contextmanager
def _client(address: str | None, workers: int | None) -> Iterator[Any]:
    """Return a context with a client of the cluster at ``address``, or of one started here, or None."""
    if address is None and workers is None:
        yield None
        return
    from distributed import Client, LocalCluster

    if address is not None:
        with Client(address) as client:
            yield client
        return
    with LocalCluster(n_workers=workers, dashboard_address=":0") as cluster, Client(cluster) as client:
        # Workers started here must be able to import modules from the folder of a file.
        client.run(_extend, [p for p in sys.path if p])
        yield client


def _extend(paths: list[str]) -> None:
    sys.path.extend(p for p in paths if p not in sys.path)
