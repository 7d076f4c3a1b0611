"""What owners have used, and who changed what."""
