"""Scores of what was written, tables and plots."""
