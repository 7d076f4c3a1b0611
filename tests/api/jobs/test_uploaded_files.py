"""Uploaded files over HTTP: their expiry, unknown fields, and bytes that have changed."""

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.api.jobs.test_training import upload
from tests.api.running import Running

LINES = b'{"prompt": "a", "completion": "b"}\n' * 12


def post(server: Running, **fields: Any) -> Any:
    return server.http.post(
        "/v1/files", data={"purpose": "fine-tune", **fields}, files={"file": ("x.jsonl", LINES)}
    )


@pytest.mark.parametrize("seconds", [3600, 86_400, 2_592_000])
def test_the_sdk_sets_an_expiry(server: Running, seconds: int) -> None:
    file = server.sdk.files.create(
        file=("x.jsonl", LINES),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": seconds},
    )
    assert file.expires_at == file.created_at + seconds
    assert server.sdk.files.retrieve(file.id).expires_at == file.expires_at
    assert server.sdk.files.retrieve(upload(server)).expires_at is None


def test_an_expired_file_is_not_found(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = post(server, **fields).json()
    monkeypatch.setattr(server.services.files._database, "_clock", lambda: file["expires_at"])
    for ask in (server.sdk.files.retrieve, server.sdk.files.content, server.sdk.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file["id"])
    assert list(server.sdk.files.list()) == []
    with pytest.raises(openai.BadRequestError) as refused:
        server.sdk.fine_tuning.jobs.create(model="base", training_file=file["id"])
    assert refused.value.param == "training_file"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]", "invalid_value"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]", "invalid_value"),
        (
            {"expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after[anchor]",
            "invalid_value",
        ),
        *(
            (
                {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds},
                "expires_after[seconds]",
                "invalid_value",
            )
            for seconds in ("3599", "2592001", "-1", "x", "", "1e9", "9" * 5000)
        ),
        ({"expires_after": "3600"}, "expires_after", "unknown_parameter"),
        ({"expires_after[days]": "1"}, "expires_after[days]", "unknown_parameter"),
        ({"retention": "1"}, "retention", "unknown_parameter"),
        ({"purpose": ["fine-tune", "fine-tune"]}, "purpose", "invalid_value"),
        ({"purpose": "batch"}, "purpose", "invalid_value"),
    ],
)
def test_a_field_that_would_be_ignored_is_refused_by_name(
    server: Running, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = post(server, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert list(server.sdk.files.list()) == []


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/files", "owner=ann"),
        ("/v1/files", "metadata[team]=red"),
        ("/v1/files", "limit[x]=1"),
        ("/v1/fine_tuning/jobs", "model=base"),
        ("/v1/fine_tuning/jobs", "after[x]=1"),
    ],
)
def test_a_parameter_that_would_be_ignored_is_refused(
    server: Running, path: str, query: str
) -> None:
    answer = server.http.get(f"{path}?{query}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unknown_parameter")
    assert error["param"] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"seed": 1, "hyperparameters": {"seed": 2}}, "seed"),
        ({"seed": 1, "verandah": {"seed": 2}}, "seed"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations"),
        ({"method": {"type": "dpo", "dpo": {}}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"validation": "x"}, "validation"),
        ({"verandah": {"dry_run": True}, "suffix": "a b"}, "suffix"),
        ({"verandah": {"dry_run": True}, "metadata": {"k" * 65: "v"}}, "metadata"),
    ],
)
def test_a_jobs_field_that_would_be_ignored_is_refused(
    server: Running, changes: dict[str, Any], param: str
) -> None:
    body = {"model": "base", "training_file": upload(server), **changes}
    answer = server.http.post("/v1/fine_tuning/jobs", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["param"] or "").startswith(param), error
    assert list(server.sdk.fine_tuning.jobs.list()) == []


def test_the_same_seed_twice_is_one_seed(server: Running) -> None:
    body = {"model": "base", "training_file": upload(server), "seed": 7, "verandah": {"seed": 7}}
    assert server.http.post("/v1/fine_tuning/jobs", json=body).json()["seed"] == 7


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_flip, "is damaged"),
        (_cut, "is damaged"),
        (Path.unlink, "is gone"),
        (_make_folder, "cannot be read"),
    ],
)
def test_bytes_that_changed_are_never_served_and_never_trained_on(
    server: Running, damage: Any, what: str
) -> None:
    file_id = upload(server)
    path = server.services.files.path("default", file_id)
    assert server.sdk.files.content(file_id).content == path.read_bytes()
    damage(path)
    body = {"model": "base", "training_file": file_id}
    for answer in (
        server.http.get(f"/v1/files/{file_id}/content"),
        server.http.post("/v1/fine_tuning/jobs", json=body),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (500, "file_damaged")
        assert answer.headers["x-should-retry"] == "false"
        assert what in error["message"]
        assert f"restore {path} on the server, or upload the file again" in error["message"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n" * 5000: "x"}, "Invalid multipart data"),
        ({f"x{n}": "y" for n in range(1100)}, "Too many fields. Maximum number of fields is 1000"),
    ],
)
def test_a_form_over_a_bound_is_refused_with_all_bounds(
    server: Running, fields: dict[str, str], reason: str
) -> None:
    response = post(server, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "invalid_value"
    assert error["message"] == (
        f"the form cannot be read ({reason}); send multipart/form-data with its boundary: files "
        "with a filename, and at most 1000 other fields of 1 MiB each, with names of under 4 KiB"
    )
