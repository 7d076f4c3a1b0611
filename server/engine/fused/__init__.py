"""The forward pass of Llama-shaped models on CUDA, with few launches and captured graphs."""
