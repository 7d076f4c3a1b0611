"""VeRA: its numbers, its product, and its form in PEFT."""
