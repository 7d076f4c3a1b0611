"""What the pages about training files are made of: the form, the check, and lines as tokens."""
