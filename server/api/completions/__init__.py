"""The two completion endpoints, from the request to the answer."""
