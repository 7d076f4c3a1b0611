"""Decides whose adapters an owner may name. One function, so that one place decides."""


def visible(owner: str, of: str) -> bool:
    """Whether `owner` may use adapters of the owner `of`. Others' do not exist for them."""
    return owner == of
