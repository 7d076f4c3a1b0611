"""Questions to several models at once, and the way from an answer to a training file."""

import json
import re
from itertools import pairwise
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Page, Response, expect
from safetensors.numpy import save

from tests.api.running import eventually
from tests.services.console.conftest import PHONE, WIDE, Console, OpenPage

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

WIDTH, LAYERS = 384, 9  # of the toy base
NAMES = ("loud", "quiet")
LINK = "/console/compare?model=loud&model=quiet&prompt=Who+are+you%3F&max_tokens=24"
NASTY = "<img src=x onerror=alert(1)>\"'</textarea>"


@pytest.fixture(scope="module", autouse=True)
def _adapters(console: Console) -> None:
    """Two adapters of PEFT's, drawn and not trained: their answers are soon not the base's."""
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["o_proj"]}
    for seed, name in enumerate(NAMES):
        draw = np.random.default_rng(seed)
        weights = {
            f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{half}.weight": (
                draw.normal(0, 0.12, shape).astype(np.float32)
            )
            for layer in range(LAYERS)
            for half, shape in (("A", (4, WIDTH)), ("B", (WIDTH, 4)))
        }
        files = {
            "config": ("adapter_config.json", json.dumps(config).encode()),
            "weights": ("adapter_model.safetensors", save(weights)),
        }
        with console.http as http:
            answer = http.post("/v1/adapters/import", data={"name": name}, files=files)
        assert answer.status_code == 200, answer.text


def ask(page: Page, question: str = "") -> None:
    """Ask, and wait for all answers."""
    if question:
        page.fill("#prompt", question)
    page.click("#send")
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#status")).to_have_text("All answers are there.", timeout=60_000)


def texts(page: Page) -> list[str]:
    """The answers, as the API would give them: without marks."""
    shown: list[str] = page.locator(".answer .text").evaluate_all(
        """all => all.map(it => { const copy = it.cloneNode(true);
        copy.querySelectorAll(".part, .end").forEach(mark => mark.remove());
        return copy.textContent; })"""
    )
    return shown


def test_answers_are_the_apis_and_come_side_by_side(open_page: OpenPage, console: Console) -> None:
    page = open_page(LINK)
    heard: list[Response] = []
    page.on("response", lambda it: heard.append(it) if it.url.endswith("/stream") else None)
    ask(page)
    messages = [{"role": "user", "content": "Who are you?"}]
    with console.http as http:
        for model, shown in zip(("base", *NAMES), texts(page), strict=True):
            asked = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24}
            answer = http.post("/v1/chat/completions", json=asked).json()
            assert shown == answer["choices"][0]["message"]["content"]
    events = [json.loads(it[6:]) for it in heard[0].text().split("\n\n") if it]
    columns = [it["column"] for it in events if it.get("chunk", {}).get("choices")]
    first_ends = next(at for at, it in enumerate(events) if it.get("done"))
    assert {it["column"] for it in events[:first_ends]} == {0, 1, 2}  # all have begun by then
    changes = sum(a != b for a, b in pairwise(columns))
    assert changes > 6  # they take turns
    counts = page.locator(".counts").all_text_contents()
    assert all(re.search(r"^\d+ tokens? · first after .* tokens/s · ", it) for it in counts)


def test_where_answers_part_is_marked_and_each_token_tells_its_chance(open_page: OpenPage) -> None:
    page = open_page(LINK)
    ask(page)
    base, *others = page.locator(".answer").all()
    tokens = [it.locator(".token").all_text_contents() for it in (base, *others)]
    expect(base.locator(".part")).to_have_count(0)
    for answer, own in zip(others, tokens[1:], strict=True):
        at = next(n for n in range(len(own)) if own[n] != tokens[0][n])
        expect(answer.locator(".parting")).to_contain_text(f"Parts from base at token {at + 1}")
        expect(answer.locator(".token").nth(at)).to_have_class(re.compile("parts"))
        answer.get_by_role("button", name=f"at token {at + 1}").click()
        expect(answer.locator(".token").nth(at)).to_be_focused()
    likely = page.locator("#likely")
    base.locator(".token").nth(2).hover()
    expect(likely).to_be_visible()
    expect(likely.locator("meter")).to_have_count(5)
    shares = [float(it) for it in re.findall(r"([\d.]+)%", likely.locator("tbody").inner_text())]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 100.5
    page.keyboard.press("Escape")
    expect(likely).to_be_hidden()
    base.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    expect(base.locator(".token").nth(1)).to_be_focused()
    expect(likely).to_contain_text(tokens[0][1].strip())
    page.get_by_label("Tint tokens by probability").check()
    expect(page.locator("#legend")).to_be_visible()
    base.get_by_text("Tokens as a table").click()
    expect(base.locator("tbody tr")).to_have_count(len(tokens[0]))


def test_a_corrected_answer_becomes_a_line_of_a_file(open_page: OpenPage, console: Console) -> None:
    page = open_page(LINK.replace("prompt=", "system=Be+brief.&prompt="))
    ask(page)
    [_, said, _] = texts(page)
    ask(page, "And who am I?")
    second = page.locator(".turn").nth(1).locator(".answer").nth(1)
    second.get_by_role("button", name="Bad").click()
    second.get_by_role("button", name="Add to training lines").click()
    expect(second.get_by_role("alert")).to_contain_text("correct it first")
    second.get_by_label("Bad: write the answer").fill(NASTY)
    second.get_by_role("button", name="Add to training lines").click()
    first = page.locator(".turn").nth(0).locator(".answer").nth(1)
    first.get_by_role("button", name="Good").click()
    first.get_by_role("button", name="Add to training lines").click()
    expect(page.locator("#lines-count")).to_have_text("2")
    page.reload()  # the lines outlive the page
    lines = page.locator("#line-list > li")
    expect(lines).to_have_count(2)
    expect(lines.nth(0)).to_contain_text(NASTY)
    lines.nth(0).get_by_role("button", name="Edit").click()
    page.get_by_label("The answer as it should be").fill("You are a guest.")
    page.get_by_role("button", name="Save").click()
    lines.nth(1).get_by_role("button", name="Remove").click()
    expect(lines).to_have_count(1)
    page.get_by_role("button", name="Put it back").click()
    expect(lines).to_have_count(2)
    page.get_by_role("button", name="Make a training file").click()
    page.wait_for_url(re.compile("/console/data/file-"))
    head = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    with console.http as http:
        content = http.get(f"/v1/files/{page.url.rsplit('/', 1)[1]}/content").text
    assert [json.loads(it)["messages"] for it in content.splitlines()] == [
        [
            *head,
            {"role": "assistant", "content": said, "weight": 0},
            {"role": "user", "content": "And who am I?"},
            {"role": "assistant", "content": "You are a guest."},
        ],
        [*head, {"role": "assistant", "content": said.strip()}],
    ]
    page.goto(f"{console.url}/console/compare")
    expect(page.locator("#lines-count")).to_have_text("0")


def test_lines_go_to_a_file_that_is_there(open_page: OpenPage, console: Console) -> None:
    old = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    with console.http as http:
        sent = {"file": ("mine.jsonl", f"{old}\n\n")}
        before = http.post("/v1/files", data={"purpose": "fine-tune"}, files=sent).json()["id"]
    page = open_page("/console/compare?prompt=Hi&max_tokens=5")
    ask(page)
    page.get_by_role("button", name="Good").click()
    page.get_by_role("button", name="Add to training lines").click()
    page.get_by_text("Add to a file that you have").click()
    page.get_by_label("File", exact=True).select_option(before)
    page.get_by_role("button", name="Make a new file of both").click()
    page.wait_for_url(re.compile("/console/data/file-"))
    with console.http as http:
        content = http.get(f"/v1/files/{page.url.rsplit('/', 1)[1]}/content").text
        kept = http.get(f"/v1/files/{before}/content").text
    assert content.splitlines()[0] == old and kept == f"{old}\n\n"
    assert len(content.splitlines()) == 2


def test_a_link_fills_the_page_and_sends_nothing(open_page: OpenPage) -> None:
    page = open_page("/console/compare")
    page.fill("#search", "LOU")
    page.press("#search", "Enter")  # before the search has answered
    expect(page.locator("#chips .name")).to_have_text(["base", "loud"])
    expect(page.locator("#found [data-model]")).to_be_disabled()
    page.get_by_role("button", name="Remove base").click()
    page.fill("#prompt", NASTY)
    page.locator("summary").filter(has_text="Settings").click()
    page.fill("#system", "  a & b\n=c ")
    page.fill("#temperature", "0.5")
    page.fill("#seed", "7")
    page.get_by_role("button", name="Copy link").click()
    link = page.get_by_label("Link to this comparison").input_value()
    query = parse_qs(urlsplit(link).query)
    assert query["model"] == ["loud"] and query["base"] == ["0"] and query["seed"] == ["7"]
    posts: list[str] = []
    page.on("request", lambda it: posts.append(it.url) if it.method == "POST" else None)
    page.goto(link)
    expect(page.locator("#prompt")).to_have_value(NASTY)
    expect(page.locator("#system")).to_have_value("a & b\n=c")
    expect(page.locator("#temperature")).to_have_value("0.5")
    assert page.locator("#chips .name").all_text_contents() == ["loud"]
    assert posts == []


def test_stop_ends_all_and_a_wrong_model_fails_alone(open_page: OpenPage, console: Console) -> None:
    page = open_page("/console/compare?model=nobody&prompt=Tell+me+a+long+story.&max_tokens=900")
    page.click("#send")
    answers = page.locator(".answer")
    expect(answers.nth(1)).to_contain_text("'nobody' does not exist or is not yours")
    expect(answers.nth(0).locator(".token").nth(3)).to_be_attached(timeout=30_000)
    page.get_by_role("button", name="Stop").click()
    expect(answers.nth(0).locator(".state")).to_have_text("stopped")
    expect(page.locator("#send")).to_be_enabled()
    assert eventually(lambda: running(console) == 0, timeout_s=20)


def running(console: Console) -> float:
    with console.http as http:
        told = re.search(r"num_requests_running\{.*\} (\S+)", http.get("/metrics").text)
    assert told is not None
    return float(told[1])


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_many_answers_do_not_widen_the_page(open_page: OpenPage, size: tuple[int, int]) -> None:
    models = "".join(f"&model=none-{number}" for number in range(6))
    page = open_page(f"{LINK}{models}", size)
    page.click("#send")
    expect(page.locator(".answer .notice:visible")).to_have_count(6)
    expect(page.locator(".state.live")).to_have_count(0, timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    box = page.locator(".answers").evaluate("it => it.scrollWidth > it.clientWidth")
    assert box is (size == WIDE)


def test_it_works_by_keyboard_alone(open_page: OpenPage) -> None:
    page = open_page(LINK)
    page.locator("#prompt").focus()
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_have_text("All answers are there.", timeout=60_000)
    expect(page.locator("#prompt")).to_be_focused()
    page.get_by_role("button", name="Start again").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.locator("#prompt")).to_have_value("Who are you?")
    expect(page.locator("#picker")).to_be_visible()
