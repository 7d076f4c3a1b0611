"""Checks settings before anything is made of them. Imports no torch."""

import os
import socket
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from adapters_store.manifest import parse_adapter_id, split_owner
from adapters_store.store_errors import InvalidName
from server.bases.base_place import locate
from server.config import AUTO, BadOption, Settings
from server.tenancy.sign_in.addresses import check_address
from server.tenancy.sign_in.group_map import GroupMap


def check_settings(settings: Settings) -> None:
    """Check what can be checked in milliseconds.

    Raises:
        BadOption, UnsupportedModel: a setting cannot be right.
    """
    if settings.model != AUTO:
        locate(settings.model)
    home = settings.home_path
    _check_home(home)
    for name in settings.pinned:
        try:
            parse_adapter_id(split_owner(name)[1])
        except InvalidName as error:
            raise BadOption(f"--pinned {name}: {error}") from error
        if not home.exists():
            raise no_such_pin(name)


def check_reach(settings: Settings) -> None:
    """Raise BadOption if others than this machine could use the server without a key."""
    if settings.key is None and not settings.insecure and not _is_loopback(settings.host):
        raise BadOption(
            f"--host {settings.host}: others than this machine may reach that address, and the "
            "server has no key: give --api-key or VERANDAH_API_KEY, or --insecure to let everybody "
            "who reaches it do anything"
        )


def check_sign_in(settings: Settings) -> None:
    """Raise BadOption if people could not sign in as the settings say."""
    if not settings.oidc_issuer:
        given = [name for name in settings.model_fields_set if name.startswith("oidc_")]
        if given:
            raise BadOption(f"--{given[0].replace('_', '-')} needs --oidc-issuer: give both")
        return
    if find_spec("authlib") is None:
        raise BadOption(
            "--oidc-issuer needs the package authlib: install verandah[oidc], or leave it out"
        )
    if settings.key is None:
        raise BadOption(
            "--oidc-issuer needs --api-key or VERANDAH_API_KEY: a server without a key lets "
            "everybody who reaches it do anything, so nobody would sign in"
        )
    if not settings.oidc_client_id:
        raise BadOption("--oidc-issuer needs --oidc-client-id: the provider gives it")
    if "openid" not in settings.oidc_scopes:
        raise BadOption("--oidc-scopes lacks openid, without which no provider says who signs in")
    urls = {"oidc-issuer": settings.oidc_issuer, "public-url": public_url(settings)}
    for option, url in urls.items():
        try:
            check_address(url, url)
        except ValueError as error:
            raise BadOption(f"--{option}: {error}; only for this machine it may be http") from None
        if urlsplit(url).query or urlsplit(url).fragment:
            raise BadOption(f"--{option} {url}: leave out what begins with ? or #")
    try:
        GroupMap(settings.oidc_groups, settings.oidc_default_owner)
    except ValueError as error:
        raise BadOption(f"--oidc-groups or --oidc-default-owner: {error}") from error
    client_secret(settings)


def public_url(settings: Settings) -> str:
    """The address at which browsers reach this server, without a slash at its end."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    if not _is_loopback(settings.host) or settings.port == 0:
        raise BadOption(
            f"--host {settings.host} --port {settings.port} does not say how browsers reach this "
            "server, to come back from the sign-in provider: give --public-url, such as "
            "https://verandah.example"
        )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def client_secret(settings: Settings) -> str | None:
    """Raises BadOption if its file cannot be read, or there are two secrets."""
    given, path = settings.oidc_client_secret, settings.oidc_client_secret_file
    if path is None:
        return None if given is None else given.get_secret_value()
    if given is not None:
        raise BadOption("the client's secret is given twice: give it or --oidc-client-secret-file")
    try:
        secret = path.expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BadOption(f"--oidc-client-secret-file {path}: {reason}") from None
    if not secret:
        raise BadOption(f"--oidc-client-secret-file {path}: it is empty")
    return secret


def _is_loopback(host: str) -> bool:
    """Whether all addresses of a name are this machine's own. What cannot be found is told later,
    when the server listens."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return True
    return all(ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found)


def no_such_pin(name: str) -> BadOption:
    """The error of an adapter that is to be pinned and is not there."""
    return BadOption(
        f"--pinned {name}: the home has no such adapter: train it first, or leave it out"
    )


def _check_home(home: Path) -> None:
    """Raise BadOption unless the folder is there, or can be made."""
    try:
        nearest = next(path for path in (home, *home.parents) if path.exists())
    except OSError as error:
        raise BadOption(f"--home {home}: {error.strerror}: choose another folder") from error
    if not nearest.is_dir():
        raise BadOption(f"--home {home}: {nearest} is a file: choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadOption(f"--home {home}: {nearest} may not be written to: choose another folder")
