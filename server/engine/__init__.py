"""Sequences, KV memory, the forward pass, sampling: tokens in, tokens out."""
