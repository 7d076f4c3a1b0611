"""`verandah owners`: lists, makes and archives the owners of a running server."""

import argparse

from clients.python import Client
from server.cli.arguments.server_address import add_server, connect
from server.cli.display.output import print_json, print_rows, short_moment
from server.config import BadOption

EXAMPLES = """examples:
  verandah owners                       lists them
  verandah owners create team-a         then: verandah keys create --owner team-a --name laptop
  verandah owners archive team-a        refuses its keys; nothing is deleted

It asks for the key of the server's admin: VERANDAH_API_KEY or --api-key.
"""

_COLUMNS = ("owner", "name", "status", "created")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=("list", "create", "archive"))
    parser.add_argument("owner", nargs="?", help="the name of a new owner, or an owner's id")
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    if options.action != "list" and not options.owner:
        raise BadOption(f"owners {options.action} needs an owner, such as team-a")
    with connect(options) as client:
        if options.action == "list":
            _list(client, options.json)
        else:
            admin = client.admin
            act = admin.create_owner if options.action == "create" else admin.archive_owner
            owner = act(options.owner)
            print_json(owner) if options.json else print(f"{owner['id']}: {owner['status']}")
    return 0


def _list(client: Client, as_json: bool) -> None:
    owners = client.admin.owners()
    if as_json:
        print_json(owners)
        return
    cells = ((it["id"], it["name"], it["status"], short_moment(it["created_at"])) for it in owners)
    print_rows(_COLUMNS, cells)
