"""The forward pass as transformers writes it: runs any model on any device, and is the
reference."""
