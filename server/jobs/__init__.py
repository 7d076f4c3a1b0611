"""Uploaded files, and the durable queue of jobs."""
