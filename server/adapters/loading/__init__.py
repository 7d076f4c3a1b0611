"""From a file in the store to a row that can be copied to the device."""
