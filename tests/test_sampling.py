"""A run without ``--whole``: a fixed sample of long tables, and a share of each law."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import settings

from tests.conftest import CASES, sampled
from tests.sampling import LEAST, WHOLE, share


def cases(name: str, number: int, sample: int | None = None, **whole: int) -> list[Any]:
    mark = None if sample is None else SimpleNamespace(args=(sample,), kwargs=whole)
    return [
        SimpleNamespace(nodeid=f"tests/a.py::{name}[{k}]", get_closest_marker=lambda _: mark)
        for k in range(number)
    ]


def test_long_tables_are_sampled_and_each_test_stays() -> None:
    tables = {"long": cases("long", 300), "own": cases("own", 9, 2), "short": cases("short", CASES)}
    one = [SimpleNamespace(nodeid="tests/a.py::plain", get_closest_marker=lambda _: None)]
    items = [item for table in [*tables.values(), one] for item in table]
    kept = sampled(items)
    assert [sum(item in kept for item in table) for table in tables.values()] == [CASES, 2, CASES]
    assert one[0] in kept
    assert kept == sampled(items) == [item for item in items if item in kept]


def test_a_case_that_is_named_runs() -> None:
    for item in cases("long", 300):
        assert sampled([item]) == [item]


def test_a_test_of_whole_runs_runs_in_a_file_that_is_named() -> None:
    heavy = cases("heavy", 3, 0)
    assert sampled(heavy) == []
    assert len(sampled(heavy, least=1)) == 1


def test_a_whole_run_has_all_but_what_the_longest_tables_leave_out() -> None:
    long, own, longest = cases("long", 300), cases("own", 9, 2), cases("longest", 40, 2, whole=7)
    assert sampled(long + own, whole=True) == long + own
    kept = sampled(longest, whole=True)
    assert len(kept) == 7
    assert [sampled([item], whole=True) for item in longest] == [[item] for item in longest]


def test_a_share_is_never_nothing_and_never_more_than_the_whole() -> None:
    before = settings.default
    try:
        for examples in (1, 8, WHOLE, 1000):
            settings.register_profile("here", max_examples=examples)
            settings.load_profile("here")
            for number in (1, LEAST, 25, 1000):
                assert min(number, LEAST) <= share(number) <= number
                assert share(number) == number or examples < WHOLE
    finally:
        settings.register_profile("here", before)
        settings.load_profile("here")
