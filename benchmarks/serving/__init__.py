"""Benchmarks of serving: steps, HTTP, loading, rivals."""
