"""Benchmarks of the engine's steps, without requests."""
