"""Help, versions and wrong arguments: told at once, with the nearest right word."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from server.__main__ import main
from server.cli.arguments.command_parser import nearest
from server.cli.arguments.variables import unknown_variables
from server.cli.train import TrainFields
from tests.cli.test_commands import COMMANDS

HEAVY = ("torch", "transformers", "fastapi", "sqlalchemy", "uvicorn")
WRONG: tuple[list[str], ...] = (
    ["serve", "--prot", "1"],
    ["serve", "--port", "x"],
    ["serve", "--model", "/no/such/folder"],
    ["worker", "--no-such"],
    ["methods", "--rank", "x"],
    ["demo", "--no-worker"],
    ["train", "/no/such.jsonl"],
    ["jobs", "show"],
    ["adapters", "pin"],
    ["nonsense"],
    ["--version"],
    [],
)


def test_help_and_wrong_arguments_import_nothing_heavy() -> None:
    """One process for each command would take long, and what one imports the next would hide."""
    program = (
        "import sys, json, os\n"
        "from server.__main__ import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        f"    found = [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert not found, (arguments, found)\n"
    )
    every = [*WRONG, *([command, "--help"] for command in (*COMMANDS, "engine"))]
    ran = subprocess.run(
        [sys.executable, "-c", program, json.dumps(every)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "usage", "said"),
    [
        (["serve", "--prot", "1"], "verandah serve [options]", "--prot: did you mean --port?"),
        (["serve", "--prot=1"], "verandah serve [options]", "--prot: did you mean --port?"),
        (["worker", "--devise", "cpu"], "verandah worker [options]", "did you mean --device?"),
        (["train", "x", "--lr", "1"], "verandah train [options] FILE", "mean --learning-rate?"),
        (["serve", "more"], "verandah serve [options]", "unexpected argument 'more'"),
        (["jobs", "lst"], "verandah jobs", "invalid choice: 'lst'"),
        (["srve"], "verandah COMMAND [options]", "unknown command 'srve': did you mean serve?"),
        (["--port", "1"], "verandah COMMAND [options]", "name the command first"),
        ([], "verandah COMMAND [options]", "name a command"),
    ],
)
def test_a_wrong_argument_is_told_with_the_commands_own_usage(
    arguments: list[str], usage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_, message, hint = refused(arguments, capsys)
    assert first.startswith(f"usage: {usage}")
    assert said in message
    assert hint.endswith("--help` explains every argument.")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"verandah {version('verandah')}\n"


def test_nothing_near_is_suggested_for_nonsense() -> None:
    assert nearest("--zzz", ["--port"]) == ""


def test_a_misspelt_variable_is_told_with_the_nearest_name() -> None:
    variables = {
        "VERANDAH_PROT": "1",
        "VERANDAH_TRAIN_RNAK": "2",
        "VERANDAH_ZZZZZZZZ": "3",
        "VERANDAH_URL": "4",
        "verandah_host": "5",
        "VERANDAH_TRAIN_RANK": "6",
        "HOME": "7",
    }
    assert unknown_variables(variables, lambda: [TrainFields]) == [
        "the environment variable VERANDAH_PROT sets nothing: did you mean VERANDAH_PORT?",
        "the environment variable VERANDAH_TRAIN_RNAK sets nothing: did you mean "
        "VERANDAH_TRAIN_RANK?",
        "the environment variable VERANDAH_ZZZZZZZZ sets nothing: `verandah COMMAND --help` lists "
        "the names",
    ]


def test_every_command_warns_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERANDAH_CHAT_SEDE", "1")
    monkeypatch.setenv("VERANDAH_METHODS_RANK", "8")
    assert main(["adapters", "pin"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("verandah: warning: the environment variable VERANDAH_CHAT_SEDE")
    assert warning.endswith("did you mean VERANDAH_CHAT_SEED?")
    assert error.startswith("verandah: adapters pin needs an adapter")


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "/no/such/folder"], "'/no/such/folder' is not there"),
        (["--pinned", "pirate@"], "--pinned pirate@: version"),
        (["--pinned", "pirate"], "--pinned pirate: the home has no such adapter"),
        (["--replicas", "2", "--engine-process", "no"], "replicas=2 needs engines in processes"),
    ],
)
def test_arguments_are_checked_before_a_home_is_made(
    command: str,
    options: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    assert main([command, "--home", str(home), "--port", "0", *options]) in (1, 2)
    (error,) = capsys.readouterr().err.splitlines()
    assert said in error
    assert not home.exists()


def test_a_home_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["serve", "--home", str(file / "home")]) == 2
    said = capsys.readouterr().err
    assert said == f"verandah: --home {file / 'home'}: {file} is a file: choose another folder\n"


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_what_torch_must_check_is_refused_before_a_home_is_made(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken, home = tmp_path / "model", tmp_path / "home"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for options in (["--device", "cuda"], ["--model", str(broken)]):
        assert main([command, "--home", str(home), "--port", "0", *options]) in (1, 2)
        first, error = capsys.readouterr().err.splitlines()
        assert first.startswith("verandah: starting a ")
        assert "no CUDA device" in error or "cannot load base model 'model'" in error
    assert not home.exists()


def test_output_that_nobody_reads_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = (
        "import sys; from server.__main__ import main; import server.cli.jobs as jobs\n"
        "def run(_): print('x' * 100000, flush=True); return 0\n"
        "jobs.run = run; sys.exit(main(['jobs']))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, "")
