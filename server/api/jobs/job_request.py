"""The body of a request for a training job. Knows no files and no queue."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from adapters_store.outside_values import shown
from server.api.reference.option_fields import HYPERPARAMETERS, VERANDAH
from server.api.wire import NullOrEmpty, Text, WireModel, at_most
from server.errors import InvalidRequest
from server.jobs.queue.method_spec import MethodSpecs
from server.jobs.queue.train_options import TrainOptions, check_method

Options = Annotated[
    dict[str, object],
    at_most(64),
    WithJsonSchema(HYPERPARAMETERS),
]
OurOptions = Annotated[dict[str, object], at_most(64), WithJsonSchema(VERANDAH)]


class Supervised(WireModel):
    """The options of training: any of `TrainOptions`."""

    hyperparameters: Options | None = Field(None, description="The options.")


class TrainingMethod(WireModel):
    """The kind of training; there is one."""

    type: Literal["supervised"] = Field(description="Always `supervised`.")
    supervised: Supervised | None = Field(None, description="Its options.")


class JobRequest(WireModel):
    """The body. `hyperparameters` is the older place of the options in `method`. `verandah` takes
    any of `TrainOptions`, and `dry_run`, which the OpenAI API lacks."""

    model: Text = Field(description="The base, or an adapter to continue from.", examples=["base"])
    training_file: Text = Field(
        description="The id of the uploaded file to train on.",
        examples=["file-c82e70060c3146a0c51f9d95"],
    )
    validation_file: Text | None = Field(
        None, description="The id of a file to score on. If left out, some lines are held out."
    )
    suffix: Text | None = Field(
        None, max_length=64, description="The adapter's name.", examples=["pirate"]
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="What makes the training repeatable."
    )
    method: TrainingMethod | None = Field(None, description="The kind of training.")
    hyperparameters: Options | None = Field(
        None, description="The older place of the options in `method`."
    )
    verandah: OurOptions | None = Field(
        None, description="Options that the OpenAI API lacks; the others may be here too."
    )
    metadata: Annotated[dict[Text, Text] | None, at_most(16)] = Field(
        None, description="Your own pairs, to find the job again.", examples=[{"team": "a"}]
    )
    integrations: NullOrEmpty = Field(None, description="Must be empty.")

    @property
    def dry_run(self) -> bool:
        """Whether only to estimate the job. Raises InvalidRequest."""
        value = (self.verandah or {}).get("dry_run", False)
        if not isinstance(value, bool):
            raise InvalidRequest(f"dry_run={shown(value)} is not true or false", param="dry_run")
        return value

    def options(self) -> dict[str, object]:
        """The options from all three places. Raises InvalidRequest naming the wrong one."""
        newer = self.method.supervised if self.method is not None else None
        if self.hyperparameters and newer and newer.hyperparameters:
            raise InvalidRequest(
                "send hyperparameters or method.supervised.hyperparameters, not both",
                param="hyperparameters",
            )
        hyperparameters = (newer.hyperparameters if newer else None) or self.hyperparameters or {}
        ours = {key: value for key, value in (self.verandah or {}).items() if key != "dry_run"}
        if ours.pop("packing", None) not in (None, "auto", False):
            raise InvalidRequest(
                "packing is not supported: leave it out. Lines of similar length share a batch "
                "instead, so that little is padded",
                param="packing",
            )
        for inner in (hyperparameters.get("seed"), ours.get("seed")):
            if self.seed is not None and inner not in (None, "auto", self.seed):
                raise InvalidRequest(
                    f"seed is {self.seed} and, among the options, {shown(inner)}: send one of them",
                    param="seed",
                )
        for key in hyperparameters.keys() & ours.keys():
            if hyperparameters[key] != ours[key]:
                raise InvalidRequest(
                    f"{key} is {shown(hyperparameters[key])} in the hyperparameters and "
                    f"{shown(ours[key])} in verandah: send one of them",
                    param=key,
                )
        return {**hyperparameters, **ours}


def read_options(requested: Mapping[str, object], methods: MethodSpecs) -> TrainOptions:
    """The checked options. Raises InvalidRequest naming the wrong one."""
    options = TrainOptions.from_json(json.dumps(requested))
    check_method(options, methods)
    return options
