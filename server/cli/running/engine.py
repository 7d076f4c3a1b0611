"""`verandah engine`: runs one engine for the server that started it. Knows no HTTP."""

import argparse

from server.cli.arguments.options import add_settings, read_fields, set_log_level
from server.config import Settings
from server.wiring.process import exit_on_sigterm, slow_imports

EXAMPLES = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connect", required=True, help="the address of the server's connection")
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    exit_on_sigterm()
    settings = read_fields(options, Settings)
    set_log_level(settings)
    with slow_imports():
        from server.cli.running.engine_child import run_engine

    run_engine(settings, options.connect)
    return 0
