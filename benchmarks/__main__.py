"""``python -m benchmarks CASE...``: measure tilework against its peers, two cores, one table."""

from __future__ import annotations

import argparse
import json
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
    if options.repeat < 1 or options.scale <= 0:
        parser.error("--repeat and --scale must be positive")
    unknown = set(options.cases) - {*CASES, "all"}
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}, all")
    return options


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
    if not names and not options.earlier:
        show("\n".join(f"{case.name:12} {case.why}" for case in CASES.values()))
        return 0
    tell, done = teller(time.monotonic()), {}
    effort = Effort(options.repeat, options.seconds, options.scale, options.only, options.here)
    if options.earlier:
        done = {o.case.name: o for o in outcomes_of(json.loads(options.earlier.read_text()), CASES)}
    runs = [name for name in names if effort.names(CASES[name])]
    if names and not runs:
        tell(f"--only matches none of {', '.join(c.name for n in names for c in CASES[n].contestants)}")
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
        file.write_text(json.dumps(document(list(done.values())), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
