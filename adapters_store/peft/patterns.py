"""Matches the patterns of a config with module paths, as PEFT does, but in bounded time.

A pattern is somebody else's program. Python's `re` may need for ever to run one, and stops all
threads meanwhile. RE2 needs time that is linear in the path, but lacks look-arounds,
back-references and repeats of over 1,000 times. Patterns with these are refused. So are the few
that RE2 would read otherwise than `re`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import re2

from adapters_store.store_errors import InvalidCheckpoint

MAX_PATTERNS: Final = 4096
MAX_LENGTH: Final = 256
MAX_EXPRESSIONS: Final = 64
"""Of the patterns, so many may be more than a module path: those cost the most time."""

_TOGETHER: Final = 16  # patterns that are matched at once
_MAX_MEMORY: Final = 2**20  # bytes, of one such set
_PATH: Final = re.compile(r"\^?[\w-]+(?:\\?\.[\w-]+)*", re.ASCII)
# RE2 reads these otherwise: a text, a class of characters, and (from \10 on) an octal number.
_OTHERWISE: Final = re.compile(r"\{,|\[:|\\[1-9]")
_SUPPORTED: Final = (
    "look-arounds, back-references, possessive repeats, repeats of over 1000 times, "
    "'{,n}', '[:class:]' and '\\Z' are not supported: write module paths, or a simpler pattern"
)


def numbers_by_module(
    field: str, numbers: Mapping[str, float], paths: Collection[str], default: float
) -> dict[str, float]:
    """For each path the number of the first pattern that matches it, or the end of it, as in PEFT.

    PEFT's `get_pattern_key`: `re.match(rf"(.*\\.)?({pattern})$", path)`.

    Raises:
        InvalidCheckpoint: a pattern that is not supported, or too many; named with the field.
    """
    patterns = list(numbers)
    _check(field, patterns)
    found: dict[str, float] = {}
    for start in range(0, len(patterns), _TOGETHER):
        some = patterns[start : start + _TOGETHER]
        matcher = _matcher(field, some)
        for path in paths:
            if path in found:
                continue
            hits = matcher.Match(path)
            if not hits:  # not even the last pattern, which matches everything: out of memory
                raise _too_large(field, some)
            if min(hits) < len(some):
                found[path] = numbers[some[min(hits)]]
    return dict.fromkeys(paths, default) | found


def _check(field: str, patterns: Sequence[str]) -> None:
    """Refuse by length, number and form, before anything is compiled."""
    if len(patterns) > MAX_PATTERNS:
        raise InvalidCheckpoint(
            f"{field} has {len(patterns)} patterns, over the {MAX_PATTERNS} that are read: write "
            "patterns that match several modules each"
        )
    expressions = [pattern for pattern in patterns if not _PATH.fullmatch(pattern)]
    if len(expressions) > MAX_EXPRESSIONS:
        raise InvalidCheckpoint(
            f"{field} has {len(expressions)} regular expressions, over the {MAX_EXPRESSIONS} that "
            "are read: write module paths, which may be more"
        )
    for pattern in patterns:
        if len(pattern) > MAX_LENGTH:
            raise InvalidCheckpoint(
                f"{field} has the pattern {pattern[:80]!r}... of {len(pattern)} characters, over "
                f"the {MAX_LENGTH} that are read: write a shorter one"
            )
        if _OTHERWISE.search(pattern):
            raise InvalidCheckpoint(f"{field} has the pattern {pattern!r}; {_SUPPORTED}")


def _matcher(field: str, patterns: Sequence[str]) -> Any:
    """A set of the patterns and, last, one that matches everything."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    matcher = re2.Set.MatchSet(options)
    for pattern in patterns:
        whole = rf"(.*\.)?({pattern})$"
        try:
            re2.compile(whole, options)  # the set itself would not say what is wrong
        except (re2.error, UnicodeEncodeError) as error:
            raise InvalidCheckpoint(
                f"{field} has the pattern {pattern!r}, which cannot be matched ({_reason(error)}); "
                + _SUPPORTED
            ) from error
        matcher.Add(whole)
    matcher.Add("")
    try:
        matcher.Compile()
    except re2.error as error:
        raise _too_large(field, patterns) from error
    return matcher


def _reason(error: Exception) -> str:
    text = error.args[0]
    return text.decode(errors="replace") if isinstance(text, bytes) else "half of a surrogate pair"


def _too_large(field: str, patterns: Sequence[str]) -> InvalidCheckpoint:
    longest = max(patterns, key=len)
    return InvalidCheckpoint(
        f"{field} has patterns that need too much memory, {longest!r} among them: write module "
        "paths, or fewer repeats"
    )
