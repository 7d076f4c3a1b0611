"""The client as a distribution of its own: built, and used where nothing else of ours is."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import clients.python
from tests.api.running import Running

ROOT = Path(__file__).parents[2]

# Run with Python's -P and from a folder that holds nothing: only what is installed can be imported.
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import verandah_client
with verandah_client.Client(sys.argv[2]) as client:
    print(client.models())
    try:
        client.job("ftjob-none")
    except verandah_client.ClientError as error:
        print(type(error).__module__, error.status)
print(sorted(verandah_client.__all__))
print(sorted({"clients", "server", "adapters_store"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    source = shutil.copytree(ROOT / "clients" / "python", folder / "source")
    build = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_the_client_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (license_file,) = (name for name in archive.namelist() if name.endswith("LICENSE"))
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        told = message_from_bytes(archive.read(metadata))
        assert archive.read(license_file) == (ROOT / "LICENSE").read_bytes()
    files = {path.name for path in (ROOT / "clients" / "python").glob("*.py")} | {"py.typed"}
    assert names == {f"verandah_client/{file}" for file in files}
    assert told.get_all("Requires-Dist") == ["httpx>=0.27"]
    assert "from verandah_client import Client" in told.get_payload()


def test_it_is_of_the_version_that_the_server_is() -> None:
    own, whole = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for folder in (ROOT / "clients" / "python", ROOT)
    )
    assert own["version"] == whole["version"]
    assert own["requires-python"] == whole["requires-python"]
    assert set(own["dependencies"]) <= set(whole["dependencies"])


def test_it_talks_to_a_server_without_anything_else_of_ours(
    wheel: Path, server: Running, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", "-c", PROGRAM, str(wheel), server.url]
    models, error, names, others = subprocess.check_output(
        command, cwd=tmp_path, text=True
    ).splitlines()
    assert models == "['base']"
    assert error == "verandah_client.client_errors 404"
    assert names == str(sorted(clients.python.__all__))
    assert others == "[]"
