"""Tests; a package, since an installed package may bring a stray `tests` of its own."""
