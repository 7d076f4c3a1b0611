"""API keys and the owners that they stand for."""
