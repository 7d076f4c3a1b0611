"""Checkpoint folders from and to this machine, by the client and by the commands."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import load, save_file

from clients.python import ApiError, BadFolder, Client
from clients.python.folders import unpack
from clients.python.slim import without_copies
from server.__main__ import main
from tests.api.fakes import FakePorting
from tests.api.running import Publish, Running, eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def porting(server: Running) -> FakePorting:
    assert isinstance(server.services.porting, FakePorting)
    return server.services.porting


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(b"config")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_an_import(client: Client, porting: FakePorting, folder: Path) -> None:
    adapter = client.import_adapter(folder, "pirate", torch_era="2.12", half_dtype="bfloat16")
    assert (adapter.id, adapter.method) == ("pirate@1", "lora")
    assert porting.received == [(b"config", b"weights")]
    assert porting.told[0]["file_name"] == "adapter_model.safetensors"
    assert porting.told[0]["torch_era"] == "2.12"


def test_folders_that_are_no_checkpoint(client: Client, folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadFolder, match=r"but adapter_model\.bin, a pickle"):
        client.import_adapter(folder, "pirate")
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(BadFolder, match=r"has no adapter_model\.safetensors"):
        client.import_adapter(folder, "pirate")
    with pytest.raises(BadFolder, match=r"has no adapter_config\.json"):
        client.import_adapter(folder / "nowhere", "pirate")


@pytest.mark.parametrize("exists", [False, True])
def test_an_export(
    client: Client, porting: FakePorting, publish: Publish, tmp_path: Path, exists: bool
) -> None:
    ref, out = publish("pirate"), tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    paths = client.export_adapter("pirate", out, "merged")
    assert {path.name: path.read_bytes() for path in paths} == porting.files
    assert paths == sorted(out.iterdir()) and [*out.parent.iterdir()] == [out]
    assert porting.asked == [(ref, "merged")]
    with pytest.raises(BadFolder, match="not an empty folder"):
        client.export_adapter("pirate", out)
    assert len(porting.asked) == 1


def test_a_refused_export_makes_no_folder(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="nobody"):
        client.export_adapter("nobody", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_cut_short_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match="incomplete"):
        unpack([b"PK\x03\x04", b"rest"], tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_the_commands(
    server: Running,
    porting: FakePorting,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = ["--url", server.url]
    assert main(["import", str(folder), *url]) == 0
    assert main(["import", str(folder), "--name", "pirate", "--base-dtype", "bfloat16", *url]) == 0
    assert capsys.readouterr().out == "my-adapter@1\npirate@1\n"
    assert [told["base_dtype"] for told in porting.told] == ["float32", "bfloat16"]
    out = tmp_path / "out"
    assert main(["export", "pirate", "--format", "peft-lora", "--out", str(out), *url]) == 0
    assert capsys.readouterr().out.splitlines() == [str(path) for path in sorted(out.iterdir())]
    assert porting.asked[0][1] == "peft-lora"
    assert main(["export", "pirate", "--out", str(out), *url]) == 1
    assert "not an empty folder" in capsys.readouterr().err


class TestCopies:
    def slim(self, path: Path, **tensors: torch.Tensor) -> bytes:
        save_file(
            {name.replace("__", "."): tensor for name, tensor in tensors.items()},
            path,
            metadata={"format": "pt"},
        )
        with without_copies(path) as file:
            return file.read()

    def test_are_sent_once(self, tmp_path: Path) -> None:
        shared = torch.arange(600_000.0).view(2, 300_000)
        other = shared.clone()
        other[1, -1] = 0
        tensors = {
            "base_model__x_A": shared,
            "base_model__model__0__x_A": shared.clone(),
            "base_model__model__1__x_A": other,
            "base_model__model__2__x_A": shared.clone().view(300_000, 2),
            "base_model__model__3__x_lambda": torch.ones(3),
            "base_model__model__4__x_A": shared.clone(),
        }
        read = load(self.slim(tmp_path / "x", **tensors))
        left = {name.replace("__", ".") for name in tensors}
        assert set(read) == left - {"base_model.model.0.x_A", "base_model.model.4.x_A"}
        assert all(torch.equal(read[n], tensors[n.replace(".", "__")]) for n in read)

    def test_without_any_the_file_is_sent_as_it_is(self, tmp_path: Path) -> None:
        sent = self.slim(tmp_path / "x", base_model__x_A=torch.ones(2), y=torch.ones(2))
        assert sent == (tmp_path / "x").read_bytes()

    @pytest.mark.parametrize(
        "content",
        [b"", b"\x01", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", b'\x07\0\0\0\0\0\0\0{"a":1}'],
    )
    def test_what_is_no_safetensors_is_sent_as_it_is(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(content)
        with without_copies(tmp_path / "x") as file:
            assert file.read() == content

    def test_an_import_sends_the_slim_file(
        self, client: Client, porting: FakePorting, folder: Path
    ) -> None:
        ones = torch.ones(500)
        whole = self.slim(folder / "adapter_model.safetensors", a__x=ones)
        copies = {f"base_model__model__{layer}__x": ones.clone() for layer in range(9)}
        self.slim(folder / "adapter_model.safetensors", base_model__x=ones, **copies)
        client.import_adapter(folder, "pirate")
        assert len(porting.received[0][1]) < len(whole) + 100


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = (
        "import pathlib, sys, time\n"
        "from clients.python import folders\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "with folders._locked_part(out) as part:\n"
        "    (part / 'half').write_text('x')\n"
        "    (out.parent / 'started').write_text('x')\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "first")], cwd=ROOT)
    assert eventually(started.exists, 20)
    archive = io.BytesIO()
    with ZipFile(archive, "w") as file:
        file.writestr("weights", "x")
    unpack([archive.getvalue()], tmp_path / "second")
    assert len(list(tmp_path.glob(".*"))) == 1, "the export that runs keeps its folder"
    process.kill()
    process.wait()
    unpack([archive.getvalue()], tmp_path / "third")
    assert list(tmp_path.glob(".*")) == []
    assert (tmp_path / "third" / "weights").read_text() == "x"


def test_an_archive_that_comes_leaves_no_name_on_the_disk(tmp_path: Path) -> None:
    """Whoever is killed while it comes leaves nothing."""
    archive = io.BytesIO()
    with ZipFile(archive, "w") as file:
        file.writestr("weights", "x" * 1000)
    seen: list[list[str]] = []

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(archive.getvalue()), 100):
            seen.append([path.name for path in tmp_path.iterdir()])
            yield archive.getvalue()[start : start + 100]

    unpack(pieces(), tmp_path / "out")
    assert (tmp_path / "out" / "weights").exists()
    assert all(names == [] for names in seen)
