"""One owner's slow calls do not keep another's waiting."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from server.api.threads import DATABASE, ThreadGroup
from server.db.audit_trail import Actor, act_as
from server.errors import Unavailable
from server.jobs.files.file_store import Files
from server.tenancy.keys import Keys
from server.tenancy.principal import SERVER_ADMIN
from tests.api.running import Running, Serve

KEYED = [Actor(name="k", key=f"key_{owner}", owner=owner) for owner in ("one", "two", "three")]
ONE, TWO, THREE = KEYED
SERVER = Actor(owner="default")  # no key in the database


class Slow:
    """Calls that last until they are let go; `order` tells who began."""

    def __init__(self, group: ThreadGroup) -> None:
        self.order: list[str] = []
        self._group = group
        self._go = threading.Semaphore(0)

    def begin(self, actor: Actor) -> "asyncio.Task[None]":
        context = copy_context()
        context.run(act_as, actor)
        call = self._group.run(self._work, actor.owner or "")
        return asyncio.get_running_loop().create_task(call, context=context)

    def _work(self, owner: str) -> None:
        self.order.append(owner)
        assert self._go.acquire(timeout=20)

    def let_go(self, count: int) -> None:
        self._go.release(count)

    async def begun(self, count: int) -> list[str]:
        async with asyncio.timeout(10):
            while len(self.order) < count:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # no more than that begin
        return self.order


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_flood_of_one_owner_leaves_others_threads_at_once() -> None:
    async def test() -> None:
        slow = Slow(ThreadGroup(8, "wait"))
        flood = [slow.begin(ONE) for _ in range(100)]
        assert await slow.begun(4) == ["one"] * 4
        two = [slow.begin(TWO) for _ in range(100)]
        assert await slow.begun(6) == ["one"] * 4 + ["two"] * 2
        three = slow.begin(THREE)
        assert await slow.begun(7) == ["one"] * 4 + ["two"] * 2 + ["three"]
        slow.let_go(300)
        await asyncio.gather(*flood, *two, three)
        assert sorted(slow.order) == ["one"] * 100 + ["three"] + ["two"] * 100

    run(test)


def test_owners_have_turns_where_one_thread_serves_all() -> None:
    async def test() -> None:
        slow = Slow(ThreadGroup(1, "wait"))
        calls = [slow.begin(actor) for actor in (ONE, ONE, ONE, ONE, TWO, TWO, THREE)]
        await slow.begun(1)
        slow.let_go(7)
        await asyncio.gather(*calls)
        assert slow.order == ["one", "one", "two", "three", "one", "two", "one"]

    run(test)


def test_a_server_of_one_owner_uses_all_threads() -> None:
    async def test() -> None:
        slow = Slow(ThreadGroup(8, "wait"))
        calls = [slow.begin(SERVER) for _ in range(9)]
        assert await slow.begun(8) == ["default"] * 8
        slow.let_go(9)
        await asyncio.gather(*calls)

    run(test)


def test_who_waits_too_long_or_goes_away_leaves_nothing_behind() -> None:
    async def test() -> None:
        group = ThreadGroup(2, "read", 0.2)
        slow = Slow(group)
        first = slow.begin(ONE)
        await slow.begun(1)
        late, gone = slow.begin(ONE), slow.begin(ONE)
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(Unavailable, match=r"^1 requests that read .* 1 of them yours.* 0.2 s"):
            await late
        assert gone.cancelled()
        slow.let_go(3)
        await first
        await asyncio.gather(slow.begin(ONE), slow.begin(TWO))
        assert slow.order == ["one", "one", "two"]
        assert not group._waiting and not group._running

    run(test)


def test_a_call_that_is_cancelled_as_its_turn_comes_gives_the_turn_on() -> None:
    async def test() -> None:
        slow = Slow(ThreadGroup(1, "wait"))
        first, gone, last = slow.begin(ONE), slow.begin(TWO), slow.begin(THREE)
        await slow.begun(1)
        first.add_done_callback(lambda _: gone.cancel())  # its turn has come just now
        slow.let_go(2)
        await asyncio.gather(first, last)
        assert slow.order[0] == "one" and slow.order[-1] == "three"

    run(test)


def test_a_flood_of_slow_reads_does_not_hold_up_another_key(
    serve: Serve, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = server.services.tenants
    running = serve(keys=Keys("the key", tenants.keys))
    bearers = {}
    for owner in ("one", "two"):
        tenants.owners.create(owner)
        text = tenants.keys.create(owner, "bot", by=SERVER_ADMIN)[1]
        bearers[owner] = {"authorization": f"Bearer {text}"}
    go, begun = threading.Event(), threading.Semaphore(0)
    list_files = Files.list

    def slow(self: Files, owner: str, **options: Any) -> Any:
        if owner == "one":
            begun.release()
            assert go.wait(20)
        return list_files(self, owner, **options)

    monkeypatch.setattr(Files, "list", slow)

    def ask(owner: str) -> int:
        return running.http.get("/v1/files", headers=bearers[owner]).status_code

    with ThreadPoolExecutor(20) as pool:
        flood = [pool.submit(ask, "one") for _ in range(20)]
        for _ in range(DATABASE // 2):
            assert begun.acquire(timeout=10)
        assert [ask("two") for _ in range(5)] == [200] * 5
        assert not begun.acquire(blocking=False)
        go.set()
        assert {call.result() for call in flood} <= {200, 503}
