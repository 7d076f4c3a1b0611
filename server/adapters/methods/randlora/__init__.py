"""RandLoRA: its numbers, its products in serving and in training, and its form in PEFT."""
