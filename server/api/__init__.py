"""The HTTP endpoints: requests and answers. Decisions are made below."""
