"""HTTP shapes only; no decisions."""
