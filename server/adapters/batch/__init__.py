"""The mixed batch: what the adapters of one step add to each linear."""
