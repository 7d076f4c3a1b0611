"""Examples and masks, the trainer, the worker process."""
