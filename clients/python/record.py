"""The base of the records that hold a document of the server. Knows no document."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Record:
    """A document's fields, by their names; a field `raw` is the whole document."""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """Read a document."""
        return cls._read(raw)

    @classmethod
    def _read(cls, raw: Mapping[str, Any], **replaced: object) -> Self:
        """Read all fields but those in `replaced`. A field with a default may be absent."""
        values: dict[str, Any] = {**raw, "raw": raw, **replaced}
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})
