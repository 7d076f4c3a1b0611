"""What the benchmarks share: shapes, load, random adapters, tables."""
