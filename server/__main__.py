"""`verandah`, or `python -m server`: finds a command and reads its options. Does no work itself."""

import importlib
import io
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from types import ModuleType

from server.cli.arguments.command_parser import CommandParser, nearest

_COMMANDS = {
    "serve": "serve the base model and its adapters, and train new ones",
    "worker": "train waiting jobs, without serving",
    "demo": "train three adapters, and compare their answers with the base's",
    "fetch": "bring a base model that has a short name to this machine, or list them",
    "train": "train an adapter from a file, on a running server",
    "jobs": "list, show, follow, cancel, pause and resume the training jobs of a running server",
    "chat": "talk to a model of a running server",
    "methods": "show how much each method trains, for any base model, without its weights",
    "inspect": "show what an adapter changed in its base, and how similar two adapters are",
    "import": "send an adapter that PEFT saved to a running server",
    "export": "save an adapter of a running server for PEFT, vLLM or transformers",
    "rebuild": "make a new database for a home that has lost its own",
    "login": "sign in to a running server by a browser, and keep a key",
    "logout": "give back the key that login got",
    "owners": "list, make, limit, archive and delete the owners of a running server",
    "keys": "make, list, replace and revoke the API keys of a running server",
    "usage": "show what owners, keys and models of a running server have used",
    "adapters": "list, show, share, copy, pin and delete the adapters of a running server",
}

_ENGINE = "engine"  # started by servers, not by users, so it is not listed

# A module may not be named by a keyword, and no two modules have the same name.
_MODULES = {
    "import": "import_",
    "keys": "tenants.key_command",
    "login": "signing_in.login",
    "logout": "signing_in.logout",
    "owners": "tenants.owner_command",
    "usage": "tenants.usage_command",
    _ENGINE: "running.engine",
}

_EXAMPLES = """examples:
  verandah demo                          see it train three adapters and answer
  verandah serve --port 8000             then, in another terminal:
  verandah train examples/pirate.jsonl
  verandah chat --model pirate

`verandah COMMAND --help` shows each command's options and more examples.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the process's status: 0 done, 1 failed, 2 a wrong argument, 130
    Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else ""
    if name not in _COMMANDS and name != _ENGINE:
        _without_command(arguments)
    module = _module(name)  # only this one is imported
    summary = _COMMANDS.get(name, name)
    parser = CommandParser(
        f"verandah {name}", summary[0].upper() + summary[1:] + ".", epilog=module.EXAMPLES
    )
    module.add_options(parser)
    options = parser.parse(arguments[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack characters of an answer
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if name != _ENGINE and not getattr(options, "supervised", False):  # their server has warned
        _warn_of_unknown_variables()
    try:
        return int(module.run(options))
    except BrokenPipeError:  # whoever read the output has enough: `verandah jobs list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _expected_errors() as error:
        return _report(error)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"server.cli.{_MODULES.get(name, name)}")


def _without_command(arguments: Sequence[str]) -> None:
    """Show the help or the version, or exit with what is wrong."""
    listed = "\n".join(f"  {name:10}{summary}" for name, summary in _COMMANDS.items())
    parser = CommandParser(
        "verandah",
        f"One base model, thousands of personal adapters.\n\ncommands:\n{listed}",
        epilog=_EXAMPLES,
        usage="verandah COMMAND [options]",
    )
    parser.add_argument("--version", action="version", version=f"verandah {version('verandah')}")
    parser.parse_known_args(arguments)
    if not arguments:
        parser.error("name a command, such as `verandah serve`")
    first = arguments[0]
    if first.startswith("-"):
        parser.error(f"unknown option {first}: name the command first, and then its options")
    parser.error(f"unknown command {first!r}{nearest(first, _COMMANDS)}")


def _warn_of_unknown_variables() -> None:
    from server.cli.arguments.variables import unknown_variables

    def others() -> Iterable[type]:
        """The options that commands have besides the settings."""
        found = (getattr(_module(name), "FIELDS", None) for name in _COMMANDS)
        return (kind for kind in found if kind is not None)

    for sentence in unknown_variables(os.environ, others):
        print(f"verandah: warning: {sentence}", file=sys.stderr, flush=True)


def _expected_errors() -> tuple[type[Exception], ...]:
    """The errors that are one sentence each. Imported once there is an error."""
    from adapters_store.store_errors import StoreError
    from clients.python.client_errors import ClientError
    from server.config import BadOption
    from server.errors import VerandahError

    return VerandahError, StoreError, ClientError, BadOption, OSError


def _report(error: Exception) -> int:
    """Tell an expected error. Returns the process's status."""
    from clients.python.client_errors import ApiError
    from server.config import BadOption

    message = str(error)
    if isinstance(error, ApiError) and error.problems:
        from server.cli.display.output import problem_lines

        kind = "validation file" if error.param == "validation_file" else "training file"
        what = f"the {kind} was refused: {message.partition('.')[0]}"
        if len({problem.get("param") for problem in error.problems}) > 1:
            what = "both files were refused"
        message = f"{what}\n{problem_lines(error.problems)}"
    if isinstance(error, ApiError) and error.status == 401:
        message = (
            "the server asks for its API key: give it with --api-key, or in the variable "
            f"VERANDAH_API_KEY, or run `verandah login` ({message.partition(':')[0]})"
        )
    print(f"verandah: {message}", file=sys.stderr)
    return 2 if isinstance(error, BadOption) else 1


if __name__ == "__main__":
    sys.exit(main())
