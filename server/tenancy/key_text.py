"""The text of API keys: how it is made, hashed and told from what nobody made. Pure."""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode
from typing import Final

PREFIX: Final = "vr-"
_SECRET_BYTES = 32
_MARK = 6  # characters
_LENGTH = len(PREFIX) + 43 + _MARK
_SHOWN = len(PREFIX) + 6


def new_key(seal: str, prefix: str = PREFIX) -> str:
    """A key that nobody can guess. Its last characters are the mark of `seal`."""
    secret = prefix + secrets.token_urlsafe(_SECRET_BYTES)
    return secret + _mark(secret, seal)


def is_marked(key: str, seal: str) -> bool:
    """Whether `new_key` may have made it: if not, there is no need to look for it."""
    if len(key) != _LENGTH or not key.isascii():
        return False
    return hmac.compare_digest(key[-_MARK:], _mark(key[:-_MARK], seal))


def digest_of(key: str) -> str:
    """SHA-256, which is enough for 256 random bits: nobody can try them all."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def shown_part(key: str) -> str:
    """The beginning, by which people know a key."""
    return key[:_SHOWN]


def _mark(secret: str, seal: str) -> str:
    code = hmac.digest(seal.encode(), secret.encode(), "sha256")
    return urlsafe_b64encode(code).decode()[:_MARK]
