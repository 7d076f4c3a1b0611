"""The pages about training files: what they show, whom they refuse, and what they change."""

import csv
import io
import json
import shlex
import time
from typing import Any

import httpx
import pytest

from server.api import gate
from server.errors import Unavailable
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.jobs.test_training import JSONL, upload
from tests.api.running import Publish, Running

GOOD = JSONL.splitlines()
ATTACK = "<script>alert('\"1\"')</script>"
PART = {"hx-request": "true"}


def send(client: httpx.Client, content: bytes = JSONL, name: str = "lines.jsonl") -> str:
    """A file's page, as a plain form leads to it."""
    answer = client.post("/console/data", files={"file": (name, content)})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def part(client: httpx.Client, path: str) -> str:
    answer = client.get(path, headers=PART)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.fixture
def me(server: Running) -> httpx.Client:
    """A browser of a server without keys."""
    server.http.headers["sec-fetch-site"] = "same-origin"
    return server.http


class TestFiles:
    def test_a_plain_form_adds_a_file_which_the_list_shows(
        self, me: httpx.Client, server: Running
    ) -> None:
        page = send(me, name="my lines.jsonl")
        (file,) = server.sdk.files.list()
        assert page == f"/console/data/{file.id}"
        assert (file.filename, file.bytes) == ("my lines.jsonl", len(JSONL))
        shown = me.get("/console/data").text
        assert "my lines.jsonl" in shown and page in shown and ">10</td>" in shown
        assert "10 lines" in me.get(page).text

    def test_without_files_the_page_says_what_to_do(self, me: httpx.Client) -> None:
        shown = me.get("/console/data").text
        assert "No files yet" in shown
        assert 'data-sample="/console/static/sample.jsonl"' not in shown
        assert 'data-sample="/console/static/sample.jsonl"' in me.get("/console/data?sample=1").text

    def test_the_list_has_pages(self, me: httpx.Client, server: Running) -> None:
        made = [upload(server, name=f"{number}.jsonl") for number in range(30)]
        first = me.get("/console/data").text
        assert [it for it in made if f'href="/console/data/{it}"' in first] == made[5:]
        assert f"?after={made[5]}" in first
        rest = me.get(f"/console/data?after={made[5]}").text
        assert [it for it in made if f'href="/console/data/{it}"' in rest] == made[:5]

    def test_a_refused_file_is_a_page_that_says_so(self, me: httpx.Client) -> None:
        answer = me.post("/console/data", files={"file": ("x.zip", b"PK\x03\x04abc")})
        assert answer.status_code == 400
        assert "compressed with zip" in answer.text
        assert me.post("/console/data", data={"a": "b"}).status_code == 400

    def test_a_file_may_be_larger_than_other_bodies(
        self, me: httpx.Client, server: Running
    ) -> None:
        assert "/console/data" in gate._UPLOADS
        line = GOOD[0] + b"\n"
        content = line * (server.services.max_body_bytes // len(line) + 9)
        send(me, content)
        answer = me.post("/console/data", files={"file": ("x.jsonl", line * 10_000)})
        assert answer.status_code == 413

    def test_deleting_asks_first_and_a_file_in_use_stays(
        self, me: httpx.Client, server: Running
    ) -> None:
        file = upload(server)
        asked = me.get(f"/console/data/{file}/delete").text
        assert "Delete this file?" in asked and "10 lines" in asked
        job = server.sdk.fine_tuning.jobs.create(model="base", training_file=file)
        answer = me.post(f"/console/data/{file}/delete")
        assert answer.status_code == 409
        assert f"job {job.id} still needs file" in answer.text
        assert server.sdk.files.retrieve(file).id == file
        server.sdk.fine_tuning.jobs.cancel(job.id)
        assert me.post(f"/console/data/{file}/delete").headers["location"] == "/console/data"
        assert list(server.sdk.files.list()) == []


class TestCheck:
    def test_a_good_file_says_what_training_takes(self, me: httpx.Client) -> None:
        page = send(me)
        shown = part(me, f"{page}/check?n_epochs=3")
        assert "ready to train" in shown and 'data-verdict="ready"' in shown
        assert "3.0 s" in shown and "4.1 KB" in shown
        assert "<dd>3 <small>of 3 steps" in shown
        assert "the training file has 10 examples; 50 to 100 usually teach more" in shown
        whole = me.get(f"{page}/check").text
        assert "<!doctype html>" in whole and "ready to train" in whole

    def test_five_hundred_bad_lines_are_paged_with_their_texts(self, me: httpx.Client) -> None:
        lines = [f"bad {n}" + "x" * 400 if n % 2 else GOOD[n % 10].decode() for n in range(100)]
        page = send(me, "\n".join(lines).encode())
        first = part(me, f"{page}/check")
        assert "50 lines cannot be trained on" in first and "Page 1 of 3" in first
        assert 'data-verdict="bad"' in first
        assert "is not JSON" in first and "bad 1x" in first and "bad 41x" not in first
        assert "x" * 200 not in first
        last = part(me, f"{page}/check?page=3")
        assert "bad 99x" in last and "Page 3 of 3" in last
        assert "Page 3 of 3" in part(me, f"{page}/check?page=999")
        assert "x" * 400 in part(me, f"{page}/lines?line=100&limit=1")

    def test_turning_the_pages_checks_no_more(
        self, me: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = send(me, b"x\n" * 50)
        part(me, f"{page}/check?n_epochs=2")
        estimator = server.services.estimator
        monkeypatch.setattr(type(estimator), "problems", None)  # a check would call it
        assert "Page 2 of 3" in part(me, f"{page}/check?n_epochs=2&page=2")
        assert me.get(f"{page}/check?n_epochs=2", headers=PART).status_code == 500
        assert me.get(f"{page}/check?n_epochs=3&page=2", headers=PART).status_code == 500

    def test_a_server_that_is_busy_says_so_in_place(
        self, me: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def busy(*_: object) -> None:
            raise Unavailable("others check files: try again in a few seconds")

        page = send(me)
        monkeypatch.setattr(type(server.services.estimator), "estimate", busy)
        shown = part(me, f"{page}/check")
        assert "others check files" in shown and "Check again" in shown
        assert 'data-verdict="late"' in shown

    def test_more_bad_lines_than_are_listed_are_counted(self, me: httpx.Client) -> None:
        page = send(me, b"x\n" * 1500)
        shown = part(me, f"{page}/check")
        assert "1,500 lines cannot be trained on" in shown
        assert "The first 1,000 are listed" in shown
        assert "as a new file" not in shown
        assert me.post(f"{page}/copy").status_code == 409

    def test_no_good_lines_are_kept_where_none_is(self, me: httpx.Client) -> None:
        for it in (page := send(me, b"x\n" * 12), send(me, b"{\n\n{\n\n")):
            assert "every line of this file is bad" in me.post(f"{it}/copy").text
        assert "as a new file" not in part(me, f"{page}/check")
        assert "The file has no lines." in part(me, f"{send(me, b'')}/lines")

    def test_too_few_lines_are_told_in_words(self, me: httpx.Client) -> None:
        shown = part(me, f"{send(me, GOOD[0])}/check")
        assert "the file has 1 example; at least 10 are needed" in shown
        assert "as a new file" not in shown

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("n_epochs=many", "n_epochs=&#39;many&#39; is not a whole number"),
            ("rank=9999", "rank=9999"),
            ("learning_rate=nan", "learning_rate"),
            ("method=dora", "is not one of vera, randlora, lora"),
            ("suffix=a b", "is not a name"),
            ("model=pirat", "does not exist or is not yours"),
            ("validation_file=file-1", "file-1"),
            ("seed=-1", "seed"),
            ("suffix=" + "a" * 65, "64"),
        ],
    )
    def test_a_choice_that_is_refused_is_named_beside_the_check(
        self, me: httpx.Client, query: str, message: str
    ) -> None:
        shown = part(me, f"{send(me)}/check?{query}")
        assert 'data-verdict="refused"' in shown
        assert message in shown

    def test_the_list_is_downloaded_as_csv_and_jsonl(self, me: httpx.Client) -> None:
        bad = ["=1+1", '{"a": "é, \\"b\\""}', "y" * 6000]
        page = send(me, "\n".join([*bad, *(it.decode() for it in GOOD)]).encode(), "a;é.jsonl")
        answer = me.get(f"{page}/problems?as=csv")
        assert answer.headers["content-disposition"].startswith(
            "attachment; filename*=utf-8''a%3B%C3%A9.jsonl"
        )
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert [row["line"] for row in rows] == ["1", "2", "3"]
        assert [row["text"] for row in rows] == ["'=1+1", bad[1], "y" * 5000]
        assert [row["text_is_cut"] for row in rows] == ["", "", "yes"]
        told = [json.loads(it) for it in me.get(f"{page}/problems?as=jsonl").text.splitlines()]
        assert [it["text"] for it in told[:2]] == bad[:2]
        assert all(it["reason"] for it in told)
        assert me.get(f"{page}/problems?as=xls").status_code == 400

    def test_the_good_lines_become_a_new_file(self, me: httpx.Client, server: Running) -> None:
        content = b"\n".join([b"nonsense", *GOOD[:5], b"[]", *GOOD[5:], b"{"])
        page = send(me, content, "mine.jsonl")
        assert "as a new file" in part(me, f"{page}/check")
        answer = me.post(f"{page}/copy")
        new = answer.headers["location"].rpartition("/")[2]
        assert server.sdk.files.retrieve(new).filename == "mine-good.jsonl"
        assert server.sdk.files.content(new).content.splitlines() == GOOD
        assert server.sdk.files.content(page.rpartition("/")[2]).content == content
        again = me.post(f"/console/data/{new}/copy")
        assert again.status_code == 409 and "no line of this file is bad" in again.text


class TestLines:
    def test_learnt_tokens_are_marked_and_counted(self, me: httpx.Client) -> None:
        shown = part(me, f"{send(me)}/lines")
        assert "<strong>2</strong> of 4 tokens are learnt, 2 only read" in shown
        assert f'<span class="t " title="{ord("q")}">q</span>' in shown
        assert f'<mark><span class="t " title="{ord("a")}">a</span>' in shown
        assert '<span class="t special" title="256">&lt;|end|&gt;</span></mark>' in shown
        assert "Line 3" in shown and "Line 4" not in shown
        assert "Line 10" in part(me, f"{send(me)}/lines?line=10")
        assert 'lines?line=4&amp;model=base"' in part(me, f"{send(me)}/lines?model=base")
        assert "There is no line 99" in part(me, f"{send(me)}/lines?line=99")

    def test_a_long_run_is_folded(self, me: httpx.Client) -> None:
        page = send(me, JSONL.replace(b"q0", b"q" * 1000))
        folded = part(me, f"{page}/lines?limit=1")
        assert "700 tokens more" in folded and folded.count(">q</span>") == 300
        whole = part(me, f"{page}/lines?limit=1&whole=1")
        assert "tokens more" not in whole and whole.count(">q</span>") == 1000

    def test_a_model_that_is_not_there_is_told_in_place(self, me: httpx.Client) -> None:
        assert "does not exist or is not yours" in part(me, f"{send(me)}/lines?model=pirat")


class TestTraining:
    def test_the_form_starts_the_job_that_it_describes(
        self, me: httpx.Client, server: Running, publish: Publish
    ) -> None:
        page, valid = send(me), upload(server, name="valid.jsonl")
        shown = me.get(page).text
        assert 'value="base"' in shown and valid in shown and ">Auto:" in shown
        choices = {
            "suffix": "pirate",
            "method": "lora",
            "n_epochs": "3",
            "learning_rate": "0.002",
            "rank": "4",
            "batch_size": "2",
            "seed": "7",
            "validation_file": valid,
        }
        answer = me.post(f"{page}/train", data=choices)
        (job,) = server.sdk.fine_tuning.jobs.list()
        assert answer.headers["location"] == f"/console/jobs/{job.id}"
        told = job.model_dump()
        assert told["training_file"] == page.rpartition("/")[2]
        assert (told["validation_file"], told["seed"]) == (valid, 7)
        assert told["user_provided_suffix"] == "pirate"
        assert told["hyperparameters"]["n_epochs"] == 3
        ours = told["verandah"]
        assert (ours["method"], ours["rank"], ours["learning_rate"]) == ("lora", 4, 0.002)

    def test_an_empty_form_leaves_all_to_the_server(
        self, me: httpx.Client, server: Running
    ) -> None:
        answer = me.post(f"{send(me)}/train", data={"method": "auto"}, headers=PART)
        (job,) = server.sdk.fine_tuning.jobs.list()
        assert (answer.status_code, answer.headers["hx-redirect"]) == (
            204,
            f"/console/jobs/{job.id}",
        )
        assert job.model == "base"

    def test_what_the_api_refuses_starts_nothing(self, me: httpx.Client, server: Running) -> None:
        answer = me.post(f"{send(me)}/train", data={"rank": "0"}, headers=PART)
        assert answer.status_code == 400 and "rank=0" in answer.text
        assert answer.headers["hx-retarget"] == "#notices"
        answer = me.post(f"{send(me, b'x')}/train", data={})
        assert answer.status_code == 400 and "1 line is invalid" in answer.text
        assert list(server.sdk.fine_tuning.jobs.list()) == []

    def test_the_code_starts_the_same_job(self, me: httpx.Client, server: Running) -> None:
        page = send(me)
        query = {"suffix": "o.k", "n_epochs": "3", "method": "lora", "rank": "4"}
        shown = me.get(f"{page}/check", params=query, headers=PART).text
        copied = [
            part.partition('"')[0].replace("&#34;", '"').replace("&#39;", "'")
            for part in shown.split('data-copy="')[1:]
        ]
        assert len(copied) == 2
        words = shlex.split(copied[0])
        assert words[:2] == ["curl", f"{server.url}/v1/fine_tuning/jobs"]
        assert server.http.post(words[1], json=json.loads(words[-1])).status_code == 200
        exec(copied[1], {})
        one, other = (job.model_dump() for job in server.sdk.fine_tuning.jobs.list())
        changing = {"id", "created_at", "seed"}
        assert {k: v for k, v in one.items() if k not in changing} == {
            k: v for k, v in other.items() if k not in changing
        }
        assert (one["hyperparameters"]["n_epochs"], one["verandah"]["rank"]) == (3, 4)


class TestWhoMay:
    PATHS = ("", "/check", "/lines", "/problems", "/delete")
    FORMS = ("/copy", "/train", "/delete")

    def answers(self, client: httpx.Client, page: str) -> dict[str, int]:
        got = {f"GET {path}": client.get(page + path).status_code for path in self.PATHS}
        return got | {f"POST {path}": client.post(page + path).status_code for path in self.FORMS}

    def test_anothers_file_is_like_one_that_does_not_exist(
        self, browser: Browser, make_key: MakeKey
    ) -> None:
        ann, bob = browser(make_key("ann")), browser(make_key("bob"))
        page = send(ann, name="secret name.jsonl")
        found = self.answers(bob, page)
        assert set(found.values()) == {404}, found
        missing = "/console/data/file-000000000000000000000000"
        assert self.answers(bob, missing) == found
        theirs, none = bob.get(page).text, bob.get(missing).text
        assert theirs.replace(page.rpartition("/")[2], "ID") == none.replace(
            missing.rpartition("/")[2], "ID"
        )
        assert "secret name" not in bob.get("/console/data").text
        assert ann.get(page).status_code == 200

    def test_a_key_without_the_scope_gets_nothing(
        self, browser: Browser, make_key: MakeKey
    ) -> None:
        page = send(browser(make_key("ann")))
        other = browser(make_key("ann", "models.use", "jobs"))
        assert set(self.answers(other, page).values()) == {403}
        assert other.get("/console/data").status_code == 403
        assert other.post("/console/data", files={"file": ("x", JSONL)}).status_code == 403

    def test_a_key_for_files_alone_sees_lines_and_trains_nothing(
        self, browser: Browser, make_key: MakeKey, keyed: Running
    ) -> None:
        files = browser(make_key("ann", "files"))
        page = send(files)
        shown = files.get(page).text
        assert "scope <code>jobs</code>" in shown and "Start training" not in shown
        found = self.answers(files, page)
        assert {path: status for path, status in found.items() if status != 403} == {
            "GET ": 200,
            "GET /lines": 200,
            "GET /delete": 200,
            "POST /delete": 303,
        }
        assert keyed.services.jobs.list("ann").items == ()


def test_everything_is_escaped(me: httpx.Client, server: Running) -> None:
    line = json.dumps({"prompt": ATTACK, "completion": ATTACK})
    pages = {
        "bad": send(me, f"{ATTACK}\n{line}".encode(), f"{ATTACK.replace('/', '')}.jsonl"),
        "good": send(me, "\n".join([line] * 10).encode(), "x' onmouseover='alert(1).jsonl"),
    }
    texts = [me.get("/console/data").text]
    for page in pages.values():
        paths = ("", "/check", "/lines", "/delete", "/lines?model=<script>alert(1)</script>")
        texts += [me.get(page + path).text for path in paths]
        query = {name: ATTACK for name in ("suffix", "model", "method", "rank", "n_epochs")}
        texts.append(me.get(f"{page}/check", params=query, headers=PART).text)
        texts += [
            me.get(f"{page}/check", params={name: ATTACK}, headers=PART).text for name in query
        ]
    for text in texts:
        assert "<script>alert" not in text
        assert "' onmouseover='" not in text
    assert "&lt;script&gt;alert" in texts[0]


def test_a_page_stays_quick_with_ten_thousand_adapters(
    me: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = send(me)
    names = [f"adapter-{number:05}" for number in range(10_000)]
    monkeypatch.setattr(server.services.adapters, "names", lambda owner: names)
    shown: Any = me.get(page)
    assert shown.text.count("continue this adapter") == 50
    times = []
    for _ in range(5):
        began = time.perf_counter()
        me.get(page)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.1


def test_the_server_key_is_named_in_the_code(browser: Browser) -> None:
    admin = browser(SERVER_KEY)
    shown = part(admin, f"{send(admin)}/check")
    assert "Authorization: Bearer YOUR_API_KEY" in shown
    assert SERVER_KEY not in shown
