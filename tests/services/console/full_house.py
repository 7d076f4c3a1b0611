"""A server with one of each thing that pages show, and the addresses of all pages about them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import httpx

from clients.python import Client
from tests.api.running import eventually

EXAMPLE = Path(__file__).parents[3] / "examples" / "pirate.jsonl"
SHORT = {"n_epochs": 1, "batch_size": 8, "checkpoints": 1}
WORSE = SHORT | {"learning_rate": 1}
LONG = {"n_epochs": 300, "batch_size": 1, "checkpoints": 0}
TEAM = "every-page-team"

PAGES = (
    "/console",
    "/console/data",
    "/console/data?sample=1",
    "/console/data/{file}",
    "/console/data/{bad_file}",
    "/console/data/{bad_file}/check?page=2",
    "/console/data/{file}/lines?line=3",
    "/console/data/{file}/delete",
    "/console/jobs",
    "/console/jobs?status=failed",
    "/console/jobs/{job}",
    "/console/jobs/{paused_job}",
    "/console/jobs/{failed_job}",
    "/console/jobs/compare?job={job}&job={other_job}",
    "/console/compare",
    "/console/compare?model=every-page&model=every-page-2&prompt=Who are you%3F&max_tokens=12",
    "/console/adapters",
    "/console/adapters?contains=nobody-has-this",
    "/console/adapters/every-page",
    "/console/adapters/every-page-2@1",
    "/console/adapters/-/import",
    "/console/adapters/-/delete/every-page",
    "/console/usage",
    "/console/usage?period=24h&by=owner",
    "/console/usage?period=30d&by=key",
    "/console/usage/limits",
    "/console/keys",
    "/console/keys?owner={team}",
    "/console/keys/{key}?owner={team}",
    "/console/keys/members",
    "/console/keys/members?owner={team}",
    "/console/keys/programs?owner={team}",
    "/console/keys/programs/{program}?owner={team}",
    "/console/admin",
    "/console/admin/owners",
    "/console/admin/owners/{team}",
    "/console/admin/usage",
    "/console/admin/adapters",
    "/console/admin/audit",
    "/console/admin/keys",
    "/console/nothing",
    "/console/jobs/ftjob-nothing",
    "/console/usage?period=never",
)


@dataclass(frozen=True)
class Things:
    """Ids of what the server has."""

    file: str
    bad_file: str
    job: str
    other_job: str
    paused_job: str
    failed_job: str
    team: str
    key: str
    program: str

    def path(self, page: str) -> str:
        return page.format(**{it.name: getattr(self, it.name) for it in fields(self)})


def filled(url: str) -> Things:
    """Make one of each, all trainings at once."""
    bad = [b'{"messages": "%d"}' % number for number in range(44)] + [b"x" * 3000]
    with Client(url) as client, httpx.Client(base_url=url, timeout=60) as http:
        file = client.upload(EXAMPLE).id

        def train(name: str, options: Mapping[str, float], **more: str) -> str:
            body = {"model": "base", "training_file": file, "suffix": name}
            own = {"verandah": {**options, **more}}
            answer = http.post("/v1/fine_tuning/jobs", json=body | own)
            assert answer.is_success, answer.text
            return str(answer.json()["id"])

        def status(job: str) -> str:
            return str(http.get(f"/v1/fine_tuning/jobs/{job}").json()["status"])

        first = train("every-page", SHORT | {"learning_rate": 0.05}, publish="always")
        second = train("every-page-2", SHORT | {"learning_rate": 0.02}, publish="always")
        wrong = train("every-page-wrong", WORSE, method="lora", publish="if_better")
        long = train("every-page-long", LONG)
        content = b"\n".join([*reversed(bad), *EXAMPLE.read_bytes().splitlines()])
        sent = {"file": ("wide" * 50 + ".jsonl", content)}
        bad_file = http.post("/v1/files", data={"purpose": "fine-tune"}, files=sent).json()["id"]
        client.admin.create_owner(TEAM)
        made = client.admin.create_key(TEAM, "a laptop's", scopes=["models.use", "files"])
        here = f"/v1/organization/projects/{TEAM}"
        account = http.post(f"{here}/service_accounts", json={"name": "nightly"}).json()
        member = {"email": "ann@example.com", "role": "owner"}
        http.post(f"{here}/users", json=member).raise_for_status()
        metrics = f"/v1/fine_tuning/jobs/{long}/metrics"
        assert eventually(lambda: len(http.get(metrics).json()["data"]) > 3, 90)
        http.post(f"/v1/fine_tuning/jobs/{long}/pause")
        wanted = {first: "succeeded", second: "succeeded", wrong: "failed", long: "paused"}
        assert eventually(lambda: {it: status(it) for it in wanted} == wanted, 90), json.dumps(
            {it: status(it) for it in wanted}
        )
        for model in ("base", "every-page"):
            asked = {"model": model, "prompt": "How do I make tea?", "max_tokens": 2}
            http.post("/v1/completions", json=asked).raise_for_status()
    return Things(file, bad_file, first, second, long, wrong, TEAM, made["id"], account["id"])
