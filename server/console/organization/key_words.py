"""What the pages say of keys: the scopes, the lives, and lines that use a new one."""

import json
from collections.abc import Collection
from typing import Final

from fastapi import Request

from server.errors import InvalidRequest
from server.tenancy.principal import SCOPES, Scope

SCOPE_WORDS: Final[dict[Scope, str]] = {
    "models.use": "Ask the base and the adapters.",
    "adapters.read": "See the adapters, analyse and export them.",
    "adapters.write": "Import, share and delete adapters.",
    "files": "Upload, read and delete training files.",
    "jobs": "Start, watch and stop training.",
    "usage.read": "See who used how much.",
    "admin": "Manage the keys and the people of this owner.",
}
DAY_S: Final = 86_400
LIVES: Final = (
    (DAY_S, "1 day"),
    (7 * DAY_S, "7 days"),
    (30 * DAY_S, "30 days"),
    (90 * DAY_S, "90 days"),
    (365 * DAY_S, "1 year"),
    (0, "does not expire"),
)
USUAL_LIFE_S: Final = 90 * DAY_S
GRACES: Final = ((0, "at once"), (3600, "1 hour"), (DAY_S, "1 day"), (7 * DAY_S, "7 days"))
_FIRST_LOOK: Final = (
    ("adapters.read", "/v1/adapters"),
    ("files", "/v1/files"),
    ("jobs", "/v1/fine_tuning/jobs"),
    ("usage.read", "/v1/organization/usage/completions?start_time=0"),
    ("admin", "/v1/organization/projects"),
)


def chosen_scopes(scopes: list[str]) -> list[str]:
    """The boxes that were ticked. The API takes none as all but `admin`; nobody who ticked none
    means that. Raises InvalidRequest."""
    if not scopes:
        raise InvalidRequest(
            f"no box is ticked, and a key that may do nothing opens nothing: tick one of "
            f"{', '.join(SCOPES)}",
            param="scopes",
        )
    return scopes


def life_of(life: int) -> int | None:
    """The seconds of a choice; 0 is a key that does not expire."""
    return life or None


def server_address(request: Request) -> str:
    """This server as the browser reaches it, through whatever proxy."""
    sent = request.headers.get("origin", "")
    here = sent if sent.startswith(("http://", "https://")) else str(request.base_url)
    return here.rstrip("/")


def first_lines(server: str, key: str, scopes: Collection[str], model: str) -> tuple[str, str]:
    """A command and a program that try a key."""
    bearer = f'-H "Authorization: Bearer {key}"'
    client = (
        f'from openai import OpenAI\n\nclient = OpenAI(base_url="{server}/v1", api_key="{key}")\n'
    )
    if "models.use" in scopes:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
        body = body.replace("'", "'\\''")
        curl = (
            f"curl {server}/v1/chat/completions {bearer} \\\n"
            f"  -H \"Content-Type: application/json\" -d '{body}'"
        )
        messages = '[{"role": "user", "content": "Hello!"}]'
        named = json.dumps(model)
        asked = f"answer = client.chat.completions.create(model={named}, messages={messages})\n"
        return curl, f"{client}{asked}print(answer.choices[0].message.content)"
    path = next((path for needed, path in _FIRST_LOOK if needed in scopes), "/health")
    python = f'{client}print(client.get("{server}{path}", cast_to=object))'
    return f'curl "{server}{path}" {bearer}', python
