"""The answers about files and training jobs, as the OpenAPI page tells them."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from server.api.reference.answer_model import AnswerModel, FileProblem

_OPTIONS = "The options of training: as they were asked for, then as they are used."


class File(AnswerModel):
    """A stored file."""

    id: str = Field(description="Its id.", examples=["file-c82e70060c3146a0c51f9d95"])
    object: Literal["file"] = Field(description="The kind of document.")
    bytes: int = Field(description="Its size.", examples=[5120])
    created_at: int = Field(description="When it was uploaded, in Unix seconds.")
    filename: str = Field(description="Its name.", examples=["pirate.jsonl"])
    purpose: str = Field(description="`fine-tune`, or `fine-tune-results` for a job's results.")
    status: Literal["processed"] = Field(description="Always `processed`.")
    expires_at: int | None = Field(description="When it is deleted. Null: never.")
    status_details: None = Field(description="Always null.")


class DeletedFile(AnswerModel):
    """A file that is gone."""

    id: str = Field(description="Its id.", examples=["file-c82e70060c3146a0c51f9d95"])
    object: Literal["file"] = Field(description="The kind of document.")
    deleted: Literal[True] = Field(description="Always true.")


class _Page(AnswerModel):
    """What each page of a list has."""

    object: Literal["list"] = Field(description="The kind of document.")
    first_id: str | None = Field(description="The id of the first item.")
    last_id: str | None = Field(description="The id of the last item: send it as `after`.")
    has_more: bool = Field(description="There are more behind the last one.")


class FilePage(_Page):
    """One page of files."""

    data: list[File] = Field(description="The files.")


class LineToken(AnswerModel):
    """A token as the model reads it."""

    id: int = Field(description="Its number in the vocabulary.")
    text: str = Field(
        description="Its text. Empty: it is part of a character, and the last part has that."
    )
    special: bool = Field(description="It is no text: it marks a turn or an end.")


class LineSpan(AnswerModel):
    """Tokens that stand together, and are all learnt or all not."""

    learnt: bool = Field(description="Training counts how well these tokens are predicted.")
    tokens: list[LineToken] = Field(description="The tokens.")


class LineExample(AnswerModel):
    """One sequence that the model reads in training."""

    tokens: int = Field(description="How many tokens it has.", examples=[49])
    learnt: int = Field(description="How many of them are learnt.", examples=[23])
    spans: list[LineSpan] = Field(
        description="Its tokens: of all sequences of an answer the first 32,768."
    )


class FileLine(AnswerModel):
    """A line of a file, and what the model sees of it in training."""

    object: Literal["file.line"] = Field(description="The kind of document.")
    line: int = Field(description="Its number, counted from 1.", examples=[1])
    text: str = Field(description="The line as it is in the file.")
    problem: str | None = Field(description="Why it cannot be trained on, if so.")
    examples: list[LineExample] = Field(
        description="One; several if the chat template shows an answer otherwise later on."
    )


class FileLines(AnswerModel):
    """Some lines of a file."""

    object: Literal["list"] = Field(description="The kind of document.")
    data: list[FileLine] = Field(description="The lines. Blank ones are left out.")
    has_more: bool = Field(description="There are more behind the last one.")


class Appraisal(AnswerModel):
    """What a job will take, estimated before it is queued."""

    examples: int = Field(description="Lines of the file.")
    counted: int = Field(description="Lines that were tokenized; the rest is inferred.")
    tokens: int = Field(description="Tokens of the training lines, read once.")
    longest: int = Field(description="Tokens of the longest line.")
    n_epochs: int = Field(description="Epochs.")
    batch_size: int = Field(description="Lines in a step.")
    steps: int = Field(description="Steps in all.")
    trained_tokens: int = Field(description="Tokens of all epochs.")
    seconds: int = Field(description="How long the training takes.")
    measured: bool = Field(description="By the speed of earlier jobs, and not by rule of thumb.")
    parameters: int = Field(description="How many numbers are trained.")
    adapter_bytes: int = Field(description="The size of the published file.")
    warnings: list[str] = Field(description="What the owner should know of the files.")


class Judgement(AnswerModel):
    """How good the adapter is. Losses are in nats a token, on the same lines."""

    lines: int = Field(description="How many lines were scored.")
    held_out: bool = Field(description="The lines were kept from training.")
    base_loss: float | None = Field(description="Of the base.")
    start_loss: float | None = Field(description="Of the adapter that the job continues from.")
    adapter_loss: float | None = Field(description="Of the best state that was scored.")
    last_loss: float | None = Field(description="Of the last step.")
    step: int | None = Field(description="The step of the best state.")
    verdict: Literal["better", "worse", "diverged"] | None = Field(
        description="Null until training has ended."
    )


class AskedSample(AnswerModel):
    """A question with three answers."""

    prompt: str = Field(description="The question.")
    expected: str = Field(description="The file's answer.")
    base: str = Field(description="The base's answer.")
    adapter: str = Field(description="The adapter's answer.")


class VerandahPart(AnswerModel):
    """What the OpenAI API has no field for; also every option that is not OpenAI's."""

    model_config = ConfigDict(extra="allow")

    step: int = Field(description="How far the training is.")
    appraisal: Appraisal | None = Field(description="What the job takes, as estimated.")
    judgement: Judgement | None = Field(description="How good the adapter is.")
    samples: list[AskedSample] = Field(description="At the end: questions with three answers.")


class JobFailure(AnswerModel):
    """Why a job failed."""

    code: str = Field(description="The kind of error in one word.")
    message: str = Field(description="What went wrong, and what to do.")
    param: str | None = Field(description="The field at fault, if one is.")


class SupervisedPart(AnswerModel):
    """The options, in the place of the newer OpenAI API."""

    hyperparameters: dict[str, Any] = Field(description=_OPTIONS)


class MethodPart(AnswerModel):
    """The kind of training."""

    type: Literal["supervised"] = Field(description="Always `supervised`.")
    supervised: SupervisedPart = Field(description="Its options.")


class Job(AnswerModel):
    """A training job."""

    id: str = Field(description="Its id.", examples=["ftjob-9a7ef0974daef0bb7dc4395c"])
    object: Literal["fine_tuning.job"] = Field(description="The kind of document.")
    created_at: int = Field(description="When it was made, in Unix seconds.")
    finished_at: int | None = Field(description="When it ended.")
    estimated_finish: int | None = Field(description="When it is expected to end.")
    model: str = Field(description="What it trains from.", examples=["base"])
    fine_tuned_model: str | None = Field(
        description="The published version, once it has succeeded.", examples=["pirate@3"]
    )
    organization_id: str = Field(description="Its owner.", examples=["default"])
    status: str = Field(
        description="`queued`, `running`, `paused`, `succeeded`, `failed` or `cancelled`.",
        examples=["running"],
    )
    training_file: str = Field(description="The id of the training file.")
    validation_file: str | None = Field(description="The id of the validation file.")
    result_files: list[str] = Field(description="The id of the CSV of losses, once it is made.")
    trained_tokens: int | None = Field(description="Tokens that were trained on.")
    error: JobFailure | None = Field(description="Why it failed.")
    hyperparameters: dict[str, Any] = Field(description=_OPTIONS)
    method: MethodPart = Field(description="The same options in their newer place.")
    seed: int = Field(description="What makes the training repeatable.")
    integrations: list[None] = Field(description="Always empty.")
    metadata: dict[str, str] = Field(description="The owner's own pairs.")
    user_provided_suffix: str | None = Field(description="The adapter's name.")
    verandah: VerandahPart = Field(description="What the OpenAI API has no field for.")


class JobPage(_Page):
    """One page of jobs."""

    data: list[Job] = Field(description="The jobs, the newest first.")


class DryRun(AnswerModel):
    """With `dry_run`: what the job would take, or what is wrong with its files."""

    object: Literal["fine_tuning.job.dry_run"] = Field(description="The kind of document.")
    model: str = Field(description="What it would train from.")
    valid: bool = Field(description="The job would be queued.")
    problems: list[FileProblem] = Field(
        description="What is wrong with the files: the first thousand bad lines of each."
    )
    problem_count: int = Field(description="How many bad lines there are in all.")
    appraisal: Appraisal | None = Field(description="What the job would take, if it is valid.")


class JobEvent(AnswerModel):
    """Something that happened in a job. In a stream, the data of an event; `[DONE]` is the last."""

    id: str = Field(description="Its id: a stream continues after it with `Last-Event-ID`.")
    object: Literal["fine_tuning.job.event"] = Field(description="The kind of document.")
    created_at: int = Field(description="When it happened, in Unix seconds.")
    level: Literal["info", "warn", "error"] = Field(description="How serious it is.")
    type: Literal["message", "metrics"] = Field(description="Words alone, or also numbers.")
    message: str = Field(description="What happened.")
    data: dict[str, Any] | None = Field(description="The numbers of metrics, or a sample.")


class EventPage(_Page):
    """One page of events; with `stream`, all of them as server-sent events, as they happen."""

    data: list[JobEvent] = Field(description="The events, the newest first.")


class StepMetrics(AnswerModel):
    """The figures of one step. What was not measured is left out; null is not finite."""

    model_config = ConfigDict(extra="allow")

    step: int = Field(description="The step. Before the first one there is step 0.")
    total_steps: int | None = Field(default=None, description="Steps in all.")
    learning_rate: float | None = Field(default=None, description="At that step.")
    tokens_per_second: float | None = Field(default=None, description="Trained, on average.")
    seconds_left: float | None = Field(default=None, description="Until training ends.")
    train_loss: float | None = Field(default=None, description="In nats a token.")
    valid_loss: float | None = Field(default=None, description="In nats a token.")


class JobMetrics(AnswerModel):
    """The figures of a job by step, to draw."""

    object: Literal["fine_tuning.job.metrics"] = Field(description="The kind of document.")
    fine_tuning_job_id: str = Field(description="The job.")
    reported: int = Field(description="How many steps the job's events have, thinned or not.")
    data: list[StepMetrics] = Field(description="The figures, the first step first.")


class CheckpointMetrics(AnswerModel):
    """What was measured at a checkpoint. What was not measured is left out."""

    step: int = Field(description="The step.")
    train_loss: float | None = Field(default=None, description="In nats a token.")
    train_mean_token_accuracy: float | None = Field(default=None, description="A share of tokens.")
    valid_loss: float | None = Field(default=None, description="In nats a token.")
    valid_mean_token_accuracy: float | None = Field(default=None, description="A share of tokens.")


class JobCheckpoint(AnswerModel):
    """A version that a job published."""

    id: str = Field(description="Its id.")
    object: Literal["fine_tuning.job.checkpoint"] = Field(description="The kind of document.")
    created_at: int = Field(description="When it was published, in Unix seconds.")
    fine_tuning_job_id: str = Field(description="The job.")
    fine_tuned_model_checkpoint: str = Field(description="The version.", examples=["pirate@1"])
    step_number: int = Field(description="The step of the training.")
    metrics: CheckpointMetrics = Field(description="What was measured at that step.")


class CheckpointPage(_Page):
    """One page of checkpoints."""

    data: list[JobCheckpoint] = Field(description="The checkpoints, the newest first.")
