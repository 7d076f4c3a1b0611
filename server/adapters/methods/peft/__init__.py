"""What the methods' PEFT checkpoints share."""
