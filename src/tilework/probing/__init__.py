"""What a function needs to see, found by calling it."""
