"""`verandah logout`: gives back the key that `verandah login` got."""

import argparse

from clients.python import Client
from clients.python.client_errors import ApiError
from server.cli.arguments.credentials import forget, kept_key
from server.cli.arguments.server_address import base_url, url_of

EXAMPLES = """examples:
  verandah logout                                   on http://127.0.0.1:8000
  verandah logout --url https://verandah.example

The server refuses the key from then on, and the file forgets it.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="the server's address (VERANDAH_URL)")


def run(options: argparse.Namespace) -> int:
    server = base_url(options)
    key = kept_key(server)
    if key is None:
        forget(server)
        print(f"no key of {server} is kept that is still good")
        return 0
    with Client(url_of(options), key) as client:
        try:
            client.admin.revoke_own_key()
        except ApiError as error:
            if error.status != 401:  # else it opens nothing already
                raise
    forget(server)
    print(f"signed out of {server}")
    return 0
