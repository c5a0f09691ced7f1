"""Versions of packages."""

from __future__ import annotations

__all__ = ["version_of"]


def version_of(name: str) -> str:
    """Return the version of a package; "0+unknown" if nothing says it, as in a tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        return version(name)
    except PackageNotFoundError:  # also frozen into an application
        return "0+unknown"
