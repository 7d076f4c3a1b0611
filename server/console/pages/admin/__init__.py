"""The pages of the server's admin."""
