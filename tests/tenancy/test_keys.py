"""Keys name owners."""

import pytest

from server.errors import Unauthorized
from server.tenancy.keys import DEFAULT_OWNER, Keys


@pytest.mark.parametrize("header", [None, "", "Bearer x", "nonsense"])
def test_without_a_key_anybody_is_the_default_owner(header: str | None) -> None:
    assert Keys().owner(header) == DEFAULT_OWNER


@pytest.mark.parametrize("header", ["Bearer the-key", "bearer the-key", "Bearer  the-key "])
def test_the_key_opens(header: str) -> None:
    assert Keys("the-key").owner(header) == DEFAULT_OWNER


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "the-key", "Basic the-key", "Bearer the-ke", "Bearer the-key2",
     "Bearer THE-KEY", "Bearer \udcff"],
)  # fmt: skip
def test_nothing_else_does(header: str | None) -> None:
    with pytest.raises(Unauthorized) as caught:
        Keys("the-key").owner(header)
    assert "the-key" not in str(caught.value)
