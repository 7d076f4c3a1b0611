"""`verandah`, or `python -m server`: finds a command and reads its options. Does no work itself."""

import argparse
import importlib
import io
import logging
import sys
from collections.abc import Sequence

from adapters_store.store_errors import StoreError
from clients.python.client_errors import ClientError
from server.config import BadOption
from server.errors import VerandahError

_COMMANDS = {
    "serve": "serve the base model and its adapters, and train new ones",
    "worker": "train waiting jobs, without serving",
    "demo": "train two adapters and compare their answers",
    "train": "train an adapter from a file, on a running server",
    "chat": "talk to a model of a running server",
    "methods": "show how much each method trains, for any base model, without its weights",
    "inspect": "show what an adapter changed in its base, and how similar two adapters are",
    "import": "send an adapter that PEFT saved to a running server",
    "export": "save an adapter of a running server for PEFT, vLLM or transformers",
    "adapters": "list, show, pin and delete the adapters of a running server",
}

_ENGINE = "engine"  # started by servers, not by users, so it is not listed

_MODULES = {"import": "import_"}  # a module may not be named by a keyword

_EXAMPLES = """examples:
  verandah demo                          see it train two adapters and answer
  verandah serve --port 8000             then, in another terminal:
  verandah train examples/pirate.jsonl
  verandah chat --model pirate

`verandah COMMAND --help` shows each command's options and more examples.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the process's status: 0 done, 1 failed, 2 a wrong option."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        "verandah",
        description="One base model, thousands of personal adapters.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    commands.add_parser(_ENGINE)
    name = arguments[0] if arguments else ""
    if name in commands.choices:  # only this one is imported: some take seconds
        module = importlib.import_module(f"server.cli.{_MODULES.get(name, name)}")
        command = commands.choices[name]
        command.epilog = module.EXAMPLES
        module.add_options(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack characters of an answer
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return int(options.run(options))
    except (VerandahError, StoreError, ClientError, BadOption, OSError) as error:
        print(f"verandah: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadOption) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
