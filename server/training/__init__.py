"""Training runs, and the worker that claims jobs: in a process of its own or in the engine's."""
