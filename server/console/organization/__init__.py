"""What the pages of keys, members and owners share."""
