"""One script per claim; each prints a small table with its hardware, versions and commit."""
