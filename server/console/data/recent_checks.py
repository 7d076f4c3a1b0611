"""Remembers the last checks, so that turning the pages of bad lines does not check again."""

from collections import OrderedDict
from typing import Any, Final

from server.console.data.training_choices import TrainingChoices

_MOST: Final = 32  # each with a thousand bad lines of two files, at most

Found = dict[str, Any]


class RecentChecks:
    """Dry runs by who asked for what. Call it on the event loop alone."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str, str], Found] = OrderedDict()

    def keep(self, owner: str, file_id: str, choices: TrainingChoices, found: Found) -> None:
        self._found[owner, file_id, choices.model_dump_json()] = found
        if len(self._found) > _MOST:
            self._found.popitem(last=False)

    def of(self, owner: str, file_id: str, choices: TrainingChoices) -> Found | None:
        """The last answer to the same question, if it is remembered. A file never changes."""
        return self._found.get((owner, file_id, choices.model_dump_json()))
