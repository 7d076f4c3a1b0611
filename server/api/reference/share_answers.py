"""The answers about shares, as the OpenAPI page tells them."""

from typing import Literal

from pydantic import ConfigDict, Field

from server.api.reference.answer_model import AnswerModel


class Share(AnswerModel):
    """An adapter that others may use or copy."""

    model_config = ConfigDict(defer_build=True, populate_by_name=True)

    id: str = Field(description="Its id.", examples=["share_5d41402abc4b2a76b9719d91"])
    object: Literal["adapter.share"] = Field(description="The kind of document.")
    adapter: str = Field(
        description="The adapter: NAME of your own, or OWNER/NAME.", examples=["pirate"]
    )
    owner: str = Field(description="Who gives it.", examples=["team-a"])
    receiver: str = Field(
        alias="with", description="Who receives it; `all`: every owner.", examples=["team-b"]
    )
    to: Literal["use", "copy"] = Field(description="What the receiver may do with it.")
    created_at: int = Field(description="When it was made, in Unix seconds.")
    created_by: str = Field(
        default="", description="Only of your own: who made it, a user's or key's id."
    )


class SharePage(AnswerModel):
    """One page of shares."""

    object: Literal["list"] = Field(description="The kind of document.")
    data: list[Share] = Field(description="The shares.")
    first_id: str | None = Field(description="The id of the first item.")
    last_id: str | None = Field(description="The id of the last item: send it as `after`.")
    has_more: bool = Field(description="There are more behind the last one.")


class DeletedShare(AnswerModel):
    """A share that has ended."""

    id: str = Field(description="Its id.")
    object: Literal["adapter.share.deleted"] = Field(description="The kind of document.")
    deleted: Literal[True] = Field(description="Always true.")
