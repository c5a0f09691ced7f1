"""Exceptions and warnings.

::

    ValueError
     └── TilingError            what was asked cannot be done
          ├── GridError         impossible geometry: crop, overlap, stride, axes
          ├── ContractError     a function returned something else than was declared
          ├── AlignmentError    a write that would touch a storage unit twice
          └── MemoryBudgetError the smallest plan exceeds the memory limit
    UserWarning
     └── TilingWarning          legal, but probably not what was meant
          └── CostWarning       legal, but much dearer than it need be

Wrong types are plain ``TypeError``. Messages say the rule, the axis and the values, and what to change.
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
    """A function broke its declaration: shape, dtype or number of results."""


class AlignmentError(TilingError):
    """A storage unit would be written by more than one task."""


class MemoryBudgetError(TilingError):
    """Even the smallest plan exceeds the memory limit."""


class TilingWarning(UserWarning):
    """Legal, but probably not what was meant."""


class CostWarning(TilingWarning):
    """Legal, but much dearer than it need be."""
