"""The answers about models and adapters, as the OpenAPI page tells them."""

from typing import Literal

from pydantic import Field

from server.api.reference.answer_model import AnswerModel

_NAME = "Its id: NAME, or NAME@VERSION."


class ModelCard(AnswerModel):
    """A model that requests can name: the base, or an adapter."""

    id: str = Field(description="What requests call it.", examples=["pirate"])
    object: Literal["model"] = Field(description="The kind of document.")
    created: int = Field(description="When it was made, in Unix seconds.")
    owned_by: str = Field(
        description="`verandah`, or the owner who shares it.", examples=["verandah"]
    )
    root: str = Field(
        description="The base's own name, or the version that an adapter's id means now.",
        examples=["pirate@3"],
    )
    parent: str | None = Field(description="The base of an adapter; null for the base itself.")
    max_model_len: int = Field(description="Tokens that prompt and answer may have together.")
    permission: list[None] = Field(description="Always empty.")
    shared: Literal["use", "copy"] = Field(
        default="use", description="Only of another owner's adapter: what it is shared to."
    )


class ModelList(AnswerModel):
    """The base and the latest version of each adapter."""

    object: Literal["list"] = Field(description="The kind of document.")
    data: list[ModelCard] = Field(description="The models, by name.")
    has_more: bool = Field(description="There are more behind the last one.")


class DeletedModel(AnswerModel):
    """A model that is gone."""

    id: str = Field(description=_NAME, examples=["pirate"])
    object: Literal["model"] = Field(description="The kind of document.")
    deleted: Literal[True] = Field(description="Always true.")


class DeletedAdapter(AnswerModel):
    """An adapter that is gone."""

    id: str = Field(description=_NAME, examples=["pirate"])
    object: Literal["adapter"] = Field(description="The kind of document.")
    deleted: Literal[True] = Field(description="Always true.")


class _Place(AnswerModel):
    """What is known of each adapter."""

    id: str = Field(description=_NAME, examples=["pirate"])
    object: Literal["adapter"] = Field(description="The kind of document.")
    version: int = Field(description="The version that this describes.", examples=[3])
    versions: list[int] = Field(description="All versions but checkpoints.", examples=[[3]])
    checkpoints: list[int] = Field(description="Versions made during training.", examples=[[1, 2]])
    parent: str = Field(description="The id of the base model.", examples=["base"])
    residency: Literal["stored", "loading", "host", "resident"] = Field(
        description="Where it is: on disk, on its way, in main memory, or in a slot of the device."
    )
    slot: int | None = Field(description="Its slot, if it has one.")
    resident_bytes: int = Field(description="Memory that it uses now.")
    in_use: int = Field(description="Answers that use it now.")
    pinned: bool = Field(description="It keeps its slot.")


class Adapter(_Place):
    """One version of an adapter, and where it is now."""

    created_at: int = Field(description="When it was published, in Unix seconds.")
    method: str = Field(description="How it was trained.", examples=["vera"])
    rank: int = Field(description="Its rank.", examples=[64])
    seed: int = Field(description="The seed of its random matrices.")
    targets: int = Field(description="How many linears it changes.")
    bytes: int = Field(description="The size of its file.")
    sha256: str = Field(description="The hash of its file.")
    base_name: str = Field(description="The base that it was trained on.", examples=["porch"])
    base_fingerprint: str = Field(description="The hash of that base's weights.")
    default_prompt: bool = Field(
        description="Its chats have the system prompt that the chat template writes by itself."
    )
    provenance: dict[str, str] = Field(description="Where it comes from: its job and options.")


class DamagedAdapter(_Place):
    """An adapter whose file cannot be read."""

    error: str = Field(description="What is wrong with the file.")


class SharedAdapter(AnswerModel):
    """One version of an adapter that another owner shares. Where its file is damaged there is an
    `error` in the place of what follows it."""

    id: str = Field(description="OWNER/NAME, or OWNER/NAME@VERSION.", examples=["team-b/pirate"])
    object: Literal["adapter"] = Field(description="The kind of document.")
    version: int = Field(description="The version that this describes.", examples=[3])
    versions: list[int] = Field(description="All versions but checkpoints.", examples=[[3]])
    parent: str = Field(description="The id of the base model.", examples=["base"])
    owner: str = Field(description="Who shares it.", examples=["team-b"])
    shared: Literal["use", "copy"] = Field(description="What it is shared to.")
    error: str = Field(default="", description="Only where the file is damaged.")
    created_at: int = Field(default=0, description="When it was published, in Unix seconds.")
    method: str = Field(default="", description="How it was trained.", examples=["vera"])
    rank: int = Field(default=0, description="Its rank.", examples=[64])
    targets: int = Field(default=0, description="How many linears it changes.")
    bytes: int = Field(default=0, description="The size of its file.")
    base_name: str = Field(default="", description="The base that it was trained on.")
    base_fingerprint: str = Field(default="", description="The hash of that base's weights.")


class AdapterPage(AnswerModel):
    """One page of adapters."""

    object: Literal["list"] = Field(description="The kind of document.")
    data: list[Adapter | DamagedAdapter | SharedAdapter] = Field(
        description="The adapters, by name."
    )
    total: int = Field(description="How many there are on all pages.")
    last_id: str | None = Field(description="The last id: send it as `after`.")
    has_more: bool = Field(description="There are more behind the last one.")


class TrainedTensor(AnswerModel):
    """How large a trained tensor is, and how far training has moved it."""

    rms: float = Field(description="Root mean square of its entries.")
    moved: float | None = Field(description="That of the difference to its start, if known.")
    relative: float | None = Field(description="`moved` over the start's own; null from zero.")


class LinearChange(AnswerModel):
    """What the adapter changed in one linear."""

    path: str = Field(description="The linear.", examples=["model.layers.0.self_attn.q_proj"])
    layer: int | None = Field(description="The number in its path.")
    module: str = Field(description="What is behind the number.", examples=["self_attn.q_proj"])
    shape: list[int] = Field(description="Outputs and inputs.", examples=[[384, 384]])
    trained: dict[str, TrainedTensor] = Field(description="The trained tensors by name.")
    weight_norm: float = Field(description="The Frobenius norm of the base's weight.")
    norm: float = Field(description="The Frobenius norm of the update.")
    relative_norm: float | None = Field(description="The update's norm over the weight's.")
    spectral_norm: float = Field(description="The update's largest singular value.")
    stable_rank: float = Field(description="Squared Frobenius over squared spectral norm.")
    effective_rank: float = Field(description="From the entropy of the singular values.")
    numerical_rank: int = Field(description="Singular values that are not zero.")
    singular_values: list[float] = Field(description="The largest ones, falling.")


class SpaceLikeness(AnswerModel):
    """How alike two adapters' singular spaces are on one side of a linear."""

    similarity: float | None = Field(description="0 to 1; null if an update is zero.")
    directions: list[int] = Field(description="How many directions of each were compared.")
    chance: float = Field(description="The similarity of random spaces that large.")


class LinearLikeness(AnswerModel):
    """How alike two adapters are in one linear."""

    path: str = Field(description="The linear.")
    layer: int | None = Field(description="The number in its path.")
    module: str = Field(description="What is behind the number.")
    left: SpaceLikeness = Field(description="What they can write.")
    right: SpaceLikeness = Field(description="What they read.")
    cosine: float | None = Field(description="Of the updates as vectors; null if one is zero.")


class AdapterLikeness(AnswerModel):
    """The adapter compared with another."""

    id: str = Field(description="The other one.", examples=["butler@1"])
    method: str = Field(description="Its method.", examples=["vera"])
    rank: int = Field(description="Its rank.")
    layers: list[LinearLikeness] = Field(description="The linears that both change.")


class AdapterAnalysis(AnswerModel):
    """What an adapter changed in its base; with `stream`, server-sent events of the progress."""

    id: str = Field(description="The version.", examples=["pirate@1"])
    object: Literal["adapter.analysis"] = Field(description="The kind of document.")
    method: str = Field(description="How it was trained.", examples=["vera"])
    rank: int = Field(description="Its rank.")
    trained_parameters: int = Field(description="How many numbers were trained.")
    relative_norm: float | None = Field(description="All updates over all weights.")
    layers: list[LinearChange] = Field(description="One entry for each linear.")
    comparison: AdapterLikeness | None = Field(description="Only with `compare`.")


class AnalysisProgress(AnswerModel):
    """The data of an event during an analysis. The last is the analysis; then comes `[DONE]`."""

    object: Literal["adapter.analysis.progress"] = Field(description="The kind of document.")
    done: int = Field(description="Linears that are done.")
    total: int = Field(description="Linears in all.")
