"""`verandah worker`: trains waiting jobs; several may share a home. Knows no HTTP."""

import argparse

from server.cli.arguments.options import add_settings, read_fields, set_log_level
from server.config import Settings
from server.loop_progress import StepProgress
from server.wiring.default_base import with_base
from server.wiring.process import end_when_hung, say, slow_imports
from server.wiring.start_checks import check_settings

EXAMPLES = """examples:
  verandah worker                                  trains for a server with the same home
  verandah serve --no-worker                       a server without a worker
  VERANDAH_HOME=/data verandah worker --device cuda
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    settings = with_base(read_fields(options, Settings), say)
    set_log_level(settings)
    progress = StepProgress("the start of the worker")
    end_when_hung(progress, supervised=options.supervised)
    if options.supervised:  # a server has checked them, and spoken
        from server.cli.running.idle_worker import wait_for_job

        wait_for_job(settings, progress)
    else:
        check_settings(settings)
        say(f"starting a training worker of {settings.model}, for the home {settings.home_path}")
    with slow_imports():
        from server.cli.running.training_worker import run_until_stopped

    return run_until_stopped(settings, progress, supervised=options.supervised)
