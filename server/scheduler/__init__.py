"""Decides who runs next: pure policy, and the loop that follows it."""
