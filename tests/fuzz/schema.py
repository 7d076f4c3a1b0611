"""Schemathesis over /openapi.json: what the server answers is what its own page says.

It tries endpoints that nobody listed in `requests.py` too. It knows no file, job or adapter but
those that it is told. All its checks are on: statuses, content types, headers and every field of
the answers, and whether the page's own requests are taken and wrong ones refused.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

from server.api.reference.request_texts import ASKS_FOR_NOTHING
from tests.fuzz.target import BOUND_S, Target
from tests.fuzz.trial import Case, Verdict

_JOBS = "/v1/fine_tuning/jobs"

# With another method these paths name an adapter of the owner PET: an id may hold one slash.
_LIKE_AN_ID = (
    "GET /v1/adapters/{adapter_id}/analysis",
    "GET /v1/adapters/{adapter_id}/export",
    "POST /v1/adapters/{adapter_id}/copy",
    "POST /v1/adapters/{adapter_id}/pin",
    "POST /v1/adapters/{adapter_id}/unpin",
)

# What these need to be taken, no schema can say: the contents of files, options that go together,
# how many answers the server allows, an `after` that is in the list, a change of something, and
# names that can be printed and are not taken.
_MORE_THAN_A_SCHEMA = (
    "POST /v1/adapters/import",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    f"POST {_JOBS}",
    "GET /v1/files",
    f"GET {_JOBS}",
    f"GET {_JOBS}/{{job_id}}/events",
    f"GET {_JOBS}/{{job_id}}/checkpoints",
    "GET /v1/shares",
    "POST /v1/organization/admin_api_keys",
    "POST /v1/organization/projects",
    "POST /v1/organization/projects/{project_id}",
    "POST /v1/organization/projects/{project_id}/api_keys",
    "POST /v1/organization/projects/{project_id}/api_keys/{key_id}",
    "POST /v1/organization/projects/{project_id}/service_accounts",
    "POST /v1/organization/projects/{project_id}/service_accounts/{user_id}",
    "POST /v1/organization/projects/{project_id}/service_accounts/{user_id}/api_keys",
    "POST /v1/organization/projects/{project_id}/users",
    "DELETE /v1/organization/projects/{project_id}",
    "GET /v1/organization/projects",
    "GET /v1/organization/projects/{project_id}/users",
    "GET /v1/organization/projects/{project_id}/service_accounts",
    "GET /v1/organization/projects/{project_id}/api_keys",
    "GET /v1/organization/users",
    "GET /v1/organization/admin_api_keys",
    "GET /v1/organization/audit_logs",
    "GET /v1/organization/usage/completions",
    "GET /v1/organization/usage/totals",
    "GET /v1/organization/adapters",
)


class Schema:
    """A case is a whole run of the program, with a seed."""

    name = "schema"

    def __init__(self, target: Target, *, big: bool) -> None:
        self._target = target
        self._big = big

    def make(self, chance: Random) -> Case:
        return {"seed": chance.randrange(2**31)}

    def judge(self, case: Case) -> Verdict:
        self._target.restock()
        # Ended, so that a stream of its events ends as well.
        self._target.http.post(f"{_JOBS}/{self._target.stock['job']}/cancel")
        document = self._target.folder / "openapi.json"
        page = closed(self._target.http.get("/openapi.json").json())
        document.write_text(json.dumps(page if self._big else without_idle(page)))
        settings = self._target.folder / "schemathesis.toml"
        settings.write_text(self._settings())
        program = str(Path(sys.executable).parent / "schemathesis")
        command = [program, "--config-file", str(settings), "run", str(document)]
        limits = [
            "--max-examples",
            str(30 if self._big else 4),
            "--request-timeout",
            f"{BOUND_S:g}",
        ]
        chosen = ["--url", self._target.url, "--seed", str(case["seed"]), "--continue-on-failure"]
        calm = ["--suppress-health-check", "all", "--warnings", "off"]
        done = subprocess.run(
            [*command, *limits, *chosen, *calm],
            capture_output=True,
            text=True,
            cwd=self._target.folder,  # it keeps notes there
        )
        cases = re.search(r"(\d+) generated", done.stdout)
        wrong = None
        if done.returncode != 0 or cases is None:
            story = done.stdout.partition("FAILURES")[2] or done.stdout + done.stderr
            wrong = f"schemathesis ends with {done.returncode}\n{story[:6000]}"
        outcome = f"run of {cases[1]} requests" if cases else "no run"
        return Verdict(outcome, wrong or self._target.aftermath())

    def _settings(self) -> str:
        stock = self._target.stock
        known = {"file_id": stock["file"], "job_id": stock["job"]}
        known |= dict.fromkeys(("adapter_id", "model_id"), stock["adapter"])
        lines = [
            "[parameters]",
            *(f"{name} = {json.dumps(value)}" for name, value in known.items()),
        ]
        # A job needs the other file, so that it stays. This one is gone after the first time.
        spare = f'parameters = {{ file_id = "{stock["spare"]}" }}'
        once = _without("ensure_resource_availability")
        lines += _of_operation("DELETE /v1/files/{file_id}", spare, once)
        # Whatever is sent in a form is text, and every text may be a file.
        lines += _of_operation("POST /v1/files", _without("negative_data_rejection"))
        for operation in _MORE_THAN_A_SCHEMA:
            lines += _of_operation(operation, _without("positive_data_acceptance"))
        for operation in _LIKE_AN_ID:
            like_an_id = ("unsupported_method", "allow_header_conformance")
            lines += _of_operation(operation, *map(_without, like_an_id))
        return "\n".join(lines)


def _of_operation(name: str, *lines: str) -> list[str]:
    return ["[[operations]]", f'include-name = "{name}"', *lines]


def _without(check: str) -> str:
    return f"checks.{check}.enabled = false"


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The same page, in which an answer may have no field that the page does not name."""
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return document


def without_idle(document: dict[str, Any]) -> dict[str, Any]:
    """The same, without the dozens of fields that ask for nothing: they take most of the time."""
    for schema in document["components"]["schemas"].values():
        for name, field in [*schema.get("properties", {}).items()]:
            if field.get("description") in (ASKS_FOR_NOTHING, "Changes nothing."):
                del schema["properties"][name]
    return document
