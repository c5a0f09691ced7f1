"""Results and plans looked at: parts, checks, measured cost, figures."""
