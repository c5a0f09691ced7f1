"""Values that a frozen object derives from its fields once, and holds as long as it lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

__all__ = ["Holder", "derived"]

T = TypeVar("T")


class Holder:
    """Base class of frozen dataclasses with slots that have `derived` values.

    The slot is no field, so what it holds is not compared, hashed, printed or pickled, and no copy gets it.
    """

    __slots__ = ("_held",)

    _held: dict[Any, Any]

    @property
    def held(self) -> dict[Any, Any]:
        """The values that were derived up to now, by name."""
        try:
            return self._held
        except AttributeError:
            # Two threads may both make it; what one of them derives is then derived again.
            object.__setattr__(self, "_held", {})
            return self._held

    def once(self, key: Any, find: Callable[[], T]) -> T:
        """Return the value that is held under a key: what ``find`` returned when it was first asked for."""
        if key not in self.held:
            self.held[key] = find()
        found: T = self.held[key]
        return found


class derived(Generic[T]):
    """A property of a `Holder` that is computed when it is first asked for.

    `functools.cached_property` needs a ``__dict__``, which would be pickled and hashed with the fields.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function, self._name = function, function.__name__
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, holder: None, owner: type) -> Self: ...
    @overload
    def __get__(self, holder: Holder, owner: type) -> T: ...
    def __get__(self, holder: Holder | None, owner: type) -> Self | T:
        if holder is None:
            return self
        try:
            found: T = holder._held[self._name]
        except (AttributeError, KeyError):
            found = holder.held[self._name] = self._function(holder)
        return found
