"""An OpenID Connect provider: where it is, what its keys are, and who comes back from it.

Needs authlib, which the extra `oidc` brings.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.discovery import OpenIDProviderMetadata

from adapters_store.outside_values import shown
from server.errors import SignInFailed, Unavailable
from server.tenancy.sign_in.addresses import check_address
from server.tenancy.sign_in.bounded_http import BoundedHttp
from server.tenancy.sign_in.id_token import Key, checked, key_id, usable_keys
from server.tenancy.sign_in.identities import Person
from server.tenancy.sign_in.pending import Pending

_KEPT_S = 3600.0
_FAILED_S = 5.0  # a provider that is down is asked no more often
_NEW_KEYS_S = 60.0  # nor one for a key that it may not have
_MOST_GROUPS = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class ProviderOptions:
    """What the operator says of a provider. `secret` None: it takes our client without one."""

    issuer: str
    client: str
    secret: str | None
    scopes: Sequence[str]
    groups_claim: str
    needs_groups: bool


class OidcProvider:
    """One provider. Learns where its endpoints are when the first person signs in."""

    def __init__(
        self,
        options: ProviderOptions,
        *,
        http: BoundedHttp | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._options = options
        self._http = BoundedHttp() if http is None else http
        self._clock = clock
        self._metadata = _Kept(self._read_metadata, clock)
        self._keys = _Kept(self._read_keys, clock)

    @property
    def issuer(self) -> str:
        return self._options.issuer

    async def address(self, pending: Pending, redirect: str) -> str:
        metadata = await self._metadata.get()
        address: str = prepare_grant_uri(
            metadata["authorization_endpoint"],
            self._options.client,
            "code",
            redirect_uri=redirect,
            scope=" ".join(self._options.scopes),
            state=pending.state,
            nonce=pending.nonce,
            code_challenge=create_s256_code_challenge(pending.verifier),
            code_challenge_method="S256",
        )
        return address

    async def person(self, code: str, pending: Pending, redirect: str) -> Person:
        answer = await self._exchange(code, pending, redirect)
        token, access = answer.get("id_token"), answer.get("access_token")
        if not isinstance(token, str):
            raise SignInFailed(
                "the provider sent no ID token: have the scope openid in --oidc-scopes"
            )
        claims = checked(
            token,
            await self._keys_for(token),
            issuer=self.issuer,
            client=self._options.client,
            nonce=pending.nonce,
            access_token=access if isinstance(access, str) else None,
            now=self._clock(),
        )
        if isinstance(access, str) and self._lacks(claims):
            claims = {**await self._userinfo(access, claims["sub"]), **claims}
        return self._described(claims)

    async def _exchange(self, code: str, pending: Pending, redirect: str) -> Mapping[str, Any]:
        metadata, options = await self._metadata.get(), self._options
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect,
            "code_verifier": pending.verifier,
        }
        methods = metadata.get("token_endpoint_auth_methods_supported")
        by_form = isinstance(methods, list) and "client_secret_basic" not in methods
        auth = None
        if options.secret is None:
            form["client_id"] = options.client
        elif by_form:
            form |= {"client_id": options.client, "client_secret": options.secret}
        else:
            auth = (options.client, options.secret)
        return await self._http.object(metadata["token_endpoint"], form=form, auth=auth)

    async def _keys_for(self, token: str) -> Sequence[Key]:
        """The provider's keys; read anew if it signs with one that was not there."""
        kid = key_id(token)
        keys = await self._keys.get()
        if kid is not None and all(key.kid != kid for key in keys):
            keys = await self._keys.get(newer_than_s=_NEW_KEYS_S)
        return keys

    def _lacks(self, claims: Mapping[str, Any]) -> bool:
        """Whether the token lacks what some providers tell at their userinfo endpoint alone."""
        wanted = ["email", "name"]
        if self._options.needs_groups:
            wanted.append(self._options.groups_claim)
        return any(name not in claims for name in wanted)

    async def _userinfo(self, access_token: str, subject: object) -> Mapping[str, Any]:
        url = (await self._metadata.get()).get("userinfo_endpoint")
        if url is None:
            return {}
        told = await self._http.object(url, bearer=access_token)
        if told.get("sub") != subject:
            raise SignInFailed("the provider's userinfo is of another person: begin again")
        return told

    def _described(self, claims: Mapping[str, Any]) -> Person:
        name = claims.get("name") or claims.get("preferred_username") or ""
        email = claims.get("email")
        # Without the provider's word for it, an email is only what somebody has typed there.
        known = isinstance(email, str) and email.isprintable() and claims.get("email_verified")
        return Person(
            issuer=self.issuer,
            subject=claims["sub"],
            name=name if isinstance(name, str) else "",
            email=str(email) if known is True else "",
            groups=self._groups(claims),
        )

    def _groups(self, claims: Mapping[str, Any]) -> Sequence[str]:
        name = self._options.groups_claim
        elsewhere = claims.get("_claim_names")
        if self._options.needs_groups and isinstance(elsewhere, dict) and name in elsewhere:
            raise SignInFailed(
                f"you are in more groups than the provider puts in {shown(name)}: have it send "
                "only those of this application"
            )
        value = claims.get(name)
        groups = [value] if isinstance(value, str) else value
        if not isinstance(groups, list):
            return ()
        return [group for group in groups[:_MOST_GROUPS] if isinstance(group, str)]

    async def _read_metadata(self) -> Mapping[str, Any]:
        place = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = await self._http.object(place)
        if found.get("issuer") != self.issuer:
            raise Unavailable(
                f"the provider at {self.issuer} calls itself {shown(found.get('issuer'))}: give "
                "exactly that as --oidc-issuer, if it is the right one"
            )
        try:
            metadata = OpenIDProviderMetadata(found)
            metadata.validate_response_types_supported()
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                check_address(found.get(name), self.issuer)
            if "userinfo_endpoint" in found:
                check_address(found["userinfo_endpoint"], self.issuer)
        except ValueError as error:
            raise Unavailable(
                f"the provider's description at {place} cannot be used ({error}): correct it there"
            ) from error
        return metadata

    async def _read_keys(self) -> Sequence[Key]:
        return usable_keys(await self._http.object((await self._metadata.get())["jwks_uri"]))


class _Kept(Generic[T]):
    """What a provider said, kept for an hour; all who need it at once wait for one answer."""

    def __init__(self, read: Callable[[], Awaitable[T]], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._value: T | None = None
        self._at = 0.0
        self._failure: Exception | None = None
        self._failed_at = 0.0
        self._reading = asyncio.Lock()

    async def get(self, *, newer_than_s: float = _KEPT_S) -> T:
        """Raises what reading it raised, for some seconds without reading it again."""
        async with self._reading:
            now = self._clock()
            if self._value is not None and 0 <= now - self._at < newer_than_s:
                return self._value
            if self._failure is not None and 0 <= now - self._failed_at < _FAILED_S:
                raise self._failure
            try:
                self._value, self._at, self._failure = await self._read(), now, None
            except (Unavailable, SignInFailed) as error:
                self._failure, self._failed_at = error, self._clock()
                raise
            return self._value
