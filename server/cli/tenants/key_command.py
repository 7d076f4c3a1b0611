"""`verandah keys`: makes, lists, replaces and revokes the API keys of a running server."""

import argparse
from collections.abc import Mapping
from typing import Any

from clients.python import Client
from server.cli.arguments.durations import seconds
from server.cli.arguments.server_address import add_server, connect
from server.cli.display.output import print_json, print_rows, short_moment
from server.config import BadOption

EXAMPLES = """examples:
  verandah keys create --owner team-a --name laptop
  verandah keys create --owner team-a --name batch --scopes models.use,files --expires 30d
  verandah keys create --owner team-a --name boss --scopes admin      may manage team-a
  verandah keys list --owner team-a
  verandah keys rotate key_7d79... --owner team-a --grace 2h          the old key is good for 2 h
  verandah keys revoke key_7d79... --owner team-a

A key is shown once, when it is made. It asks for the key of the server's admin, or of an owner with
the scope `admin`: VERANDAH_API_KEY or --api-key.
"""

_COLUMNS = ("key", "name", "begins", "scopes", "created", "expires", "last used")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", default="list", choices=("create", "list", "rotate", "revoke")
    )
    parser.add_argument("key", nargs="?", help="a key's id, to rotate or revoke")
    parser.add_argument("--owner", default="default", help="the key's owner (the owner `default`)")
    parser.add_argument("--name", help="what people call a new key")
    parser.add_argument("--user", help="the id of the member whose key a new one is")
    parser.add_argument("--scopes", help="what a new key may do, with commas (all but admin)")
    parser.add_argument(
        "--expires", help="how long a new key is good: 90s, 30m, 12h, 30d (for ever)"
    )
    parser.add_argument(
        "--grace", default="1d", help="how long a rotated key is still good: 0s, 2h, 7d (1d)"
    )
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    if options.action in ("rotate", "revoke") and not options.key:
        raise BadOption(f"keys {options.action} needs a key's id: `verandah keys list` shows them")
    if options.action == "create" and not options.name:
        raise BadOption("keys create needs --name, by which people know the key")
    life = None if options.expires is None else seconds("--expires", options.expires)
    grace = seconds("--grace", options.grace)
    with connect(options) as client:
        if options.action == "list":
            _list(client, options)
        elif options.action == "revoke":
            client.admin.revoke_key(options.owner, options.key)
            gone = {"id": options.key, "deleted": True}
            print_json(gone) if options.json else print(f"revoked {options.key}")
        elif options.action == "create":
            scopes = None if options.scopes is None else _items(options.scopes)
            made = client.admin.create_key(
                options.owner, options.name, user=options.user, scopes=scopes, expires_in_s=life
            )
            _show(made, options.json)
        else:
            _show(client.admin.rotate_key(options.owner, options.key, grace_s=grace), options.json)
    return 0


def _list(client: Client, options: argparse.Namespace) -> None:
    keys = client.admin.keys(options.owner)
    if options.json:
        print_json(keys)
    else:
        print_rows(_COLUMNS, map(_cells, keys))


def _cells(key: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        *(key["id"], key["name"], key["redacted_value"], ",".join(key["scopes"])),
        *(short_moment(key["created_at"]), short_moment(key["expires_at"]) or "never"),
        short_moment(key["last_used_at"]) or "never",
    )


def _show(key: Mapping[str, Any], as_json: bool) -> None:
    """A new key. Alone on its line, so that a script can take the last one."""
    if as_json:
        print_json(key)
        return
    print(f"{key['id']} of {key['name']!r} may: {', '.join(key['scopes'])}")
    if "replaces" in key:
        old = key["replaces"]
        print(f"it replaces {old['id']}, which expires {short_moment(old['expires_at'])}")
    print("keep it now, since it is not shown again:")
    print(key["value"])


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
