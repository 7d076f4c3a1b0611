"""The pieces of `python -m benchmarks.claims`: tasks, learners, runs, grid, speed and tables."""
