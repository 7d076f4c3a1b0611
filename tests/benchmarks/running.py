"""Run a benchmark as `python -m` would, in this process."""

import sys
from types import ModuleType

import pytest


def run(monkeypatch: pytest.MonkeyPatch, module: ModuleType, arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments.split()])
    module.main()


def cells(line: str) -> list[str]:
    """Of one line of a table; of another line, the line."""
    return [cell.strip() for cell in line.split("|")[1:-1]] or [line]
