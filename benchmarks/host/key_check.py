"""What checking API keys costs, how often it asks the database, and when a revocation is felt.

`python -m benchmarks.host.key_check` makes `--keys` keys in a new SQLite database (or in the
one of `--database`). It sends requests with them at random through the layer that checks keys, with
nothing behind it, and takes off what an empty layer costs. Then a second process uses one key every
few milliseconds, this one revokes it, and the time until the other is refused counts.
"""

import argparse
import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.support.report import origin, table, verdict
from server.api.completions import chat_completion
from server.api.gate import KeyCheck
from server.api.operation_scopes import OperationScopes
from server.app import describe
from server.db.session import Database, ensure_owner
from server.errors import Unauthorized
from server.tenancy.found_key import FoundKey
from server.tenancy.key_book import KeyBook
from server.tenancy.key_watch import watching_keys
from server.tenancy.keys import Keys
from server.tenancy.principal import DEFAULT_OWNER, SERVER_ADMIN

BAR_US = 50.0
BAR_REVOCATION_S = 1.0
_POLL_S = 0.005
_PATIENCE_S = 30.0
_BATCH = 100  # requests between two looks at the clock, which costs something itself


class CountingBook(KeyBook):
    """Counts how often the database is asked for a key."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.asked = 0

    def find(self, digest: str) -> FoundKey:
        self.asked += 1
        return super().find(digest)


def opened(url: str) -> Database:
    """The database, with its tables and the default owner."""
    database = Database(url)
    database.migrate()
    with database.transaction() as session:
        ensure_owner(session, DEFAULT_OWNER, database.now(session))
    return database


def made_keys(book: KeyBook, count: int) -> list[str]:
    return [book.create(DEFAULT_OWNER, "key", by=SERVER_ADMIN)[1] for _ in range(count)]


async def added_us(keys: Keys, texts: list[str], requests: int) -> float:
    """What the check adds to a request whose key is remembered, microseconds, median of batches."""

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def at_once(call: Callable[..., FoundKey], *args: Any) -> FoundKey:
        return call(*args)

    needed = OperationScopes(chat_completion.router.routes)
    checked = KeyCheck(nothing, keys, at_once, needed, describe)
    draw = random.Random(0)
    batches = [
        [_scope(draw.choice(texts)) for _ in range(_BATCH)] for _ in range(-(-requests // _BATCH))
    ]
    for text in texts:
        await checked(_scope(text), _unread, _unsent)
    bare = [await _batch_us(nothing, batch) for batch in batches]
    full = [await _batch_us(checked, batch) for batch in batches]
    return statistics.median(full) - statistics.median(bare)


async def _batch_us(app: ASGIApp, batch: list[Scope]) -> float:
    began = time.perf_counter()
    for scope in batch:
        await app(scope, _unread, _unsent)
    return (time.perf_counter() - began) / len(batch) * 1e6


def _scope(key: str) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "client": ("127.0.0.1", 1),
        "headers": [(b"content-type", b"application/json"), (b"authorization", _bearer(key))],
    }


def _bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


async def _unread() -> dict[str, Any]:
    raise AssertionError("nothing reads the body")


async def _unsent(message: object) -> None:
    raise AssertionError(f"the request was refused: {message}")


def revocation_s(url: str, rounds: int) -> list[float]:
    """From the answer to a revocation until another process refuses the key, seconds."""
    book = KeyBook(Database(url))
    return [_revocation_s(url, book) for _ in range(rounds)]


def _revocation_s(url: str, book: KeyBook) -> float:
    made, text = book.create(DEFAULT_OWNER, "key", by=SERVER_ADMIN)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    other = spawn.Process(target=_use_until_refused, args=(url, text, there))
    other.start()
    try:
        assert here.poll(_PATIENCE_S) and here.recv() == "good"
        time.sleep(random.uniform(0, 0.5))  # anywhere between two looks of the other
        book.revoke(DEFAULT_OWNER, made.id)
        revoked = time.time()  # of one machine, so both read the same clock
        assert here.poll(_PATIENCE_S)
        refused: float = here.recv()
        return max(0.0, refused - revoked)
    finally:
        other.join(_PATIENCE_S)


def _use_until_refused(url: str, text: str, told: Connection) -> None:
    keys = Keys("the server's", KeyBook(Database(url)))

    def call(function: Callable[..., FoundKey], *args: Any) -> Awaitable[FoundKey]:
        return asyncio.to_thread(function, *args)

    async def use() -> None:
        await keys.principal(f"Bearer {text}", call)
        told.send("good")
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            try:
                await keys.principal(f"Bearer {text}", call)
            except Unauthorized:
                told.send(time.time())
                return
            await asyncio.sleep(_POLL_S)

    with watching_keys(keys):
        asyncio.run(use())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--revocations", type=int, default=10)
    parser.add_argument("--database", default="", help="its URL; empty: a new SQLite")
    options = parser.parse_args()
    print(origin())
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or f"sqlite:///{Path(folder) / 'keys.db'}"
        database = opened(url)
        book = CountingBook(database)
        texts = made_keys(book, options.keys)
        added = asyncio.run(added_us(Keys("the server's", book), texts, options.requests))
        asked = book.asked / options.keys
        felt = revocation_s(url, options.revocations)
        database.close()
    rows = [
        ("added to a request, us", added, f"{BAR_US:g}", verdict(added <= BAR_US)),
        ("questions for a key in its minute", asked, "1", verdict(asked <= 1)),
        ("revocation felt, s: median", statistics.median(felt), "", ""),
        ("revocation felt, s: longest", max(felt), "1", verdict(max(felt) <= BAR_REVOCATION_S)),
    ]
    print(table(("what", "measured", "bar", "verdict"), rows))


if __name__ == "__main__":
    main()
