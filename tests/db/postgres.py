"""A PostgreSQL for the tests: the one that VERANDAH_TEST_POSTGRES_URL names, or a new one.

The new one is Debian's package `postgresql` (or what else is on the path), with all its files in a
temporary folder. Where it cannot be had, its tests are skipped and say why.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

GIVEN = os.environ.get("VERANDAH_TEST_POSTGRES_URL", "")
_USER = "postgres"  # PostgreSQL refuses to run as root
_DEBIANS = Path("/usr/lib/postgresql")
_START_S = 60


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a database in which tests make schemas of their own."""
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: requirements/install.sh .venv/bin/python postgres")
    if GIVEN:
        yield GIVEN
        return
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    as_root = os.geteuid() == 0
    if as_root and _USER not in {it.pw_name for it in pwd.getpwall()}:
        pytest.skip(f"PostgreSQL does not run as root, and there is no user {_USER!r}")
    with _cluster(programs, _USER if as_root else None) as url:
        yield url


@contextmanager
def schema_of(url: str) -> Iterator[str]:
    """The URL of a schema of its own, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{name}"
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
    engine.dispose()


def _programs() -> Path | None:
    """The folder of `initdb`, `postgres` and `pg_isready`: Debian's newest, or on the path."""
    debians = sorted(_DEBIANS.glob("*/bin"), key=lambda it: int(it.parent.name), reverse=True)
    found = shutil.which("initdb")
    folders = [*debians, *([] if found is None else [Path(found).resolve().parent])]
    return next((it for it in folders if (it / "pg_isready").exists()), None)


@contextmanager
def _cluster(programs: Path, user: str | None) -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="verandah-pg-"))  # short: a socket's path is limited
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL}
    if user is not None:
        shutil.chown(folder, user, user)
        options |= {"user": user, "group": user, "extra_groups": []}
    data = ["-D", str(folder / "data")]
    make = [str(programs / "initdb"), *data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
    run = [str(programs / "postgres"), *data, "-k", str(folder), "-c", "listen_addresses="]
    try:
        subprocess.run([*make, "--locale=C"], check=True, **options)
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [*run, "-c", "fsync=off", "-c", "max_connections=300"], stderr=log, **options
            )
        try:
            _wait_until_ready(programs, folder, server)
            yield f"postgresql://{_USER}@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # without waiting for clients
            server.wait(_START_S)
    finally:
        shutil.rmtree(folder)


def _wait_until_ready(programs: Path, folder: Path, server: subprocess.Popen[bytes]) -> None:
    ask = [str(programs / "pg_isready"), "-q", "-h", str(folder), "-U", _USER]
    until = time.monotonic() + _START_S
    while subprocess.run(ask).returncode:
        log = (folder / "log").read_text()
        assert server.poll() is None and time.monotonic() < until, log
        time.sleep(0.1)
