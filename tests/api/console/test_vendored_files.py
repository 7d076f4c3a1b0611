"""What others wrote is as they published it."""

import hashlib

from server.console.rendering import STATIC

VENDOR = STATIC / "vendor"


def test_hashes_are_those_of_the_packages() -> None:
    lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
    noted = {line.split()[1]: line.split()[0] for line in lines}
    code = {path.name for path in VENDOR.iterdir() if path.suffix in (".js", ".css")}
    assert noted.keys() == code
    for name, digest in noted.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


def test_each_has_its_licence_and_version_in_the_list() -> None:
    told = (VENDOR / "README.md").read_text()
    for path in VENDOR.iterdir():
        if path.suffix == ".js":
            assert f"`{path.name}`" in told
            assert f"`{path.stem}.LICENSE.txt`" in told
            assert (VENDOR / f"{path.stem}.LICENSE.txt").read_text().strip()
