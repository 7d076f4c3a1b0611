"""ID tokens as a provider signs them, right and wrong ones."""

import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

ISSUER = "https://login.example"
CLIENT = "verandah"
NOW = 1_800_000_000
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
OTHER_RSA = RSAKey.generate_key(2048, {"kid": "rsa"})  # of the same name
EC = ECKey.generate_key("P-256", {"kid": "ec"})


def claims(nonce: str, /, **changes: Any) -> dict[str, Any]:
    """Of a right token; None leaves one out."""
    right = {
        "iss": ISSUER,
        "sub": "u1",
        "aud": CLIENT,
        "nonce": nonce,
        "iat": NOW - 5,
        "exp": NOW + 300,
        "name": "Ann",
        "email": "ann@example.com",
        "email_verified": True,
        "groups": ["team-a"],
    }
    return {name: value for name, value in (right | changes).items() if value is not None}


def signed(body: dict[str, Any], key: Any = RSA, alg: str = "RS256", **header: Any) -> str:
    return str(jwt.encode({"alg": alg, "kid": key.kid, **header}, body, key, algorithms=[alg]))


def unsigned(body: dict[str, Any], alg: str = "none") -> str:
    parts = ({"alg": alg, "kid": "rsa"}, body)
    encoded = [urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, ""])


def signed_with_the_public_key(body: dict[str, Any]) -> str:
    """What a forger can make who takes the public key for a shared secret."""
    text = unsigned(body, "HS256").rstrip(".")
    code = hmac.digest(RSA.as_pem(private=False), text.encode(), "sha256")
    return f"{text}.{urlsafe_b64encode(code).decode().rstrip('=')}"


def key_set(*keys: Any) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}
