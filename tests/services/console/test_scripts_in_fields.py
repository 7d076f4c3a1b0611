"""Texts that would be scripts, in every field that reaches a page: they stay texts."""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Dialog, Page, Route, expect

from tests.services.console.conftest import Console, OpenPage

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

EVIL = (
    "\"'><img class=pwned src=x onerror='window.pwned=1;alert(1)'></script></textarea></template>"
    "<script>window.pwned=1</script><b class=pwned hx-get=/console hx-trigger=load>{{7*7}}${7*7}"
)
PLAIN = EVIL.replace("/", "").replace('"', "")  # as the name of a file, and below a path
MAIL = "<img/class=pwned/src=x/onerror=alert(1)>@evil.example"
LONG = "W" * 5_000
TURNED = f"\u202e{EVIL}\u0001\u001b[31m"
LINES = [
    {"messages": [{"role": role, "content": f"{n} {EVIL}"} for role in ("user", "assistant")]}
    for n in range(12)
]
BAD = (EVIL, TURNED, LONG, json.dumps({EVIL: EVIL}), json.dumps({"prompt": EVIL}), "\x00\x01")

READ = """text => (document.body.textContent + [...document.querySelectorAll("input, textarea")]
    .map(it => it.value).join("\\n")).includes(text)"""
"""Whether the page shows a text, be it folded or in a field."""

ADDRESSES = (
    "/console/{evil}",
    "/console/sign-in?next={evil}",
    "/console/data?after={evil}",
    "/console/data/{evil}",
    "/console/data/{file}?line={evil}",
    "/console/data/{file}/lines?model={evil}",
    "/console/data/{file}/check?suffix={evil}&model={evil}",
    "/console/data/{file}/check?method={evil}&n_epochs={evil}&seed={evil}&validation_file={evil}",
    "/console/jobs?status={evil}",
    "/console/jobs?after={evil}",
    "/console/jobs/{evil}",
    "/console/jobs/{job}/events?after={evil}",
    "/console/jobs/compare?job={evil}",
    "/console/compare?model={evil}&prompt={evil}&system={evil}",
    "/console/compare?temperature={evil}",
    "/console/compare/models?q={evil}",
    "/console/adapters?contains={evil}",
    "/console/adapters?after={evil}",
    "/console/adapters/{evil}",
    "/console/adapters/evil?versions={evil}&shares={evil}",
    "/console/adapters/-/delete/{evil}",
    "/console/adapters/-/export/evil?format={evil}",
    "/console/usage?owner={evil}",
    "/console/usage?period={evil}",
    "/console/usage?by={evil}",
    "/console/keys?owner={evil}",
    "/console/keys?said={evil}",
    "/console/keys?after={evil}",
    "/console/keys/{evil}",
    "/console/keys/programs/{evil}",
    "/console/admin/owners?search={evil}&after={evil}",
    "/console/admin/owners/{evil}",
    "/console/admin/usage?window={evil}",
    "/console/admin/adapters?order={evil}",
    "/console/admin/audit?owner={evil}&actor={evil}&action={evil}&thing={evil}",
    "/console/admin/audit?from={evil}",
    "/console/admin/keys?after={evil}",
)


@dataclass(frozen=True)
class Things:
    """Ids of what has such texts in it."""

    file: str
    bad: str
    job: str
    failed: str
    waiting: str
    owner: str
    key: str
    account: str
    evil: str = quote(PLAIN, safe="")

    @property
    def shown(self) -> dict[str, list[str]]:
        """What each page has to show."""
        of = f"owner={self.owner}"
        return {
            "/console": [],
            "/console/data": [PLAIN],
            f"/console/data/{self.file}": [PLAIN, EVIL],
            f"/console/data/{self.bad}": [EVIL[:100], "W" * 100, "\u202e"],
            f"/console/data/{self.file}/delete": [PLAIN],
            "/console/jobs": [PLAIN[:20]],
            f"/console/jobs/{self.job}": [
                EVIL,
                EVIL[:60],
                f"the question: {EVIL}",
                f"said: {EVIL}",
                f"note: {EVIL}",
            ],
            f"/console/jobs/{self.failed}": [f"Went wrong: {EVIL}", TURNED[:-8]],
            f"/console/jobs/compare?job={self.job}&job={self.failed}": ["evil"],
            "/console/adapters": ["evil"],
            "/console/adapters/evil": [PLAIN],
            "/console/adapters/-/delete/evil": [],
            "/console/usage": [],
            f"/console/keys?{of}": [EVIL, MAIL],
            f"/console/keys/{self.key}?{of}": [EVIL],
            f"/console/keys/members?{of}": [MAIL],
            f"/console/keys/programs?{of}": [EVIL],
            f"/console/keys/programs/{self.account}?{of}": [EVIL],
            "/console/admin": [],
            "/console/admin/owners": [EVIL],
            f"/console/admin/owners/{self.owner}": [EVIL],
            f"/console/admin/audit?owner={self.owner}": [EVIL, MAIL],
            "/console/admin/keys": [EVIL],
            "/console/admin/usage": [],
            "/console/admin/adapters": ["evil"],
        }


def made(http: httpx.Client, path: str, body: object = None, **more: object) -> str:
    answer = http.post(f"/v1/{path}", json=body, **more)  # type: ignore[arg-type]
    assert answer.is_success, answer.text
    return str(answer.json()["id"])


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A server of its own: what other tests leave would move these texts to later pages."""
    running = Console(tmp_path_factory.mktemp("fields") / "home")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def things(console: Console) -> Things:
    with console.http as http:
        good = "\n".join(map(json.dumps, LINES)).encode()
        file, bad = (
            made(http, "files", data={"purpose": "fine-tune"}, files={"file": (name, content)})
            for name, content in (
                (f"{PLAIN}.jsonl", good),
                ("bad.jsonl", b"\n".join([good, *(it.encode() for it in BAD)])),
            )
        )
        job = {
            "model": "base",
            "training_file": file,
            "suffix": "evil",
            "metadata": {EVIL[:60]: EVIL, "turned": TURNED},
            "hyperparameters": {"n_epochs": 1, "publish": "always"},
        }
        first, second, waiting = (made(http, "fine_tuning/jobs", job) for _ in range(3))
        for id in (second, waiting):
            made(http, f"fine_tuning/jobs/{id}/pause")
        owner = made(http, "organization/projects", {"name": EVIL[:250]})
        here = f"organization/projects/{owner}"
        key = made(http, f"{here}/api_keys", {"name": EVIL[:250]})
        account = made(http, f"{here}/service_accounts", {"name": EVIL[:250]})
        made(http, f"{here}/users", {"email": MAIL, "role": "member"})
        made(http, "organization/admin_api_keys", {"name": EVIL[:250]})
        while http.get(f"/v1/fine_tuning/jobs/{first}").json()["status"] in ("queued", "running"):
            time.sleep(0.3)
    say_in_the_workers_place(console, first, second)
    return Things(file, bad, first, second, waiting, owner, key, account)


def say_in_the_workers_place(console: Console, job: str, failed: str) -> None:
    """What a job reports, and an error of it, could hold anything."""
    names = ("prompt", "expected", "base", "adapter")
    sample = dict.fromkeys(names, f"said: {EVIL}") | {"prompt": f"the question: {EVIL}"}
    with closing(sqlite3.connect(console.home / "verandah.db")) as database:
        [[real]] = database.execute("SELECT samples FROM jobs WHERE id = ?", [job])
        assert set(json.loads(real)[0]) == set(sample), "what a sample is made of"
        database.execute("UPDATE jobs SET samples = ? WHERE id = ?", [json.dumps([sample]), job])
        database.execute(
            "UPDATE events SET message = ? WHERE job = ? AND type = 'message'",
            [f"note: {EVIL}", job],
        )
        database.execute(
            "UPDATE jobs SET status = 'failed', error_code = ?, error_param = ?, error_message = ?"
            " WHERE id = ?",
            [EVIL, EVIL, f"went wrong: {EVIL}", failed],
        )
        database.commit()


class Watched:
    """A page on which nothing of such a text may happen."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("dialog", self._dialog)

    def _dialog(self, dialog: Dialog) -> None:
        self.wrong.append(dialog.message)
        dialog.dismiss()

    def check(self, where: str) -> None:
        """That no script ran, and no text became an element or the result of a template."""
        told = self.page.evaluate(
            """() => [window.pwned ?? "", document.querySelectorAll(".pwned, [onerror]").length,
            document.documentElement.textContent.includes("${49}"),
            document.documentElement.outerHTML.includes("{{49}}")]"""
        )
        assert (told, self.wrong) == (["", 0, False, False], []), where


@pytest.fixture
def watched(open_page: OpenPage) -> Iterator[Watched]:
    yield Watched(open_page("/console"))


def test_texts_of_all_fields_are_shown_as_texts(
    watched: Watched, console: Console, things: Things
) -> None:
    page = watched.page
    for path, texts in things.shown.items():
        page.goto(console.url + path, wait_until="load")
        for text in texts:
            page.wait_for_function(READ, arg=text[:250], timeout=20_000)
        watched.check(path)


def test_texts_of_all_addresses_are_texts(
    watched: Watched, console: Console, things: Things
) -> None:
    page = watched.page
    for path in ADDRESSES:
        page.goto(console.url + path.format(**vars(things)), wait_until="load")
        watched.check(path)


def test_answers_and_events_are_texts(watched: Watched, console: Console, things: Things) -> None:
    """As a model, or a server in the middle, could send them."""
    page = watched.page
    likely = [{"token": EVIL, "logprob": -0.5, "bytes": [1]}]
    token = {"token": EVIL, "logprob": -0.1, "bytes": [1], "top_logprobs": likely}
    choice = {"delta": {"content": EVIL}, "logprobs": {"content": [token]}}
    chunk = {"model": f"{EVIL}@1", "choices": [choice | {"finish_reason": EVIL}]}
    events = (
        {"column": 0, "chunk": chunk},
        {"column": 1, "chunk": {"error": {"message": EVIL}}},
        *({"column": column, "done": True} for column in (0, 1)),
    )
    streams(page, "**/console/compare/stream", events)
    page.goto(console.url + f"/console/compare?model=evil&prompt={quote(EVIL)}")
    page.click("#send")
    expect(page.locator(".answer .text")).to_have_count(2)
    expect(page.locator(".answer .text").first).to_contain_text(EVIL)
    expect(page.locator(".answer .notice").last).to_have_text(EVIL)
    page.locator(".answer .token").first.hover()
    expect(page.locator("#likely")).to_contain_text("{{7*7}}")
    page.get_by_text("Tokens as a table").first.click()
    page.locator(".answer .up").first.click()
    page.get_by_role("button", name="Add").first.click()
    watched.check("compare")
    page.reload()
    watched.check("compare, with a line that the browser has kept")
    event = {"id": f"{EVIL}]", "type": "message", "level": EVIL, "created_at": 1, "message": EVIL}
    streams(page, "**/events?*", (event,))
    waiting = f"/console/jobs/{things.waiting}"
    page.goto(console.url + waiting)
    expect(page.locator("#log li").last).to_contain_text(EVIL)
    watched.check(waiting)


def streams(page: Page, address: str, events: Sequence[object]) -> None:
    body = "".join(f"data: {json.dumps(it)}\n\n" for it in events)

    def answer(route: Route) -> None:
        route.fulfill(content_type="text/event-stream", body=body)

    page.route(address, answer)
