"""Tables of blocks as objects beside an array."""

from __future__ import annotations

import numpy as np
import pytest

from tilework.writing.tables import _dumped, _loaded

TABLES = {
    "ids": np.arange(5),
    "none": np.zeros((0, 2), "u4"),
    "swapped": np.arange(6, dtype=">f8").reshape(3, 2),
    "words": np.array(["x", "yy"]),
    "one": np.array(3, "i2"),
    "parts": np.arange(16).reshape(4, 4)[:, ::2],
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("names", [list(TABLES), ["none"], []])
def test_tables_come_back_as_they_are(names):
    tables = {name: TABLES[name] for name in names}
    found = _loaded(_dumped(tables))
    assert list(found) == names
    for name, table in tables.items():
        assert found[name].dtype == table.dtype
        np.testing.assert_array_equal(found[name], table, strict=True)
        found[name][...] = table  # it may be written into


def test_a_part_of_an_object_is_none():
    value = _dumped(TABLES)
    assert all(_loaded(value[:n]) is None for n in range(len(value)))
    assert _loaded(value + b"\0") is None
    changed = bytearray(value)
    changed[-1] ^= 1
    assert _loaded(bytes(changed)) is None
