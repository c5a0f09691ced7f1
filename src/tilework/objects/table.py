"""`Table`: columns by name, as text, as a file, and as a DataFrame."""

from __future__ import annotations

import csv
import difflib
import html
import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tilework._checks import brief, flag
from tilework._types import Array
from tilework.errors import TilingError

__all__ = ["Table", "check_path"]

# Rows that a text shows, and the width of its lines in characters.
ROWS, LINE = 5, 84
# Rows that are text at a time, when a file of text is written or read.
AT_ONCE = 2**16
# What a file of columns calls the units.
UNITS = b"tilework_units"


class Table(dict[str, Array]):
    """Columns by name, all of one length: a dict of 1-D arrays whose ``len`` is the number of rows.

    ``table["area"]`` is a column, ``table["area"] > 50`` a condition, and ``table[condition]`` the rows that
    meet it. ``pandas.DataFrame(table)`` works, as do other libraries that take a dict of columns.

    Parameters
    ----------
    columns : mapping of str to 1-D array
    units : mapping of str to str, optional
        Units of columns by name; of the others none is known.

    Examples
    --------
    >>> table = Table({"label": [1, 4], "area": [30, 12]})
    >>> table
    <Table: 2 rows, 2 columns>
    label  area
        1    30
        4    12
    >>> len(table), table[table["area"] > 20]["label"].tolist()
    (2, [1])
    """

    def __init__(
        self, columns: Mapping[str, Any] | None = None, units: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.units = dict(units or {})
        """Units of columns by name."""
        for name, values in (columns or {}).items():
            self[name] = values

    def __len__(self) -> int:
        return len(next(iter(self.values()), ()))

    def __bool__(self) -> bool:
        return len(self) > 0

    def __setitem__(self, name: str, values: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a column must be text; got {brief(name)}.")
        column = np.asarray(values)
        if column.ndim != 1 or column.dtype.hasobject:
            raise TilingError(
                f"column {name!r} must be a 1-D array of numbers or text; got {brief(values)}, of shape "
                f"{column.shape} and dtype {column.dtype}."
            )
        if next(iter(self), name) != name and len(column) != len(self):
            raise TilingError(f"column {name!r} has {len(column)} rows; the table has {len(self)}.")
        super().__setitem__(name, column)

    def __getitem__(self, key: Any) -> Any:
        """Return a column by its name, or the rows that an array of bool or of numbers selects."""
        if not isinstance(key, str):
            if not isinstance(key, slice) and np.ndim(key) != 1:
                raise TypeError(f"a table takes the name of a column, or rows; got {brief(key)}.")
            return Table({name: column[key] for name, column in self.items()}, self.units)
        return super().__getitem__(key)

    def update(self, *columns: Any, **more: Any) -> None:
        """Set several columns."""
        for name, values in dict(*columns, **more).items():
            self[name] = values

    def copy(self) -> Table:
        """Return a table of the same columns."""
        return Table(self, self.units)

    def __missing__(self, name: str) -> Array:
        near = difflib.get_close_matches(name, list(self), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise KeyError(f"the table has no column {name!r}; it has {', '.join(self)}{hint}")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mapping)
            and list(self) == list(other)
            and all(_equal(column, np.asarray(other[name])) for name, column in self.items())
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __repr__(self) -> str:
        head = f"<Table: {len(self)} rows, {len(list(self))} columns>"
        return "\n".join([head, *(self._lines() if len(list(self)) else ())])

    def _lines(self) -> Iterator[str]:
        """Yield the first rows as text, with as many of the first and last columns as fit into a line."""
        columns = list(_texts(self))
        last = columns[-1]
        widths = [max(map(len, column)) + 2 for column in columns]
        if sum(widths) > LINE:
            room = LINE - widths[-1] - 5
            fits = sum(total <= room for total in itertools.accumulate(widths[:-1]))
            columns = [*columns[:fits], ["..."] * len(last), last]
        widths = [max(map(len, column)) for column in columns]
        for row in zip(*columns, strict=True):
            yield "  ".join(text.rjust(w) for text, w in zip(row, widths, strict=True))
        if len(self) > ROWS:
            yield "..."

    def _repr_html_(self) -> str:
        columns = list(_texts(self))
        body = ""
        for number, row in enumerate(zip(*columns, strict=True)):
            tag = "td" if number else "th"
            cells = "".join(f'<{tag} style="text-align:right">{html.escape(t)}</{tag}>' for t in row)
            body += f"<tr>{cells}</tr>"
        title = f"{len(self)} rows, {len(columns)} columns"
        return f"<table><caption>{title}</caption>{body}</table>"

    def to_pandas(self) -> Any:
        """Return the table as a `pandas.DataFrame`; its ``attrs`` hold the units.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas.") from error
        frame = pd.DataFrame(dict(self))
        frame.attrs["units"] = dict(self.units)
        return frame

    # -- files ----------------------------------------------------------------------------------------------

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the table into a file, whole or not at all.

        Parameters
        ----------
        path : path
            Ends in ``.csv``, or in ``.parquet``, which needs pyarrow and keeps dtypes and units.
        overwrite : bool
            Whether a file that is there may be replaced.

        Raises
        ------
        TilingError
            If the path has another ending or no folder, or if there is a file and ``overwrite`` is false.
        ImportError
            If the file needs pyarrow, and it is not installed.
        """
        target = check_path(path, overwrite=overwrite)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        try:
            (_write_csv if target.suffix == ".csv" else _write_parquet)(self, part)
            check_path(target, overwrite=overwrite)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Table:
        """Return the table that is in a file, ``.csv`` or ``.parquet``.

        Raises
        ------
        TilingError
            If the path has another ending, or the file is no table.
        FileNotFoundError
            If there is no file.
        """
        source = _known(path)
        return _read_csv(source) if source.suffix == ".csv" else _read_parquet(source)


def check_path(path: Any, *, overwrite: bool) -> Path:
    """Return where a table is to be written; raise if it cannot be written there."""
    overwrite = flag("overwrite", overwrite)
    target = _known(path)
    if not target.parent.is_dir():
        raise TilingError(f"there is no folder {target.parent} for the table {target.name}; make it first.")
    if target.is_dir():
        raise TilingError(f"{target} is a folder; give another path for the table.")
    if not overwrite and target.exists():
        raise TilingError(f"there is a file {target}; give another path, or overwrite=True to replace it.")
    if target.suffix == ".parquet":
        _pyarrow()
    return target


def _known(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"table must be a path that ends in .csv or .parquet; got {brief(path)}.")
    found = Path(path)
    if found.suffix not in (".csv", ".parquet"):
        raise TilingError(f"table must be a path that ends in .csv or .parquet; got {str(found)!r}.")
    return found


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet as found
    except ImportError as error:
        raise ImportError(
            "a .parquet file needs pyarrow: pip install tilework[labels]; a .csv file needs nothing."
        ) from error
    return found


def _write_csv(table: Table, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        for start in range(0, len(table), AT_ONCE):
            # Python writes the shortest text that reads back as the same number.
            columns = [column[start : start + AT_ONCE].tolist() for column in table.values()]
            writer.writerows(zip(*columns, strict=True))


def _read_csv(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        parts: list[list[Array]] = [[] for _ in names]
        while rows := list(itertools.islice(reader, AT_ONCE)):
            if any(len(row) != len(names) for row in rows):
                raise TilingError(f"{path} is no table: its rows do not have as many values as its first.")
            for part, column in zip(parts, zip(*rows, strict=True), strict=True):
                part.append(_parsed(column))
    none = np.zeros(0)
    return Table({n: np.concatenate(part) if part else none for n, part in zip(names, parts, strict=True)})


def _parsed(texts: tuple[str, ...]) -> Array:
    """Return texts as integers if all are, else as numbers, bools, or as they are."""
    kinds: tuple[Callable[[str], Any], ...] = (int, float, {"True": True, "False": False}.__getitem__)
    for kind in kinds:
        try:
            return np.array([kind(text) for text in texts])
        except (ValueError, KeyError):
            continue
    return np.array(texts)


def _write_parquet(table: Table, path: Path) -> None:
    import pyarrow as pa

    found = pa.table(dict(table)).replace_schema_metadata({UNITS: json.dumps(table.units)})
    _pyarrow().write_table(found, path)


def _read_parquet(path: Path) -> Table:
    found = _pyarrow().read_table(path)
    units = json.loads((found.schema.metadata or {}).get(UNITS, b"{}"))
    columns = zip(found.column_names, found.columns, strict=True)
    # Text comes as objects.
    return Table({n: _plain(column.to_numpy()) for n, column in columns}, units)


def _plain(column: Array) -> Array:
    return column.astype(str) if column.dtype.hasobject else column


def _texts(table: Table) -> Iterator[list[str]]:
    """Yield the name and the first values of each column as text."""
    for name, column in table.items():
        unit = table.units.get(name)
        values = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in column[:ROWS].tolist()]
        yield [f"{name} [{unit}]" if unit else name, *values]


def _equal(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f"))
