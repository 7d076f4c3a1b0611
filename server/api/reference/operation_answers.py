"""The answers of /health and /ready, as the OpenAPI page tells them."""

from typing import Literal

from pydantic import Field

from server.api.reference.answer_model import AnswerModel


class ProcessState(AnswerModel):
    """A process beside the one that answers: an engine, or the training worker."""

    alive: bool = Field(description="It runs and makes progress.")
    restarts: int = Field(default=0, description="How often it was started again.")
    problem: str = Field(default="", description="What is wrong with it. Left out if nothing is.")


class Health(AnswerModel):
    """Whether the server's processes live and make progress."""

    status: Literal["ok", "degraded", "failed"] = Field(
        description="`degraded`: something is being started again. `failed`: this process is about "
        "to end."
    )
    problem: str = Field(default="", description="Only with `failed`: what is wrong.")
    engines: list[ProcessState] = Field(
        default=[], description="The processes of the engines, if they have their own."
    )
    worker: ProcessState = Field(
        default=ProcessState(alive=True),
        description="The training worker. Left out if the server runs none.",
    )


class ReadyChecks(AnswerModel):
    """What the server needs to answer."""

    engine: bool = Field(description="The engine makes progress.")
    database: bool = Field(description="The database answers.")


class Ready(AnswerModel):
    """Whether a question would be answered now."""

    status: Literal["ready", "not ready"] = Field(description="All checks together.")
    checks: ReadyChecks = Field(description="Each check alone.")
    model: str = Field(description="The id of the base model.", examples=["base"])
