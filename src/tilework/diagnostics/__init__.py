"""Ways to look at results and plans: parts, checks, measured cost, figures."""
