"""Usage as a table, for the command and the console: one row for each bucket and group."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

GROUPS: Final = {"owner": "project_id", "user": "user_id", "key": "api_key_id", "model": "model"}
"""What can be counted apart, as people call it and as the API does."""
COUNTS: Final = {
    "requests": "num_model_requests",
    "refused": "num_refused_requests",
    "prompt": "input_tokens",
    "cached": "input_cached_tokens",
    "completion": "output_tokens",
    "training": "training_tokens",
}

Bucket = Mapping[str, Any]


def columns(groups: Sequence[str]) -> list[str]:
    """The names of the columns."""
    return ["from", *groups, *COUNTS]


def rows(buckets: Iterable[Bucket], groups: Sequence[str], *, hourly: bool) -> Iterator[list[str]]:
    """The rows of the API's buckets, which were grouped by `groups`."""
    form = "%Y-%m-%dT%H:%MZ" if hourly else "%Y-%m-%d"
    for bucket in buckets:
        begins = datetime.fromtimestamp(bucket["start_time"], UTC).strftime(form)
        for result in bucket["results"]:
            names = [result[GROUPS[name]] or "-" for name in groups]
            yield [begins, *names, *(str(result[field]) for field in COUNTS.values())]


def csv_text(lines: Iterable[Sequence[str]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
