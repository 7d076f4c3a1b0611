"""Folders that are read-only or have vanished: a 503 that names the path and the remedy."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.api.jobs.test_training import upload
from tests.api.running import Publish, Running

FAULTS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EXDEV)


def _unavailable(answer: Any, path: Path | str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "unavailable"), error
    assert str(path) in error["message"]
    assert "make it writable" in error["message"]


def _failing(monkeypatch: pytest.MonkeyPatch, number: int, below: Path) -> None:
    """Let every change below a folder fail."""

    def wrap(real: Callable[..., Any], paths: int = 1) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            for path in arguments[:paths]:
                if isinstance(path, str | Path) and Path(path).is_relative_to(below):
                    raise OSError(number, os.strerror(number), str(path))
            return real(*arguments, **options)

        return act

    monkeypatch.setattr(os, "rename", wrap(os.rename, 2))
    monkeypatch.setattr(os, "replace", wrap(os.replace, 2))
    monkeypatch.setattr(os, "unlink", wrap(os.unlink))
    monkeypatch.setattr(Path, "unlink", wrap(Path.unlink))
    real = Path.open

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if path.is_relative_to(below) and set(mode) & set("xwa+"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("number", FAULTS)
def test_uploads_and_deletes_tell_of_the_folder(
    server: Running, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = upload(server)
    with monkeypatch.context() as disk:
        _failing(disk, number, tmp_path / "files")
        answer = server.http.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("x", b"x")}
        )
        _unavailable(answer, tmp_path / "files" / ".uploads")
        _unavailable(server.http.delete(f"/v1/files/{file_id}"), tmp_path / "files" / file_id)
    assert server.http.get(f"/v1/files/{file_id}/content").status_code == 200
    assert server.sdk.files.delete(file_id).deleted


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("folder", [".trash", ".staging"])
def test_deleting_an_adapter_tells_of_the_folder(
    server: Running,
    publish: Publish,
    tmp_path: Path,
    folder: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish("poet"), publish("poet")
    with monkeypatch.context() as disk:
        _failing(disk, number, tmp_path / "adapters" / folder)
        _unavailable(server.http.delete("/v1/adapters/poet"), tmp_path / "adapters" / folder)
        _unavailable(server.http.delete("/v1/models/poet@2"), tmp_path / "adapters" / folder)
    assert server.http.get("/v1/models/poet").json()["root"] == "poet@2"
    assert server.http.delete("/v1/models/poet").status_code == 200


@pytest.mark.parametrize("folder", ["files", "adapters"])
def test_a_vanished_folder_is_told_and_not_made_anew(
    server: Running, publish: Publish, tmp_path: Path, folder: str
) -> None:
    publish("poet")
    file_id = upload(server)
    (tmp_path / folder).rename(tmp_path / "away")
    if folder == "files":
        answers = [
            server.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("x", b"")})
        ]
    else:
        asked = ("/v1/models", "/v1/models/poet", "/v1/adapters", "/v1/adapters/poet")
        answers = [server.http.get(path) for path in asked]
        answers.append(server.http.delete("/v1/adapters/poet"))
    for answer in answers:
        _unavailable(answer, tmp_path / folder)
    assert not (tmp_path / folder).exists()
    (tmp_path / "away").rename(tmp_path / folder)
    assert server.sdk.models.retrieve("poet").id == "poet"
    assert server.http.get(f"/v1/files/{file_id}/content").status_code == 200


@pytest.mark.parametrize("loss", ["latest", "2/adapter.safetensors", "2"])
def test_an_adapter_that_lost_a_part_is_told_deleted_and_trained_again(
    server: Running, publish: Publish, tmp_path: Path, loss: str
) -> None:
    publish("poet"), publish("poet"), publish("sage")
    folder = tmp_path / "adapters" / "default" / "poet"
    (folder / loss).rename(tmp_path / "away")
    for path in ("/v1/models/poet", "/v1/adapters/poet"):
        answer = server.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "adapter_corrupt")
        assert str(folder) in answer.json()["error"]["message"]
        assert "delete" in answer.json()["error"]["message"]
    assert [model.id for model in server.sdk.models.list()] == ["base", "sage"]
    body = {"model": "base", "training_file": upload(server), "suffix": "poet"}
    created = server.http.post("/v1/fine_tuning/jobs", json=body)
    if loss == "latest":
        assert (created.status_code, created.json()["error"]["code"]) == (500, "adapter_corrupt")
    else:
        assert created.status_code == 200
    gone = "poet" if loss == "latest" else "poet@2"
    assert server.http.delete(f"/v1/adapters/{gone}").status_code == 200
    assert server.http.get("/v1/models/poet").status_code == (404 if loss == "latest" else 200)
    assert server.http.post("/v1/fine_tuning/jobs", json=body).status_code == 200
    assert publish("poet").version == 3


def test_folders_of_others_hide_no_adapter(
    server: Running, publish: Publish, tmp_path: Path
) -> None:
    publish("poet")
    for name in ("a b", "__MACOSX", "lost+found"):
        (tmp_path / "adapters" / "default" / name).mkdir()
    assert [model.id for model in server.sdk.models.list()] == ["base", "poet"]
    listed = server.http.get("/v1/adapters").json()
    assert ([entry["id"] for entry in listed["data"]], listed["total"]) == (["poet"], 1)
