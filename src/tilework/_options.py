"""Types of the options of the command line, and messages in their words."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import click

__all__ = ["Fractions", "Lengths", "NoData", "Overlap", "Place", "axes_of", "in_options"]


class Place(click.ParamType[Any]):
    """A path or URL, which an empty text is not: it would be this folder."""

    name = "PLACE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the text as it is."""
        return value or self.fail("a path or URL must not be empty", param, ctx)


class Lengths(click.ParamType[Any]):
    """One whole number for all axes, one per axis, or one per name: 256 or 64,256,256 or y=256,x=256."""

    name = "N[,N...]|NAME=N[,...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return an int, a tuple of them, or a dict by name."""
        if not isinstance(value, str):
            return value
        pairs = [part.rpartition("=") for part in value.split(",")]
        try:
            numbers = tuple(int(number) for _, _, number in pairs)
            if any(equals for _, equals, _ in pairs):
                if not all(name.strip() for name, _, _ in pairs):
                    raise ValueError
                return {name.strip(): n for (name, _, _), n in zip(pairs, numbers, strict=True)}
        except ValueError:
            self.fail(f"{value!r} must be a whole number, or whole numbers with commas", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


class Overlap(Lengths):
    """As `Lengths`, or "auto"."""

    name = "N[,N...]|NAME=N[,...]|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return lengths as `Lengths` does, or the word."""
        return value if value == "auto" else super().convert(value, param, ctx)


class Fractions(click.ParamType[Any]):
    """Numbers from 0 to 1, as they are written: 0.01,0.99."""

    name = "Q[,Q...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a tuple of floats."""
        if not isinstance(value, str):
            return value
        try:
            return tuple(float(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} must be numbers with commas", param, ctx)


class NoData(click.ParamType[Any]):
    """A number, "nan", or "meta"."""

    name = "VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a number; True for "meta"."""
        if value == "meta":
            return True
        try:
            return int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError:
            self.fail(f'{value!r} must be a number, "nan" or "meta"', param, ctx)


def axes_of(text: str) -> Any:
    """Return numbers of axes as a tuple, names as they are."""
    parts = text.split(",")
    if all(p.strip().lstrip("-").isdigit() for p in parts):
        return tuple(map(int, parts))
    return text if len(parts) == 1 else tuple(p.strip() for p in parts)


# -- messages ---------------------------------------------------------------------------------------------

# Names of arguments that are no words of the messages.
_ARGUMENTS = ("overlap", "stride", "rim", "multiple", "boundary", "batch_size", "memory_limit")
# A class that a message calls, and the `Output` among them that options can say.
_CALL = re.compile(r"((?:output=)?(?:tw\.)?\b[A-Z]\w*\([^()]*\))")
_OUTPUT = re.compile(r'(?:output=)?(?:tw\.)?Output\((?:"(\w+)")?(?:, )?(?:labels="(\w+)")?\)')


def in_options(text: str, options: Sequence[click.Option], *, bare: bool = True) -> str:
    """Return a message about arguments in the words of the command line; with ``bare``, also names alone.

    Stores may have such names, so messages about stores keep them. The arguments of a class are no options.
    """
    parts = _CALL.split(text)
    parts[::2] = [_said_as_options(part, options, bare=bare) for part in parts[::2]]
    parts[1::2] = map(_call_as_options, parts[1::2])
    return "".join(parts)


def _call_as_options(call: str) -> str:
    """Return ``Output("uint32", labels="own")`` as options, and other calls as they are."""
    if not (found := _OUTPUT.fullmatch(call)):
        return call
    names = zip(("--dtype", "--labels"), found.groups(), strict=True)
    return " ".join(f"{option} {value}" for option, value in names if value) or call


def _said_as_options(text: str, options: Sequence[click.Option], *, bare: bool) -> str:
    """Return a text without calls in the words of the command line."""
    for option, off in sorted({(p.opts[0], (p.secondary_opts or p.opts)[0]) for p in options}):
        name = option[2:].replace("-", "_")
        word = rf"(?<![\w./-]){name}"
        put = functools.partial(_with_value, option, off)
        text = re.sub(rf"{word}=(True|False|\([^()\[]*\)|\[[^(\]]*\]|(?=[\w'\"-]))?", put, text)
        text = text.replace(f"{option} numpy.nan", f"{option} nan")
        if bare:
            text = re.sub(rf"{word if name in _ARGUMENTS else f'^{name}'}(?![\w=-])", option, text)
    return text


def _with_value(option: str, off: str, found: re.Match[str]) -> str:
    """Return ``axes=(0, 1)`` as ``--axes 0,1``, ``accept=['a']`` as ``--accept 'a'``, and flags alone."""
    if (value := found[1]) in (None, "True", "False"):
        return off if value == "False" else option
    parts = [part.strip() for part in value[1:-1].split(",") if part.strip()]
    if value[:1] == "[":
        return " ".join(f"{option} {part}" for part in parts)
    return f"{option} {','.join(part.strip(chr(39)) for part in parts)}"
