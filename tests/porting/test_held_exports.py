"""Exports that nobody reads do not fill the disk."""

from pathlib import Path

import pytest

from server.adapters.porting.held_exports import (
    MAX_EXPORTS,
    MAX_EXPORTS_OF_OWNER,
    HeldExports,
)
from server.errors import QueueFull

MIB = 2**20


def test_one_owner_cannot_take_all_places() -> None:
    held = HeldExports(10 * MIB)
    for number in range(MAX_EXPORTS_OF_OWNER):
        held.enter(Path(f"a{number}"), "ann", 0)
    with pytest.raises(QueueFull, match="close their connections") as full:
        held.enter(Path("more"), "ann", 0)
    assert full.value.retry_after_s > 0
    held.enter(Path("b"), "bob", 0)
    held.leave(Path("a0"))
    held.enter(Path("more"), "ann", 0)


def test_all_owners_together_have_a_limit() -> None:
    held = HeldExports(10 * MIB)
    for number in range(MAX_EXPORTS):
        held.enter(Path(str(number)), f"owner{number}", 0)
    with pytest.raises(QueueFull, match=f"{MAX_EXPORTS} in all"):
        held.enter(Path("more"), "another", 0)


def test_the_disk_is_counted_before_an_export_is_made_and_as_it_became() -> None:
    held = HeldExports(10 * MIB)
    held.enter(Path("one"), "ann", 6 * MIB)
    with pytest.raises(QueueFull, match="take 6 MiB of the disk, and this one would take 5 more"):
        held.enter(Path("two"), "bob", 5 * MIB)
    held.resize(Path("one"), 5 * MIB)
    held.enter(Path("two"), "bob", 5 * MIB)
    held.leave(Path("one"))
    held.leave(Path("two"))
    held.enter(Path("large"), "ann", 100 * MIB)  # one alone may be as large as the base model is
