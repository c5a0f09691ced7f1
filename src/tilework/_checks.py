"""Reports as text: a name, and what is said of it, in lines that fit a page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

__all__ = ["report"]

# Letters of a name and the gap behind it, and of a line: the width of a cell in the documentation.
NAME, LINE = 11, 84


def report(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and values as text, a row each, long values folded under their beginning.

    Parameters
    ----------
    rows : iterable of (str, str)
        Spaces at the beginning of a value and between its words stay.

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


def _folded(name: str, value: str) -> list[str]:
    wrapper = textwrap.TextWrapper(
        LINE,
        initial_indent=name,
        subsequent_indent=" " * len(name),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(value)
