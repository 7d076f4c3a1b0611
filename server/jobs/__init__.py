"""Datasets and the durable queue."""
