"""Benchmarks of kernels and of single products."""
