"""Jobs per hour: many small jobs in one batch, one after the other, and with PEFT's Trainer.

    python -m benchmarks.training.cohorts
    python -m benchmarks.training.cohorts --model 1b --device cuda --jobs 32 --tokens 256 \\
        --rank 256 \\
        --targets q_proj v_proj --widths 8192 32768

Each job has its own examples of random tokens, all counted. Steps are timed in turns, so that a
noisy moment falls on all alike; scoring held-out lines and checkpoints are left out.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.support.bare_engine import seconds
from benchmarks.support.base_shapes import base_of
from benchmarks.support.report import origin, table
from benchmarks.training.peft_trainer import peft_seconds_per_step
from benchmarks.training.profiles import profiled
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.memory.matrices import SharedBases
from server.bases.model import BaseModel
from server.jobs.queue.train_options import TrainOptions
from server.training.run.defaults import TrainPlan, plan_for
from server.training.run.examples import Example
from server.training.run.run_steps import take_step
from server.training.run.trainer import Trainer

_GIB = 2**30


@dataclass(frozen=True)
class Work:
    """What one job is: its plan, how long its examples are, and how many."""

    plan: TrainPlan
    examples: int
    tokens: int

    @property
    def steps(self) -> int:
        """Optimizer steps of one job."""
        return -(-self.examples // self.plan.batch_size) * self.plan.n_epochs


def work_of(options: argparse.Namespace) -> Work:
    train_options = TrainOptions(rank=options.rank, targets=tuple(options.targets) or None)
    plan = plan_for(train_options, seed=0, max_rank=1024, lines=options.examples)
    return Work(plan, options.examples, options.tokens)


def examples_of(work: Work, seed: int, vocab_size: int) -> list[Example]:
    """One job's examples. The last position is only a target, hence one token more."""
    generator = torch.Generator().manual_seed(seed)
    shape = (work.examples, work.tokens + 1)
    rows = torch.randint(8, vocab_size, shape, generator=generator).tolist()
    return [Example(tuple(row), (False, *[True] * work.tokens)) for row in rows]


def trainers_of(base: BaseModel, work: Work, jobs: int) -> list[Trainer]:
    shared, plan = SharedBases(base), work.plan
    trainers = []
    for job in range(jobs):
        adapter = TrainableAdapter(
            base, plan.method, plan.rank, plan.basis_seed, plan.targets, {}, shared
        )
        trainers.append(Trainer(base, adapter, examples_of(work, job, base.vocab_size), [], plan))
    return trainers


def peak_gib(action: Callable[[], object], device: str) -> float:
    """Device memory that an action takes on top of what is allocated before."""
    if device != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / _GIB


def with_checkpoints(base: BaseModel, action: Callable[[], object]) -> None:
    """Run it with layers that keep only their inputs, and run again in the backward pass."""
    layers: Any = base.model.get_decoder().layers
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = layer.training = True
    action()
    for layer in layers:
        layer.gradient_checkpointing = layer.training = False


def variants_of(
    base: BaseModel, trainers: Sequence[Trainer], options: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """A step of all jobs, by how it is taken; the others are compared with the first."""

    def one_by_one() -> None:
        for trainer in trainers:
            take_step([trainer], trainer.part_tokens)

    variants: dict[str, Callable[[], object]] = {"one after the other": one_by_one}
    for width in options.widths:
        name, variant = f"together, {width:,} tokens a pass", partial(take_step, trainers, width)
        variants[name] = variant
        if options.checkpointing:
            variants[f"{name}, checkpointed"] = partial(with_checkpoints, base, variant)
    return variants


def in_turns(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each, round after round."""
    for variant in variants.values():
        variant()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            times[name].append(seconds(variant, device))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="porch", help="porch, a folder, a hub id, 1b or 8b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--examples", type=int, default=200, help="of one job")
    parser.add_argument("--tokens", type=int, default=64, help="of one example")
    parser.add_argument("--rank", type=int, default=None)
    parser.add_argument("--targets", nargs="*", default=())
    parser.add_argument("--widths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peft-steps", type=int, default=20, help="0: leave PEFT out")
    parser.add_argument("--checkpointing", action="store_true", help="try that as well")
    parser.add_argument("--profile", action="store_true", help="say what a step's time goes to")
    options = parser.parse_args()
    work = work_of(options)
    base = base_of(options.model, options.device)
    trainers = trainers_of(base, work, options.jobs)
    if options.profile:
        print(origin())
        print(profiled("one job", lambda: take_step(trainers[:1], trainers[0].part_tokens), base))
        for width in options.widths:
            name = f"{options.jobs} jobs, {width:,} tokens a pass"
            print(profiled(name, partial(take_step, trainers, width), base))
        return
    variants = variants_of(base, trainers, options)
    times_of = in_turns(variants, options.rounds, base.device)
    one = times_of["one after the other"]
    rows: list[tuple[object, ...]] = []
    for name, times in times_of.items():
        per_job = statistics.median(times) / options.jobs * work.steps
        faster = statistics.median(a / b for a, b in zip(one, times, strict=True))
        rows.append((name, 3600 / per_job, f"{faster:.2f}"))
    peaks = {name: peak_gib(variant, options.device) for name, variant in variants.items()}
    trained = trainers[0].adapter
    if options.peft_steps:
        del trainers, variants
        step_s = peft_seconds_per_step(
            base, work.plan, examples_of(work, 0, base.vocab_size), trained, options.peft_steps
        )
        ratio = statistics.median(one) / options.jobs / step_s
        rows.append(("PEFT, transformers' Trainer", 3600 / (step_s * work.steps), f"{ratio:.2f}"))
    plan = work.plan
    print(origin())
    print(
        f"\n{options.jobs} jobs of {work.examples} examples of {work.tokens} tokens, "
        f"{plan.method} rank {plan.rank} on {plan.targets}, batches of {plan.batch_size}, "
        f"{work.steps} steps a job\n"
    )
    print(table(("", "jobs per hour", "over one after the other"), rows))
    if options.device == "cuda":
        print("\npeak memory of a step on top of weights and states:")
        for name, peak in peaks.items():
            print(f"  {name}: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
