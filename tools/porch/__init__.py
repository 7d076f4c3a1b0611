"""Builds Porch, the embedded base model: `python -m tools.porch.build`."""
