"""Types of the options of the command line."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["Fractions", "Lengths", "NoData", "Overlap", "axes_of"]


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
