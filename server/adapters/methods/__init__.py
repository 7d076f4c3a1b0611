"""The adapter methods (VeRA, RandLoRA, LoRA), and what each says of itself to the other parts."""
