"""The HTTP answer for an error, in the OpenAI API's form. `server.app` maps errors to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from fastapi import Response

from server.errors import LineProblem


@dataclass(frozen=True)
class ErrorBody:
    """Status, fields and headers of one error.

    `problems` are the wrong lines of a file; the OpenAI API has no field for them.
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
        # Escaped to ASCII: a message may quote text that UTF-8 cannot encode.
        return Response(
            json.dumps(self.body()), self.status, dict(self.headers), "application/json"
        )
