"""The adapter methods: a folder for each, the list of them, and what all of them share."""
