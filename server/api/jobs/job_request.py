"""The body of a new training job, in the OpenAI API's words and in ours."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from server.api.wire import Text, WireModel, at_most
from server.errors import InvalidRequest
from server.jobs.queue.train_options import TrainOptions


class Supervised(WireModel):
    """How to train: the OpenAI API's three numbers, and any of `TrainOptions`."""

    hyperparameters: dict[str, object] | None = None


class TrainingMethod(WireModel):
    """The kind of training; there is one."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class JobRequest(WireModel):
    """The body. `hyperparameters` is the older place of what `method` holds; `verandah` takes what
    the OpenAI API has no word for: any of `TrainOptions`, and `dry_run`."""

    model: Text
    training_file: Text
    validation_file: Text | None = None
    suffix: Text | None = Field(None, max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**63)
    method: TrainingMethod | None = None
    hyperparameters: dict[str, object] | None = None
    verandah: dict[str, object] | None = None
    metadata: Annotated[dict[Text, Text] | None, at_most(16)] = None
    integrations: list[None] | None = Field(None, max_length=0)

    @property
    def dry_run(self) -> bool:
        """Whether only to say what the job would take. Raises InvalidRequest."""
        wanted = (self.verandah or {}).get("dry_run", False)
        if not isinstance(wanted, bool):
            raise InvalidRequest(f"dry_run={wanted!r} is not true or false", param="dry_run")
        return wanted

    def asked(self) -> dict[str, object]:
        """The options, wherever they stand. Raises InvalidRequest naming the one at fault."""
        newer = self.method.supervised if self.method is not None else None
        if self.hyperparameters and newer and newer.hyperparameters:
            raise InvalidRequest(
                "hyperparameters and method.supervised.hyperparameters exclude each other",
                param="hyperparameters",
            )
        given = (newer.hyperparameters if newer else None) or self.hyperparameters or {}
        ours = {key: value for key, value in (self.verandah or {}).items() if key != "dry_run"}
        if ours.pop("packing", None) not in (None, "auto", False):
            raise InvalidRequest(
                "packing is not done here: the lines of one row would read each other; lines of "
                "like length share a batch instead, so that little is padded. Leave it out",
                param="packing",
            )
        for key in given.keys() & ours.keys():
            if given[key] != ours[key]:
                raise InvalidRequest(
                    f"{key} is {given[key]!r} in the hyperparameters and {ours[key]!r} in "
                    "verandah: give one",
                    param=key,
                )
        return {**given, **ours}


def read_options(asked: Mapping[str, object]) -> TrainOptions:
    """Raises InvalidRequest naming the option at fault."""
    options = TrainOptions.from_json(json.dumps(asked))
    if options.d_initial == 0:  # jobs of before may have it, and must still be listed
        raise InvalidRequest(
            "d_initial=0 leaves VeRA nothing to learn from: give another, or leave it out",
            param="d_initial",
        )
    return options
