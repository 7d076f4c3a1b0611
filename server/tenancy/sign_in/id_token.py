"""Reads an ID token: checks its signature and each claim that says for whom it is and how long."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from authlib.oidc.core import CodeIDToken
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from server.errors import SignInFailed

# Of pairs of keys alone. With HS256, whoever knows a provider's public key could forge tokens.
ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
SKEW_S: Final = 60
_RSA_BITS: Final = (2048, 8192)
_MOST_KEYS = 64
_MOST_TRIED = 4
_LONGEST_SUBJECT = 255
_FINITE = ("exp", "iat", "nbf", "auth_time")

Key: TypeAlias = RSAKey | ECKey | OKPKey


def usable_keys(document: Mapping[str, Any]) -> Sequence[Key]:
    """The public keys of a key set that may sign tokens. What cannot be used is left out."""
    entries = document.get("keys")
    keys: list[Key] = []
    for entry in entries[:_MOST_KEYS] if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        if not _is_of_right_size(entry):
            continue
        try:
            key = JWKRegistry.import_key(entry)
        except (JoseError, ValueError, TypeError, KeyError):
            continue
        if isinstance(key, RSAKey | ECKey | OKPKey):  # never a shared secret
            keys.append(key)
    return keys


def _is_of_right_size(entry: Mapping[str, Any]) -> bool:
    """Short RSA keys can be forged, and long ones take long. Others have sizes of their own."""
    modulus = entry.get("n", "")
    if entry.get("kty") != "RSA" or not isinstance(modulus, str):
        return entry.get("kty") != "RSA"
    return _RSA_BITS[0] <= len(modulus.rstrip("=")) * 6 < _RSA_BITS[1] + 6


def key_id(token: str) -> str | None:
    """The key that a token says has signed it. Raises SignInFailed if it is no such token."""
    header = _header(token)
    if header.get("alg") not in ALGORITHMS:
        raise _refused("it is signed in a way that is not allowed here")
    kid = header.get("kid")
    return kid if isinstance(kid, str) else None


def checked(
    token: str,
    keys: Sequence[Key],
    *,
    issuer: str,
    client: str,
    nonce: str,
    access_token: str | None,
    now: float,
) -> Mapping[str, Any]:
    """The claims of a token that one of the keys has signed for us, for this sign-in and for now.

    Raises:
        SignInFailed: one of that is not so.
    """
    decoded = _signed(token, keys)
    claims = decoded.claims
    if any(name in claims and not _is_time(claims[name]) for name in _FINITE):
        raise _refused("one of its times is no number")
    options: dict[str, Any] = {
        "iss": {"essential": True, "value": issuer},
        "sub": {"essential": True},
        "aud": {"essential": True, "value": client},
        "nonce": {"essential": True, "value": nonce},
    }
    params = {"client_id": client, "nonce": nonce, "access_token": access_token}
    try:
        CodeIDToken(claims, decoded.header, options, params).validate(int(now), SKEW_S)
    except (JoseError, TypeError, ValueError) as error:
        raise _refused(str(error)) from error
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
        raise _refused(f"its subject is not a text of 1 to {_LONGEST_SUBJECT} characters")
    if not subject.isprintable():
        raise _refused("its subject has characters that cannot be printed")
    claims_of: Mapping[str, Any] = claims
    return claims_of


def _signed(token: str, keys: Sequence[Key]) -> jwt.Token:
    header, kid = _header(token), key_id(token)
    fitting = [key for key in keys if kid is None or key.kid is None or key.kid == kid]
    why = "no key of the provider fits it"
    for key in fitting[:_MOST_TRIED]:
        try:
            return jwt.decode(token, key, algorithms=[header["alg"]])
        except (JoseError, ValueError, TypeError) as error:
            why = str(error)
    raise _refused(why)


def _header(token: str) -> Mapping[str, Any]:
    try:
        header: Mapping[str, Any] = jws.extract_compact(token.encode()).headers()
        return header
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise _refused("it is no signed token") from error


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _refused(why: str) -> SignInFailed:
    return SignInFailed(
        f"the provider's token is refused ({why}): begin again, or tell who runs the server"
    )
