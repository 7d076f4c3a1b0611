"""What owners may use: limits a minute, requests at once, and how processes share them."""
