"""An id is read in one place, by one rule."""

import pytest

from adapters_store.manifest import AdapterRef, parse_adapter_id
from adapters_store.store_errors import InvalidName


@pytest.mark.parametrize(
    ("adapter_id", "name", "version"),
    [
        ("pirate", "pirate", None),
        ("pirate@1", "pirate", 1),
        ("pirate@010", "pirate", 10),
        ("a.b_c-d@" + "9" * 18, "a.b_c-d", 10**18 - 1),
    ],
)
def test_an_id_is_a_name_and_perhaps_a_version(
    adapter_id: str, name: str, version: int | None
) -> None:
    assert parse_adapter_id(adapter_id) == (name, version)


ODD_VERSIONS = ("", "@1", "0", "-1", "+1", "1.0", "1e3", " 1", "1 ", "x", "1_0", "9" * 30)
OTHER_DIGITS = ("\u0661", "\u00b2")  # an Arabic one, a superscript two


@pytest.mark.parametrize("version", [*ODD_VERSIONS, *OTHER_DIGITS])
def test_a_version_is_a_plain_number_of_one_or_more(version: str) -> None:
    with pytest.raises(InvalidName, match="number of 1 or more"):
        parse_adapter_id(f"pirate@{version}")


@pytest.mark.parametrize("adapter_id", ["", "@", "@1", "../pirate", "pi rate@1", "a" * 65, "ö@1"])
def test_a_name_may_name_a_folder(adapter_id: str) -> None:
    with pytest.raises(InvalidName, match="is not a name"):
        parse_adapter_id(adapter_id)


def test_what_a_reference_writes_is_read_back() -> None:
    ref = AdapterRef("ann", "pirate", 12)
    assert parse_adapter_id(str(ref)) == (ref.name, ref.version)
