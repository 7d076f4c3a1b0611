"""The frozen base model, its tokenizer and fingerprint, the seeded matrices, the embedded model."""
