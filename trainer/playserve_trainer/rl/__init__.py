"""Reinforcement learning: actors that play through the inference service, and a V-trace learner that feeds it."""
