"""The host's cost of one step around the engine, in microseconds per row: no model, no device.

`python -m benchmarks.host.loop_cost` runs the serving loop over a stand-in that answers at once,
with the real planning, block bookkeeping, detokenizers and metrics. The listener does nothing.
Times are CPU time of the loop's own thread, so neighbours on the machine do not count.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.support.report import origin, table
from benchmarks.support.stand_ins import NoText
from server.bases.tokenizer import EMBEDDED, ChatTokenizer
from server.engine.blocks import BlockPool
from server.engine.sequence import Chunk, SamplingParams, Sequence, StepOutput
from server.metrics import Metrics
from server.scheduler.admission import Slots
from server.scheduler.loop import Limits, ServingLoop
from server.scheduler.request import CallbackListener, Generation, TextDelta
from server.scheduler.stop_strings import NewDecoder

BLOCK_TOKENS = 16
_WARM_STEPS = 20
_VOCAB = 1000
_FIRST = 300  # of the tokens that are sampled: what stands before them is bytes and specials


@dataclass(frozen=True)
class InstantStep:
    """A step that takes no time."""

    results: list[StepOutput]
    sampled: list[Sequence]

    def outputs(self) -> list[StepOutput]:
        for sequence in self.sampled:
            sequence.pending -= 1
        return self.results


class InstantEngine:
    """Samples some token for every row, at once."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead

    def launch(self, chunks: Seq[Chunk]) -> InstantStep:
        results: list[StepOutput] = []
        sampled: list[Sequence] = []
        for sequence, length in chunks:
            completes = length == sequence.remaining
            sequence.num_computed += length
            if completes:
                sequence.pending += 1
                sampled.append(sequence)
            place = sequence.seq_id + sequence.num_computed
            token = _FIRST + place % (_VOCAB - _FIRST) if completes else None
            results.append(StepOutput(sequence, token))
        return InstantStep(results, sampled)


class NoSlots:
    """For a load without adapters."""


def pieces() -> ChatTokenizer:
    """A tokenizer whose tokens are pieces of words with their leading space, as Llama 2's are."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [f"▁word{i}" for i in range(_VOCAB - len(names))]
    tokenizer = Tokenizer(BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return ChatTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@dataclass
class Clock:
    """Reads the loop's CPU time after its first `warm` tokens, and at its last."""

    tokens: int
    warm: int
    answers: int
    received: int = 0
    times: list[float] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def hear(self, delta: TextDelta) -> None:
        self.received += 1
        if self.received in (self.warm, self.tokens):
            self.times.append(time.thread_time())
        if delta.finish is not None:
            self.answers -= 1
            if not self.answers:
                self.done.set()


def host_cost(rows: int, steps: int, ahead: int, new_decoder: NewDecoder) -> float:
    """Microseconds of the loop's thread per row and step, once all rows decode."""
    slots: Slots = NoSlots()  # type: ignore[assignment]
    blocks = -(-(steps + 8) // BLOCK_TOKENS) * rows
    loop = ServingLoop(
        InstantEngine(ahead),
        slots,
        BlockPool(blocks, BLOCK_TOKENS),
        new_decoder,
        eos=frozenset({2}),
        limits=Limits(rows, 8192, rows, 1 << 20),
        metrics=Metrics("benchmark"),
    )
    params = SamplingParams(max_tokens=steps, temperature=0.0, ignore_eos=True)
    clock = Clock(rows * (steps - 1), rows * _WARM_STEPS, rows)
    listener = CallbackListener(clock.hear)
    loop.start()
    for number in range(rows):
        loop.submit(Generation("benchmark", "owner", (5, 6, 1000 + number), params), listener)
    clock.done.wait()
    loop.stop(0)
    first, last = clock.times
    return (last - first) / (clock.tokens - clock.warm) * 1e6


def stand_in_cost(rows: int) -> float:
    """The stand-in's own cost, which is part of the figures."""
    params = SamplingParams()
    chunks = [Chunk(Sequence(i, (1, 2), params, seed=0), 2) for i in range(rows)]
    engine, times = InstantEngine(0), []
    for _ in range(50):
        start = time.thread_time()
        engine.launch(chunks).outputs()
        times.append(time.thread_time() - start)
        for chunk in chunks:
            chunk.sequence.num_computed = 0
    return statistics.median(times) / rows * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    porch = ChatTokenizer(AutoTokenizer.from_pretrained(EMBEDDED["porch"]))
    decoders_by_name: dict[str, NewDecoder] = {
        "no text": NoText,
        "byte-level tokens (Porch)": porch.stream,
        "word pieces (as Llama 2)": pieces().stream,
    }
    print(f"{origin()}\n")
    lines = []
    for name, new_decoder in decoders_by_name.items():
        for rows in (64, 256):
            costs = [
                statistics.median(
                    host_cost(rows, arguments.steps, ahead, new_decoder)
                    for _ in range(arguments.rounds)
                )
                for ahead in (0, 1)
            ]
            lines.append([name, rows, *costs, costs[1] * rows / 1e3])
    print(table(["text", "rows", "us, waiting", "us, one ahead", "ms per step"], lines))
    print(f"\nOf it the stand-in for the engine takes {stand_in_cost(256):.2f} us.")


if __name__ == "__main__":
    main()
