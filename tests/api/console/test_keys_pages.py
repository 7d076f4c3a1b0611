"""The pages of keys, members and service accounts show and change what the API does."""

import re
import shlex
from html import unescape
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.tenancy.key_book import KeyBook
from server.tenancy.principal import SCOPES, SERVER_ADMIN, USUAL_SCOPES
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.running import Running

KEYS = "/console/keys"
ODD = "<script>alert('1')</script>\"x\" & 'y'"
PAGES = (KEYS, f"{KEYS}/members", f"{KEYS}/programs")


@pytest.fixture
def boss(browser: Browser, make_key: MakeKey) -> httpx.Client:
    """A browser of an admin of team-a."""
    return browser(make_key("team-a", *SCOPES))


@pytest.fixture
def book(keyed: Running) -> KeyBook:
    return keyed.services.tenants.keys


def api(keyed: Running, path: str) -> list[dict[str, Any]]:
    header = {"authorization": f"Bearer {SERVER_KEY}"}
    answer = keyed.http.get(f"/v1/organization/projects/team-a/{path}", headers=header)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def newest(keyed: Running) -> dict[str, Any]:
    return api(keyed, "api_keys")[-1]


def shown_value(page: str) -> str:
    found = re.search(r'id="key-value">([^<]+)<', page)
    assert found is not None, page
    return unescape(found[1])


def test_a_key_is_made_as_ticked_and_shown_once(boss: httpx.Client, keyed: Running) -> None:
    form = {"name": "website", "scopes": ["models.use", "files"], "life": str(7 * 86_400)}
    answer = boss.post(KEYS, data=form)
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    value = shown_value(answer.text)
    key = newest(keyed)
    assert (key["name"], key["scopes"]) == ("website", ["models.use", "files"])
    assert key["expires_at"] - key["created_at"] == 7 * 86_400
    assert value.startswith(key["redacted_value"].removesuffix("..."))
    works = keyed.http.get("/v1/files", headers={"authorization": f"Bearer {value}"})
    assert works.status_code == 200
    for path in (KEYS, f"{KEYS}/{key['id']}"):
        page = boss.get(path).text
        assert "website" in page and key["redacted_value"][:9] in page and value not in page


def test_the_lines_beside_a_new_key_are_right(boss: httpx.Client, keyed: Running) -> None:
    lines = boss.post(KEYS, data={"name": "a", "scopes": "models.use"}).text
    value, told = shown_value(lines), unescape(lines)
    assert f"curl {keyed.url}/v1/chat/completions" in told
    assert f'OpenAI(base_url="{keyed.url}/v1", api_key="{value}")' in told
    proxied = boss.post(
        KEYS,
        data={"name": "b", "scopes": "files"},
        headers={"origin": "https://verandah.example"},
    ).text
    assert 'curl "https://verandah.example/v1/files"' in unescape(proxied)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_lines_of_each_right_work(
    boss: httpx.Client, keyed: Running, scope: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = boss.post(KEYS, data={"name": "a", "scopes": scope}).text
    curl, python = (unescape(it) for it in re.findall(r"<pre><code>(.*?)</code></pre>", page, re.S))
    command = shlex.split(curl.replace("\\\n", " "))
    headers = dict(it.split(": ", 1) for it in command if ": Bearer" in it or "json" in it[:40])
    headers = {name: value for name, value in headers.items() if name[0] != "{"}
    body = command[command.index("-d") + 1] if "-d" in command else None
    method = "GET" if body is None else "POST"
    answer = keyed.http.request(method, command[1], headers=headers, content=body)
    assert answer.status_code == 200, answer.text
    exec(compile(python, "shown", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ({"name": "a"}, "no box is ticked"),
        ({"name": "", "scopes": "files"}, "name"),
        ({"name": "x" * 300, "scopes": "files"}, "name"),
        ({"name": "a", "scopes": "everything"}, "everything"),
        ({"name": "a", "scopes": "files", "life": "-5"}, "-5"),
        ({"name": "a", "scopes": "files", "life": "soon"}, "soon"),
        ({"name": "a", "scopes": "files", "life": "9" * 30}, "999"),
        ({"name": "a", "scopes": "files", "user": "user-nobody"}, "user-nobody"),
    ],
)
def test_a_wrong_form_makes_no_key(
    boss: httpx.Client, keyed: Running, form: dict[str, str], word: str
) -> None:
    before = api(keyed, "api_keys")
    answer = boss.post(KEYS, data=form)
    assert answer.status_code in (400, 404) and word in unescape(answer.text)
    assert "text/html" in answer.headers["content-type"]
    notice = boss.post(KEYS, data=form, headers={"hx-request": "true"})
    assert notice.headers["hx-retarget"] == "#notices" and word in unescape(notice.text)
    assert api(keyed, "api_keys") == before


def test_a_key_is_changed_rotated_and_revoked(
    boss: httpx.Client, keyed: Running, book: KeyBook
) -> None:
    made, value = book.create("team-a", "laptop", by=SERVER_ADMIN)
    place = f"{KEYS}/{made.id}"
    change = {"scopes": ["jobs"], "life": "3600"}
    assert boss.post(place, data=change).headers["location"] == f"{place}?said=changed"
    changed = newest(keyed)
    assert changed["scopes"] == ["jobs"]
    assert 3590 < changed["expires_at"] - made.created_at < 3700
    assert boss.post(place, data={"scopes": ["jobs", "files"]}).status_code == 303
    assert newest(keyed)["expires_at"] == changed["expires_at"], "the life is left as it is"
    rotated = boss.post(f"{place}/rotate", data={"grace": "0"})
    assert shown_value(rotated.text) != value
    assert newest(keyed)["scopes"] == ["files", "jobs"]
    assert book.get("team-a", made.id).expires_at is not None
    assert "expired" in boss.get(place).text
    gone = boss.post(f"{place}/revoke")
    assert gone.headers["location"] == f"{KEYS}?said=revoked"
    assert "The key is revoked" in boss.get(gone.headers["location"]).text
    assert boss.get(place).status_code == 404
    assert made.id not in [key["id"] for key in api(keyed, "api_keys")]


def test_a_key_that_revokes_itself_signs_the_browser_out(
    boss: httpx.Client, keyed: Running
) -> None:
    mine = newest(keyed)
    assert "you will be signed out" in boss.get(f"{KEYS}/{mine['id']}").text
    boss.post(f"{KEYS}/{mine['id']}/revoke")
    keyed.services.keys.refresh()
    assert boss.get(KEYS).headers["location"].startswith("/console/sign-in")


def test_members_come_change_and_go(boss: httpx.Client, keyed: Running) -> None:
    here = f"{KEYS}/members"
    added = boss.post(here, data={"email": "ann@example.com", "role": "member"})
    assert added.headers["location"] == here
    (ann,) = api(keyed, "users")
    assert (ann["email"], ann["role"]) == ("ann@example.com", "member")
    assert "ann@example.com" in boss.get(here).text
    assert f'<option value="{ann["id"]}">' in boss.get(KEYS).text
    boss.post(f"{here}/{ann['id']}", data={"role": "owner"})
    assert api(keyed, "users")[0]["role"] == "owner"
    hers = boss.post(KEYS, data={"name": "a", "scopes": "files", "user": ann["id"]})
    assert hers.status_code == 200
    assert newest(keyed)["owner"]["user"]["id"] == ann["id"]
    assert boss.post(here, data={"email": "ann@example.com", "role": "member"}).status_code == 409
    assert boss.post(here, data={"email": "b@x.y", "role": "boss"}).status_code == 400
    boss.post(f"{here}/{ann['id']}/remove")
    assert api(keyed, "users") == []
    assert newest(keyed)["owner"]["type"] != "user", "the key of who left is revoked"


def test_service_accounts_come_change_and_go(boss: httpx.Client, keyed: Running) -> None:
    here = f"{KEYS}/programs"
    first = boss.post(here, data={"name": "nightly", "life": "3600"})
    assert shown_value(first.text).startswith("vr-")
    (account,) = api(keyed, "service_accounts")
    assert newest(keyed)["scopes"] == [*USUAL_SCOPES]
    place = f"{here}/{account['id']}"
    assert "nightly" in boss.get(here).text and "nightly" in boss.get(place).text
    boss.post(place, data={"name": "hourly", "role": "owner"})
    (changed,) = api(keyed, "service_accounts")
    assert (changed["name"], changed["role"]) == ("hourly", "owner")
    second = boss.post(f"{place}/keys", data={"name": "b", "scopes": "jobs", "life": "0"})
    assert "/v1/fine_tuning/jobs" in second.text
    assert (newest(keyed)["scopes"], newest(keyed)["expires_at"]) == (["jobs"], None)
    assert boss.post(f"{place}/keys", data={"name": "b"}).status_code == 400
    boss.post(f"{place}/delete")
    assert api(keyed, "service_accounts") == []
    assert len(api(keyed, "api_keys")) == 1, "its keys are revoked"


@pytest.mark.parametrize("path", PAGES)
def test_who_lacks_the_right_learns_who_can_help(
    browser: Browser, make_key: MakeKey, path: str
) -> None:
    ann = browser(make_key("team-a", *USUAL_SCOPES))
    page = ann.get(path)
    assert page.status_code == 403
    assert "an admin of <strong>team-a</strong>, or whoever runs this server" in page.text
    assert 'href="/console/keys"' not in page.text
    assert ann.post(path, data={"name": "a", "scopes": "files"}).status_code == 403


def test_anothers_keys_are_as_those_that_do_not_exist(
    boss: httpx.Client, browser: Browser, make_key: MakeKey, keyed: Running, book: KeyBook
) -> None:
    make_key("team-b", "files")
    theirs = book.list("team-b", limit=1)[0][0]
    ours, none = f"{KEYS}/{theirs.id}", f"{KEYS}/key_nothing"
    assert _words(boss.get(ours)) == _words(boss.get(none)).replace("key_nothing", theirs.id)
    for action in ("", "/rotate", "/revoke"):
        data = {"scopes": "files", "grace": "0"}
        assert boss.post(f"{ours}{action}", data=data).status_code == 404
    assert book.get("team-b", theirs.id).scopes == ("files",)
    for path in (*PAGES, ours):
        for owner in ("team-b", "nobody"):
            assert boss.get(f"{path}?owner={owner}").status_code == 404
            form = {"name": "a", "scopes": "files"}
            assert boss.post(f"{path}?owner={owner}", data=form).status_code == 404
    root = browser(SERVER_KEY)
    page = root.get(f"{KEYS}?owner=team-b").text
    assert "Keys of team-b" in page and f"{ours}?owner=team-b" in page
    assert root.post(f"{ours}/revoke?owner=team-b").headers["location"].startswith(KEYS)


def _words(answer: httpx.Response) -> str:
    assert answer.status_code == 404
    return answer.text


def test_all_names_are_text(boss: httpx.Client, keyed: Running) -> None:
    people = keyed.services.tenants.people
    account = people.add_service_account("team-a", ODD)
    people.add("team-a", "member", user_id=None, email="a'<b>@example.com")
    made = boss.post(KEYS, data={"name": ODD, "scopes": "files", "user": account.user.id})
    key = newest(keyed)
    pages = [made.text, boss.get(f"{KEYS}/{key['id']}").text]
    pages += [boss.get(path).text for path in (*PAGES, f"{KEYS}/programs/{account.user.id}")]
    for page in pages:
        assert "<script>alert" not in page and "<b>" not in page
    assert sum("&lt;script&gt;alert(&#39;1&#39;)" in page for page in pages) == 5
    assert "a&#39;&lt;b&gt;@example.com" in pages[3]


def test_long_lists_come_in_pages(boss: httpx.Client, keyed: Running, book: KeyBook) -> None:
    for number in range(60):
        book.create("team-a", f"key-{number}", by=SERVER_ADMIN)
    page = boss.get(KEYS).text
    assert "key-59<" in page and "key-9<" not in page
    more = re.search(r'class="more"><a class="button" href="([^"]+)"', page)
    assert more is not None and urlsplit(more[1]).path == KEYS
    rest = boss.get(unescape(more[1])).text
    assert "key-9<" in rest and "key-59<" not in rest and "Show more" not in rest
    assert boss.get(f"{KEYS}?after=key_nothing").status_code == 400
