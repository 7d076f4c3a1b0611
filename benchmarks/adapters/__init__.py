"""Benchmarks of adapters: their size, and their way from the store to the device."""
