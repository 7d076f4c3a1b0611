"""Who is asking: keys and ownership."""
