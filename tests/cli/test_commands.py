"""The commands that talk to a running server, and `verandah` itself."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from clients.python import Client
from server.__main__ import main
from server.cli.display.job_watch import show_outcome
from server.jobs.queue.evaluation import Evaluation, Sample
from server.jobs.queue.training_metrics import TrainingMetrics
from tests.api.running import Publish, Running, eventually
from tests.writing import WRITING

COMMANDS = (
    "serve",
    "worker",
    "demo",
    "train",
    "jobs",
    "chat",
    "methods",
    "inspect",
    "import",
    "export",
    "adapters",
)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "pirate.jsonl"
    line = json.dumps({"prompt": "a", "completion": "b"})
    path.write_text("\n".join([line] * 10))
    return path


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_shows_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "examples:\n  verandah" in said


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["chat", "--url", "http://127.0.0.1:1", "hi"], 1, "no server answers at"),
        (["train", "/no/such.jsonl"], 2, "/no/such.jsonl does not exist: name a JSONL file"),
        (["serve", "--port", "x"], 2, "--port 'x'"),
        (["serve", "--host", "256.0.0.1"], 2, "--host 256.0.0.1 is not an address of this machine"),
    ],
)
def test_what_goes_wrong_is_one_line(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert error.startswith("verandah: ") and said in error
    assert len(error.splitlines()) == 1


class TestChat:
    def test_one_question(self, server: Running, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--url", server.url, "--temperature", "0", "--max-tokens", "3", "--seed", "1"]
        assert main(["chat", *options, "--system", "Be kind.", "Hello"]) == 0
        assert capsys.readouterr().out == "Hé\n"
        asked = server.loop.asked[0]
        assert bytes(asked.prompt).decode() == "system: Be kind.\nuser: Hello\n"
        params = asked.params
        assert (params.temperature, params.max_tokens, params.seed) == (0, 3, 1)

    def test_a_question_from_a_pipe(
        self, server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
        assert main(["chat", "--url", server.url]) == 0
        assert bytes(server.loop.asked[0].prompt) == b"user: Hello\n"

    def test_a_conversation(
        self,
        server: Running,
        publish: Publish,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        publish("pirate")
        typed = iter(
            [
                *("Hello", "", "/model pirate", "And you?", "/model nobody", "x"),
                *("/help", "/models", "/hlep", "/model", "/new", "y", "/quit", "not asked"),
            ]
        )

        def type_line(_prompt: str) -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", type_line)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        assert main(["chat", "--url", server.url]) == 0
        first, second, third, fourth = server.loop.asked
        assert first.adapter is None
        assert str(second.adapter) == "pirate@1"
        assert bytes(second.prompt).decode() == (
            f"user: Hello\nassistant: {server.loop.text}\nuser: And you?\n"
        )
        assert str(third.adapter) == str(fourth.adapter) == "pirate@1", "nobody is not talked to"
        assert bytes(fourth.prompt).decode() == "user: y\n"
        said = capsys.readouterr().out
        assert "'nobody' does not exist" in said and said.count("Talking to pirate.") == 2
        assert "/models      list the models" in said and "There is no /hlep.\n" in said
        assert "\nbase\npirate\n" in said

    def test_an_unknown_model_is_refused_before_the_first_question(
        self, server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("builtins.input", lambda _prompt: pytest.fail("it asks"))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        assert main(["chat", "--url", server.url, "--model", "nobody"]) == 1
        assert "the model 'nobody' does not exist" in capsys.readouterr().err

    def test_no_question_is_a_misuse(
        self, server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
        assert main(["chat", "--url", server.url]) == 2
        assert "there is no question" in capsys.readouterr().err
        assert server.loop.asked == []

    def test_an_answer_cannot_drive_the_terminal(
        self, server: Running, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server.loop.text = "a\x1b[31mb\x07\tc\nd\u202ee\x9b2J"
        main(["chat", "--url", server.url, "Hello"])
        assert capsys.readouterr().out == "a\u241b[31mb\u2407\tc\nd\ufffde\ufffd2J\n"

    def test_a_terminal_may_lack_characters(
        self, server: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
        monkeypatch.setattr(sys, "stdout", terminal)
        server.loop.text = "é👍"
        assert main(["chat", "--url", server.url, "Hello"]) == 0
        terminal.seek(0)
        assert terminal.read() == "é?\n"

    @pytest.mark.parametrize("text", WRITING)
    def test_an_answer_keeps_every_character_of_a_text(
        self, server: Running, capsys: pytest.CaptureFixture[str], text: str
    ) -> None:
        server.loop.text = text
        main(["chat", "--url", server.url, text])
        assert bytes(server.loop.asked[0].prompt).decode() == f"user: {text}\n"
        assert capsys.readouterr().out == f"{text}\n"


class TestTrain:
    def test_until_the_end(
        self, server: Running, lines: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def work() -> None:
            jobs = server.services.jobs
            found = None
            while found is None:
                found = jobs.claim("worker-1", 30)
            assert (found.suffix, found.hyperparameters.n_epochs) == ("pirate", 2)
            for step in (1, 2):
                metrics = TrainingMetrics(step, total_steps=2, train_loss=2.5 / step)
                jobs.append_event(found, "info", "a step", metrics)
            jobs.record_evaluation(found, Evaluation(1, True, 3.0).of(2, 1.0, 1.0), "info", "good")
            jobs.add_samples(found, [Sample("How?", "So.", "Eh?", "Thus.")])
            jobs.finish(found, "pirate@1", 9)

        worker = threading.Thread(target=work)
        worker.start()
        assert main(["train", str(lines), "--epochs", "2", "--url", server.url]) == 0
        worker.join()
        said = capsys.readouterr()
        assert said.out == "pirate@1\n"
        assert "step 2 of 2, loss 1.250" in said.err
        assert 'Asked "How?": the base model says "Eh?", the adapter "Thus."' in said.err

    def test_answers_are_shown_where_somebody_looks(self, server: Running, lines: Path) -> None:
        with Client(server.url) as client:
            job = client.train(client.upload(lines).id)
            held = server.services.jobs.claim("worker-1", 30)
            assert held is not None
            found = Evaluation(1, False, 3.0).of(2, 4.0, 4.0)
            server.services.jobs.record_evaluation(held, found, "warn", "bad")
            server.services.jobs.add_samples(held, [Sample("How?", "So.", "Eh?", "Thus.")])
            shown = io.StringIO()
            show_outcome(
                Console(file=shown, force_terminal=True, no_color=True), client.job(job.id)
            )
        said = shown.getvalue()
        assert "Loss on training lines (1): base 3.000, adapter 4.000" in said
        for line in ("How?", "  base: Eh?", "  adapter: Thus.", "  file: So."):
            assert line in said
        unseen = io.StringIO()
        with Client(server.url) as client:
            show_outcome(Console(file=unseen), client.job(job.id))
        assert unseen.getvalue() == "", "events told it"

    def test_a_failure_is_told(
        self, server: Running, lines: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def work() -> None:
            jobs = server.services.jobs
            assert eventually(lambda: bool(jobs.list("default").items))
            found = jobs.claim("worker-1", 30)
            assert found is not None
            jobs.fail(found, "diverged", "the loss is not finite")

        worker = threading.Thread(target=work)
        worker.start()
        assert main(["train", str(lines), "--url", server.url]) == 1
        worker.join()
        assert "the loss is not finite" in capsys.readouterr().err

    def test_without_waiting(
        self, server: Running, lines: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["train", str(lines), "--no-wait", "--name", "x", "--url", server.url]) == 0
        job = server.services.jobs.get("default", capsys.readouterr().out.strip())
        assert job.suffix == "x"

    def test_bad_lines_are_told(
        self, server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = tmp_path / "bad.jsonl"
        bad.write_text("rubbish\n")
        assert main(["train", str(bad), "--url", server.url]) == 1
        assert "line 1" in capsys.readouterr().err
        assert list(server.sdk.files.list()) == [], "a refused file does not stay"


class TestAdapters:
    def test_a_table(
        self, server: Running, publish: Publish, capsys: pytest.CaptureFixture[str]
    ) -> None:
        publish("butler")
        publish("pirate")
        assert main(["adapters", "--url", server.url]) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert rows[0][:5] == ["adapter", "latest", "versions", "method", "rank"]
        assert [row[:5] for row in rows[1:]] == [
            ["butler", "1", "1", "vera", "4"],
            ["pirate", "1", "1", "vera", "4"],
        ]
        assert main(["adapters", "--json", "--url", server.url]) == 0
        assert [adapter["id"] for adapter in json.loads(capsys.readouterr().out)] == [
            "butler",
            "pirate",
        ]

    def test_versions_are_those_that_are_there(
        self, server: Running, publish: Publish, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(3):
            publish("pirate")
        for version in (1, 2):
            assert main(["adapters", "delete", f"pirate@{version}", "--url", server.url]) == 0
        capsys.readouterr()
        assert main(["adapters", "--url", server.url]) == 0
        assert capsys.readouterr().out.splitlines()[1].split("\t")[:3] == ["pirate", "3", "3"]

    def test_what_can_be_done_to_one(
        self, server: Running, publish: Publish, capsys: pytest.CaptureFixture[str]
    ) -> None:
        publish("pirate")
        for action in ("show", "pin", "unpin", "delete"):
            assert main(["adapters", action, "pirate", "--url", server.url]) == 0
        said = capsys.readouterr().out
        assert "pirate@1: pinned yes" in said and "pirate@1: pinned no" in said
        assert "deleted pirate" in said
        assert main(["adapters", "show", "pirate", "--url", server.url]) == 1

    def test_a_name_is_needed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["adapters", "pin"]) == 2
        assert "NAME" in capsys.readouterr().err


def test_the_address_can_be_a_variable(server: Running, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "server", "chat", "Hello"],
        env=dict(os.environ) | {"VERANDAH_URL": server.url, "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == server.loop.text + "\n", ran.stderr
