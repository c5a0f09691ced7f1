"""``python -m benchmarks CASE...``: measure tilework against its peers, two cores, one table."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import CASES
from benchmarks.measure import Effort, Outcome, child, run_case
from benchmarks.report import write_page
from benchmarks.table import document, outcomes_of, rows, text

if TYPE_CHECKING:
    from collections.abc import Callable


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names, or: all; none lists them")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="turns (default 3)")
    parser.add_argument(
        "--seconds", type=float, default=8, metavar="S",
        help="a contestant that has used as much in earlier turns takes part in no further one (default 8)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there, after each case")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="earlier",
        help="take the samples that --json wrote there; cases that are named run again",
    )  # fmt: skip
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the page and, beside it, its images")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every extent")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="run this contestant only; a pattern such as 'tilework*'; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--here", action="store_true", help="run all in this process: quick, and the figures are of no use"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    # NaN is no number of samples, and passes every comparison that asks for what is wrong.
    if not (options.repeat >= 1 and 0 < options.scale < math.inf and options.seconds >= 0):
        parser.error("--repeat and --scale must be positive numbers, and --seconds not negative")
    unknown = set(options.cases) - {*CASES, "all"}
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}, all")
    # Before the first case, because a run takes hours.
    for name in ("json", "docs"):
        if (file := getattr(options, name)) is not None and (why := _unfit(file)):
            parser.error(f"--{name}: {file} {why}")
    if options.earlier is not None:
        try:
            options.earlier = outcomes_of(json.loads(options.earlier.read_text()), CASES)
        except OSError as error:
            parser.error(f"--from: {options.earlier} cannot be read: {error.strerror}")
        except (ValueError, KeyError, TypeError):
            parser.error(f"--from: {options.earlier} is not what --json wrote, or a part of it")
    return options


def _unfit(file: Path) -> str:
    """Return why nothing can be written there; empty: it can."""
    folder = next(above for above in file.absolute().parents if above.exists())
    if file.is_dir() or not folder.is_dir():
        return "is a folder" if file.is_dir() else f"lies in {folder}, which is no folder"
    if not os.access(file if file.exists() else folder, os.W_OK):
        return "cannot be written"
    return ""


def show(line: str) -> None:
    """Print what was asked for."""
    print(line, flush=True)


def teller(start: float) -> Callable[[str], None]:
    """Return what prints where the run stands, apart from the result."""

    def tell(line: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {line}", file=sys.stderr, flush=True)

    return tell


def main(arguments: list[str] | None = None) -> int:
    """Return 1 if tilework failed or gave a wrong array; an unmet bar or a failing peer is only reported."""
    options = parse(arguments)
    names = list(CASES) if "all" in options.cases else list(dict.fromkeys(options.cases))
    if options.child:
        child(CASES[names[0]], options.child[0], options.scale, Path(options.child[1]))
        return 0
    if not names and options.earlier is None:
        show("\n".join(f"{case.name:12} {case.why}" for case in CASES.values()))
        return 0
    tell, done = teller(time.monotonic()), {}
    effort = Effort(options.repeat, options.seconds, options.scale, options.only, options.here)
    if options.earlier:
        done = {outcome.case.name: outcome for outcome in options.earlier}
    runs = [name for name in names if effort.names(CASES[name])]
    if names and not runs:
        contestants = dict.fromkeys(c.name for name in names for c in CASES[name].contestants)
        tell(f"--only matches none of {', '.join(contestants)}")
        return 1
    with tempfile.TemporaryDirectory(prefix="tilework-bench-") as place:
        for name in runs:
            done[name] = run_case(CASES[name], effort, tell, Path(place))
            _keep(options.json, done)
    outcomes = [done[name] for name in CASES if name in done]
    show(text([row for outcome in outcomes for row in rows(outcome)]))
    if options.docs:
        write_page(options.docs, document(outcomes), outcomes)
    bad = [f"{outcome.case.name}: {name}" for outcome in outcomes for name in outcome.bad]
    if bad:
        tell(f"failed or wrong: {', '.join(bad)}")
    return 1 if bad else 0


def _keep(file: Path | None, done: dict[str, Outcome]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A run that is killed while it writes keeps the samples of the cases before.
        begun = file.with_name(f"{file.name}.partial")
        begun.write_text(json.dumps(document(list(done.values())), indent=1) + "\n")
        begun.replace(file)


if __name__ == "__main__":
    sys.exit(main())
