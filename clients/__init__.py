"""What users call Verandah with. Imports nothing of the server."""
