"""`verandah usage`: shows what owners, users, keys and models of a running server have used."""

import argparse
import time
from datetime import UTC, date, datetime
from itertools import chain

from clients.python import Client
from server.api.organization import usage_table
from server.api.organization.usage_table import GROUPS
from server.cli.arguments.server_address import add_server, connect
from server.cli.display.output import print_json, print_rows
from server.config import BadOption

EXAMPLES = """examples:
  verandah usage                                   each owner, by the day, of the last 7 days
  verandah usage --by owner,model --owner team-a   what team-a used of each model
  verandah usage --from 2026-11-01 --to 2026-12-01 --csv > november.csv
  verandah usage --days 1 --hourly

Days and hours are UTC's. It asks for the key of the server's admin, or of an owner with the scope
`usage.read`, which sees its own alone: VERANDAH_API_KEY or --api-key.
"""

_DAY_S = 86_400


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--by", default="owner", help=f"what to count apart, with commas: {', '.join(GROUPS)}"
    )
    parser.add_argument("--owner", help="only of this owner")
    parser.add_argument("--days", type=int, default=7, help="show this many days up to now (7)")
    parser.add_argument("--from", dest="since", help="from this day on, as 2026-11-01")
    parser.add_argument("--to", dest="until", help="to the end of the day before this one")
    parser.add_argument("--hourly", action="store_true", help="by the hour, not by the day")
    parser.add_argument("--csv", action="store_true", help="print it as CSV")
    parser.add_argument("--json", action="store_true", help="print the server's buckets as JSON")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    groups = [name.strip() for name in options.by.split(",") if name.strip()]
    wrong = next((name for name in groups if name not in GROUPS), None)
    if wrong is not None:
        raise BadOption(f"--by {wrong!r} is not one of {', '.join(GROUPS)}")
    if not 1 <= options.days <= 3660:
        raise BadOption(f"--days {options.days} is not between 1 and 3660")
    now = int(time.time())
    until = now + 1 if options.until is None else _midnight("--to", options.until)
    today = now // _DAY_S * _DAY_S
    first = today - (options.days - 1) * _DAY_S
    since = first if options.since is None else _midnight("--from", options.since)
    with connect(options) as client:
        _show(client, options, groups, since, until)
    return 0


def _show(
    client: Client, options: argparse.Namespace, groups: list[str], since: int, until: int
) -> None:
    buckets = client.admin.usage(
        since,
        until,
        width="1h" if options.hourly else "1d",
        group_by=[GROUPS[name] for name in groups],
        owners=None if options.owner is None else [options.owner],
    )
    if options.json:
        print_json([*buckets])
        return
    table = usage_table.rows(buckets, groups, hourly=options.hourly)
    if not options.csv:
        print_rows(usage_table.columns(groups), table)
        return
    for row in chain([usage_table.columns(groups)], table):
        print(usage_table.csv_text([row]), end="")


def _midnight(option: str, text: str) -> int:
    try:
        day = date.fromisoformat(text)
        return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    except ValueError as error:
        raise BadOption(f"{option} {text!r} is not a day: write it as 2026-11-01") from error
