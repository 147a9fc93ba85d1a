"""Models, data, training and checkpoints. Knows no servers."""
