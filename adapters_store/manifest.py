"""An adapter's header, and its name and version. Knows no tensors."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from adapters_store.outside_values import shown, whole_number
from adapters_store.store_errors import AdapterCorrupt, InvalidName

FORMAT_VERSION = 1
STORED_BASIS: Final = "stored/v1"
"""The `basis_spec` of matrices that were imported, and are kept by their hash."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")


def is_name(value: str) -> bool:
    """Whether `value` may name a folder on any system."""
    return _NAME.fullmatch(value) is not None and not value.endswith(".")


def check_name(kind: str, value: str) -> str:
    """Return `value` if it is a name; raise InvalidName otherwise."""
    if not is_name(value):
        raise InvalidName(
            f"{kind} {shown(value)} is not a name: use 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return value


def split_owner(adapter_id: str) -> tuple[str | None, str]:
    """Split OWNER/NAME or OWNER/NAME@VERSION into the owner and the rest; the owner is None where
    the id names none. Raises InvalidName."""
    owner, slash, rest = adapter_id.partition("/")
    return (check_name("owner", owner), rest) if slash else (None, adapter_id)


def parse_adapter_id(adapter_id: str) -> tuple[str, int | None]:
    """Split an id that users write: NAME, whose version is None (the latest), or NAME@VERSION.

    Raises:
        InvalidName: the name or the version cannot exist.
    """
    name, at, version = adapter_id.partition("@")
    check_name("adapter", name)
    if not at:
        return name, None
    number = whole_number(version)
    if not number:
        raise InvalidName(
            f"version {shown(version)} of adapter {name!r} is not a number of 1 or more: write "
            "NAME for the latest version, or NAME@VERSION"
        )
    return name, number


@dataclass(frozen=True, order=True)
class AdapterRef:
    """One immutable version of one owner's adapter; `str()` gives the id that users write."""

    owner: str
    name: str
    version: int

    def __post_init__(self) -> None:
        check_name("owner", self.owner)
        check_name("adapter", self.name)
        if self.version < 1:
            raise InvalidName(f"version {self.version} of {self.name!r} is not 1 or more")

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    def id_for(self, owner: str) -> str:
        """The id that `owner` writes: another's adapter is OWNER/NAME@VERSION."""
        return str(self) if owner == self.owner else f"{self.owner}/{self}"


@dataclass(frozen=True)
class Manifest:
    """The header of an adapter file.

    `targets` are full module paths of the base, sorted; `scale` is the method's one number per
    adapter (VeRA: 1). `options` hold what only one method reads; `provenance` says where it came
    from (job, file, figures), for people. `default_prompt` says whether chats without a system
    message have the one that the chat template writes for them, as in a plain chat with the base.
    """

    method: str
    rank: int
    scale: float
    seed: int
    basis_spec: str
    basis_sha256: str
    base_name: str
    base_fingerprint: str
    targets: tuple[str, ...]
    created_at: int
    options: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    default_prompt: bool = True

    def to_header(self) -> dict[str, str]:
        """As safetensors metadata, whose values are strings: one JSON value per field."""
        return {key: json.dumps(value, sort_keys=True) for key, value in asdict(self).items()}

    @classmethod
    def from_header(cls, header: Mapping[str, str]) -> "Manifest":
        """Read a header back. Raises AdapterCorrupt naming the field at fault."""
        values: dict[str, Any] = {}
        for spec in fields(cls):
            if spec.name in _LATER and spec.name not in header:
                continue
            if spec.name not in header:
                raise AdapterCorrupt(f"the header has no {spec.name!r}: not a Verandah adapter")
            values[spec.name] = _decode(spec.name, header[spec.name])
        if values["format_version"] != FORMAT_VERSION:
            raise AdapterCorrupt(
                f"format version {values['format_version']} is not {FORMAT_VERSION}, the one that "
                "this build reads; upgrade Verandah"
            )
        values["targets"] = tuple(values["targets"])
        return cls(**values)


@dataclass(frozen=True)
class StoredAdapter:
    """One version at rest; `sha256` is its content hash (see `adapters_store.weights`)."""

    ref: AdapterRef
    manifest: Manifest
    path: Path
    size_bytes: int
    sha256: str


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "method": str,
    "rank": int,
    "scale": (int, float),
    "seed": int,
    "basis_spec": str,
    "basis_sha256": str,
    "base_name": str,
    "base_fingerprint": str,
    "targets": list,
    "created_at": int,
    "options": dict,
    "provenance": dict,
    "format_version": int,
    "default_prompt": bool,
}
_LATER: Final = frozenset({"default_prompt"})  # fields that older headers lack


def _decode(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterCorrupt(f"the header's {name!r} is not JSON: {text[:80]!r}") from error
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    kind = _KINDS[name]
    fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    if not fits or not all(isinstance(item, str) for item in items):
        raise AdapterCorrupt(f"the header's {name!r} has the wrong type: {text[:80]!r}")
    return value
