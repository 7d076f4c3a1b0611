"""The commands of `verandah`, a module each. Only serve, worker, engine and methods need torch."""
