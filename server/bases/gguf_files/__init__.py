"""Base models from GGUF files: read, checked, and converted once into an ordinary folder."""
