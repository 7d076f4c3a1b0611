"""A step of decodes and one prompt: replayed from graphs, and launched operation by operation.

    python -m benchmarks.steps.mixed_step --shape 8b --device cuda

A running stream waits for such a step while another begins. The sides take turns. A time is that of
several steps, from the first launch to the end of the last, divided by their number.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from adapters_store.store import AdapterStore
from benchmarks.support import crowd
from benchmarks.support.bare_engine import BLOCK_TOKENS, GREEDY, BareEngine, seconds
from benchmarks.support.base_shapes import SHAPES, base_of
from benchmarks.support.crowd import MAX_RANK, SEED, VERA
from benchmarks.support.report import origin, table
from server.adapters.batch.sites import Riding
from server.adapters.memory.matrices import need_of
from server.adapters.methods.vera.vera import Vera
from server.adapters.residency import ResidentAdapters
from server.engine.fused.decoder import FusedDecoder
from server.engine.fused.fused_forward import FusedForward
from server.engine.runner import Runner
from server.engine.sequence import Chunk, Sequence

CONTEXT = 256


def steps(engine: BareEngine, slots: list[int], prompt: int, count: int) -> Iterator[list[Chunk]]:
    """Decodes of all slots but the last, whose prompt begins anew in every step."""
    rows = engine.sequences(slots[:-1], CONTEXT, count + 1)
    for row in rows:
        row.num_computed = CONTEXT - 1
    blocks = list(range(engine.kv.num_blocks - -(-prompt // BLOCK_TOKENS), engine.kv.num_blocks))
    for number in range(count):
        tokens = tuple(range(1, prompt + 1))
        new = Sequence(10**6 + number, tokens, GREEDY, seed=0, slot=slots[-1], blocks=blocks)
        singles = [Chunk(row, 1) for row in rows]
        yield [*singles, Chunk(new, prompt)] if prompt else singles


def launched_one_by_one(engine: BareEngine, adapters: ResidentAdapters) -> BareEngine:
    """The same engine without graphs."""
    base = engine.base
    method = Vera()
    matrices = adapters.steps.bases.keep_always(
        method.basis(SEED), need_of(method, base, base.targets, MAX_RANK)
    )
    riding = Riding(method.basis(SEED), next(iter(matrices.pairs.values())).a)
    forward = FusedForward(FusedDecoder(base, riding), adapters, engine.kv)
    return BareEngine(base, Runner(base, adapters, engine.kv, forward), engine.kv, 0.0)


def measure(options: argparse.Namespace, folder: Path) -> None:
    base = base_of(options.shape, options.device)
    adapters = crowd.residents(base, AdapterStore(folder), [(VERA, options.rows)])
    refs = crowd.publish(AdapterStore(folder), base, VERA, options.rows)
    replayed = BareEngine.of(base, adapters, rows=options.rows + 8, context=CONTEXT + 64)
    sides = {"one by one": launched_one_by_one(replayed, adapters), "replayed": replayed}
    slots = crowd.acquire(adapters, refs)
    lines = []
    for who, mine in (("base", [0] * options.rows), ("vera r256 all, distinct", slots)):
        for prompt in options.prompts:
            times: dict[str, list[float]] = {side: [] for side in sides}
            for turn in range(options.rounds + 1):
                for side, engine in sides.items():
                    launches = steps(engine, mine, prompt, options.steps)
                    took = seconds(lambda e=engine, s=launches: e.run(s), base.device)  # type: ignore[misc]
                    if turn:
                        times[side].append(took / options.steps * 1e3)
            slow, fast = (statistics.median(times[side]) for side in sides)
            lines.append((who, prompt, slow, fast, f"{slow / fast:.2f}"))
            print(*lines[-1], flush=True)
    adapters.close()
    print(origin(), f"{options.shape}, {options.rows - 1} decodes and a prompt", sep="\n\n")
    print(table(("adapters", "prompt", "one by one ms", "replayed ms", "times"), lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompts", type=int, nargs="+", default=[0, 32, 128, 512], help="tokens")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
