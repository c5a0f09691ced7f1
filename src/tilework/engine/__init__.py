"""The work inside a task: read, call, weigh, add up, finish."""
