"""A program for test_shared_limits: a process that uses as much as it may, and prints how much.

Usage: limit_drill.py URL OWNER UNTIL; from a second to another, by the clock of all processes.
"""

import asyncio
import random
import sys
import time

from server.api.threads import ThreadGroup
from server.db.owner_limits import Limits
from server.db.session import Database
from server.errors import RateLimited
from server.tenancy.key_watch import watching_keys
from server.tenancy.keys import Keys
from server.tenancy.limits.limit_book import LimitBook
from server.tenancy.limits.limit_store import DatabaseStore
from server.tenancy.limits.request_limits import RequestLimits


async def use(limits: RequestLimits, owner: str, until: float) -> tuple[int, int, int]:
    """How many requests and tokens passed, and the most at once."""
    threads = ThreadGroup(4, "count")
    rng = random.Random()
    passed = tokens = running = most = 0

    async def ask() -> None:
        nonlocal passed, tokens, running, most
        while time.time() < until:
            turn = limits.turn(owner, threads.run)
            used = rng.randint(5, 60)
            try:
                await turn.enter()
                await turn.reserve(20, 100, open_ended=False)
                running += 1
                most = max(most, running)
                await asyncio.sleep(rng.uniform(0.001, 0.02))
                running -= 1
                turn.spent = lambda used=used: used  # type: ignore[misc]
                passed, tokens = passed + 1, tokens + used
            except RateLimited:
                await asyncio.sleep(0.005)
            finally:
                turn.leave()

    await asyncio.gather(*(ask() for _ in range(8)))
    return passed, tokens, most


def main() -> None:
    url, owner, until = sys.argv[1:]
    database = Database(url)
    book = LimitBook(database, Limits())
    limits = RequestLimits(DatabaseStore(database), book)
    limits.refresh()
    with watching_keys(Keys(), limits):
        print("ready", flush=True)
        sys.stdin.readline()
        print(*asyncio.run(use(limits, owner, time.time() + float(until))), flush=True)
    database.close()


if __name__ == "__main__":
    main()
