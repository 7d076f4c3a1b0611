"""Chooses the base model of a server that names none, by its home."""

import contextlib
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

from adapters_store.store_errors import StoreError
from server.bases.short_names import PORCH, PREFERRED, SHORT_NAMES, ShortName, file_of, name_of
from server.config import AUTO, Settings

_MOST: Final = 1000  # adapters whose headers are read


def with_base(
    settings: Settings,
    say: Callable[[str], None],
    bring: Callable[[ShortName], None] = lambda _row: None,
) -> Settings:
    """The settings with a base model: the one that they name, or else

    1. the one that the home's adapters are of, because no other can serve them (Porch, if there are
       adapters of several);
    2. the preferred one of the short names, if it was fetched; `bring` may fetch it now;
    3. Porch, which is always here.

    Says which was taken, and why.
    """
    if settings.model != AUTO:
        return settings
    adapters = _bases_in(settings.home_path / "adapters")
    own = next((name for name in (PORCH, *SHORT_NAMES) if adapters[name]), None)
    if own is None:
        bring(SHORT_NAMES[PREFERRED])
    if own is not None:
        model, why = own, "the home has adapters of it"
    elif file_of(SHORT_NAMES[PREFERRED]) is not None:
        model, why = PREFERRED, "no --model was given, and this is here"
    else:
        model = PORCH
        why = f"no --model was given; for a better one than this toy: verandah fetch {PREFERRED}"
    say(f"the base model is {model}: {why}")
    for name in sorted(adapters.keys() - {model}):
        say(
            f"{adapters[name]} of the home's adapters are of the base {name!r} and cannot answer "
            "on this one: give theirs with --model to use them"
        )
    return settings.model_copy(update={"model": model})


def _bases_in(folder: Path) -> "Counter[str]":
    """How many of a home's adapters are of which base. Reads their headers, up to a thousand."""
    found: Counter[str] = Counter()
    with contextlib.suppress(OSError):  # whoever opens the home says what is wrong with it
        if not folder.is_dir():
            return found
        from adapters_store.store import AdapterStore  # imports torch

        store = AdapterStore(folder)
        names = ((owner, name) for owner in store.owners() for name in store.names(owner))
        for owner, name in islice(names, _MOST):
            with contextlib.suppress(StoreError):  # damaged, or it has checkpoints alone
                manifest = store.open(store.resolve(owner, name)).manifest
                found[name_of(manifest.base_fingerprint) or manifest.base_name] += 1
    return found
