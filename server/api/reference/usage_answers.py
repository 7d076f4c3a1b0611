"""The answers about usage and the audit trail, as the OpenAPI page tells them."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from server.api.reference.answer_model import AnswerModel

_KIND = "The kind of document."


class AuditProject(AnswerModel):
    """The project that a change was made in."""

    id: str = Field(description="Its id.", examples=["team-a"])
    name: str = Field(description="Its id once more.", examples=["team-a"])


class AuditEntry(AnswerModel):
    """One change. It has a field named as its `type`, with the id of what was changed."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    id: str = Field(description="Its id.", examples=["audit_log-5d41402abc4b2a76b9719d91"])
    object: Literal["organization.audit_log"] = Field(description=_KIND)
    type: str = Field(description="What happened.", examples=["api_key.created"])
    effective_at: int = Field(description="When, in Unix seconds.")
    project: AuditProject | None = Field(description="Null: the change was to the whole server.")
    actor: dict[str, Any] = Field(description="Whose key was sent, and from which address.")
    before: dict[str, Any] | None = Field(description="What changed, as it was.")
    after: dict[str, Any] | None = Field(description="What changed, as it was then.")
    address: str = Field(description="The client's IP address.", examples=["192.0.2.7"])


class AuditPage(AnswerModel):
    """One page of changes, the newest first."""

    object: Literal["list"] = Field(description=_KIND)
    data: list[AuditEntry] = Field(description="The changes.")
    first_id: str | None = Field(description="The id of the first item.")
    last_id: str | None = Field(description="The id of the last item: send it as `after`.")
    has_more: bool = Field(description="There are more behind the last one.")


class UsedCounts(AnswerModel):
    """What was used."""

    num_model_requests: int = Field(description="Requests that the engine took.")
    num_refused_requests: int = Field(description="Requests that were answered with an error.")
    input_tokens: int = Field(description="Tokens of prompts, the cached too.")
    input_cached_tokens: int = Field(description="Those that earlier answers had computed.")
    output_tokens: int = Field(description="Tokens of answers.")
    training_tokens: int = Field(description="Tokens that jobs have trained on.")


class UsageResult(UsedCounts):
    """What was used in a bucket by one group. The fields of what was not grouped by are null."""

    object: Literal["organization.usage.completions.result"] = Field(description=_KIND)
    project_id: str | None = Field(description="The project.", examples=["team-a"])
    user_id: str | None = Field(description="The user or service account.")
    api_key_id: str | None = Field(description="The key. Null: the server's own, or none.")
    model: str | None = Field(description="The model, without a version.", examples=["pirate"])
    batch: None = Field(description="Always null.")
    service_tier: None = Field(description="Always null.")


class UsageBucket(AnswerModel):
    """An hour or a day."""

    object: Literal["bucket"] = Field(description=_KIND)
    start_time: int = Field(description="When it begins, in Unix seconds.")
    end_time: int = Field(description="When it ends.")
    results: list[UsageResult] = Field(description="One for each group that used something.")


class UsagePage(AnswerModel):
    """One page of buckets, the oldest first."""

    object: Literal["page"] = Field(description=_KIND)
    data: list[UsageBucket] = Field(description="The buckets, the empty ones too.")
    has_more: bool = Field(description="There is a next page.")
    next_page: str | None = Field(description="Send it as `page`.")


class UsedLimit(AnswerModel):
    """A limit, and how much of it is used."""

    name: str = Field(description="As in the project's `limits`.", examples=["requests_a_minute"])
    limit: int | None = Field(description="Null: no limit.")
    used: int | None = Field(
        description="Of a limit in a minute, what has not been refilled yet; without a limit, "
        "what was used in the last minute. Adapters and bytes are counted with those that jobs "
        "will make. Null: not counted, as nothing limits it."
    )


class LimitUse(AnswerModel):
    """What a project may use and does use."""

    object: Literal["organization.usage.limits"] = Field(description=_KIND)
    project_id: str = Field(description="The project.", examples=["team-a"])
    limits: list[UsedLimit] = Field(description="Each limit.")


class ProjectTotal(UsedCounts):
    """What a project used in all."""

    object: Literal["organization.usage.total"] = Field(description=_KIND)
    project_id: str = Field(description="The project.", examples=["team-a"])


class ProjectTotals(AnswerModel):
    """One page of totals, those with the most requests first."""

    object: Literal["page"] = Field(description=_KIND)
    data: list[ProjectTotal] = Field(description="The totals.")
    has_more: bool = Field(description="There is a next page.")
    next_page: str | None = Field(description="Send it as `page`.")


class HeldAdapter(AnswerModel):
    """An adapter, with its bytes and what it was used for, by whomever."""

    object: Literal["organization.adapter"] = Field(description=_KIND)
    project_id: str = Field(description="Whose it is.", examples=["team-a"])
    name: str = Field(description="Its name.", examples=["pirate"])
    bytes: int | None = Field(
        description="All its versions together. Null: it was not counted, or is gone."
    )
    num_model_requests: int = Field(description="Requests that the engine took.")
    input_tokens: int = Field(description="Tokens of prompts.")
    output_tokens: int = Field(description="Tokens of answers.")
    training_tokens: int = Field(description="Tokens that jobs have trained it on.")


class HeldAdapters(AnswerModel):
    """The largest or the busiest adapters."""

    object: Literal["list"] = Field(description=_KIND)
    data: list[HeldAdapter] = Field(description="The adapters.")
    counted_at: int | None = Field(description="When bytes were counted. Null: not yet.")
    adapters: int | None = Field(description="How many adapters all projects have.")
    bytes: int | None = Field(description="The bytes of all adapters.")


USAGE_ANSWERS = AuditPage, LimitUse, UsagePage, ProjectTotals, HeldAdapters
