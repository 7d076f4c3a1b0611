"""axe-core, the checker of web pages for people who see, hear or move differently, from npm."""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

VERSION = "4.14.1"
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"  # of axe.min.js
GRAVE = ("serious", "critical")


def axe_script(folder: Path) -> str:
    """The script that checks a page. Skips the test where npm cannot bring it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("axe-core cannot be had: there is no npm")
    command = [npm, "pack", f"axe-core@{VERSION}", "--silent"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"axe-core cannot be had: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(folder / f"axe-core-{VERSION}.tgz") as package:
        member = package.extractfile("package/axe.min.js")
        assert member is not None
        script = member.read()
    assert hashlib.sha256(script).hexdigest() == SHA256
    return script.decode()


def grave_violations(page: Page, script: str, only: Sequence[str] = ()) -> list[str]:
    """What axe calls serious or critical on a page: the rule, and the elements that break it.

    `only` names the rules to check; none: all.
    """
    if not page.evaluate("'axe' in window"):
        page.evaluate(script)
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if only:
        options["runOnly"] = list(only)
    found: dict[str, Any] = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes'][:4]]}"
        for one in found["violations"]
        if one["impact"] in GRAVE
    ]
