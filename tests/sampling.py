"""How many examples and draws a test runs: a share of its own number, unless the run is a whole one."""

from __future__ import annotations

from hypothesis import settings

WHOLE = 40
"""Examples of a law, if it does not say another number."""
GATE = 16
"""Examples of such a law in a whole run, which makes less than half of all."""
LEAST = 4


def share(number: int) -> int:
    """Return how many of `number` examples or draws this run makes; a whole run makes less than half."""
    return min(number, max(LEAST, number * settings.default.max_examples // WHOLE))
