"""The tasks of the measurement, as text and as tokens."""
