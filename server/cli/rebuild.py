"""`verandah rebuild`: makes a new database for a home that has lost its own. Knows no HTTP."""

import argparse

from server.cli.arguments.options import add_settings, read_fields, set_log_level
from server.config import Settings
from server.tenancy.principal import DEFAULT_OWNER
from server.wiring.process import say, slow_imports

EXAMPLES = """examples:
  verandah rebuild --home /data

Stop servers and workers first, and restore a backup of the database if there is one: jobs, their
events and the names of files are only there. Adapters need no rows. A damaged database must be
moved away, with its -wal and -shm.
"""

add_options = add_settings


def run(options: argparse.Namespace) -> int:
    settings = read_fields(options, Settings)
    set_log_level(settings)
    with slow_imports():
        from server.wiring.homes import rebuilt_home

    with rebuilt_home(settings) as records:
        adopted = records.files.adopt(DEFAULT_OWNER)
        adapters = [name for owner in records.store.owners() for name in records.store.names(owner)]
        for file_id in adopted:
            print(file_id)
    say(f"{len(adopted)} files got new rows; {len(adapters)} adapters are there and need none")
    return 0
