"""Datasets over recordings."""
