"""A sign-in that has begun: what its browser keeps until it comes back from the provider.

It is a cookie, signed by the database's seal, and not a row: whoever begins sign-ins without end
fills nothing, and every process of the server can end what another began.
"""

import hashlib
import hmac
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import asdict, dataclass

from server.errors import SignInFailed

LIFE_S = 600
_MOST = 4096  # characters; browsers keep no longer cookie


@dataclass(frozen=True)
class Goal:
    """Where a sign-in leads: to a page of this server, or to a key for a program.

    The program has made `challenge`, and listens at `port` of the browser's machine; 0: its user
    types the code in. `program_state` is what it knows its own sign-in by.
    """

    page: str = "/"
    challenge: str = ""
    port: int = 0
    program_state: str = ""


@dataclass(frozen=True)
class Pending:
    state: str
    nonce: str
    verifier: str
    until: int
    goal: Goal

    @classmethod
    def begin(cls, goal: Goal, now: float) -> "Pending":
        random = [secrets.token_urlsafe(32) for _ in range(3)]
        return cls(random[0], random[1], random[2], int(now) + LIFE_S, goal)

    def sealed(self, seal: str) -> str:
        """As text that only who knows the seal can make."""
        text = urlsafe_b64encode(json.dumps(asdict(self)).encode()).decode()
        return f"{text}.{_mark(text, seal)}"

    @classmethod
    def opened(cls, text: str | None, seal: str, now: float) -> "Pending":
        """Raises SignInFailed."""
        body, _, mark = (text or "")[:_MOST].partition(".")
        if not hmac.compare_digest(mark.encode(), _mark(body, seal).encode()):
            raise SignInFailed(
                "this sign-in did not begin in this browser: begin again, in one browser, with "
                "cookies allowed"
            )
        fields = json.loads(urlsafe_b64decode(body))
        pending = cls(**{**fields, "goal": Goal(**fields["goal"])})
        if pending.until <= now:
            raise SignInFailed(f"this sign-in took longer than {LIFE_S // 60} minutes: begin again")
        return pending


def _mark(text: str, seal: str) -> str:
    key = hmac.digest(seal.encode(), b"a sign-in that has begun", hashlib.sha256)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
