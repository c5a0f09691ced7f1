"""Measurements of tilework against its peers and against physical limits, as ratios."""
