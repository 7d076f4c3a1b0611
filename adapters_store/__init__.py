"""Adapters at rest: immutable versions in safetensors files. Knows no server."""
