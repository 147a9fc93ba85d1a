"""Thin client: streams, game environments, scripted experts, recordings and rollouts. Knows no torch."""
