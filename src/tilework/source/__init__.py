"""A box of an image, padded, as a numpy array, from anything that holds one."""
