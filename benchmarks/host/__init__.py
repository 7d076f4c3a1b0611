"""Benchmarks of what the host spends around the engine: CPU time, memory, and the database."""
