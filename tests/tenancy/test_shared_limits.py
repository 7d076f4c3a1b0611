"""Limits of several processes over one database, and what they remember of each other."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.db.owner_limits import Limits
from server.db.session import Database
from server.errors import InvalidRequest, NotFound
from server.tenancy.deletions import Deletions
from server.tenancy.key_watch import watching_keys
from server.tenancy.keys import Keys
from server.tenancy.limits.limit_book import LimitBook
from server.tenancy.limits.limit_store import LOST_S, DatabaseStore
from server.tenancy.limits.rate_answers import written_s
from server.tenancy.limits.request_limits import RequestLimits
from server.tenancy.owners import Owners
from tests.api.running import eventually

SECONDS = 2.0


@pytest.fixture
def book(database: Database) -> LimitBook:
    Owners(database).create("ann")
    return LimitBook(database, Limits(files=5))


def two_processes(url: str) -> list[tuple[int, int, int]]:
    """What each passed: requests, tokens, the most at once."""
    program = [sys.executable, "-m", "tests.tenancy.limit_drill", url, "ann", str(SECONDS)]
    processes = [
        subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=30)[0].split() for process in processes]
    return [(int(a), int(b), int(c)) for a, b, c in told]


def test_two_processes_hold_requests_a_minute_together(url: str, book: LimitBook) -> None:
    """Requests that are refused count too, for up to ten seconds: so nothing is refilled."""
    book.change("ann", {"requests_a_minute": 400})
    passed = [it[0] for it in two_processes(url)]
    assert all(passed) and 0.95 * 400 <= sum(passed) <= 1.05 * 400


def test_two_processes_hold_tokens_a_minute_together(url: str, book: LimitBook) -> None:
    book.change("ann", {"tokens_a_minute": 12_000})
    tokens = [it[1] for it in two_processes(url)]
    allowed = 12_000 * (1 + SECONDS / 60)
    # What runs at the end, and what a refused request left: at most one reserve a process.
    assert all(tokens) and 0.95 * allowed - 240 <= sum(tokens) <= 1.05 * allowed


def test_two_processes_hold_requests_at_once_together(url: str, book: LimitBook) -> None:
    book.change("ann", {"requests_at_once": 6})
    most = [it[2] for it in two_processes(url)]
    assert max(most) <= 6 <= sum(most)


def test_places_never_pass_the_limit_and_a_dead_process_gives_them_back(
    url: str, book: LimitBook
) -> None:
    now = [1_000_000.0]
    database = Database(url, clock=lambda: now[0])
    store = DatabaseStore(database)

    def hold(process: int) -> int:
        return sum(store.hold("ann", str(process), wanted, 10) - wanted + 1 for wanted in (1, 2, 3))

    with ThreadPoolExecutor(8) as pool:
        held = [*pool.map(hold, range(8))]
    assert sum(store.hold("ann", str(it), 3, 10) for it in range(8)) == 10, held
    assert store.hold("ann", "new", 4, 10) == 0
    assert store.hold("bob", "new", 4, 10) == 4
    now[0] += LOST_S + 1
    assert store.hold("ann", "new", 12, 10) == 10
    database.close()


def test_eight_threads_race_for_a_bucket(database: Database) -> None:
    store = DatabaseStore(database)

    def take(_: int) -> float:
        return store.exchange("requests/ann", 60, least=5, most=5, back=0, owed=0).taken

    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(take, range(16)))
    assert taken == 60


def test_a_change_is_felt_within_a_second(database: Database, book: LimitBook) -> None:
    limits = RequestLimits(DatabaseStore(database), book)
    with watching_keys(Keys(), limits):
        assert limits.of("ann") == Limits(files=5)
        book.change("ann", {"requests_a_minute": 7, "files": 0, "weight": 2.0})
        changed = time.monotonic()
        assert eventually(lambda: limits.of("ann").requests_a_minute == 7)
        assert time.monotonic() - changed < 1.5
        assert limits.of("ann") == Limits(requests_a_minute=7, weight=2.0)
        assert limits.of("bob") == Limits(files=5)
        book.change("ann", {"requests_a_minute": None, "files": None})
        assert eventually(lambda: limits.of("ann") == Limits(files=5, weight=2.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("files", -1), ("files", 2**53 + 1), ("weight", 0.0), ("weight", float("nan"))),
        *(("weight", 101.0), ("beauty", 3)),
    ],
)
def test_a_wrong_limit_is_refused(book: LimitBook, name: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        book.change("ann", {name: value})
    assert caught.value.param == name
    assert book.get("ann") == Limits(files=5)
    with pytest.raises(NotFound):
        book.change("nobody", {"files": 1})


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        *((0, "0s"), (0.0201, "21ms"), (0.5, "500ms"), (1, "1s"), (8.64, "8.64s")),
        *((59.9999, "1m0s"), (60, "1m0s"), (360, "6m0s"), (61.5, "1m1.5s")),
    ],
)
def test_a_time_is_written_as_openai_does(seconds: float, written: str) -> None:
    assert written_s(seconds) == written


def test_no_process_keeps_limits_of_a_deleted_owner(database: Database, book: LimitBook) -> None:
    before, late = (RequestLimits(DatabaseStore(database), book) for _ in range(2))
    book.change("ann", {"files": 7, "weight": 2})
    before.refresh()
    assert (before.of("ann").files, before.of("ann").weight) == (7, 2)
    Deletions(database).start("ann")
    for limits in (before, late):
        limits.refresh()
        assert limits.of("ann") == book.defaults and not limits._own
    Deletions(database).finish("ann")
    for limits in (before, late):
        limits.refresh()
        assert limits.of("ann") == book.defaults and not limits._own


def test_limits_that_are_the_servers_again_are_forgotten(book: LimitBook) -> None:
    limits = RequestLimits(book=book)
    book.change("ann", {"files": 7})
    limits.refresh()
    assert limits.of("ann").files == 7
    book.change("ann", {"files": None})
    limits.refresh()
    assert limits.of("ann").files == 5 and not limits._own
