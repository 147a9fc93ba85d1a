"""Game environments as the evaluator and the recorder see them."""
