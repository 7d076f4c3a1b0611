"""/v1/organization: owners, users and keys, in the shapes of OpenAI's admin API."""
