"""The form "Train an adapter": what somebody chose there, as the API takes it, and as code."""

import json
import shlex
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, Field, ValidationError

from server.api.jobs.job_request import JobRequest
from server.refused_fields import refusal

_Text = Annotated[str, Field(max_length=300)]
_OPENAIS: Final = ("n_epochs", "batch_size")
_OURS: Final = ("method", "rank", "learning_rate")
_KEY: Final = "YOUR_API_KEY"

METHOD_WORDS: Final[Mapping[str, str]] = {
    "vera": "VeRA: the smallest adapters. Begin with this one",
    "randlora": "RandLoRA: changes more of the model, costs more",
    "asymmetric-lora": "Asymmetric LoRA: half the numbers of LoRA",
    "lora": "LoRA: the best known. Good for use elsewhere",
}


class TrainingChoices(BaseModel):
    """The fields of the form, as a browser sends them. An empty one is left to the server."""

    suffix: _Text = ""
    model: _Text = ""
    method: _Text = "auto"
    n_epochs: _Text = ""
    batch_size: _Text = ""
    learning_rate: _Text = ""
    rank: _Text = ""
    seed: _Text = ""
    validation_file: _Text = ""

    def body(self, file_id: str, base: str) -> dict[str, object]:
        """The body of a request for a job. A number that is none stays text: the API names it."""
        body: dict[str, object] = {
            "model": self.model.strip() or base,
            "training_file": file_id,
            "suffix": self.suffix.strip(),
            "validation_file": self.validation_file,
            "seed": _number(self.seed),
        }
        openais, ours = self._chosen(_OPENAIS), self._chosen(_OURS)
        if openais:
            supervised = {"hyperparameters": openais}
            body["method"] = {"type": "supervised", "supervised": supervised}
        body["verandah"] = ours
        return {name: value for name, value in body.items() if value not in ("", {})}

    def request(self, file_id: str, base: str, *, dry_run: bool = False) -> JobRequest:
        """The same, checked as the API checks it. Raises InvalidRequest."""
        body = self.body(file_id, base)
        if dry_run:
            body["verandah"] = {**self._chosen(_OURS), "dry_run": True}
        try:
            return JobRequest.model_validate(body)
        except ValidationError as error:
            problems = error.errors()
            for problem in problems:
                problem["loc"] = ("body", *problem["loc"])
            raise refusal(problems, JobRequest) from None

    def as_curl(self, url: str, file_id: str, base: str, *, keyed: bool) -> str:
        """A command that starts the same job."""
        body = json.dumps(self.body(file_id, base), indent=2, ensure_ascii=False)
        lines = [f"curl {shlex.quote(url + '/v1/fine_tuning/jobs')}"]
        if keyed:
            lines.append(f"-H 'Authorization: Bearer {_KEY}'")
        lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(body)}"]
        return " \\\n  ".join(lines)

    def as_python(self, url: str, file_id: str, base: str, *, keyed: bool) -> str:
        """A program with the OpenAI SDK that starts the same job."""
        body = self.body(file_id, base)
        ours = body.pop("verandah", None)
        if ours:
            body["extra_body"] = {"verandah": ours}
        given = "".join(f"    {name}={value!r},\n" for name, value in body.items())
        key = _KEY if keyed else "any"
        return (
            "from openai import OpenAI\n\n"
            f"client = OpenAI(base_url={url + '/v1'!r}, api_key={key!r})\n"
            f"job = client.fine_tuning.jobs.create(\n{given})\n"
            "print(job.id)\n"
        )

    def _chosen(self, names: tuple[str, ...]) -> dict[str, object]:
        values = {name: _number(getattr(self, name)) for name in names}
        return {name: value for name, value in values.items() if value not in ("", "auto")}


def _number(text: str) -> int | float | str:
    text = text.strip()
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
