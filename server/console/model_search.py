"""Finds models by a part of their id, among thousands. Knows no page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound, InvalidName
from server.api.app_services import Services
from server.api.model_lookup import ids_after, parse_owned_id

MOST_FOUND: Final = 20


@dataclass(frozen=True)
class FoundModels:
    """The first ids that fit, and how many do."""

    ids: Sequence[str]
    total: int


def find_models(services: Services, owner: str, text: str) -> FoundModels:
    """Adapters whose id holds `text`, those that begin with it first. NAME@ finds the versions of
    an adapter, the newest first. Reads the disk."""
    name, at, version = text.strip().partition("@")
    if at:
        found = [
            it for it in _versions(services, owner, name) if it.startswith(f"{name}@{version}")
        ]
    else:
        part = name.casefold()
        ids = [it for it in ids_after(services, owner, None) if it != services.base.id]
        found = [it for it in ids if part in it.casefold()]
        found.sort(key=lambda it: not it.casefold().startswith(part))
    return FoundModels(found[:MOST_FOUND], len(found))


def _versions(services: Services, owner: str, listed: str) -> list[str]:
    try:
        of, name, _, right = parse_owned_id(services, owner, listed)
        versions = services.adapters.versions(of, name)
        aside = () if right == "own" else services.adapters.aside(of, name)
    except (AdapterNotFound, AdapterCorrupt, InvalidName):
        return []
    return [f"{listed}@{it}" for it in reversed(versions) if it not in aside]
