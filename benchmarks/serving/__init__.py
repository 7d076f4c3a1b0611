"""Benchmarks of answers: HTTP, rivals, owners beside each other, and training beside them."""
