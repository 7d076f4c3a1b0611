"""LoRA and asymmetric LoRA: their numbers, their products, and their form in PEFT."""
