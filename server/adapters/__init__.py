"""Adapters in device memory: methods, banks, slots; the plain reference beside every fast path."""
