"""Which runs the measurement is made of, in the order of their weight. Knows no torch.

An arm is a method at one size on one task. Its learning rate is swept with one seed, by half
decades, further while the best is at the edge; then it is trained with two seeds more. What is to
be done is a function of what is done.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.claims.runs import Outcome, Run, steps_of

Done = Mapping[Run, Outcome]

RATES: Final = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
SEEDS: Final = (0, 1, 2)

FIRST: Final = ("sst2", "e2e", "snips")
"""Tasks with every method."""

GLUE: Final = ("mrpc", "cola", "rte", "qnli")
LAST: Final = ("commonsense", "gsm8k")
"""Tasks with the main methods alone. Each begins at the rates that a task of `FIRST` found best;
those of `LAST` stay there."""

TASKS: Final = (*FIRST, *GLUE, *LAST)
_ALIKE: Final = {"gsm8k": "e2e"}  # where a task's rates come from; the others': sst2
_SQRT_D: Final = math.sqrt(576)  # SmolLM2: its widest min(in, out)


@dataclass(frozen=True)
class Arm:
    """One line of a table. `rates` are those that are tried first; `run` has the other fields.

    `swept` False: there is no more to try than these.
    """

    name: str
    run: Run
    rates: tuple[float, ...]
    swept: bool = True

    def on(self, task: str) -> "Arm":
        run = self.run.at(task=task, steps=steps_of(task))
        return Arm(self.name, run, self.rates)

    def tried(self, done: Done) -> dict[int, float]:
        """The tuning loss of each rate, by its place among `RATES`, of the sweep's seed."""
        runs = {place: self.run.at(rate=rate) for place, rate in enumerate(RATES)}
        return {place: done[run].tune_loss for place, run in runs.items() if run in done}

    def sweep(self, done: Done) -> list[Run]:
        """What is left of the sweep: empty once the best rate has worse ones on both sides."""
        missing = [self.run.at(rate=rate) for rate in self.rates]
        missing = [run for run in missing if run not in done]
        if missing or not self.swept:
            return missing
        tried = self.tried(done)
        best = min(tried, key=lambda place: tried[place])
        sides = [place for place in (best - 1, best + 1) if 0 <= place < len(RATES)]
        return [self.run.at(rate=RATES[place]) for place in sides if place not in tried]

    def best(self, done: Done) -> Run | None:
        """The run of the best rate; None while the sweep goes on."""
        tried = self.tried(done)
        if not tried or self.sweep(done):
            return None
        return self.run.at(rate=RATES[min(tried, key=lambda place: tried[place])])


def _arm(name: str, method: str, rank: int, rates: Sequence[float], **options: str | float) -> Arm:
    run = Run("", "ours", method, rank, 0.0, options=tuple(options.items()))
    return Arm(name, run, tuple(rates))


FULL: Final = Arm("full fine-tuning", Run("", "full", "full", 0, 0.0), (3e-5, 1e-4, 3e-4))
LORA: Final = _arm("LoRA", "lora", 8, (1e-3, 3e-3, 1e-2))
VERA: Final = _arm("VeRA", "vera", 256, (3e-2, 1e-1, 3e-1))
RANDLORA: Final = _arm("RandLoRA", "randlora", 24, (3e-4, 1e-3, 3e-3))
ASYM_B: Final = _arm("asymmetric, B trained", "asymmetric-lora", 16, (3e-3, 1e-2, 3e-2))
ASYM_A: Final = _arm(
    "asymmetric, A trained", "asymmetric-lora", 16, (1e-3, 3e-3, 1e-2), trained="A"
)
UNIQUE: Final = _arm("VeRA, unique bases", "vera", 256, VERA.rates, basis="per-layer")
D_ONLY: Final = _arm("VeRA, d only", "vera", 256, VERA.rates, trained="d")
B_ONLY: Final = _arm("VeRA, b only", "vera", 256, (1e-1, 3e-1, 1.0), trained="b")
SPARSE: Final = _arm("RandLoRA, s = 3", "randlora", 24, RANDLORA.rates, sparsity=3.0)
SPARSEST: Final = _arm("RandLoRA, s = sqrt(D)", "randlora", 24, RANDLORA.rates, sparsity=_SQRT_D)

SMALL: Final = (
    _arm("LoRA", "lora", 1, LORA.rates),
    _arm("VeRA", "vera", 712, VERA.rates),
    _arm("RandLoRA", "randlora", 288, RANDLORA.rates),
)
"""About 305 thousand trained numbers each; `LORA`, `RANDLORA` and `ASYM_B` have 2.3 to 2.5
million."""

MAIN: Final = (FULL, LORA, VERA, RANDLORA)
VARIANTS: Final = (ASYM_B, ASYM_A, *SMALL, SPARSE, UNIQUE, D_ONLY, B_ONLY)
_PEFT: Final = (VERA, RANDLORA, LORA)


def base_run(task: str) -> Run:
    """The base as it is."""
    return Run(task, "base", "base", 0, 0.0, steps=0)


def arms_of(task: str, done: Done) -> list[Arm]:
    """The lines of a task's table, as far as they can be begun."""
    if task in FIRST:
        return [arm.on(task) for arm in (*MAIN, *VARIANTS, SPARSEST)]
    arms = []
    for arm in (*MAIN, ASYM_B):
        found = arm.on(_ALIKE.get(task, "sst2")).best(done)
        if found is not None:
            run = arm.on(task).run
            arms.append(Arm(arm.name, run, (found.rate,), swept=task not in LAST))
    return arms


def peft_runs(task: str, done: Done) -> list[Run]:
    """PEFT's VeRA, RandLoRA and LoRA with what is best for ours."""
    best = [arm.on(task).best(done) for arm in _PEFT]
    return [run.at(side="peft", seed=seed) for run in best if run is not None for seed in SEEDS]


def seeded(arms: Iterable[Arm], done: Done) -> Iterator[Run]:
    """The best of each arm with every seed."""
    for arm in arms:
        best = arm.best(done)
        if best is not None:
            yield from (best.at(seed=seed) for seed in SEEDS)


def all_runs(done: Done) -> list[Run]:
    """All that can be begun now, the weightiest first; runs that are done are among them."""
    runs = [base_run(task) for task in TASKS]
    for arms in (MAIN, VARIANTS):
        runs += _complete([arm.on(task) for arm in arms for task in FIRST], done)
    runs += [run for task in FIRST for run in peft_runs(task, done)]
    for tasks in (GLUE, LAST):
        runs += _complete([arm for task in tasks for arm in arms_of(task, done)], done)
    return list(dict.fromkeys([*runs, *_complete([SPARSEST.on(task) for task in FIRST], done)]))


def _complete(arms: Sequence[Arm], done: Done) -> list[Run]:
    return [*(run for arm in arms for run in arm.sweep(done)), *seeded(arms, done)]


def reported(done: Done) -> list[Run]:
    """What the tables show, of what is done: no run of a sweep that was not the best."""
    runs = [base_run(task) for task in TASKS]
    for task in TASKS:
        runs += [*seeded(arms_of(task, done), done), *peft_runs(task, done)]
    return [run for run in dict.fromkeys(runs) if run in done]
