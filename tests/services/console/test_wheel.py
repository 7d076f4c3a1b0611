"""The wheel alone, in an environment of its own, has all that the pages need."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from playwright.sync_api import Browser

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]


def test_the_installed_wheel_serves_the_console(tmp_path: Path, chromium: Browser) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("server", "adapters_store", "clients"):
        shutil.copytree(ROOT / name, source / name)
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("verandah-*.whl")
    environment = tmp_path / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True)
    # The packages that Verandah needs are those of this environment. Its own .pth files, which
    # lead to the source, are not read from here.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("VERANDAH_")}
    variables["PYTHONPATH"] = sysconfig.get_path("purelib")
    where = subprocess.run(
        [str(python), "-c", "import server; print(server.__file__)"],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(environment))
    command = [str(python), "-m", "server", "serve", "--model", "porch", "--port", "0"]
    with subprocess.Popen(
        [*command, "--home", str(tmp_path / "home"), "--no-worker"],
        env=variables,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("serving at ").strip()
            missing: list[str] = []
            page = chromium.new_page()
            page.on("response", lambda it: missing.append(it.url) if it.status >= 400 else None)
            for path in (
                "",
                "/data",
                "/jobs",
                "/compare",
                "/adapters",
                "/usage",
                "/keys",
                "/admin",
            ):
                page.goto(f"{url}/console{path}")
                assert page.locator("h1").count() == 1
            page.close()
            assert missing == []
        finally:
            process.terminate()
