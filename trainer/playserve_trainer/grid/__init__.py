"""Grids of training runs: studies, plans, cells, and what runs them."""
