"""Adapters in device memory, while they are served, trained, analysed, imported and exported."""
