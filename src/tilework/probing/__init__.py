"""What a function needs to see, found out by calling it."""
