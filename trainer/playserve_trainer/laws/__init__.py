"""Scaling laws: from a table of trained cells to exponents with intervals, and to forecasts. Knows no torch."""
