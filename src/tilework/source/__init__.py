"""Boxes of an image, padded, as numpy arrays, read from any kind of array."""
