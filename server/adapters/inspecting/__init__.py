"""What an adapter changes in its base, as figures."""
