"""What an image holds as a whole: its statistics, and crops drawn at random from it."""
