"""Exceptions and warnings.

::

    ValueError
     └── TilingError            what was asked cannot be done
          ├── GridError         impossible geometry: crop, overlap, stride, axes
          ├── ContractError     a function returned something other than was declared
          ├── AlignmentError    two tasks would write one storage unit
          └── MemoryBudgetError the smallest plan exceeds the memory limit
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
    "TilingError",
    "TilingWarning",
]


class TilingError(ValueError):
    """What was asked cannot be done; the message says what to change."""


class GridError(TilingError):
    """The crops do not fit together: crop, overlap, stride, multiple or axes."""


class ContractError(TilingError):
    """A function did not return what was declared: shape, dtype or number of results."""


class AlignmentError(TilingError):
    """More than one task would write a storage unit."""


class MemoryBudgetError(TilingError):
    """Even the smallest plan exceeds the memory limit."""


class TilingWarning(UserWarning):
    """Legal, but probably not what was meant."""


class CostWarning(TilingWarning):
    """Legal, but much more expensive than necessary."""
