"""What the Triton kernels of several parts share. Imported only for a CUDA device."""
