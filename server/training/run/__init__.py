"""One training run: examples, steps, losses, checkpoints. Knows no queue."""
