"""Adapters while they are trained."""
