"""Builds the documentation site: see `mkdocs.yml`."""
