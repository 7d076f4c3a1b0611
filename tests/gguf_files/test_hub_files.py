"""A file of a hub, over HTTP: what `ORG/REPO:FILE.gguf` fetches, and says if it cannot."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.bases.base_files import load_stored
from server.bases.model import fingerprint_of
from tests.gguf_files.making import ROOT, Quant, byte_level_vocab, model_for, write_gguf

REPOSITORY, FILE = "some/repo-GGUF", "sub/m.Q4_0.gguf"
CODE = """
import sys
from server.bases.base_files import load_stored
from server.bases.model import fingerprint_of
from server.errors import UnsupportedModel
for source in sys.argv[1:]:
    try:
        print(fingerprint_of(load_stored(source)))
    except UnsupportedModel as error:
        print(error)
"""


class Hub(ThreadingHTTPServer):
    """Has one file, and answers as the hub does."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content = content
        self.asked: list[tuple[str, str]] = []


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.server.asked.append((self.command, self.path))
        known = self.path == f"/{REPOSITORY}/resolve/main/{FILE}"
        content = self.server.content if known else b""
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if not known:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Nothing of a request is told."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    vocab = byte_level_vocab()
    return write_gguf(tmp_path / "m.gguf", model_for(vocab), vocab, kind=Quant.Q4_0)


@pytest.fixture
def hub(file: Path) -> Iterator[Hub]:
    with Hub(file.read_bytes()) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


def loaded(hub: Hub, folder: Path, *files: str) -> list[str]:
    """What another process makes of files of the hub: fingerprints, or errors. It reads the hub's
    address at its start."""
    variables = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.check_output(
        [sys.executable, "-c", CODE, *(f"{REPOSITORY}:{name}" for name in files)],
        cwd=ROOT,
        env=os.environ | variables,
        text=True,
    ).splitlines()


def test_a_file_of_a_hub_is_the_base_that_it_holds(hub: Hub, file: Path, tmp_path: Path) -> None:
    wanted = fingerprint_of(load_stored(file))
    found, missing = loaded(hub, tmp_path, FILE, "other.gguf")
    assert found == wanted
    assert missing.startswith(
        f"'other.gguf' cannot be fetched from hub repository {REPOSITORY!r}: "
    )
    assert "404" in missing and missing.endswith("or give a local .gguf file")
    fetched = [path for command, path in hub.asked if command == "GET" and "/resolve/" in path]
    assert fetched == [f"/{REPOSITORY}/resolve/main/{FILE}"]
