"""`verandah owners`: lists, makes, limits, archives and deletes the owners of a running server."""

import argparse
import math
import time
from collections.abc import Mapping
from typing import Any

from clients.python import Client
from server.cli.arguments.server_address import add_server, connect
from server.cli.display.output import print_json, print_rows, short_moment
from server.config import BadOption

EXAMPLES = """examples:
  verandah owners                       lists them
  verandah owners create team-a         then: verandah keys create --owner team-a --name laptop
  verandah owners limits team-a         shows what it may use
  verandah owners limits team-a --requests-a-minute 600 --tokens-a-minute 100000 --files 50
  verandah owners limits team-a --files none --weight server   no limit; the server's own again
  verandah owners archive team-a        refuses its keys; nothing is deleted
  verandah owners delete team-a --yes   deletes it with everything of it, and waits for the end
  verandah owners delete team-a --export team-a-2026 --yes
                                        copies adapters and files before, to HOME/exports
  verandah owners deletion team-a       how far that is

It asks for the key of the server's admin: VERANDAH_API_KEY or --api-key.
"""

_POLL_S = 0.5
_COLUMNS = ("owner", "name", "status", "created")
_LIMITS = {
    "requests_a_minute": "model requests in a minute",
    "tokens_a_minute": "tokens of prompts and answers in a minute",
    "requests_at_once": "model requests that run at once",
    "adapters": "adapters",
    "files": "files",
    "stored_bytes": "bytes of files and adapters",
    "running_jobs": "jobs that train at once, others wait",
    "waiting_jobs": "jobs that wait or are paused",
    "training_tokens_a_day": "tokens that jobs train in a day",
    "weight": "share of the engine beside others (usually 1)",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    actions = ("list", "create", "limits", "archive", "delete", "deletion")
    parser.add_argument("action", nargs="?", default="list", choices=actions)
    parser.add_argument("owner", nargs="?", help="the name of a new owner, or an owner's id")
    parser.add_argument(
        "--export",
        metavar="FOLDER",
        help="with delete: copy all to a new folder of this name in HOME/exports",
    )
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    group = parser.add_argument_group("limits", "a number, none, or server for the server's own")
    for name, what in _LIMITS.items():
        group.add_argument(_flag(name), help=what, metavar="N")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    if options.action != "list" and not options.owner:
        raise BadOption(f"owners {options.action} needs an owner, such as team-a")
    if options.action == "delete" and not options.yes:
        raise BadOption(
            f"owners delete {options.owner} removes its adapters, files, jobs and keys for ever: "
            "give --yes if that is meant"
        )
    limits = _sent_limits(options)
    if limits and options.action != "limits":
        raise BadOption(f"{_flag(next(iter(limits)))} goes with `owners limits OWNER` alone")
    with connect(options) as client:
        if options.action == "list":
            _list(client, options.json)
        elif options.action == "delete":
            _delete(client, options)
        elif options.action == "deletion":
            _show_deletion(client.admin.deletion(options.owner), options.json)
        elif options.action == "limits":
            admin, owner = client.admin, options.owner
            _show(admin.limit_owner(owner, limits) if limits else admin.owner(owner), options.json)
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


def _show(owner: Mapping[str, Any], as_json: bool) -> None:
    limits = owner["limits"]
    if as_json:
        print_json(limits)
        return
    cells = ((name, f"{limits[name]:,}" if limits[name] else "none") for name in _LIMITS)
    print_rows(("limit", owner["id"]), cells)


def _sent_limits(options: argparse.Namespace) -> Mapping[str, float | None]:
    given = {name: getattr(options, name) for name in _LIMITS}
    return {name: _number(name, text) for name, text in given.items() if text is not None}


def _number(name: str, text: str) -> float | None:
    if text == "server":
        return None
    if name != "weight" and (text == "none" or (text.isascii() and text.isdigit())):
        return 0 if text == "none" else int(text)
    try:
        number = float(text) if name == "weight" else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        kinds = "a number" if name == "weight" else "a whole number, none"
        raise BadOption(f"{_flag(name)} {text!r} is no limit: give {kinds} or server")
    return number


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _delete(client: Client, options: argparse.Namespace) -> None:
    """Begin, and tell of each step until the end. Whoever interrupts it stops only the telling."""
    deletion = client.admin.delete_owner(options.owner, export=options.export)
    told = ""
    while not deletion["deleted"]:
        if not options.json and told != deletion["step"]:
            told = deletion["step"]
            _show_deletion(deletion, as_json=False)
        time.sleep(_POLL_S)
        deletion = client.admin.deletion(options.owner)
    _show_deletion(deletion, options.json)


def _show_deletion(deletion: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(deletion)
    elif deletion["deleted"]:
        print(f"{deletion['id']}: deleted", flush=True)
    else:
        left = ", ".join(f"{count} {what}" for what, count in deletion["left"].items())
        print(f"{deletion['id']}: {deletion['step']} ({left} left)", flush=True)
