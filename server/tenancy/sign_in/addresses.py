"""Which addresses of a provider, and of this server, a sign-in may lead to. Pure."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from adapters_store.outside_values import shown


def check_address(url: object, issuer: str) -> str:
    """The address as text. Raises ValueError unless it is https, or, for a provider of this
    machine, http to this machine."""
    if not isinstance(url, str):
        raise ValueError(f"{shown(url)} is not an address")
    parts = urlsplit(url)
    host, provider = parts.hostname or "", urlsplit(issuer).hostname or ""
    local = is_this_machine(host) and is_this_machine(provider)
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise ValueError(f"{shown(url)} is not an https:// address")
    return url


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is the loopback's."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
