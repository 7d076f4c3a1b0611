"""Tokens per second against transformers' continuous batching and PEFT.

    python -m benchmarks.serving.rivals --shape 1b --device cuda
    python -m benchmarks.serving.rivals --shape tiny --requests 4 --prompt-tokens 16 \\
        --answer-tokens 4 --rounds 1 --peft-requests 1

Every side answers so many random prompts at once, greedy, on random weights. The sides are: the
serving loop without HTTP, for the base alone and with one adapter per request; the manager behind
transformers' `generate_batch`, once it is warm, which knows no adapters; and PEFT's `generate`,
which runs VeRA adapters one after the other. PEFT answers only a few of the requests: more would
give the same figure.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.utils import WorkloadHints

from adapters_store.manifest import AdapterRef
from adapters_store.store import AdapterStore
from benchmarks.support import crowd
from benchmarks.support.base_shapes import SHAPES, base_of, random_model
from benchmarks.support.crowd import VERA
from benchmarks.support.live import serving
from benchmarks.support.report import origin, table, verdict

BAR_BATCHING: Final = 12.0  # times its tokens/s, 256 requests of 128 in and 128 out at 1B
BAR_PEFT: Final = 20.0

Row = tuple[str, float]


def prompts_of(count: int, options: argparse.Namespace, seed: int) -> list[list[int]]:
    vocab_size = SHAPES[options.shape]["vocab_size"]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, vocab_size, (count, options.prompt_tokens), generator=generator)
    prompts: list[list[int]] = ids.tolist()
    return prompts


def ours(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Our sides: medians over rounds that take turns."""
    base, store = base_of(options.shape, options.device), AdapterStore(folder)
    distinct = crowd.publish(store, base, VERA, options.requests)
    adapters = crowd.residents(base, store, [(VERA, options.requests)])
    sides: dict[str, Sequence[AdapterRef | None]] = {
        "Verandah, base": [None] * options.requests,
        f"Verandah, {VERA.label}": distinct,
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    tokens = options.answer_tokens
    with serving(
        base,
        adapters,
        rows=options.requests,
        context=options.prompt_tokens + tokens,
        step_tokens=options.step_tokens,
    ) as live:
        for number in range(options.rounds + 1):
            for name, refs in sides.items():
                start = time.perf_counter()
                live.ask_all(refs, options.prompt_tokens, tokens)
                rate = options.requests * tokens / (time.perf_counter() - start)
                rates[name] += [rate] if number else []
    yield from ((name, statistics.median(rounds)) for name, rounds in rates.items())


def batching(options: argparse.Namespace) -> Iterator[Row]:
    """transformers' continuous batching as it configures itself."""
    model = random_model(options.shape, options.device)
    tokens = options.answer_tokens
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    hints = WorkloadHints(
        max_prompt_length=options.prompt_tokens,
        max_generated_length=tokens,
        num_requests=options.requests,
    )
    # Left to itself it takes nearly all memory there is, which only a GPU has for it alone.
    small = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256)
    sizes = None if options.device == "cuda" else small
    # To mypy an attribute of a module is a tensor.
    with cast(Any, model).continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=sizes, timeout=5, workload_hints=hints
    ) as manager:
        few = prompts_of(min(8, options.requests), options, 0)
        answer_all(manager, few, min(8, tokens))
        rate = answer_all(manager, prompts_of(options.requests, options, 1), tokens)
        how = model.config._attn_implementation.replace("|", " ")
    yield f"transformers, continuous batching ({how})", rate


def answer_all(
    manager: ContinuousBatchingManager, prompts: Sequence[list[int]], new_tokens: int
) -> float:
    """Tokens per second of transformers' manager."""
    start = time.perf_counter()
    manager.add_requests(inputs=list(prompts), max_new_tokens=new_tokens)
    generated, ended = 0, 0
    while ended < len(prompts):
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            generated, ended = generated + len(result.generated_tokens), ended + 1
        elif not manager.is_running():
            raise RuntimeError("transformers' generation thread ended early")
    if generated != len(prompts) * new_tokens:
        raise RuntimeError(f"transformers gave {generated} tokens to {len(prompts)} requests")
    return generated / (time.perf_counter() - start)


def peft(options: argparse.Namespace) -> Iterator[Row]:
    """PEFT's `generate`, an adapter switched on for each request."""
    try:
        from benchmarks.support.peft_side import PeftSide
    except ImportError as error:
        print(f"PEFT is left out, since it cannot be imported ({error}): pip install peft\n")
        return
    base = base_of(options.shape, options.device)
    refs = [AdapterRef(crowd.OWNER, f"peft-{number}", 1) for number in range(options.peft_requests)]
    side = PeftSide(base, VERA.manifest(base), refs)
    prompts = prompts_of(len(refs), options, 1)
    side.serve(prompts[:1], refs[:1], 4)
    yield (
        f"PEFT, {VERA.label}, {len(refs)} requests in turn",
        side.serve(prompts, refs, options.answer_tokens)[0],
    )


def free() -> None:
    """Free the device memory of the last side."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(options: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory(dir=crowd.scratch()) as folder:
        rows = list(ours(options, Path(folder)))
    free()
    if options.peft_requests:
        rows += peft(options)
        free()
    if not options.no_batching:
        rows += batching(options)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--step-tokens", type=int, default=8192, help="of one of our steps")
    parser.add_argument("--rounds", type=int, default=3, help="of ours")
    parser.add_argument("--peft-requests", type=int, default=2, help="0: leave PEFT out")
    parser.add_argument("--no-batching", action="store_true", help="leave transformers out")
    options = parser.parse_args()
    rows = measure(options)
    print(origin())
    print(
        f"\n{options.shape}, {options.requests} requests, {options.prompt_tokens} tokens in, "
        f"{options.answer_tokens} out\n"
    )
    columns = ("", "tokens/s", *(f"times, {name}" for name, _ in rows[2:]))
    lines = [(name, rate, *(f"{rate / other:.2f}" for _, other in rows[2:])) for name, rate in rows]
    print(table(columns, lines))
    if options.shape == "1b" and len(rows) == 4:
        bars = (BAR_PEFT, BAR_BATCHING)
        for (name, rate), bar in zip(rows[2:], bars, strict=True):
            met = verdict(rows[1][1] >= bar * rate)
            print(f"\nwith adapters, over {name}: bar {bar:g} (over HTTP): {met} here")


if __name__ == "__main__":
    main()
