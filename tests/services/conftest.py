"""Canaille, an identity provider that really runs, and a server whose people sign in by it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai import OpenAI

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "services" / "provider.txt"
PROGRAM = Path(__file__).with_name("provider.py")
PASSWORD = "correct horse battery"
KEY = "the key of the server's admin"
_NOT_TO_BE_HAD = ("No matching distribution", "Could not find a version", "Connection")


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment that has Canaille."""
    folder = tmp_path_factory.mktemp("provider")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK)]
    installed = subprocess.run(install, capture_output=True, text=True)
    if any(sign in installed.stderr for sign in _NOT_TO_BE_HAD):
        pytest.skip(f"the package pytest-iam cannot be had: {installed.stderr.splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    return python


@pytest.fixture(scope="session")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


Regroup = Callable[[str, str], None]


@pytest.fixture(scope="session")
def provider(interpreter: str, port: int) -> Iterator[tuple[dict[str, str], Regroup]]:
    """What our client is told of the provider, and what puts a person in groups."""
    process = subprocess.Popen(
        [interpreter, str(PROGRAM), f"http://127.0.0.1:{port}/auth/callback"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    source, answers = process.stdin, process.stdout

    def regroup(name: str, groups: str) -> None:
        source.write(f"{name} {groups}\n")
        source.flush()
        assert answers.readline() == "done\n"

    try:
        yield json.loads(answers.readline()), regroup
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="session")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("VERANDAH_")}
    return inherited | {"XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("config"))}


@pytest.fixture(scope="session")
def server(
    provider: tuple[dict[str, str], Regroup],
    port: int,
    variables: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of a server with the owners a and b."""
    folder = tmp_path_factory.mktemp("served")
    secret, log = folder / "secret", folder / "log"
    secret.write_text(provider[0]["secret"] + "\n")
    options = {
        "port": str(port),
        "home": str(folder / "home"),
        "oidc-issuer": provider[0]["url"].rstrip("/"),
        "oidc-client-id": provider[0]["client"],
        "oidc-client-secret-file": str(secret),
        "oidc-scopes": "openid,profile,email,groups",
        "oidc-groups": "team-a=a:member,team-b=b:admin,admins=*:admin",
        "log-level": "debug",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve", "--no-worker", *arguments],
            env=variables | {"VERANDAH_API_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving at "), log.read_text()
        url = line.removeprefix("serving at ").strip()
        with OpenAI(base_url=f"{url}/v1", api_key=KEY, admin_api_key=KEY) as client:
            for name in ("a", "b"):
                client.admin.organization.projects.create(name=name)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert provider[0]["secret"] not in log.read_text()
