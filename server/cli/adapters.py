"""`verandah adapters`: lists, shows, shares, copies, pins and deletes adapters. Knows no files."""

import argparse
from collections.abc import Callable, Mapping, Sequence

from clients.python import Adapter, Client
from server.cli.arguments.server_address import add_server, connect
from server.cli.display.output import moment, print_fields, print_json, print_rows, short_moment
from server.config import BadOption

EXAMPLES = """examples:
  verandah adapters                     lists them
  verandah adapters show pirate@2       one version, in full
  verandah adapters pin pirate          keeps it in memory: only for the server's admin
  verandah adapters unpin pirate
  verandah adapters share pirate --with team-b --to copy      or: --with all --to use
  verandah adapters shares              lists what you share, and what others share with you
  verandah adapters unshare pirate --with team-b
  verandah adapters copy team-b/pirate --as mine              of an adapter shared to copy
  verandah adapters delete pirate@1     one version
  verandah adapters delete pirate       all versions
"""

_ACTIONS = (*("list", "show", "pin", "unpin", "delete", "share", "unshare", "shares", "copy"),)
_SHARE_COLUMNS = "adapter", "owner", "with", "to", "since"
_COLUMNS = (
    "adapter", "latest", "versions", "method", "rank", "size", "where", "pinned", "created",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=_ACTIONS)
    parser.add_argument("name", nargs="?", help="NAME or NAME@VERSION, or OWNER/NAME")
    parser.add_argument(
        "--with", dest="whom", metavar="OWNER", help="with whom to share: an owner, or all"
    )
    parser.add_argument("--to", default="use", choices=("use", "copy"), help="what they may (use)")
    parser.add_argument("--as", dest="copy", metavar="NAME", help="what a copy is called")
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    action = options.action
    if action not in ("list", "shares") and not options.name:
        raise BadOption(f"adapters {action} needs an adapter: NAME or NAME@VERSION")
    if action in ("share", "unshare") and not options.whom:
        raise BadOption(f"adapters {action} needs --with: an owner, or all")
    if action == "copy" and not options.copy:
        raise BadOption("adapters copy needs --as: what the copy is called")
    with connect(options) as client:
        if action == "list":
            _list(client, options.json)
        elif action in _SHARING:
            _SHARING[action](client, options)
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


def _share(client: Client, options: argparse.Namespace) -> None:
    share = client.share(options.name, options.whom, options.to)
    told = f"{share.adapter} is shared with {share.raw['with']} to {share.to}"
    print_json(share.raw) if options.json else print(told)


def _unshare(client: Client, options: argparse.Namespace) -> None:
    found = [it for it in client.shares(options.name) if it.raw["with"] == options.whom.casefold()]
    if not found:
        raise BadOption(
            f"adapter {options.name} is not shared with {options.whom}: `verandah adapters shares` "
            "lists what is"
        )
    client.end_share(found[0].id)
    ended = {"id": found[0].id, "deleted": True}
    told = f"{options.name} is no longer shared with {options.whom}"
    print_json(ended) if options.json else print(told)


def _shares(client: Client, options: argparse.Namespace) -> None:
    shares = [*client.shares(options.name), *client.shares(received=True)]
    if options.json:
        print_json([share.raw for share in shares])
        return
    print_rows(
        _SHARE_COLUMNS,
        (
            (it.adapter, it.owner, it.raw["with"], it.to, short_moment(it.raw["created_at"]))
            for it in shares
        ),
    )


def _copy(client: Client, options: argparse.Namespace) -> None:
    adapter = client.copy(options.name, options.copy)
    print_json(adapter.raw) if options.json else print(f"{options.name} is copied to {adapter.id}")


_SHARING: Mapping[str, Callable[[Client, argparse.Namespace], None]] = {
    **{"share": _share, "unshare": _unshare, "shares": _shares, "copy": _copy},
}


def _cells(adapter: Adapter) -> tuple[str, ...]:
    versions = adapter.id, str(adapter.version), _listed(adapter.versions)
    if adapter.error is not None:
        return (*versions, "broken", "", "", "", "", adapter.error)
    return (
        *versions,
        adapter.method or "",
        str(adapter.rank),
        f"{(adapter.bytes or 0) / 1024:.0f} KiB",
        adapter.residency or f"shared to {adapter.shared}",
        _yes(adapter.pinned),
        short_moment(adapter.created_at),
    )


def _listed(versions: Sequence[int]) -> str:
    """All of a few, else the first and the last."""
    few = [*map(str, versions)]
    return ", ".join(few if len(few) < 5 else [few[0], "...", few[-1]])


def _yes(value: bool) -> str:
    return "yes" if value else "no"
