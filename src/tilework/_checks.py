"""Checks of arguments, with messages that say what to change; errors, warnings, and what reports share."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import math
import operator
import pickle
import re
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import date, timedelta
from fractions import Fraction
from html import escape
from numbers import Number
from reprlib import Repr
from types import FrameType
from typing import Any, Self, TypeGuard, TypeVar

import numpy as np

from tilework.errors import TilingError

__all__ = [
    "Explanation",
    "Report",
    "as_dtype",
    "as_numbers",
    "as_options",
    "as_text",
    "at_least",
    "attribute",
    "brief",
    "check_calls",
    "check_scalar",
    "flag",
    "forget_frames",
    "has",
    "html_table",
    "is_flag",
    "is_whole",
    "no_array",
    "noted",
    "of_type",
    "one_of",
    "parse_bytes",
    "picklable",
    "positive",
    "read_json",
    "report",
    "scalar",
    "sequence",
    "warn",
    "whole",
    "wholes",
]

T = TypeVar("T")

# Packages whose frames lie between the caller's line and a warning: pools, event loops, wrappers.
RUNNERS = {__name__.partition(".")[0], "dask", "distributed", "tornado", "zarr", *sys.stdlib_module_names}
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
    raise error(f"{what} must be one of {', '.join(map(repr, words))}; got {brief(value)}{hint}")


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


_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


def brief(value: object) -> str:
    """Return ``value`` and its type for a message, in a few words even for a large array."""
    # In one line, and an object whose repr fails is named by its type.
    text = " ".join(_BRIEF.repr(value).split())
    return text if isinstance(value, str | bool | None) else f"{text} ({type(value).__name__})"


def of_type(what: str, value: object, kinds: type[T] | tuple[type[T], ...], meaning: str) -> T:
    """Return ``value`` if it is of one of the types; otherwise raise a `TypeError` that says what it means.

    Parameters
    ----------
    what : str
        Name of the argument.
    meaning : str
        What the argument must be, as in "a path in the store".
    """
    if isinstance(value, kinds):
        return value
    raise TypeError(f"{what} must be {meaning}; got {brief(value)}.")


def as_options(what: str, value: object) -> dict[str, Any]:
    """Return options by name as a dict; raise a `TypeError` for anything but a mapping with names as keys."""
    found = dict(of_type(what, value, Mapping, "a dict of options by name"))
    for key in found:
        of_type(f"a key of {what}", key, str, "the name of an option")
    return found


def as_numbers(what: str, value: object) -> np.ndarray[Any, Any]:
    """Return ``value`` as an array of real numbers or flags; raise a `TypeError` if it is none."""
    array: np.ndarray[Any, Any] = np.empty(0, object)
    if type(value) is np.ndarray:
        array = value
    else:
        with contextlib.suppress(Exception):  # numpy asks a foreign object for its length and items
            array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{what} must be an array of numbers; got {brief(value)}.")
    return array


def is_flag(value: object) -> bool:
    """Return whether ``value`` is a bool of Python or numpy."""
    return isinstance(value, bool | np.bool_)


_NONE = object()


def attribute(value: Any, name: str, default: Any = None) -> Any:
    """Return an attribute of what a user gave, or the default if it has none.

    A class that looks names up, as by ``__getattr__ = dict.__getitem__``, raises what it wants where it has
    none.
    """
    try:
        return getattr(value, name, default)
    except Exception:
        return default


def has(value: Any, *names: str) -> bool:
    """Return whether what a user gave has all of some attributes; see `attribute`."""
    return all(attribute(value, name, _NONE) is not _NONE for name in names)


def flag(what: str, value: object) -> bool:
    """Return ``value`` as a bool; raise a `TypeError` for everything else, because "false" is true."""
    if not is_flag(value):
        raise TypeError(f"{what} must be True or False; got {brief(value)}.")
    return bool(value)


def whole(what: str, value: object) -> int:
    """Return ``value`` as an int; a float or bool is refused."""
    try:
        if type(value).__name__ in ("bool", "bool_") or attribute(value, "ndim", 0) != 0:
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be a whole number; got {brief(value)}.") from None


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether ``value`` is an int of Python or numpy; a flag or a duration is none."""
    # numpy counts durations among the integers.
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def check_calls(what: str, function: Any, *arguments: str) -> None:
    """Raise a `TypeError` if a callable shows that it cannot be called with ``arguments``, by their names."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"{what} is called with {' and '.join(arguments)}; {brief(function)} cannot be: {error}."
        ) from None
    except ValueError:  # a builtin without a signature
        pass


def noted(note: str, function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function of the caller returns; its own error gets a note on what it was called for."""
    try:
        return function(*arguments)
    except Exception as error:
        error.add_note(note)
        raise


def at_least(what: str, value: object, least: int) -> int:
    """Return ``value`` as an int; raise a `TilingError` if it is none, or less than ``least``."""
    if not is_whole(value) or value < least:
        raise TilingError(f"{what} must be a whole number, at least {least}; got {brief(value)}.")
    return int(value)


def sequence(value: object) -> bool:
    """Return whether ``value`` holds one entry per axis: a list, tuple, range or 1-D array."""
    return isinstance(value, list | tuple | range) or (isinstance(value, np.ndarray) and value.ndim == 1)


def no_array(what: str, value: object, hint: str) -> None:
    """Raise a `TypeError` with a hint if an array is given where lengths are wanted."""
    shape, kind = attribute(value, "shape", ()), attribute(attribute(value, "dtype"), "kind", "O")
    if isinstance(shape, tuple) and shape and (len(shape) > 1 or kind not in "iu"):
        raise TypeError(
            f"{what} must be whole numbers of samples; got a {type(value).__name__} of shape {tuple(shape)}. "
            f"{hint}"
        )


def wholes(what: str, values: Any) -> tuple[int, ...]:
    """Return one int or a sequence of ints as a tuple."""
    no_array(what, values, "The lengths of an image are image.shape.")
    return tuple(whole(what, v) for v in (tuple(values) if sequence(values) else (values,)))


def positive(what: str, value: Any) -> bool:
    """Return whether a number is positive and finite; raise a `TypeError` unless it is a real number."""
    if not (is_whole(value) or isinstance(value, float | np.floating)):
        raise TypeError(f"{what} must be a number; got {brief(value)}.")
    return bool(0 < value < math.inf)


_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(what: str, value: Any) -> int:
    """Return a number of bytes from an int or a string such as "128MiB" or "4GB"."""
    if is_whole(value):
        number = int(value)
    else:
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?i?)b?\s*", str(value).lower())
        units = _UNITS | _BINARY
        if not isinstance(value, str) or match is None or match[2] not in units:
            raise TilingError(
                f'{what} must be bytes, as an int or a string such as "128MiB"; got {brief(value)}.'
            )
        number = int(Fraction(match[1]) * units[match[2]])
    if number < 1:
        raise TilingError(f"{what} must be at least one byte; got {value!r}.")
    return number


def check_scalar(what: str, value: Any) -> None:
    """Raise a `TypeError` unless ``value`` is a number, a time or another scalar of numpy."""
    known = isinstance(value, Number | np.generic | str | bytes | date | timedelta)
    if not (known or (isinstance(value, np.ndarray) and value.ndim == 0)):
        raise TypeError(f"{what} must be one number; got {brief(value)}.")


def as_dtype(value: Any) -> np.dtype[Any]:
    """Return ``value`` as a numpy dtype; raise a `TypeError` if it is not one."""
    # numpy takes any object that has a dtype for that dtype, also a number or an image given by mistake.
    dtype: Any = None
    if isinstance(value, str | type | np.dtype | list | tuple | dict) or not has(value, "shape"):
        with contextlib.suppress(Exception):  # what a lookup in a foreign object raises may be anything
            dtype = np.dtype(value)
    if dtype is None:
        raise TypeError(f"dtype must be a numpy dtype; got {brief(value)}.")
    return of_type("dtype", dtype, np.dtype, "a numpy dtype")


def scalar(what: str, value: Any, dtype: np.dtype[Any]) -> Any:
    """Return ``value`` as a scalar of ``dtype``; raise a `TilingError` if the value would change."""
    check_scalar(what, value)
    if dtype.kind in "mMSUV" and is_whole(value) and value == 0:
        return np.zeros((), dtype)[()]  # the default: the epoch, no text, a record of zeros
    try:
        if np.iscomplexobj(value) and dtype.kind != "c":
            raise ValueError  # astype would drop the imaginary part
        with np.errstate(all="ignore"):
            given = np.asarray(value)  # numpy would take a number of Python for one of dtype
            cast = given.astype(dtype)
            same = bool(cast == given) or bool(cast != cast and given != given)
            same = same or (dtype.kind in "fc" and bool(np.isfinite(given) == np.isfinite(cast)))
    except (TypeError, ValueError, ArithmeticError):
        same, cast = False, np.zeros((), dtype)
    if not same:
        raise TilingError(f"{what} {brief(value)} cannot be held by dtype {dtype}; choose another.")
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


def picklable(error: BaseException) -> BaseException:
    """Return an error that another process gets: one with its text, if itself cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of the user's own class, which may raise anything
        return RuntimeError(f"{type(error).__qualname__}: {error}")
    return error


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the line of the caller's own code that led here.

    In a thread of a pool that line is not on the stack; the main thread waits at it.
    """
    waiting = sys._current_frames().get(threading.main_thread().ident or 0)
    frame = _callers(sys._getframe(1)) or _callers(waiting) or sys._getframe(1)
    names = frame.f_globals
    warnings.warn_explicit(
        message, category, frame.f_code.co_filename, frame.f_lineno, module=names.get("__name__"),
        registry=names.setdefault("__warningregistry__", {}),
    )  # fmt: skip


def _callers(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame, from ``frame`` outwards, of neither this package nor what runs it."""
    # `skip_file_prefixes` of warnings came with Python 3.12, and is about folders.
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in RUNNERS:
        frame = frame.f_back
    return frame


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


def read_json(text: Any, key: str, version: int, what: str, restore: Callable[[dict[str, Any]], T]) -> T:
    """Return what ``restore`` makes of a JSON object that carries its format under ``key``.

    ``what`` names it in messages; an object that ``restore`` cannot read is a `TilingError`, too.
    """
    of_type("text", text, (str, bytes), "the JSON text that to_json returned")
    try:
        data = json.loads(text)
    except ValueError as error:
        raise TilingError(f"text must be what to_json returned; it is no JSON: {error}.") from error
    found = data.pop(key, None) if isinstance(data, dict) else None
    if found != version:
        raise TilingError(f"the text must be {what} of format {version}; got format {found!r}.")
    try:
        return restore(data)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise TilingError(f"text is {what} of which a part is missing or changed: {error!r}.") from error
