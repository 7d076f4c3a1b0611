"""Training on the device that serves requests, and slowing it down for them."""
