"""Runs a module of the tests as a program: `python -m tests.program MODULE [ARGUMENT ...]`.

Python's collector rests until torch and the like are imported, as in `verandah` itself: else it
would take a quarter of the start.
"""

import gc
import sys
from importlib import import_module


def command(module: str, *arguments: str) -> list[str]:
    """The command line that calls the module's `main`."""
    return [sys.executable, "-m", "tests.program", module, *arguments]


def main() -> None:
    del sys.argv[0]
    gc.disable()
    module = import_module(sys.argv[0])
    gc.freeze()
    gc.enable()
    module.main()


if __name__ == "__main__":
    main()
