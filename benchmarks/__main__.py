"""``python -m benchmarks CASE...``: measure tilework against its peers, two cores, one table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.measure import ContestantFailed, child, run_case
from benchmarks.table import document, rows, text


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names, or: all; none lists them")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="turns (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every extent")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="run this contestant only; a pattern such as 'tilework*'; may be repeated",
    )  # fmt: skip
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


def tell(line: str) -> None:
    """Print where the run stands, apart from the result."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Return 1 if a contestant failed or gave a wrong array; an unmet bar is only reported."""
    options = parse()
    names = list(CASES) if "all" in options.cases else list(dict.fromkeys(options.cases))
    if options.child:
        child(CASES[names[0]], options.child[0], options.scale, Path(options.child[1]))
        return 0
    if not names:
        show("\n".join(f"{case.name:10} {case.why}" for case in CASES.values()))
        return 0
    outcomes = []
    for name in names:
        try:
            outcome = run_case(CASES[name], options.repeat, options.scale, options.only, tell)
        except ContestantFailed as failure:
            tell(f"{name}: the set-up failed: {failure}")
            return 1
        if not outcome.samples and not outcome.failures:
            there = ", ".join(c.name for c in CASES[name].contestants)
            tell(f"{name}: --only matches none of {there}")
            return 1
        outcomes.append(outcome)
    show(text([row for outcome in outcomes for row in rows(outcome)]))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document(outcomes), indent=1) + "\n")
    good = all(not o.failures and all(map(o.right, o.samples)) for o in outcomes)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
