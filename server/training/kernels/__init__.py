"""Triton kernels for the operations between a model's products in training, forward and backward.

The base's weights are frozen, so no kernel gives them a gradient. Imported only for a CUDA device.
"""
