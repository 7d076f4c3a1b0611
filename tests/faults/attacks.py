"""What one hostile client may do, as a table: ATTACKS.

An attack gets a `Target` and returns the statuses of the answers that it got. To add one, write a
function that takes a second at most, and mark it with `@attack("what it does")`. Whatever it does,
nobody else may wait for it, and no answer may be a 500: `test_attacks.py` tries each.
"""

import http.client
import json
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

CHAT, TEXT, JOBS = "/v1/chat/completions", "/v1/completions", "/v1/fine_tuning/jobs"
MIB = 2**20
_NO_ANSWER = (ConnectionResetError, BrokenPipeError, TimeoutError)


@dataclass(frozen=True)
class Target:
    """A server, and the folder that holds its database."""

    host: str
    port: int
    home: Path

    def raw(self, pieces: Iterable[bytes], *, wait_s: float = 10) -> int:
        """Send bytes as they are. Returns the status of the first answer; 0 if there was none."""
        with socket.create_connection((self.host, self.port), timeout=wait_s) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except _NO_ANSWER:
                pass  # the answer may lie there all the same
            try:
                words = connection.recv(65536).split(b" ", 2)
            except _NO_ANSWER:
                return 0
            return int(words[1]) if len(words) > 1 else 0

    def post(self, path: str, body: bytes, kind: str = "application/json") -> int:
        """Send a body. Returns the status; a large answer would be an attack of its own."""
        status, answer = self.ask("POST", path, body, kind)
        assert len(answer) < 500_000, f"{path} answered {len(answer)} bytes"
        return status

    def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json"
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, {"content-type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload(self, content: bytes) -> str:
        """Store a training file. Returns its id."""
        edge = uuid.uuid4().hex
        head = (
            f'--{edge}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            f'--{edge}\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        )
        body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
        status, answer = self.ask(
            "POST", "/v1/files", body, f"multipart/form-data; boundary={edge}"
        )
        assert status == 200, answer
        return str(json.loads(answer)["id"])

    def train(self, content: bytes) -> list[int]:
        """Upload a file, try a job and ask for one. Returns the statuses."""
        job = {"model": "base", "training_file": self.upload(content)}
        tried = job | {"verandah": {"dry_run": True}}
        return [self.post(JOBS, json.dumps(body).encode()) for body in (tried, job)]


Attack = Callable[[Target], Sequence[int]]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        ATTACKS[name] = function
        return function

    return add


def at_once(target: Target, path: str, body: bytes, times: int) -> list[int]:
    """Post a body in as many threads."""
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(target.post(path, body)), daemon=True)
        for _ in range(times)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return statuses


def _ask(**fields: object) -> bytes:
    return json.dumps({"model": "base", "max_tokens": 1} | fields).encode()


def _said(*contents: object) -> bytes:
    return _ask(messages=[{"role": "user", "content": content} for content in contents])


def _list(item: str, length: int) -> bytes:
    return b"[" + item.encode() * (length // len(item)) + b"1]"


def _head(path: str = CHAT, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: a", *lines, "", ""]).encode()


_CHUNKED = _head(CHAT, "content-type: application/json", "transfer-encoding: chunked")


@attack("headers without end")
def _(target: Target) -> list[int]:
    line = b"a: " + b"x" * MIB + b"\r\n"
    head = b"GET /health HTTP/1.1\r\n"
    return [
        target.raw([head, *[line] * 288]),
        target.raw([head + b"a: ", *[b"x" * MIB] * 64]),
        target.raw([head + b"a: b\r\n" * 200_000]),
        target.raw([b"GET /" + b"x" * 10 * MIB]),
        target.raw([b"\r\n" * MIB]),
    ]


@attack("requests that do not wait for an answer")
def _(target: Target) -> list[int]:
    return [target.raw([b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * 20_000]) for _ in range(3)]


@attack("bodies in pieces of one byte")
def _(target: Target) -> list[int]:
    body = b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n"
    return [target.raw([_CHUNKED + body]) for _ in range(3)]


@attack("bodies with endless framing")
def _(target: Target) -> list[int]:
    trailer = b"a: " + b"x" * MIB + b"\r\n"
    return [
        target.raw([_CHUNKED + b"1\r\n1\r\n0\r\n", *[trailer] * 20]),
        target.raw([_CHUNKED + b"1;", *[b"x" * MIB] * 20]),
    ]


@attack("more connections than there may be")
def _(target: Target) -> list[int]:
    idle = [socket.create_connection((target.host, target.port)) for _ in range(1100)]
    for number, connection in enumerate(idle):
        if number % 2:
            try:
                connection.send(b"POST /v1/completions HTTP/1.1\r\nhost:")
            except _NO_ANSWER:
                continue
    status = target.ask("GET", "/health")[0]
    for connection in idle:
        connection.close()
    return [status]


@attack("JSON of many values")
def _(target: Target) -> list[int]:
    items = ("[", "1,", "1e5,", "[],", "{},", '"",', '{"a":1},')
    bodies = [_list(item, 2 * MIB - 16) for item in items]
    bodies.append(b"[" + (b"[" * 900 + b"]" * 900 + b",") * 1000 + b"1]")
    return [target.post(path, body) for body in bodies for path in (CHAT, JOBS)]


@attack("JSON of as many values as are read")
def _(target: Target) -> list[int]:
    keys = ",".join(f'"{number:x}":1' for number in range(31_000))
    inner = [
        _list("1.5,", 4 * 150_000).decode(),
        _list('"a",', 4 * 150_000).decode(),
        _list("[],", 3 * 31_000).decode(),
        "{" + keys + "}",
    ]
    fields = ("messages", "stop", "logit_bias", "tools")
    bodies = [
        b'{"model":"base","%s":%s}' % (field.encode(), value.encode())
        for value in inner
        for field in fields
    ]
    jobs = [
        b'{"model":"base","training_file":"x","%s":%s}' % (field, value.encode())
        for value in inner
        for field in (b"verandah", b"metadata", b"integrations")
    ]
    return [target.post(CHAT, body) for body in bodies] + [target.post(JOBS, job) for job in jobs]


@attack("bodies of 8 MB")
def _(target: Target) -> list[int]:
    bodies = (_said("a " * 4 * MIB), _said(*["a"] * 100_000), _list("[", 8 * MIB))
    return [target.post(CHAT, body) for body in bodies]


@attack("prompts that are far too long")
def _(target: Target) -> list[int]:
    texts = ("a" * 2_000_000, "word and " * 200_000, "\U0001f600" * 160_000, "1" * 2_000_000)
    chats = [at_once(target, CHAT, _said(text), 4) for text in texts]
    prompts = [
        target.post(TEXT, _ask(prompt=prompt))
        for prompt in (texts[0], [1] * 150_000, [[1] * 140] * 1000, ["ab" * 900] * 1000)
    ]
    return [*(status for statuses in chats for status in statuses), *prompts]


@attack("many messages and parts")
def _(target: Target) -> list[int]:
    parts = [{"type": "text", "text": "a"}] * 7_000
    bodies = (_said(*["a"] * 4096), _said(parts), _said(*["b" * 400] * 4096))
    return [status for body in bodies for status in at_once(target, CHAT, body, 3)]


@attack("values that an error would repeat")
def _(target: Target) -> list[int]:
    long = "k" * 1_900_000
    return [
        target.post(CHAT, _ask(messages=[], **{long: 1})),
        target.post(CHAT, _ask(messages=[{"role": long}])),
        target.post(CHAT, _said("a")[:-1] + b',"model":"' + long.encode() + b'"}'),
        target.post(TEXT, _ask(prompt="a", stop=long)),
        target.post(TEXT, _ask(prompt="a", logit_bias={long: 1})),
        target.post(JOBS, _ask(training_file=long)),
        target.post(JOBS, json.dumps({"model": "base", "training_file": long}).encode()),
        target.post(
            JOBS,
            json.dumps({"model": "base", "training_file": "f", "verandah": {long: long}}).encode(),
        ),
    ]


@attack("training files of one line")
def _(target: Target) -> list[int]:
    return target.train(b"x" * 30 * MIB)


@attack("training files of tiny lines")
def _(target: Target) -> list[int]:
    return target.train(b"1\n" * 1_000_000)


@attack("training files of nested lines")
def _(target: Target) -> list[int]:
    deep = b"[" + (b"[" * 900 + b"]" * 900 + b",") * 500 + b"1]\n"
    return target.train((deep + _list("1e5,", 600_000) + b"\n" + b"9" * 900_000 + b"\n") * 4)


@attack("training files of lines that are too long")
def _(target: Target) -> list[int]:
    line = json.dumps({"prompt": "a", "completion": "word " * 100_000}).encode() + b"\n"
    return target.train(line * 12)


@attack("forms that are slow to read")
def _(target: Target) -> list[int]:
    kind = "multipart/form-data; boundary=abcdefgh"
    part = b'--abcdefgh\r\ncontent-disposition: form-data; name="a"\r\n'
    bodies = (
        b"\r\n--abcdefg" * 400_000,
        part + b"\r\n" + b"\r\n--abcdefg" * 400_000,
        (part + b"\r\nx\r\n") * 40_000,
        part + b"a: " + b"x" * 4 * MIB,
        part + b"a: b\r\n" * 500_000,
        b"\r\n" * 2 * MIB,
        b"-" * 4 * MIB,
    )
    return [target.post("/v1/files", body, kind) for body in bodies]


@attack("answers with very many scores")
def _(target: Target) -> list[int]:
    fields = {"prompt": "a", "max_tokens": 300, "logprobs": 20, "ignore_eos": True, "n": 12}
    return [target.ask("POST", TEXT, _ask(**fields))[0]]


def _queued(target: Target) -> str:
    """The body of a job that may be queued."""
    lines = b'{"prompt": "a", "completion": "b"}\n' * 10
    return json.dumps({"model": "base", "training_file": target.upload(lines)})


@attack("event streams of one job")
def _(target: Target) -> list[int]:
    _, answer = target.ask("POST", JOBS, _queued(target).encode())
    path = f"{JOBS}/{json.loads(answer)['id']}/events?stream=true"
    request = f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode()
    with ExitStack() as stack:
        streams = []
        for _ in range(200):
            stream = socket.create_connection((target.host, target.port), timeout=10)
            streams.append(stack.enter_context(stream))
            stream.sendall(request)
        statuses = [int(stream.recv(4096).split(b" ", 2)[1]) for stream in streams]
        time.sleep(1)  # some polls
    return statuses


@attack("a locked database, and many who would write")
def _(target: Target) -> list[int]:
    body = _queued(target).encode()
    with closing(sqlite3.connect(target.home / "verandah.db", isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        statuses: list[int] = []
        writers = threading.Thread(target=lambda: statuses.extend(at_once(target, JOBS, body, 40)))
        writers.start()
        time.sleep(2)
        locker.execute("ROLLBACK")
        writers.join(60)
    return [status for status in statuses if status != 503] or [200]


@attack("an import whose header is huge")
def _(target: Target) -> list[int]:
    entry = '"t%d":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    header = ("{" + "".join(entry % number for number in range(300_000)))[:-1].encode() + b"}"
    statuses = []
    for weights in (len(header).to_bytes(8, "little") + header + b"1234", b"\xff" * 64):
        parts = [("config", b'{"peft_type": "LORA", "r": 1}'), ("weights", weights)]
        files = b"".join(
            b'--edge\r\ncontent-disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n'
            % (name.encode(), content)
            for name, content in parts
        )
        name = b'--edge\r\ncontent-disposition: form-data; name="name"\r\n\r\npet\r\n'
        kind = "multipart/form-data; boundary=edge"
        body = name + files + b"--edge--\r\n"
        statuses.append(target.post("/v1/adapters/import", body, kind))
    return statuses
