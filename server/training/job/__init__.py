"""One claimed job, from its files to its published adapter, and the worker that claims it."""
