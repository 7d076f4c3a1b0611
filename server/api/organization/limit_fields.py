"""An owner's limits as JSON: in a project, and as OpenAI's rate limits."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

from pydantic import Field

from server.api.wire import WireModel
from server.db.owner_limits import Limits
from server.tenancy.limits.limit_book import MOST

_Count = Annotated[int | None, Field(ge=0, le=MOST)]


class ProjectLimits(WireModel):
    """What the project may use. What is left out stays; null is the server's own limit again, and 0
    is no limit. Only the server's admin may send it."""

    requests_a_minute: _Count = Field(None, description="Model requests in a minute.")
    tokens_a_minute: _Count = Field(None, description="Tokens of prompts and answers in a minute.")
    requests_at_once: _Count = Field(None, description="Model requests that run at once.")
    adapters: _Count = Field(None, description="Adapters.")
    files: _Count = Field(None, description="Files.")
    stored_bytes: _Count = Field(None, description="Bytes of files and adapters together.")
    running_jobs: _Count = Field(None, description="Jobs that train at once. Others wait.")
    waiting_jobs: _Count = Field(None, description="Jobs that wait or are paused.")
    training_tokens_a_day: _Count = Field(None, description="Tokens that jobs train in a day.")
    weight: float | None = Field(
        None, ge=0.01, le=100, description="Its share of the engine beside others; usually 1."
    )

    @property
    def sent(self) -> Mapping[str, float | None]:
        """The fields of the body, with null."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def limits_document(limits: Limits) -> dict[str, object]:
    """What is in force."""
    return asdict(limits)
