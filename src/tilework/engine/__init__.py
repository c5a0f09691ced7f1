"""What runs inside a task: read, call, weigh, add up, finish."""
