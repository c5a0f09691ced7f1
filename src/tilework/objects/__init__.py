"""Tables of the objects of label images that exist, and which of the objects to keep."""
