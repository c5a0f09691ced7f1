"""Where crops are and how much each sample weighs: whole numbers, one axis at a time, no image."""
