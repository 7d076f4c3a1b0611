"""How an answer tells of an owner's limits a minute: headers and refusals, as OpenAI's."""

import math

from server.errors import RateLimited
from server.tenancy.limits.gcra import Verdict

_LONGEST_RETRY_S = 120
_UNITS = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}

Headers = list[tuple[bytes, bytes]]


def rate_headers(kind: str, verdict: Verdict) -> Headers:
    """The three headers of one bucket; `kind` is "requests" or "tokens"."""
    values = {
        "limit": str(verdict.limit),
        "remaining": str(verdict.remaining),
        "reset": written_s(verdict.reset_s),
    }
    return [(f"x-ratelimit-{name}-{kind}".encode(), it.encode()) for name, it in values.items()]


def written_s(seconds: float) -> str:
    """Seconds as OpenAI writes them: `20ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    shown = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{shown}" if minutes else shown


def refused(kind: str, owner: str, verdict: Verdict, requested: int) -> RateLimited:
    """The error of a bucket that has too little."""
    limit, used = verdict.limit, verdict.limit - verdict.remaining
    unit = f"for project {owner!r} on {_UNITS[kind]}"
    counts = f"Limit {limit}, Used {used}, Requested {requested}"
    if math.isinf(verdict.retry_after_s):
        return RateLimited(
            f"Request too large {unit}: Limit {limit}, Requested {requested}. Shorten the prompt "
            "or lower max_tokens (times n), or ask who runs the server for a higher limit",
            kind=kind,
            retry_after_s=None,
        )
    wait_s = min(max(verdict.retry_after_s, 0.001), _LONGEST_RETRY_S)
    return RateLimited(
        f"Rate limit reached {unit}: {counts}. Please try again in {written_s(wait_s)}",
        kind=kind,
        retry_after_s=wait_s,
    )


def none_left(owner: str, limit: int) -> RateLimited:
    """The error of an owner whose requests at once are all running."""
    return RateLimited(
        f"Rate limit reached for project {owner!r} on requests at once: Limit {limit}, Used "
        f"{limit}, Requested 1. Please try again in 1s, once one of them has ended",
        kind="requests",
        retry_after_s=1.0,
    )
