"""Owners, their users and their keys, and what a key may do."""
