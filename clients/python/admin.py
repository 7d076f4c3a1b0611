"""Owners and API keys, for whoever manages them. Knows nothing of how requests travel."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .client_errors import ApiError
from .http_connection import HttpConnection, path_of

_OWNERS = "/v1/organization/projects"
_USAGE = "/v1/organization/usage/completions"

Document = Mapping[str, Any]


class Admin:
    """What the server's admin may do, and for one owner its admin. `Client.admin` makes it.

    Every method raises ConnectionFailed when no server answers, and ApiError when it refuses.
    """

    def __init__(self, server: HttpConnection) -> None:
        self._server = server

    def owners(self) -> list[Document]:
        """The owners that are not archived, by id."""
        return [*self._server.pages(_OWNERS)]

    def create_owner(self, name: str) -> Document:
        """Make an owner. Its id is the name in small letters, or random for other names."""
        return self._post(_OWNERS, name=name)

    def owner(self, owner: str) -> Document:
        """One owner, with its `limits`."""
        document: Document = self._server.json("GET", path_of(_OWNERS, owner))
        return document

    def limit_owner(self, owner: str, limits: Mapping[str, float | None]) -> Document:
        """Set some of an owner's limits; 0: none, None: the server's again."""
        return self._post(path_of(_OWNERS, owner), limits=dict(limits))

    def archive_owner(self, owner: str) -> Document:
        """Refuse an owner's keys from now on. Nothing is deleted."""
        return self._post(path_of(_OWNERS, owner, "archive"))

    def delete_owner(self, owner: str, *, export: str | None = None) -> Document:
        """Begin to delete an owner with everything of it; `export` names a new folder in the
        home's `exports`, which gets a copy of adapters and files before."""
        query = {} if export is None else {"export": export}
        path = path_of(_OWNERS, owner)
        document: Document = self._server.json("DELETE", path, params=query)
        return document

    def deletion(self, owner: str) -> Document:
        """How far the deletion of an owner is."""
        document: Document = self._server.json("GET", path_of(_OWNERS, owner, "deletion"))
        return document

    def keys(self, owner: str) -> list[Document]:
        """An owner's keys that were not revoked, without their values."""
        return [*self._server.pages(path_of(_OWNERS, owner, "api_keys"))]

    def create_key(
        self,
        owner: str,
        name: str,
        *,
        user: str | None = None,
        scopes: Sequence[str] | None = None,
        expires_in_s: int | None = None,
    ) -> Document:
        """Make a key; its `value` is in this answer alone. `scopes` None: all but `admin`."""
        return self._post(
            path_of(_OWNERS, owner, "api_keys"),
            name=name,
            user_id=user,
            scopes=None if scopes is None else list(scopes),
            expires_in_seconds=expires_in_s,
        )

    def rotate_key(self, owner: str, key_id: str, *, grace_s: int = 86_400) -> Document:
        """Make a key with the rights of another, which expires after `grace_s` seconds."""
        path = path_of(_OWNERS, owner, "api_keys", key_id, "rotate")
        return self._post(path, grace_seconds=grace_s)

    def revoke_key(self, owner: str, key_id: str) -> None:
        """Refuse a key from now on."""
        self._server.json("DELETE", path_of(_OWNERS, owner, "api_keys", key_id))

    def usage(
        self,
        since: int,
        until: int,
        *,
        width: str = "1d",
        group_by: Sequence[str] = (),
        owners: Sequence[str] | None = None,
    ) -> Iterator[Document]:
        """What was used from `since` up to `until`, Unix seconds: the buckets of a `width`.

        A bucket with very many groups comes in parts, each with the same `start_time`.

        Args:
            width: "1h" or "1d".
            group_by: any of "project_id", "user_id", "api_key_id", "model".
            owners: only of these. None: of all that the key may see.
        """
        query: dict[str, object] = {
            "start_time": since,
            "end_time": until,
            "bucket_width": width,
            "group_by[]": list(group_by),
            "project_ids[]": [] if owners is None else list(owners),
            "limit": 168 if width == "1h" else 31,
        }
        while True:
            page = self._server.json("GET", _USAGE, params=query)
            yield from page["data"]
            if not page["has_more"]:
                return
            query["page"] = page["next_page"]

    def require_sign_in(self) -> None:
        """Raise the server's ApiError if nobody can sign in there."""
        try:
            self._server.json("GET", "/auth/session")
        except ApiError as error:
            if error.status != 401:  # nobody has signed in here yet
                raise

    def redeem_sign_in(
        self,
        code: str,
        verifier: str,
        *,
        name: str,
        owner: str | None = None,
        admin: bool = False,
        expires_in_s: int | None = None,
    ) -> Document:
        """The key of whoever has signed in for the program that made `verifier`; see
        docs/signin.md. `value` is in this answer alone."""
        return self._post(
            "/auth/token",
            code=code,
            code_verifier=verifier,
            name=name,
            owner=owner,
            admin=admin,
            expires_in_seconds=expires_in_s,
        )

    def revoke_own_key(self) -> None:
        """Refuse the key that this client sends from now on."""
        self._post("/auth/revoke")

    def _post(self, path: str, **body: object) -> Document:
        document: Document = self._server.json("POST", path, json=body)
        return document
