"""Decides whose adapters an owner may name. One function, so that one place decides."""


def visible(owner: str, of: str, name: str) -> bool:
    """Whether `owner` may use the adapter `name` of the owner `of`. Others do not exist for it."""
    return owner == of
