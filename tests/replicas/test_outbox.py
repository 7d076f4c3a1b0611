"""What is put in arrives in order, and who puts something in never waits for who reads."""

import pickle
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from server.replicas.outbox import Outbox
from tests.api.running import eventually

Ends = tuple["Connection[object, object]", "Connection[object, object]"]
LARGE = 1 << 20  # more than a socket holds


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, theirs


def read(connection: "Connection[object, object]", count: int) -> list[object]:
    items: list[object] = []
    while len(items) < count:
        assert connection.poll(10), f"{len(items)} of {count} came"
        items += pickle.loads(connection.recv_bytes())
    return items


def test_nobody_waits_for_a_reader_who_is_busy(ends: Ends) -> None:
    ours, theirs = ends
    outbox = Outbox[bytes | int](ours)
    outbox.put(bytes(LARGE))
    for number in range(3000):  # returns although nobody reads
        outbox.put(number)
    assert read(theirs, 3001) == [bytes(LARGE), *range(3000)]
    outbox.put(3000)
    assert read(theirs, 1) == [3000]
    outbox.close()


def test_all_that_several_threads_say_arrives_in_the_order_of_each(ends: Ends) -> None:
    ours, theirs = ends
    outbox = Outbox[tuple[int, int]](ours)

    def say(who: int) -> None:
        for number in range(2000):
            outbox.put((who, number))

    threads = [threading.Thread(target=say, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    heard = read(theirs, 6000)
    for thread in threads:
        thread.join()
    for who in range(3):
        assert [it for it in heard if isinstance(it, tuple) and it[0] == who] == [
            (who, number) for number in range(2000)
        ]
    outbox.close()


def test_what_is_said_to_who_is_gone_is_dropped(ends: Ends) -> None:
    ours, theirs = ends
    outbox = Outbox[str](ours)
    theirs.close()
    for _ in range(3):
        outbox.put("anybody?")
    outbox.close()
    assert not ours.closed


def test_a_message_that_cannot_be_made_ends_the_connection(ends: Ends) -> None:
    ours, theirs = ends
    outbox = Outbox[object](ours)
    outbox.put(lambda: None)
    assert eventually(lambda: ours.closed)
    with pytest.raises(EOFError):
        theirs.recv_bytes()
    outbox.close()
