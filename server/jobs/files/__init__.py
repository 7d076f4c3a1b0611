"""Uploaded files, and the checks on training lines."""
