"""What is trained, how, and how fast."""
