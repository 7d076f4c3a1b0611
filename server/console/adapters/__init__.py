"""What the pages of adapters show: versions, lineage, usage, and what a deletion would lose."""
