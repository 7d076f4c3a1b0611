"""Who is asking: an API key names an owner. Knows no HTTP beyond the header's text.

One key, from the settings, opens everything to one owner. Every row already carries its owner, so
keys per user change this file and no other.
"""

import hmac

from server.errors import Unauthorized

DEFAULT_OWNER = "default"


class Keys:
    """The keys that open this server. Without one, anybody is the default owner."""

    def __init__(self, api_key: str | None = None) -> None:
        self._key = None if api_key is None else api_key.encode()

    def owner(self, authorization: str | None) -> str:
        """The owner that an `Authorization` header speaks for.

        Raises:
            Unauthorized: a key is required, and this is not it.
        """
        if self._key is None:
            return DEFAULT_OWNER
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise Unauthorized(
                "no API key was given; send it as the header 'Authorization: Bearer KEY'"
            )
        # Compared as bytes in constant time, so that answers' times tell nothing about the key.
        if not hmac.compare_digest(given.strip().encode(errors="surrogateescape"), self._key):
            raise Unauthorized("the API key is not one that this server knows")
        return DEFAULT_OWNER
