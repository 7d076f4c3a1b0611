"""The options that say where the server is, and a client of it."""

import argparse
import os

from clients.python import Client
from clients.python.client import DEFAULT_URL
from server.cli.arguments.credentials import kept_key


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the options for the server's address and key."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", help=f"the server's address (VERANDAH_URL; default: {DEFAULT_URL})")
    group.add_argument(
        "--api-key",
        default=os.environ.get("VERANDAH_API_KEY") or None,
        help="the server's API key (VERANDAH_API_KEY; default: that of `verandah login`)",
    )


def connect(options: argparse.Namespace) -> Client:
    """A client of the server in the options. The caller closes it."""
    return Client(url_of(options), options.api_key or kept_key(base_url(options)))


def url_of(options: argparse.Namespace) -> str:
    """The server's address, as it was given."""
    return str(options.url or os.environ.get("VERANDAH_URL") or DEFAULT_URL)


def base_url(options: argparse.Namespace) -> str:
    """The server's address in the form by which its key is kept."""
    with Client(url_of(options)) as client:
        return client.base_url


def same_server(options: argparse.Namespace) -> str:
    """What a command line needs besides to reach the same server; never the key."""
    return f" --url {options.url}" if options.url else ""
