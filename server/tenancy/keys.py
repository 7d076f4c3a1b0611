"""Finds the owner that an API key stands for. Knows no HTTP beyond the header's text.

There is one key and one owner. Every row already has an owner, so keys per user would change only
this file.
"""

import hmac

from server.errors import Unauthorized

DEFAULT_OWNER = "default"


class Keys:
    """The server's API key. Without one, every request is the default owner's."""

    def __init__(self, api_key: str | None = None) -> None:
        self._key = None if api_key is None else api_key.encode()

    @property
    def needed(self) -> bool:
        """Whether requests need a key."""
        return self._key is not None

    def owner(self, authorization: str | None) -> str:
        """The owner of the key in an `Authorization` header.

        Raises:
            Unauthorized: a key is required, and the header has none or a wrong one.
        """
        if self._key is None:
            return DEFAULT_OWNER
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized(
                "the request has no API key: send the header 'Authorization: Bearer KEY'"
            )
        # Compared in constant time, so that the time of an answer reveals nothing about the key.
        if not hmac.compare_digest(key.strip().encode(errors="surrogateescape"), self._key):
            raise Unauthorized(
                "the API key is wrong: send the key that this server was started with"
            )
        return DEFAULT_OWNER
