"""Worlds as people and agents meet them: played in a window, filmed, or as an environment of the evaluator."""
