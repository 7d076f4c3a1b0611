"""Who runs next: pure policy, then the loop."""
