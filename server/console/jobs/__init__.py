"""What the pages of jobs show: numbers and words, no HTML."""
