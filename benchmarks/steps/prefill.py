"""Reading prompts: the share of the device's product rate that the model's operations reach.

    python -m benchmarks.steps.prefill --shape 8b --device cuda
    python -m benchmarks.steps.prefill --shape tiny --prompts 2 --tokens 32 --step-tokens 16 64

Prompts of random tokens go through `Runner` in steps of at most so many tokens, from the first
launch to the last prompt's first token. The model's operations are 2 x weights x tokens, plus those
of attention to each token and those before it. An adapter's own operations do not count.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from adapters_store.store import AdapterStore
from benchmarks.support import crowd
from benchmarks.support.bare_engine import BareEngine, seconds
from benchmarks.support.base_shapes import SHAPES, base_of
from benchmarks.support.crowd import LORA, VERA, Kind
from benchmarks.support.report import origin, table, verdict
from benchmarks.support.roofline import measured_chip, step_work
from server.engine.sequence import Chunk
from server.engine.sequence import Sequence as Prompt

BAR: Final = 0.55  # of the measured rate, 8B, the base
COLUMNS: Final = (
    *("step tokens", "adapters", "ms", "tokens/s", "over base"),
    *("TFLOP/s", "of the rate", "bar"),
)

Side = tuple[int, Kind | None]  # tokens of a step, and whose adapters


def steps_of(prompts: Sequence[Prompt], step_tokens: int) -> Iterator[list[Chunk]]:
    """The prompts in order, every step as full as it can be."""
    chunks: list[Chunk] = []
    free = step_tokens
    for prompt in prompts:
        left = len(prompt.prompt)
        while left:
            length = min(left, free)
            chunks.append(Chunk(prompt, length))
            left, free = left - length, free - length
            if not free:
                yield chunks
                chunks, free = [], step_tokens
    if chunks:
        yield chunks


def prefill_s(engine: BareEngine, slots: Sequence[int], tokens: int, step_tokens: int) -> float:
    """Seconds until the last of the prompts, one for each slot, is read."""
    prompts = engine.sequences(slots, tokens, 1)
    steps = steps_of(prompts, step_tokens)
    return seconds(lambda: engine.run(steps), engine.base.device)


def measure(options: argparse.Namespace, folder: Path) -> None:
    base = base_of(options.shape, options.device)
    chip = measured_chip(base.device, base.dtype)
    count, tokens = options.prompts, options.tokens
    kinds = (VERA, LORA)
    store = AdapterStore(folder)
    refs = {kind: crowd.publish(store, base, kind, count) for kind in kinds}
    adapters = crowd.residents(base, store, [(kind, count) for kind in kinds])
    engine = BareEngine.of(base, adapters, rows=count, context=tokens + 1)
    slots: dict[Kind | None, list[int]] = {None: [0] * count}
    slots |= {kind: crowd.acquire(adapters, refs[kind]) for kind in kinds}
    sides: list[Side] = [(step, kind) for step in options.step_tokens for kind in slots]
    times: dict[Side, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds + 1):
        for step, kind in sides:
            took = prefill_s(engine, slots[kind], tokens, step)
            if number:
                times[step, kind].append(took)
    adapters.close()
    work = step_work(base, count * tokens, count * tokens * (tokens + 1) // 2, count, [])
    rows: list[tuple[object, ...]] = []
    for (step, kind), rounds in times.items():
        took = statistics.median(rounds)
        pairs = zip(rounds, times[step, None], strict=True)
        over = statistics.median(mine / bases for mine, bases in pairs)
        share = work.operations / took / chip.rate
        bar = f"{BAR:g}: {verdict(share >= BAR)}"
        rows.append(
            (
                *(step, "base" if kind is None else f"{kind.label}, {count} distinct"),
                *(took * 1e3, count * tokens / took, f"{over:.3f}"),
                *(work.operations / took / 1e12, f"{share:.2f}"),
                bar if options.shape == "8b" and kind is None else "",
            )
        )
    print(origin())
    print(f"\n{options.shape}, {base.dtype}, {count} prompts of {tokens} tokens; {chip.about()}")
    print(f"roofline: {chip.seconds(work) * 1e3:.4g} ms\n")
    print(table(COLUMNS, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048, help="of one prompt")
    parser.add_argument("--step-tokens", type=int, nargs="+", default=[2048, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
