"""Valid requests, changed: no 500, no broken connection, and a 4xx that names the field."""

import json
import time
from collections.abc import Mapping
from random import Random
from typing import Any
from urllib.parse import quote

import httpx

from tests.fuzz.edits import edit, edited, plain, value, written
from tests.fuzz.requests import REQUESTS, Request
from tests.fuzz.target import BOUND_S, Target, lora, wrong_error
from tests.fuzz.trial import Case, Verdict
from tests.training.workplace import lines

_BOUNDARY = "fuzzed0fuzzed1fuzzed2"
_PARTS = ("body", "form", "query")


class Bodies:
    """Bodies, forms, queries and paths of every endpoint."""

    name = "bodies"

    def __init__(self, target: Target, *, big: bool) -> None:
        self._target = target
        self._big = big
        self._files = {"<lines>": lines(12), "<config>": lora()[0], "<weights>": lora()[1]}
        target.restock()

    def make(self, chance: Random) -> Case:
        request = chance.choice(REQUESTS)
        parts = {part: request[part] for part in _PARTS if request.get(part)}
        edits = []
        for _ in range(chance.choice([1, 1, 1, 1, 2, 2, 3, 5])):
            if parts and chance.random() < 0.9:
                edits.append(edit(chance, parts, big=self._big))
            else:
                put = chance.choice(["", *("/" for _ in range(3)), value(chance)])
                edits.append({"op": "path", "at": chance.randrange(6), "put": put})
        case: Case = {"kind": REQUESTS.index(request), "edits": edits}
        if "body" in parts and chance.random() < 0.05:
            case["cut"] = chance.randrange(200)
        return case

    def judge(self, case: Case) -> Verdict:
        request = REQUESTS[case["kind"]]
        began = time.monotonic()
        wrong: str | None
        try:
            status, told, body = self._send(request, case)
        except httpx.TimeoutException:
            outcome, wrong = "late", f"no answer to {self._name(request)} in {BOUND_S:g} s"
        except httpx.TransportError as error:
            outcome, wrong = "broken", f"{self._name(request)} broke the connection: {error!r}"
        except httpx.InvalidURL:
            return Verdict("not sent")
        else:
            outcome, wrong = str(status), self._wrong(request, case, status, told, body)
        noisy = outcome == "late" or time.monotonic() - began > BOUND_S
        after = self._target.aftermath()
        self._tidy(request)
        return Verdict(outcome, wrong or (after and f"{self._name(request)}: {after}"), noisy)

    @staticmethod
    def _name(request: Request) -> str:
        return f"{request['method']} {request['path']}"

    def _send(self, request: Request, case: Case) -> tuple[int, str, bytes]:
        """Returns status, content type and body; of a stream that stays open only the head."""
        inside = [change for change in case["edits"] if change["op"] != "path"]
        parts = edited({part: request[part] for part in _PARTS if request.get(part)}, inside)
        url = self._stocked(_edited_path(request["path"], case))
        query = parts.get("query") if isinstance(parts.get("query"), dict) else {}
        pairs = "&".join(
            f"{_quoted(k)}={_quoted(self._stocked(plain(v)))}" for k, v in query.items()
        )
        headers = {}
        content: bytes | None = None
        if "form" in parts:
            headers["content-type"] = f"multipart/form-data; boundary={_BOUNDARY}"
            content = self._form(parts["form"] if isinstance(parts["form"], dict) else {})
        elif "body" in parts:
            headers["content-type"] = "application/json"
            content = self._stocked(written(parts["body"])).encode("utf-8", "surrogatepass")
            content = content[: case["cut"]] if "cut" in case else content
        http = self._target.http
        sent = http.build_request(
            request["method"], f"{url}?{pairs}" if pairs else url, content=content, headers=headers
        )
        response = http.send(sent, stream=True)
        try:
            told = response.headers.get("content-type", "")
            follows = "/events" in request["path"] and "event-stream" in told
            return response.status_code, told, b"" if follows else response.read()
        finally:
            response.close()

    def _stocked(self, text: str) -> str:
        for name, known in self._target.stock.items():
            text = text.replace(f"<{name}>", known)
        return text

    def _form(self, fields: Mapping[str, Any]) -> bytes:
        pieces = []
        for key, item in fields.items():
            name = key.replace('"', "%22").replace("\n", "%0A").replace("\r", "%0D")
            text = plain(item)
            file = self._files.get(text)
            filename = f'; filename="{name}.safetensors"' if file is not None else ""
            head = (
                f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{filename}\r\n\r\n'
            )
            content = text.encode("utf-8", "surrogatepass") if file is None else file
            pieces.append(head.encode("utf-8", "surrogatepass") + content + b"\r\n")
        return b"".join([*pieces, f"--{_BOUNDARY}--\r\n".encode()])

    def _wrong(
        self, request: Request, case: Case, status: int, told: str, body: bytes
    ) -> str | None:
        name = self._name(request)
        if status >= 500:
            return f"{name} is answered {status}: {body[:300].decode(errors='replace')}"
        if status >= 400:
            wrong = wrong_error(status, body) or _unnamed(request, case, status, body)
            return wrong and f"{name}: {wrong}"
        if told.startswith("application/json"):
            return _not_finite(name, body)
        if told.startswith("text/event-stream") and body:
            return _broken_stream(name, body.decode())
        return None

    def _tidy(self, request: Request) -> None:
        if request["method"] == "DELETE" or request["path"].endswith(
            ("/pause", "/cancel", "/resume")
        ):
            self._target.restock()


def _edited_path(path: str, case: Case) -> str:
    pieces = path.split("/")
    for change in case["edits"]:
        if change["op"] == "path" and 0 < change["at"] < len(pieces):
            pieces[change["at"]] = _quoted(plain(change["put"]))[:20_000]
    return "/".join(pieces)


def _quoted(text: str) -> str:
    return quote(text, safe="<>[]", errors="surrogatepass")


def _unnamed(request: Request, case: Case, status: int, body: bytes) -> str | None:
    """A 400 for one changed field must name it."""
    error = json.loads(body)["error"]
    told = f"{error['param']} {error['message']}"
    if status != 400 or len(case["edits"]) != 1 or "cut" in case or error["code"] == "invalid_json":
        return None
    (change,) = case["edits"]
    if change["op"] == "path" or len(change["at"]) < 2:
        return None
    part, *inside = change["at"]
    # Of a filter such as metadata[team], the word before the bracket says enough.
    keys = [key.partition("[")[0][:40] for key in inside if isinstance(key, str) and key.strip()]
    fields = [key.encode("ascii", "backslashreplace").decode() for key in keys]
    # One change may make another field wrong, which is named then; so is what was put there.
    others = request[part] if isinstance(request[part], dict) else {}
    named = error["param"] in others or (
        error["param"] is not None
        and (change["op"] == "wrap" or isinstance(change.get("put"), dict | list))
    )
    if named or not fields or any(field in told for field in fields):
        return None
    many = "than 128 fields" in told or "the form cannot be read" in told or "\ufffd" in told
    return None if many else f"a 400 that names none of {fields}: {told[:200]}"


def _not_finite(name: str, body: bytes) -> str | None:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        json.loads(body, parse_constant=refuse)
    except ValueError as error:
        return f"{name} is answered with what is not JSON: {error}: {body[:200]!r}"
    return None


def _broken_stream(name: str, text: str) -> str | None:
    events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
    last = events[-1] if events else ""
    if "event: error" in text and any(f'"{code}"' in text for code in ("internal_error",)):
        return f"{name} streams an internal error: {last[:300]}"
    if last != "data: [DONE]" and not last.startswith("event: error"):
        return f"{name} streams no end: {last[:300]!r}"
    for event in events[:-1]:
        data = event.partition("data: ")[2].encode()
        if (wrong := _not_finite(name, data)) is not None:
            return wrong
    return None
