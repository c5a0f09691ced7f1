"""Exceptions and warnings.

::

    ValueError
     └── TilingError            the request cannot be carried out
          ├── GridError         impossible geometry: crop, overlap, stride, axes
          ├── ContractError     a function or an array returned another shape or dtype than declared
          ├── AlignmentError    several tasks would write the same storage unit
          ├── MemoryBudgetError the smallest plan exceeds the memory limit
          └── SupersededError   another run writes the store by now
    UserWarning
     └── TilingWarning          legal, but probably not what was meant
          └── CostWarning       legal, but much more expensive than necessary

Wrong types raise a plain ``TypeError``. Messages give the rule, the axis and the values, and what to change.
"""

from __future__ import annotations

__all__ = [
    "AlignmentError",
    "ContractError",
    "CostWarning",
    "GridError",
    "MemoryBudgetError",
    "SupersededError",
    "TilingError",
    "TilingWarning",
]


class TilingError(ValueError):
    """The request cannot be carried out; the message says what to change."""


class GridError(TilingError):
    """The crops do not fit together: crop, overlap, stride, multiple or axes."""


class ContractError(TilingError):
    """The result of a function, or what an array returns, differs from its declaration: shape, dtype..."""


class AlignmentError(TilingError):
    """Several tasks would write the same storage unit (a Zarr chunk or shard)."""


class MemoryBudgetError(TilingError):
    """Even the smallest plan exceeds the memory limit."""


class SupersededError(TilingError):
    """The store belongs to another run by now, or its run has ended; this one writes nothing more."""


class TilingWarning(UserWarning):
    """Legal, but probably not what was meant."""


class CostWarning(TilingWarning):
    """Legal, but much more expensive than necessary."""
