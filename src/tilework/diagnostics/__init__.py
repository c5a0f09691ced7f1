"""Inspecting results and plans: parts, checks, measured cost, figures."""
