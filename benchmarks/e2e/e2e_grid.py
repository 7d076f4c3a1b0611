"""Which runs the measurement is made of, in the order of their weight. Knows no torch.

An arm is a method at one size. Its learning rate is swept with one seed, by half decades, further
while the best is at the edge; then it is trained with two seeds more. Some arms begin where another
ended: what is to be done is a function of what is done.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.e2e.runs import Outcome, Run

Done = Mapping[Run, Outcome]

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
SEEDS = (0, 1, 2)
RANKS = tuple(2**power for power in range(11))

SQRT_D = math.sqrt(384)  # Porch: its widest min(in, out)

Options = tuple[tuple[str, str | float], ...]


@dataclass(frozen=True)
class Arm:
    """One line of a table. `rates` are those that are tried first; `run` has the other fields."""

    name: str
    run: Run
    rates: tuple[float, ...]

    def tried(self, done: Done) -> dict[int, float]:
        """The validation loss of each rate, by its place among `RATES`, of the sweep's seed."""
        runs = {place: self.run.at(rate=rate) for place, rate in enumerate(RATES)}
        return {place: done[run].valid_loss for place, run in runs.items() if run in done}

    def sweep(self, done: Done) -> list[Run]:
        """What is left of the sweep: empty once the best rate has worse ones on both sides."""
        missing = [self.run.at(rate=rate) for rate in self.rates]
        missing = [run for run in missing if run not in done]
        if missing:
            return missing
        tried = self.tried(done)
        best = min(tried, key=lambda place: tried[place])
        sides = [place for place in (best - 1, best + 1) if 0 <= place < len(RATES)]
        return [self.run.at(rate=RATES[place]) for place in sides if place not in tried]

    def best(self, done: Done) -> Run | None:
        """The run of the best rate; None while the sweep goes on."""
        if self.sweep(done):
            return None
        tried = self.tried(done)
        return self.run.at(rate=RATES[min(tried, key=lambda place: tried[place])])


def _arm(name: str, method: str, rank: int, rates: Sequence[float], **changes: object) -> Arm:
    return Arm(name, Run("ours", method, rank, 0.0).at(**changes), tuple(rates))


FULL = Arm("full fine-tuning", Run("full", "full", 0, 0.0), (1e-4, 3e-4, 1e-3))
LORA = _arm("LoRA", "lora", 4, (1e-3, 3e-3, 1e-2))
VERA = _arm("VeRA", "vera", 256, (1e-2, 3e-2, 1e-1))
UNIQUE = _arm("VeRA, unique bases", "vera", 256, VERA.rates, options=(("basis", "per-layer"),))
D_ONLY = _arm("VeRA, d only", "vera", 256, VERA.rates, options=(("trained", "d"),))
B_ONLY = _arm("VeRA, b only", "vera", 256, VERA.rates, options=(("trained", "b"),))
ASYM_B = _arm("asymmetric, B trained", "asymmetric-lora", 8, (1e-3, 3e-3, 1e-2))
ASYM_A = _arm(
    "asymmetric, A trained", "asymmetric-lora", 8, ASYM_B.rates, options=(("trained", "A"),)
)


def _randlora(scale: float, gamma: float, *rates: float) -> Arm:
    """RandLoRA with a start of gamma, and with `scale` times the size that PEFT's defaults give."""
    options: Options = (("alpha", 32 * scale), ("gamma_initial", gamma))
    return _arm("RandLoRA", "randlora", 32, rates, options=options)


PAPER_START = _randlora(2 / math.sqrt(12) / 20 * 384 / 1024, 2.0**-10, 1e-4, 1e-3)
"""The paper's: 2 / sqrt(n), and gamma of 1 / max(in, out). Not followed to its best rate."""

STARTS = (
    _randlora(1.0, 2.0**-8, 3e-4, 1e-3, 3e-3),
    _randlora(1.0, 2.0**-5, 1e-3, 3e-3, 1e-2),
    _randlora(1.0, 2.0**-2, 3e-3, 1e-2, 3e-2),
    _randlora(0.25, 2.0**-5, 3e-3, 1e-2),
)
"""Initial values of RandLoRA, of which the best is taken for all its variants."""

SPARSE = {"RandLoRA, s = 3": 3.0, "RandLoRA, s = 6": 6.0, "RandLoRA, s = sqrt(D)": SQRT_D}
_FIVE = ("k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")

MATCHED = (
    _arm("LoRA", "lora", 1, LORA.rates),
    _arm("VeRA", "vera", 480, VERA.rates),
    _arm("asymmetric, B trained", "asymmetric-lora", 2, ASYM_B.rates),
    _arm("asymmetric, A trained", "asymmetric-lora", 2, ASYM_A.rates, options=ASYM_A.run.options),
    _arm("LoRA, five of seven linears", "lora", 2, LORA.rates, targets=_FIVE),
    _arm("VeRA", "vera", 1024, VERA.rates),
    _arm("asymmetric, B trained", "asymmetric-lora", 3, ASYM_B.rates),
)
"""More arms, for about 61 thousand and 94 thousand trained parameters."""

MATCHED_RANDLORA = (192, 96)
LORA_RANKS = (1, 2, 16, 64)


def main_arms(done: Done) -> list[Arm]:
    """The lines of the main table that can be begun."""
    fixed = [FULL, LORA, VERA, ASYM_B, ASYM_A, UNIQUE, D_ONLY, B_ONLY]
    dense = randlora_arm(done)
    if dense is None:
        return fixed
    return [*fixed, dense, *sparse_arms(dense, done)]


def randlora_arm(done: Done) -> Arm | None:
    """RandLoRA from its best start; None while that is being looked for."""
    best = [(arm.best(done), arm) for arm in STARTS]
    known = [(done[run].valid_loss, arm) for run, arm in best if run is not None]
    if len(known) < len(STARTS):
        return None
    return min(known, key=lambda pair: pair[0])[1]


def sparse_arms(dense: Arm, done: Done) -> list[Arm]:
    """Ternary bases from the dense one's start, at rates about its best."""
    rates = _about(dense, done)
    return [
        Arm(name, dense.run.at(options=(*dense.run.options, ("sparsity", sparsity))), rates)
        for name, sparsity in SPARSE.items()
    ]


def matched_arms(done: Done) -> list[Arm]:
    """Those of equal parameters that are not in the main table."""
    dense = randlora_arm(done)
    if dense is None:
        return list(MATCHED)
    rates, start = _about(dense, done), dict(dense.run.options)
    scale = float(start["alpha"]) / dense.run.rank
    more = []
    for rank in MATCHED_RANDLORA:
        options: Options = (("alpha", rank * scale), ("gamma_initial", start["gamma_initial"]))
        more.append(Arm("RandLoRA", dense.run.at(rank=rank, options=options), rates))
    return [*MATCHED, *more]


def _about(arm: Arm, done: Done) -> tuple[float, ...]:
    best = arm.best(done)
    assert best is not None
    place = RATES.index(best.rate)
    return RATES[max(0, place - 1) : place + 2]


def rank_runs(done: Done) -> list[Run]:
    """VeRA and LoRA by rank, each at the rate that its main arm found best."""
    vera, lora = VERA.best(done), LORA.best(done)
    runs = [] if vera is None else [vera.at(rank=rank, seed=s) for s in SEEDS for rank in RANKS]
    more = [] if lora is None else [lora.at(rank=r, seed=s) for s in SEEDS for r in LORA_RANKS]
    return [*runs, *more]


def peft_runs(done: Done) -> list[Run]:
    """PEFT's VeRA, RandLoRA and LoRA with what is best for ours."""
    arms = [VERA, randlora_arm(done), LORA]
    best = [arm.best(done) for arm in arms if arm is not None]
    return [run.at(side="peft", seed=seed) for run in best if run is not None for seed in SEEDS]


def long_runs(done: Done) -> list[Run]:
    """How much more there is to learn: the best of some arms, four times as long."""
    arms = [FULL, LORA, VERA, ASYM_B, randlora_arm(done)]
    best = [arm.best(done) for arm in arms if arm is not None]
    return [run.at(epochs=4 * run.epochs) for run in best if run is not None]


def seeded(arms: Iterable[Arm], done: Done) -> Iterator[Run]:
    """The best of each arm with every seed."""
    for arm in arms:
        best = arm.best(done)
        if best is not None:
            yield from (best.at(seed=seed) for seed in SEEDS)


def all_runs(done: Done) -> list[Run]:
    """All that can be begun now, the weightiest first; runs that are done are among them."""
    arms, matched = main_arms(done), matched_arms(done)
    sweeps = [run for arm in (*arms, *STARTS) for run in arm.sweep(done)]
    paper = [PAPER_START.run.at(rate=rate) for rate in PAPER_START.rates]
    more = [run for arm in matched for run in arm.sweep(done)]
    runs = [*sweeps, *paper, *seeded(arms, done), *peft_runs(done), *more, *long_runs(done)]
    return [*runs, *seeded(matched, done), *rank_runs(done)]


def reported(done: Done) -> list[Run]:
    """What the tables and plots show, of what is done: no run of a sweep that was not the best."""
    runs = [*seeded([*main_arms(done), *matched_arms(done)], done), *peft_runs(done)]
    return [run for run in dict.fromkeys([*runs, *rank_runs(done)]) if run in done]
