"""The frozen base model, its tokenizer and fingerprint, GGUF files, the seeded matrices, Porch."""
