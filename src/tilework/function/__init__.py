"""The user's function: how it is called, and its outputs."""
