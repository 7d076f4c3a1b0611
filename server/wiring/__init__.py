"""Builds the parts of a server from the settings, and hands them to each other."""
