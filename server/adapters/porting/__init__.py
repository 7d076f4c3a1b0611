"""Imports PEFT checkpoints, and exports adapters as PEFT checkpoints and merged models."""
