"""Decides whose adapters an owner may name. One function, so that one place decides."""

from typing import Literal, Protocol

ShareTo = Literal["use", "copy"]
Right = Literal["own", "copy", "use"]
"""Each includes those behind it: whoever may copy an adapter may also use it."""


class GivenShares(Protocol):
    """`server.tenancy.shares.Shares`."""

    def given(self, owner: str, of: str, name: str) -> ShareTo | None: ...


def visible(owner: str, of: str, name: str, shares: GivenShares) -> Right | None:
    """What `owner` may do with the adapter `name` of the owner `of`. None: it does not exist for
    `owner`, whether there is one or not."""
    return "own" if owner == of else shares.given(owner, of, name)
