"""Triton kernels for adapters in a mixed batch. Imported only for a CUDA device."""
