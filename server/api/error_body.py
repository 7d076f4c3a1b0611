"""How an error looks on the wire, as the OpenAI API has it. `server.app` says which is which."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from fastapi import Response

from server.errors import LineProblem


@dataclass(frozen=True)
class ErrorBody:
    """One failed answer: its status, its body's fields, and headers to go with it.

    `problems` are an invalid file's lines, which the OpenAI API has no place for but in the text.
    """

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[LineProblem] = ()

    def body(self) -> dict[str, object]:
        error: dict[str, object] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.problems:
            error["problems"] = [asdict(problem) for problem in self.problems]
        return {"error": error}

    def response(self) -> Response:
        # Escaped to ASCII: a message may quote what cannot be encoded.
        return Response(
            json.dumps(self.body()), self.status, dict(self.headers), "application/json"
        )
