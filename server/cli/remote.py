"""How the commands that talk to a running server find it."""

import argparse
import os

from clients.python import Client
from clients.python.client import DEFAULT_URL


def add_server(parser: argparse.ArgumentParser) -> None:
    """Give the parser the server's address and key."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        default=os.environ.get("VERANDAH_URL", DEFAULT_URL),
        help=f"where the server listens (VERANDAH_URL; default: {DEFAULT_URL})",
    )
    group.add_argument(
        "--api-key",
        default=os.environ.get("VERANDAH_API_KEY"),
        help="the key it asks for (VERANDAH_API_KEY)",
    )


def connect(options: argparse.Namespace) -> Client:
    """A client of the server that the options name; close it."""
    return Client(options.url, options.api_key)
