"""The endpoints for training files and fine-tuning jobs."""
