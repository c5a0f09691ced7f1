"""What is called on a crop, and what it gives back."""
