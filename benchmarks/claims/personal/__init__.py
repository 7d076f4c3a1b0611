"""Twenty users with small files of different kinds, all left to the defaults."""
