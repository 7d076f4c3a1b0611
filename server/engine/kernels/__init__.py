"""Triton kernels for what lies between a model's products. Imported only for a CUDA device."""
