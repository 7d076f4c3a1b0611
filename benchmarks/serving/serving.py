"""Tokens per second and time to first token: base only, one adapter, all distinct.

`python -m benchmarks.serving.serving` runs the three loads in turn, round after round, on one loop
without HTTP. Then it runs the same work with PEFT, which must run distinct adapters one at a time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from adapters_store.manifest import AdapterRef
from benchmarks.support.live import AnswerTimes
from benchmarks.support.peft_side import PeftSide
from benchmarks.support.report import origin, table
from benchmarks.support.stack import RandomAdapters, Stack, running_stack, settings_for
from server.bases.base_files import load_base
from server.engine.sequence import SamplingParams
from server.scheduler.request import CallbackListener, Generation

PROMPT_TOKENS = 32
LOADS = ("base only", "one adapter", "all distinct")


@dataclass(frozen=True)
class Measured:
    """One round: tokens per second over all requests, and the median time to a first token."""

    tokens_per_s: float
    first_token_s: float


def prompts(count: int, vocab_size: int) -> list[tuple[int, ...]]:
    """Random prompts, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, vocab_size, (count, PROMPT_TOKENS), generator=generator)
    return [tuple(row) for row in ids.tolist()]


def serve(stack: Stack, answer_tokens: int, refs: Sequence[AdapterRef], load: str) -> Measured:
    """Ask for one answer per ref, all at once, and wait for all."""
    params = SamplingParams(max_tokens=answer_tokens, temperature=0.0, ignore_eos=True)
    answers = [AnswerTimes() for _ in refs]
    batch_prompts = prompts(len(refs), stack.base.vocab_size)
    start = time.perf_counter()
    for answer, prompt, ref in zip(answers, batch_prompts, refs_of(load, refs), strict=True):
        generation = Generation("bench", "bench", prompt, params, ref)
        stack.loop.submit(generation, CallbackListener(answer.hear))
    for answer in answers:
        answer.wait()
    total = time.perf_counter() - start
    firsts = [answer.times[0] - start for answer in answers]
    return Measured(len(refs) * answer_tokens / total, statistics.median(firsts))


def serve_peft(
    peft: PeftSide, answer_tokens: int, refs: Sequence[AdapterRef], load: str
) -> Measured:
    """The same requests, as PEFT must run them."""
    batch_prompts = prompts(len(refs), peft.vocab_size)
    return Measured(*peft.serve(batch_prompts, refs_of(load, refs), answer_tokens))


def refs_of(load: str, refs: Sequence[AdapterRef]) -> list[AdapterRef | None]:
    """Whose adapter each request asks for."""
    if load == "base only":
        return [None for _ in refs]
    return [refs[0] for _ in refs] if load == "one adapter" else list(refs)


def rounds_of(measure: Callable[[str], Measured], rounds: int) -> dict[str, list[Measured]]:
    """Warm up once, then alternate the loads so that a noisy moment falls on all alike."""
    for load in LOADS:
        measure(load)
    measured: dict[str, list[Measured]] = {load: [] for load in LOADS}
    for number in range(rounds):
        for load in LOADS[number % 3 :] + LOADS[: number % 3]:
            measured[load].append(measure(load))
    return measured


def ratio(measured: dict[str, list[Measured]], load: str, to: str) -> float:
    """Median over rounds of one load's throughput over another's in the same round."""
    pairs = zip(measured[load], measured[to], strict=True)
    return statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs)


def rows_of(who: str, count: int, measured: dict[str, list[Measured]]) -> list[tuple[object, ...]]:
    return [
        (
            who,
            count,
            load,
            statistics.median(each.tokens_per_s for each in measured[load]),
            statistics.median(each.first_token_s for each in measured[load]) * 1e3,
            f"{ratio(measured, load, 'base only'):.3f}",
            f"{ratio(measured, load, 'one adapter'):.3f}",
        )
        for load in LOADS
    ]


def measure(options: argparse.Namespace, folder: str) -> tuple[str, list[tuple[object, ...]]]:
    """All rows of the table, and what kind of adapters they are about."""
    rows: list[tuple[object, ...]] = []
    settings = settings_for(
        folder, model=options.model, device=options.device, threads=options.threads
    )
    most = max(options.concurrency)
    torchs_threads = torch.get_num_threads()
    with running_stack(settings) as stack:
        adapters = RandomAdapters(stack.base, options.rank, options.targets)
        refs = adapters.publish(stack.store, most)
        for count in options.concurrency:
            served = partial(serve, stack, options.answer_tokens, refs[:count])
            rows += rows_of("Verandah", count, rounds_of(served, options.rounds))
    if options.peft_rounds:
        torch.set_num_threads(torchs_threads)  # as a user of PEFT would find them
        peft = PeftSide(load_base(options.model, device=options.device), adapters.manifest, refs)
        for count in options.concurrency:
            served = partial(serve_peft, peft, options.answer_tokens, refs[:count])
            rows += rows_of("PEFT", count, rounds_of(served, options.peft_rounds))
    return adapters.about(), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="porch", help="base model: porch, a folder or a hub id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: the server's default")
    parser.add_argument("--rank", type=int, default=0, help="0: the trainer's default")
    parser.add_argument("--targets", nargs="*", default=(), help="none: the trainer's default")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peft-rounds", type=int, default=3, help="0: leave PEFT out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        about, rows = measure(options, folder)
    columns = ("", "requests", "load", "tokens/s", "first token ms", "over base", "over one")
    print(origin(), about, table(columns, rows), sep="\n\n")


if __name__ == "__main__":
    main()
