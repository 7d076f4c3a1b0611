"""The durable queue of fine-tuning jobs."""
