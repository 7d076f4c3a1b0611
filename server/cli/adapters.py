"""`verandah adapters`: lists, shows, pins and deletes adapters. Knows no files."""

import argparse
import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clients.python import Adapter, Client
from server.cli.options import add_server, connect
from server.config import BadOption

EXAMPLES = """examples:
  verandah adapters                     lists them
  verandah adapters show pirate@2       one version, in full
  verandah adapters pin pirate          keeps it in memory
  verandah adapters unpin pirate
  verandah adapters delete pirate@1     one version
  verandah adapters delete pirate       all versions
"""

_COLUMNS = ("adapter", "version", "method", "rank", "size", "where", "pinned", "created")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", default="list", choices=("list", "show", "pin", "unpin", "delete")
    )
    parser.add_argument("name", nargs="?", help="NAME or NAME@VERSION")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    if options.action != "list" and options.name is None:
        raise BadOption(f"adapters {options.action} needs an adapter: NAME or NAME@VERSION")
    with connect(options) as client:
        _act(client, options.action, options.name)
    return 0


def _act(client: Client, action: str, name: str) -> None:
    console = Console()
    if action == "list":
        console.print(_table(client))
    elif action == "show":
        for key, value in client.adapter(name).raw.items():
            console.print(Text(f"{key:18}{value}"))
    elif action == "delete":
        client.delete(name)
        console.print(Text(f"deleted {name}"))
    else:
        changed = client.pin(name) if action == "pin" else client.unpin(name)
        console.print(Text(f"{changed.id}@{changed.version}: pinned {_yes(changed.pinned)}"))


def _table(client: Client) -> Table:
    table = Table(*_COLUMNS)
    for adapter in client.adapters():
        table.add_row(*(Text(cell) for cell in _cells(adapter)))
    return table


def _cells(adapter: Adapter) -> tuple[str, ...]:
    if adapter.error is not None:
        return (adapter.id, str(adapter.version), "broken", "", "", "", "", adapter.error)
    created = datetime.datetime.fromtimestamp(adapter.created_at or 0)
    return (
        adapter.id,
        f"{adapter.version} of {len(adapter.versions)}",
        adapter.method or "",
        str(adapter.rank),
        f"{(adapter.bytes or 0) / 1024:.1f} KiB",
        adapter.residency,
        _yes(adapter.pinned),
        f"{created:%Y-%m-%d %H:%M}",
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
