"""The pieces of `benchmarks.e2e.e2e_nlg`: data, learners, runs, grid, speed, scores and the
report."""
