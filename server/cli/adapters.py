"""`verandah adapters`: lists, shows, pins and deletes adapters. Knows no files."""

import argparse
from collections.abc import Sequence

from clients.python import Adapter, Client
from server.cli.arguments.server_address import add_server, connect
from server.cli.display.output import moment, print_fields, print_json, print_rows, short_moment
from server.config import BadOption

EXAMPLES = """examples:
  verandah adapters                     lists them
  verandah adapters show pirate@2       one version, in full
  verandah adapters pin pirate          keeps it in memory
  verandah adapters unpin pirate
  verandah adapters delete pirate@1     one version
  verandah adapters delete pirate       all versions
"""

_COLUMNS = (
    "adapter", "latest", "versions", "method", "rank", "size", "where", "pinned", "created",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", default="list", choices=("list", "show", "pin", "unpin", "delete")
    )
    parser.add_argument("name", nargs="?", help="NAME or NAME@VERSION")
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    if options.action != "list" and not options.name:
        raise BadOption(f"adapters {options.action} needs an adapter: NAME or NAME@VERSION")
    with connect(options) as client:
        if options.action == "list":
            _list(client, options.json)
        elif options.action == "delete":
            client.delete(options.name)
            deleted = {"id": options.name, "deleted": True}
            print_json(deleted) if options.json else print(f"deleted {options.name}")
        else:
            _show(client, options)
    return 0


def _list(client: Client, as_json: bool) -> None:
    adapters = client.adapters()
    if as_json:
        print_json([adapter.raw for adapter in adapters])
    else:
        print_rows(_COLUMNS, map(_cells, adapters))


def _show(client: Client, options: argparse.Namespace) -> None:
    """Show one adapter, after it was pinned or unpinned if that was asked for."""
    actions = {"show": client.adapter, "pin": client.pin, "unpin": client.unpin}
    adapter = actions[options.action](options.name)
    if options.json:
        print_json(adapter.raw)
    elif options.action == "show":
        print_fields({**adapter.raw, "created_at": moment(adapter.created_at) or None})
    else:
        print(f"{adapter.id}@{adapter.version}: pinned {_yes(adapter.pinned)}")


def _cells(adapter: Adapter) -> tuple[str, ...]:
    versions = adapter.id, str(adapter.version), _listed(adapter.versions)
    if adapter.error is not None:
        return (*versions, "broken", "", "", "", "", adapter.error)
    return (
        *versions,
        adapter.method or "",
        str(adapter.rank),
        f"{(adapter.bytes or 0) / 1024:.0f} KiB",
        adapter.residency,
        _yes(adapter.pinned),
        short_moment(adapter.created_at),
    )


def _listed(versions: Sequence[int]) -> str:
    """All of a few, else the first and the last."""
    few = [*map(str, versions)]
    return ", ".join(few if len(few) < 5 else [few[0], "...", few[-1]])


def _yes(value: bool) -> str:
    return "yes" if value else "no"
