"""Triton kernels for what lies between a model's products while adapters learn, forward and back.

Weights are frozen: none of these gives a gradient to one. Imported only for a CUDA device.
"""
