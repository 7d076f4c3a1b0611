"""`verandah jobs`, and `verandah train` where it does not run to the end."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from clients.python import Client
from server.__main__ import main
from server.cli.display import output
from server.cli.display.output import print_fields, print_rows, short_moment
from server.tenancy.keys import Keys
from tests.api.running import Running, Serve

LINE = json.dumps({"prompt": "a", "completion": "b"})


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "pirate.jsonl"
    path.write_text("\n".join([LINE] * 10))
    return path


@pytest.fixture
def job(server: Running, lines: Path) -> str:
    """A job that waits."""
    with Client(server.url) as client:
        return client.train(client.upload(lines).id, suffix="pirate", metadata={"team": "red"}).id


def jobs(server: Running, *arguments: str) -> int:
    return main(["jobs", *arguments, "--url", server.url])


def files(server: Running) -> list[str]:
    return [file.id for file in server.sdk.files.list()]


class TestJobs:
    def test_a_list_is_a_line_for_each(
        self, server: Running, job: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with Client(server.url) as client:
            client.cancel(job)
            second = client.train(files(server)[0]).id
        assert jobs(server) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert rows[0] == ["job", "status", "name", "model", "step", "created", "result"]
        assert [row[:4] for row in rows[1:]] == [
            [second, "queued", "", "base"],
            [job, "cancelled", "pirate", "base"],
        ]
        assert jobs(server, "list", "--status", "cancelled", "--json") == 0
        (told,) = json.loads(capsys.readouterr().out)
        assert (told["id"], told["status"]) == (job, "cancelled")
        assert jobs(server, "list", "--limit", "1") == 0
        assert second in (said := capsys.readouterr().out) and job not in said

    def test_one_in_full(
        self, server: Running, job: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert jobs(server, "show", job) == 0
        told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert (told["id"], told["status"], told["metadata.team"]) == (job, "queued", "red")
        assert told["hyperparameters.n_epochs"] == "auto"
        assert jobs(server, "show", job, "--json") == 0
        assert json.loads(capsys.readouterr().out)["metadata"] == {"team": "red"}

    def test_pause_resume_and_cancel(
        self, server: Running, job: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for action, status in (("pause", "paused"), ("resume", "queued")):
            assert jobs(server, action, job) == 0
            assert capsys.readouterr().out == f"{job}: {status}\n"
        assert server.services.jobs.claim("worker-1", 30)
        assert jobs(server, "cancel", job) == 0
        assert (
            capsys.readouterr().out == f"{job}: running: its worker was asked, and stops it soon\n"
        )
        assert jobs(server, "resume", job) == 1
        assert "only a paused job can be resumed" in capsys.readouterr().err

    @pytest.mark.parametrize("action", ["show", "follow", "cancel", "pause", "resume"])
    def test_a_job_must_be_named_and_be_there(
        self, server: Running, action: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert jobs(server, action) == 2
        assert "needs a job's id" in capsys.readouterr().err
        assert jobs(server, action, "ftjob-0") == 1
        assert "there is no fine-tuning job 'ftjob-0'" in capsys.readouterr().err

    def test_a_limit_is_one_or_more(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["jobs", "--limit", "0"]) == 2
        assert "--limit 0" in capsys.readouterr().err

    @pytest.mark.parametrize("as_json", [False, True])
    def test_following_ends_with_the_job(
        self, server: Running, job: str, as_json: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        held = server.services.jobs.claim("worker-1", 30)
        assert held is not None
        server.services.jobs.finish(held, "pirate@1", 9)
        assert jobs(server, "follow", job, *(["--json"] if as_json else [])) == 0
        said = capsys.readouterr()
        if as_json:
            events = [json.loads(line) for line in said.out.splitlines()]
            assert events[-1]["message"] == "The job has successfully completed"
        else:
            assert said.out == "pirate@1\n" and "pirate: done: pirate@1\n" in said.err

    def test_a_failed_job_is_a_failure(
        self, server: Running, job: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        held = server.services.jobs.claim("worker-1", 30)
        assert held is not None
        server.services.jobs.fail(held, "diverged", "the loss is not finite")
        assert jobs(server, "follow", job) == 1
        said = capsys.readouterr().err
        assert "the loss is not finite" in said and "goes on" not in said


def interrupting(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


class TestLeaving:
    """Ctrl-C leaves the job running, and says how to come back."""

    @pytest.mark.parametrize("method", ["follow", "wait"])
    def test_train_says_how_to_come_back(
        self,
        server: Running,
        lines: Path,
        method: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        if method == "wait":
            monkeypatch.setattr(Client, "follow", lambda *_: iter(()))
        monkeypatch.setattr(Client, method, interrupting)
        assert main(["train", str(lines), "--url", server.url]) == 130
        (job,) = server.services.jobs.list("default").items
        assert job.status == "queued" and len(files(server)) == 1
        assert capsys.readouterr().err.splitlines()[-3:] == [
            f"verandah: job {job.id} goes on at the server. Come back to it or end it:",
            f"  verandah jobs follow {job.id} --url {server.url}",
            f"  verandah jobs cancel {job.id} --url {server.url}",
        ]

    def test_follow_says_it_too(
        self,
        server: Running,
        job: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("VERANDAH_URL", server.url)
        monkeypatch.setattr(Client, "follow", interrupting)
        assert main(["jobs", "follow", job]) == 130
        assert capsys.readouterr().err.endswith(f"  verandah jobs cancel {job}\n")

    @pytest.mark.parametrize("method", ["upload", "train"])
    def test_before_the_job_nothing_stays(
        self, server: Running, lines: Path, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[Path] = []
        real: Callable[..., Any] = Client.upload

        def upload(client: Client, path: Path) -> Any:
            calls.append(path)
            return real(client, path) if len(calls) == 1 else interrupting()

        monkeypatch.setattr(Client, "upload", upload)
        if method == "train":
            monkeypatch.setattr(Client, "train", interrupting)
        more = ["--validation-file", str(lines)] if method == "upload" else []
        assert main(["train", str(lines), *more, "--url", server.url]) == 130
        assert calls and files(server) == []


class TestTrain:
    def test_files_schedule_and_metadata_reach_the_job(
        self, server: Running, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        valid = tmp_path / "valid.jsonl"
        valid.write_text(LINE)
        arguments = (
            "--validation-file", str(valid), "--schedule", "linear", "--warmup-ratio", "0.5",
            "--metadata", "team=red", "--metadata", "run=7", "--no-wait",
        )  # fmt: skip
        assert main(["train", str(lines), *arguments, "--url", server.url]) == 0
        said = capsys.readouterr()
        job = server.services.jobs.get("default", said.out.strip())
        assert job.validation_file is not None
        assert server.services.files.get("default", job.validation_file).filename == "valid.jsonl"
        assert (job.hyperparameters.schedule, job.hyperparameters.warmup_ratio) == ("linear", 0.5)
        assert job.metadata == {"team": "red", "run": "7"}
        assert "verandah: This server runs no training worker." in said.err

    def test_a_split(
        self, server: Running, lines: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["train", str(lines), "--validation-split", "0.2", "--no-wait", "--json"]
        assert main([*arguments, "--url", server.url]) == 0
        job = server.services.jobs.get("default", json.loads(capsys.readouterr().out)["id"])
        assert job.hyperparameters.validation_split == 0.2

    def test_a_packed_file_names_its_adapter_without_its_endings(
        self, server: Running, lines: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        packed = lines.with_name("pirate.jsonl.gz")
        packed.write_bytes(gzip.compress(lines.read_bytes()))
        assert main(["train", str(packed), "--no-wait", "--url", server.url]) == 0
        job = server.services.jobs.get("default", capsys.readouterr().out.strip())
        assert job.suffix == "pirate"
        stored = server.services.files.get("default", job.training_file)
        assert (stored.filename, stored.bytes) == ("pirate.jsonl", lines.stat().st_size)

    def test_a_dry_run_leaves_nothing(
        self, server: Running, lines: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["train", str(lines), "--dry-run", "--url", server.url]) == 0
        told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert told["examples"] == "10"
        assert files(server) == [] and server.services.jobs.list("default").items == ()
        assert main(["train", str(lines), "--dry-run", "--json", "--url", server.url]) == 0
        assert json.loads(capsys.readouterr().out)["valid"] is True

    @pytest.mark.parametrize("dry", [True, False])
    def test_bad_lines_are_one_a_line_and_do_not_stay(
        self,
        server: Running,
        lines: Path,
        tmp_path: Path,
        dry: bool,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        bad = tmp_path / "bad.jsonl"
        bad.write_text(f"rubbish\n{LINE}\n[]\n")
        more = ["--dry-run"] if dry else []
        assert main(["train", str(bad), *more, "--url", server.url]) == 1
        said = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in said[-2:]] == ["  line 1", "  line 3"]
        if not dry:
            assert said[0] == "verandah: the training file was refused: 2 lines are invalid"
        assert main(["train", str(lines), "--validation-file", str(bad), "--url", server.url]) == 1
        refused = capsys.readouterr().err
        assert (
            "the validation file was refused: 2 lines are invalid\n  validation file, line 1"
            in refused
        )
        assert main(["train", str(bad), "--validation-file", str(bad), "--url", server.url]) == 1
        both = capsys.readouterr().err.splitlines()
        assert both[0] == "verandah: both files were refused" and len(both) == 5
        assert files(server) == []

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--name", "base"], "suffix 'base'"),
            (["--rank", "5000"], "rank=5000"),
            (["--go-on-from", "nobody"], "'nobody' does not exist"),
            (["--metadata", "k=" + "v" * 513], "metadata 'k'"),
            (["--seed", "-1"], "seed"),
        ],
    )
    @pytest.mark.parametrize("dry", [True, False])
    def test_files_of_a_refused_job_do_not_stay(
        self,
        server: Running,
        lines: Path,
        options: list[str],
        said: str,
        dry: bool,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        more = ["--dry-run"] if dry else []
        assert main(["train", str(lines), *options, *more, "--url", server.url]) == 1
        assert said in capsys.readouterr().err
        assert files(server) == []

    def test_a_missing_validation_file_is_a_misuse(
        self, lines: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["train", str(lines), "--validation-file", "/no/such"]) == 2
        assert "/no/such does not exist" in capsys.readouterr().err


class TestOutput:
    def test_a_terminal_gets_a_table_whose_ids_are_whole(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = io.StringIO()

        def console(width: int = 40) -> Console:
            return Console(file=shown, force_terminal=True, no_color=True, width=width)

        monkeypatch.setattr(output, "Console", console)
        print_rows(("job", "status"), [("x" * 60, "running\x1b[31m")])
        (row,) = [line for line in shown.getvalue().splitlines() if "x" in line]
        assert "x" * 60 in row and "running␛[31m" in row

    def test_fields_are_a_line_each(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_fields({"a": 1, "b": {"c": "x\ny", "d": None}, "e": [1, 2], "f": [], "g": False})
        assert capsys.readouterr().out.splitlines() == [
            "a    1",
            "b.c  x y",
            "e    1, 2",
            "g    False",
        ]

    def test_times_of_another_year_have_the_year(self) -> None:
        assert short_moment(None) == ""
        assert len(short_moment(1_000_000_000)) == 10 and short_moment(1_000_000_000)[:4] == "2001"


def test_unauthorized_is_told_with_the_option(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(keys=Keys("secret"))
    for more in ([], ["--api-key", "wrong"]):
        assert jobs(server, *more) == 1
        said = capsys.readouterr().err
        assert "--api-key" in said and "VERANDAH_API_KEY" in said
        assert "secret" not in said and len(said.splitlines()) == 1
    assert jobs(server, "--api-key", "secret") == 0
