"""Training on the device that serves requests, and how it is slowed down for them."""
