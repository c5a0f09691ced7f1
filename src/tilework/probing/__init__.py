"""The context that a function needs, found by calling it."""
