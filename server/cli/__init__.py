"""The commands behind `verandah`, one module each. Only `serve`, `worker` and `demo` need torch."""
