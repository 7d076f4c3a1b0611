"""Owners, users and keys: what a key may do, limits, shares, usage, sign-in."""
