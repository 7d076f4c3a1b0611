"""Commands that get a key for a person, and give it back."""
