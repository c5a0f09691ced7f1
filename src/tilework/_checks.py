"""Checks of arguments, with messages that say what to change; errors, warnings, and what reports share."""

from __future__ import annotations

import difflib
import math
import operator
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Self

import numpy as np

from tilework.errors import TilingError

__all__ = [
    "Explanation",
    "Report",
    "as_dtype",
    "as_text",
    "check_scalar",
    "flag",
    "forget_frames",
    "html_table",
    "is_flag",
    "one_of",
    "parse_bytes",
    "positive",
    "report",
    "scalar",
    "sequence",
    "warn",
    "whole",
    "wholes",
]

PACKAGE = __name__.partition(".")[0]
# Names in other tools: (their word, whose it is, our word).
_ELSEWHERE = (
    ("adaptive", "Patchly's", "clip"),
    ("circular", "torch's", "wrap"),
    ("constant", "MONAI's", "average"),
    ("cosine", "another", "hann"),
    ("crop", "Patchly's", "drop"),
    ("crop", "another", "trim"),
    ("edge", "Patchly's", "shift"),
    ("mean", "another", "average"),
    ("mirror", "scipy's", "reflect"),
    ("nearest", "scipy's", "edge"),
    ("none", "dask's", "clip"),
    ("periodic", "dask's", "wrap"),
    ("replicate", "torch's", "edge"),
    ("same", "scipy's", "pad"),
    ("triangle", "another", "linear"),
    ("uniform", "another", "average"),
    ("valid", "scipy's", "drop"),
    ("zeros", "torch's", "constant"),
)


def one_of(
    what: str, value: object, words: Iterable[str], others: Mapping[str, Iterable[str]] | None = None
) -> str:
    """Return ``value`` if it is one of ``words``; otherwise raise an error that suggests a word.

    Parameters
    ----------
    what : str
        Name of the argument.
    others : mapping of str to iterable of str, optional
        Words of other arguments, by name of the argument, for the suggestion.
    """
    words = tuple(words)
    if isinstance(value, str) and value in words:
        return value
    hint = _hint(what, value, words, others or {}) if isinstance(value, str) else ""
    error = TilingError if isinstance(value, str) else TypeError
    raise error(f"{what} must be one of {', '.join(map(repr, words))}; got {value!r}{hint}")


def _hint(what: str, value: str, words: tuple[str, ...], others: Mapping[str, Iterable[str]]) -> str:
    """Return a suggestion for a wrong ``value``, as the end of a message."""
    low = value.lower()
    known = [(whose, here) for there, whose, here in _ELSEWHERE if there == low]
    # 1. A word of this argument, in capitals or under its name in another tool.
    for word in (low, *(here for _, here in known)):
        if word in words:
            return f"; did you mean {word!r}?"
    # 2. A word of another argument, ours or another tool's.
    for other, theirs in others.items():
        if other != what and low in theirs:
            return f'; {value!r} is a word of {other}: {other}="{low}".'
    for whose, here in known:
        for other, theirs in others.items():
            if here in theirs:
                return f'; {value!r} is {whose} name for {other}="{here}".'
    # 3. A spelling mistake.
    near = difflib.get_close_matches(low, words, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_flag(value: object) -> bool:
    """Return whether ``value`` is a bool of Python or numpy."""
    return isinstance(value, bool | np.bool_)


def flag(what: str, value: object) -> bool:
    """Return ``value`` as a bool; raise a `TypeError` for everything else, because "false" is true."""
    if not is_flag(value):
        raise TypeError(f"{what} must be True or False; got {value!r}.")
    return bool(value)


def whole(what: str, value: object) -> int:
    """Return ``value`` as an int; a float or bool is refused."""
    try:
        if type(value).__name__ in ("bool", "bool_") or getattr(value, "ndim", 0) != 0:
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be a whole number; got {value!r} ({type(value).__name__}).") from None


def sequence(value: object) -> bool:
    """Return whether ``value`` holds one entry per axis: a list, tuple, range or 1-D array."""
    return isinstance(value, list | tuple | range) or getattr(value, "ndim", 0) == 1


def wholes(what: str, values: Any) -> tuple[int, ...]:
    """Return one int or a sequence of ints as a tuple."""
    return tuple(whole(what, v) for v in (tuple(values) if sequence(values) else (values,)))


def positive(what: str, value: Any) -> bool:
    """Return whether a number is positive and finite; raise a `TypeError` unless it is a real number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{what} must be a number; got {value!r} ({type(value).__name__}).")
    return bool(0 < value < math.inf)


_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(what: str, value: Any) -> int:
    """Return a number of bytes from an int or a string such as "128MiB" or "4GB"."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        number = int(value)
    else:
        match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?i?)b?\s*", str(value).lower())
        units = _UNITS | _BINARY
        if not isinstance(value, str) or match is None or match[2] not in units or match[1].count(".") > 1:
            raise TilingError(f'{what} must be bytes, as an int or a string such as "128MiB"; got {value!r}.')
        number = int(float(match[1]) * units[match[2]])
    if number < 1:
        raise TilingError(f"{what} must be at least one byte; got {value!r}.")
    return number


def check_scalar(what: str, value: Any) -> None:
    """Raise a `TypeError` for a sequence, mapping or set."""
    if np.ndim(value) or isinstance(value, Mapping | set):
        raise TypeError(f"{what} must be one number; got {value!r}.")


def as_dtype(value: Any) -> np.dtype[Any]:
    """Return ``value`` as a numpy dtype; raise a `TypeError` if it is not one."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"dtype must be a numpy dtype; got {value!r}.") from error
    return dtype


def scalar(what: str, value: Any, dtype: np.dtype[Any]) -> Any:
    """Return ``value`` as a scalar of ``dtype``; raise a `TilingError` if the value would change."""
    check_scalar(what, value)
    if dtype.kind in "mMSUV" and isinstance(value, int | np.integer) and value == 0:
        return np.zeros((), dtype)[()]  # the default: the epoch, no text, a record of zeros
    try:
        if np.iscomplexobj(value) and dtype.kind != "c":
            raise ValueError  # astype would drop the imaginary part
        with np.errstate(all="ignore"):
            cast = np.asarray(value).astype(dtype)
            same = bool(cast == value) or bool(cast != cast and value != value)
            same = same or (dtype.kind in "fc" and np.isfinite(value) == np.isfinite(cast))
    except (TypeError, ValueError, OverflowError):
        same, cast = False, np.zeros((), dtype)
    if not same:
        raise TilingError(f"{what} {value!r} cannot be held by dtype {dtype}; choose another.")
    return cast[()]


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of its causes: their frames keep arrays alive."""
    seen: set[int] = set()
    found: list[BaseException | None] = [error]
    while found:
        one = found.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            found += [one.__cause__, one.__context__]
            found += one.exceptions if isinstance(one, BaseExceptionGroup) else ()


def as_text(error: BaseException) -> BaseException:
    """Return an error without its frames, which keep crops and images alive; a note has their text."""
    if error.__traceback__ is not None:
        error.add_note("".join(traceback.format_exception(error)).rstrip())
    forget_frames(error)
    return error


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the innermost frame outside this package."""
    frame, level = sys._getframe(1), 2  # 1 would be the line below
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


# Widths in characters: the column of names, and a line (the width of a cell in the documentation).
NAME, LINE = 11, 84


def report(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and values as text in two columns; long values continue on the next line.

    Parameters
    ----------
    rows : iterable of (str, str)
        Names and values; spaces at the beginning of a value and between its words are kept.

    Examples
    --------
    >>> print(report([("image", "300 x 200"), ("note", "word " * 20)]))
    image      300 x 200
    note       word word word word word word word word word word word word word word
               word word word word word word
    """
    return "\n".join(
        line for name, value in rows for line in _folded(f"{name:<{NAME}}", value.rstrip()) or [name]
    )


def html_table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return names and values as an HTML table under a title; it suits light and dark pages.

    Examples
    --------
    >>> "4 &lt; 5" in html_table("plan", [("tiles", "4 < 5")])
    True
    """
    cell = "text-align:left;vertical-align:top;white-space:pre-wrap;padding:2px"
    cells = "".join(
        f'<tr><th style="{cell} 10px 2px 0">{escape(name)}</th><td style="{cell} 0">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return (
        f'<div style="color:inherit"><b>{escape(title)}</b><table style="border-collapse:collapse;'
        "font-size:12px;line-height:1.35;max-width:46em;background:transparent;color:inherit"
        f'"><tbody>{cells}</tbody></table></div>'
    )


class Report:
    """Base of the results that are read by people: text in two columns at a prompt, a table in a notebook."""

    __slots__ = ()

    def rows(self) -> Iterable[tuple[str, str]]:
        """Return names and values."""
        raise NotImplementedError

    def __str__(self) -> str:
        return report(self.rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self.rows())


class Explanation(str):
    """Names and values as one text in two columns, which is also its ``repr``; a table in a notebook.

    Parameters
    ----------
    rows : iterable of (str, str)
        Names and values.

    Examples
    --------
    >>> Explanation([("image", "300 x 200"), ("tiles", "6")])
    image      300 x 200
    tiles      6
    """

    __slots__ = ("rows",)
    rows: tuple[tuple[str, str], ...]
    """Names and values."""

    def __new__(cls, rows: Iterable[tuple[str, str]]) -> Self:
        """Return the text of ``rows``."""
        kept = tuple(rows)
        text = super().__new__(cls, report(kept))
        text.rows = kept
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return Explanation, (self.rows,)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return str.__str__(self)

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self.rows)


def _folded(name: str, value: str) -> list[str]:
    wrapper = textwrap.TextWrapper(
        LINE,
        initial_indent=name,
        subsequent_indent=" " * len(name),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(value)
