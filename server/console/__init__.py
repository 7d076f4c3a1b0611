"""The pages at /console: the API for people with a browser. They call what the API calls."""
