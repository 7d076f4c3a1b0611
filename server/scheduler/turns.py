"""Whose turn it is: owners go round by what each was served for its weight. Knows no engine.

Virtual token counters ("Fairness in Serving Large Language Models", OSDI 2024, algorithms 2 and 4):
the owner that was served least is next, and one that begins to wait is lifted to the least of those
that wait. So nobody saves up turns while away. Within an owner it is the order of arrival.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar

from server.engine.sequence import Sequence

_TOKEN_COST = 2  # of a generated token; one of a prompt costs 1, as in the paper
_MOST_IDLE = 1024  # owners with nothing open whose counters are kept


class Waiter(Protocol):
    """An answer that waits or runs: `server.scheduler.answer.Answer`."""

    sequence: Sequence
    counted: float

    @property
    def owner(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def arrival(self) -> int: ...


W = TypeVar("W", bound=Waiter)


@dataclass(eq=False)
class Account(Generic[W]):
    """One owner: the tokens `served` to it by cost, divided by its weight, and its open answers."""

    served: float = 0.0
    weight: float = 1.0
    open: int = 0
    waiting: OrderedDict[W, None] = field(default_factory=OrderedDict)
    begins: bool = False  # to wait; not lifted yet
    in_heap: bool = False

    def line(self) -> Iterator[W]:
        """Those that wait, the first one first; the caller may take away each as it comes."""
        while self.waiting:
            first = next(iter(self.waiting))
            yield first
            if first in self.waiting:  # it is passed over
                break
        yield from [*self.waiting][1:]


class Turns(Generic[W]):
    """The answers that wait, and the counters of their owners. A step costs no more if more wait.

    A debt is remembered when its owner has nothing open, or an owner could shed it by a pause. The
    largest debts of `_MOST_IDLE` such owners are kept.
    """

    def __init__(self) -> None:
        self.num_waiting = 0
        self._accounts: dict[str, Account[W]] = {}
        self._idle: set[str] = set()
        self._begins: list[Account[W]] = []
        # Counters only grow, so an old one is a lower bound; those of idle owners may be here too.
        self._heap: list[tuple[float, int, Account[W]]] = []
        self._last: Account[W] | None = None  # to have had a turn
        self._promised: defaultdict[Account[W], float] = defaultdict(float)

    @property
    def several(self) -> bool:
        """Whether more than one owner has open answers."""
        return len(self._accounts) - len(self._idle) > 1

    @property
    def any_begins(self) -> bool:
        """Whether an owner has begun to wait since the last `settle`."""
        return bool(self._begins)

    def add(self, answer: W) -> None:
        """A new answer waits."""
        account = self._accounts.setdefault(answer.owner, Account())
        account.weight = answer.weight
        account.open += 1
        self._idle.discard(answer.owner)
        self._wait(account, answer)

    def put_back(self, answer: W) -> None:
        """An answer that had its turn waits again, as the first of its owner."""
        account = self._accounts[answer.owner]
        self._wait(account, answer)
        account.waiting.move_to_end(answer, last=False)

    def take(self, answer: W) -> None:
        """An answer has its turn. What its prompt will cost counts from now on."""
        account = self._accounts[answer.owner]
        del account.waiting[answer]
        self.num_waiting -= 1
        self._last = account
        self._promised[account] += _uncomputed(answer.sequence) / account.weight

    def leave(self, answer: W) -> None:
        """An answer has ended, wherever it was."""
        account = self._accounts[answer.owner]
        self._count(account, answer)
        if answer in account.waiting:
            del account.waiting[answer]
            self.num_waiting -= 1
        account.open -= 1
        if not account.open:
            self._idle.add(answer.owner)
            if len(self._idle) > _MOST_IDLE:
                self._forget_idle()

    def clear(self) -> None:
        """Nothing is open, so nobody owes anybody anything."""
        self._accounts.clear()
        self._idle.clear()
        self._begins.clear()
        self._heap.clear()
        self._promised.clear()
        self._last = None

    def settle(self, running: Iterable[W]) -> None:
        """Count what the running answers were served, and lift the owners that begin to wait."""
        self._promised.clear()
        for answer in running:
            account = self._accounts[answer.owner]
            self._count(account, answer)
            left = _uncomputed(answer.sequence)
            if left:
                self._promised[account] += left / account.weight
        if not self._begins:
            return
        self._refresh()
        lowest = self._heap[0][2] if self._heap else self._last
        floor = 0.0 if lowest is None else lowest.served
        for account in self._begins:
            account.served = max(account.served, floor)
            account.begins = False
            if account.waiting and not account.in_heap:
                self._push(account)
        self._begins.clear()

    def in_turn(self) -> Generator[W]:
        """Those that wait, each when it is its turn: the caller takes it or passes it over.

        To be closed, so that the next call finds all owners.
        """
        candidates: list[tuple[float, int, Account[W]]] = []
        exhausted: list[Account[W]] = []
        lines: dict[Account[W], Iterator[W]] = {}
        try:
            while self._draw(candidates):
                account = candidates[0][2]
                answer = next(lines.setdefault(account, account.line()), None)
                if answer is None:
                    heappop(candidates)
                    exhausted.append(account)
                    continue
                yield answer
                if answer not in account.waiting:
                    heapreplace(candidates, (self._with_promised(account), answer.arrival, account))
        finally:
            for account in (*exhausted, *(entry[2] for entry in candidates)):
                account.in_heap = False
                if account.waiting:
                    self._push(account)

    def served(self, answer: W) -> float:
        """What the owner of an answer was served, at the last `settle`."""
        return self._accounts[answer.owner].served

    def accounts(self, running: Mapping[Sequence, W]) -> dict[Sequence, Account[W]]:
        """The account of each running sequence, up to date."""
        self.settle(running.values())
        return {sequence: self._accounts[it.owner] for sequence, it in running.items()}

    def _wait(self, account: Account[W], answer: W) -> None:
        if not account.waiting and not account.begins:
            account.begins = True
            self._begins.append(account)
        account.waiting[answer] = None
        self.num_waiting += 1

    def _count(self, account: Account[W], answer: W) -> None:
        cost = _cost(answer.sequence)
        if cost > answer.counted:  # else it is computed once more after a pre-emption
            account.served += (cost - answer.counted) / account.weight
            answer.counted = cost

    def _with_promised(self, account: Account[W]) -> float:
        return account.served + self._promised.get(account, 0.0)

    def _push(self, account: Account[W]) -> None:
        account.in_heap = True
        heappush(self._heap, (account.served, next(iter(account.waiting)).arrival, account))

    def _refresh(self) -> None:
        """Bring the owner that was served least to the top of the heap."""
        heap = self._heap
        while heap:
            served, arrival, account = heap[0]
            if account.begins or not account.waiting:
                heappop(heap)
                account.in_heap = False
            elif account.served > served:
                heapreplace(heap, (account.served, arrival, account))
            else:
                return

    def _draw(self, candidates: list[tuple[float, int, Account[W]]]) -> bool:
        """Move owners from the heap until the next in turn is the first candidate."""
        self._refresh()
        while self._heap and (not candidates or self._heap[0][:2] < candidates[0][:2]):
            _, arrival, account = heappop(self._heap)
            heappush(candidates, (self._with_promised(account), arrival, account))
            self._refresh()
        return bool(candidates)

    def _forget_idle(self) -> None:
        by_debt = sorted(self._idle, key=lambda owner: self._accounts[owner].served)
        for owner in by_debt[: len(by_debt) // 2]:
            self._idle.discard(owner)
            del self._accounts[owner]
        self._heap = [entry for entry in self._heap if entry[2].waiting]
        heapify(self._heap)
        for account in self._accounts.values():
            account.in_heap = account.in_heap and bool(account.waiting)


def prompts_in_turn(
    prompts: list[tuple[Sequence, int]], accounts: Mapping[Sequence, Account[W]]
) -> list[tuple[Sequence, int]]:
    """Prompts with the tokens left of each: owners take turns, each owner's in the given order."""
    lines: dict[Account[W], list[tuple[Sequence, int]]] = {}
    for prompt in prompts:
        lines.setdefault(accounts[prompt[0]], []).append(prompt)
    heap: list[tuple[float, int, int, Account[W], Iterator[tuple[Sequence, int]]]]
    heap = [
        (account.served, line[0][1], place, account, iter(line))  # of equals, the shortest
        for place, (account, line) in enumerate(lines.items())
    ]
    heapify(heap)
    ordered = []
    while heap:
        served, left, place, account, line = heap[0]
        for prompt in line:
            ordered.append(prompt)
            served += prompt[1] / account.weight
            heapreplace(heap, (served, left, place, account, line))
            break
        else:
            heappop(heap)
    return ordered


def _uncomputed(sequence: Sequence) -> int:
    return max(len(sequence.prompt) - sequence.num_computed, 0)


def _cost(sequence: Sequence) -> int:
    """Of what was computed for a sequence; what it reused cost nothing."""
    prompt = min(sequence.num_computed, len(sequence.prompt)) - sequence.num_reused
    return max(prompt, 0) + _TOKEN_COST * len(sequence.output)
