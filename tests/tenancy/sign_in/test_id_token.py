"""Only a token that the provider signed for us, for this sign-in and for now, is read."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("authlib", reason="authlib is not installed: it comes with the extra oidc")

from joserfc.jwk import OctKey, RSAKey

from server.errors import SignInFailed
from server.tenancy.sign_in.id_token import SKEW_S, checked, key_id, usable_keys
from tests.tenancy.sign_in.tokens import (
    CLIENT,
    EC,
    ISSUER,
    NOW,
    OTHER_RSA,
    RSA,
    claims,
    key_set,
    signed,
    signed_with_the_public_key,
    unsigned,
)


def read(token: str, *, access_token: str | None = None) -> Any:
    key_id(token)
    keys = usable_keys(key_set(RSA, EC))
    return checked(
        token,
        keys,
        issuer=ISSUER,
        client=CLIENT,
        nonce="n1",
        access_token=access_token,
        now=NOW,
    )


@pytest.mark.parametrize(
    "token",
    [
        lambda: signed(claims("n1")),
        lambda: signed(claims("n1"), EC, "ES256"),
        lambda: signed(claims("n1"), RSA, "PS256"),
        lambda: signed(claims("n1", aud=[CLIENT])),
        lambda: signed(claims("n1", aud=[CLIENT, "other"], azp=CLIENT)),
        lambda: signed(claims("n1", exp=NOW - SKEW_S + 5)),
        lambda: signed(claims("n1", iat=NOW + SKEW_S - 5)),
    ],
)
def test_a_right_token_is_read(token: Callable[[], str]) -> None:
    assert read(token())["sub"] == "u1"


@pytest.mark.parametrize(
    "token",
    [
        lambda: unsigned(claims("n1")),
        lambda: unsigned(claims("n1"), "NONE"),
        lambda: unsigned(claims("n1"), "RS256"),
        lambda: signed_with_the_public_key(claims("n1")),
        lambda: signed(claims("n1"), OTHER_RSA),
        lambda: signed(claims("n1"), RSAKey.generate_key(2048, {"kid": "new"})),
        lambda: signed(claims("n1"), EC, "ES256", kid="rsa"),
        lambda: signed(claims("n1"))[:-8] + "AAAAAAAA",
        lambda: signed(claims("n1", iss="https://evil.example")),
        lambda: signed(claims("n1", iss=ISSUER + "/")),
        lambda: signed(claims("n1", iss=None)),
        lambda: signed(claims("n1", aud="other")),
        lambda: signed(claims("n1", aud=[])),
        lambda: signed(claims("n1", aud=None)),
        lambda: signed(claims("n1", aud=[CLIENT, "other"])),
        lambda: signed(claims("n1", azp="other")),
        lambda: signed(claims("n1", aud=[CLIENT, "other"], azp="other")),
        lambda: signed(claims("n0")),
        lambda: signed(claims("n1", nonce=None)),
        lambda: signed(claims("n1", exp=NOW - SKEW_S - 5)),
        lambda: signed(claims("n1", exp=None)),
        lambda: signed(claims("n1", exp="soon")),
        lambda: signed(claims("n1", exp=True)),
        lambda: signed(claims("n1", exp=float("nan"))),
        lambda: signed(claims("n1", exp=float("inf"))),
        lambda: signed(claims("n1", nbf=NOW + SKEW_S + 5)),
        lambda: signed(claims("n1", iat=NOW + SKEW_S + 5)),
        lambda: signed(claims("n1", iat=None)),
        lambda: signed(claims("n1", sub=None)),
        lambda: signed(claims("n1", sub="")),
        lambda: signed(claims("n1", sub="a" * 256)),
        lambda: signed(claims("n1", sub="a\x00b")),
        lambda: signed(claims("n1", sub=7)),
        lambda: signed(claims("n1", at_hash="wrong")),
        lambda: "",
        lambda: "a.b.c",
        lambda: "a.b",
        lambda: "\u00e9.b.c",
        lambda: "." * 1000,
    ],
)
def test_a_wrong_token_is_refused(token: Callable[[], str]) -> None:
    with pytest.raises(SignInFailed, match="token is refused"):
        read(token(), access_token="the access token")


def test_keys_that_may_not_sign_are_left_out() -> None:
    small, large = ({"kty": "RSA", "e": "AQAB", "n": "_" * size} for size in (171, 342 * 8))
    secret = OctKey.generate_key(256, {"kid": "secret"})
    sealing = {**RSA.as_dict(private=False), "use": "enc"}
    entries = [small, large, secret.as_dict(private=True), sealing, "no key"]
    assert usable_keys({"keys": [*entries, {"kty": "new"}, {"kty": "RSA", "n": 1}, {}]}) == []
    assert [key.kid for key in usable_keys({"keys": [*entries, *key_set(EC)["keys"]]})] == ["ec"]
    assert usable_keys({}) == usable_keys({"keys": "all"}) == []
    assert len(usable_keys({"keys": key_set(EC)["keys"] * 10_000})) == 64
