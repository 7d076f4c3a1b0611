"""A small VeRA adapter's header, for tests that read none of its numbers."""

from dataclasses import replace
from typing import Any

from adapters_store.manifest import Manifest

_SMALL = Manifest(
    method="vera",
    rank=4,
    scale=1.0,
    seed=7,
    basis_spec="philox4x64-10/s8/v1",
    basis_sha256="0" * 64,
    base_name="tiny",
    base_fingerprint="f" * 64,
    targets=("q",),
    created_at=1_700_000_000,
)


def small_manifest(**changes: Any) -> Manifest:
    """A header like all others but for `changes`."""
    return replace(_SMALL, **changes)
