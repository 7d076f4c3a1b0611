"""A light owner's first token beside a heavy one, on a real engine.

`python -m benchmarks.serving.fair` serves Porch on this machine. A heavy owner sends all its
requests at once; a light one sends one request after the other, until the heavy one's are answered.
Compared are the light owner alone, beside the heavy one, and as if both were one owner: then all
are served in order of arrival.
"""

import argparse
import statistics
import tempfile
import time
from random import Random

from benchmarks.support.live import AnswerTimes
from benchmarks.support.report import origin, table
from benchmarks.support.stack import Stack, running_stack, settings_for
from server.engine.sequence import SamplingParams
from server.scheduler.request import CallbackListener, Generation


def ask(stack: Stack, rng: Random, owner: str, answer_tokens: int) -> AnswerTimes:
    prompt = tuple(rng.randrange(8, stack.base.vocab_size) for _ in range(rng.randrange(16, 128)))
    params = SamplingParams(max_tokens=answer_tokens, temperature=0.0, ignore_eos=True)
    answer = AnswerTimes()
    request = Generation("bench", owner, prompt, params)
    stack.loop.submit(request, CallbackListener(answer.hear))
    return answer


def measure(stack: Stack, heavy: int, light_owner: str, least: int) -> tuple[list[float], float]:
    """Seconds to the light owner's first tokens, and tokens per second of all answers."""
    rng, light_rng, start = Random(0), Random(1), time.perf_counter()
    answers = [ask(stack, rng, "heavy", rng.randrange(20, 80)) for _ in range(heavy)]
    light = [ask(stack, light_rng, light_owner, 16).wait()]
    while len(light) < least or not all(answer.done for answer in answers):
        light.append(ask(stack, light_rng, light_owner, 16).wait())
    seconds = time.perf_counter() - start
    tokens = sum(len(answer.times) for answer in (*answers, *light))
    return [answer.first_s for answer in light], tokens / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heavy", type=int, default=500)
    parser.add_argument("--rows", type=int, default=32)
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as home:
        settings = settings_for(home, prefix_cache=True, max_batch_rows=options.rows)
        with running_stack(settings) as stack:
            loads = {"alone": (0, "light"), "beside": (options.heavy, "light")}
            loads["as one owner"] = (options.heavy, "heavy")
            for name, (heavy, owner) in loads.items():
                firsts, speed = measure(stack, heavy, owner, 1 if heavy else 40)
                middle, late = statistics.median(firsts), sorted(firsts)[int(len(firsts) * 0.95)]
                lines.append([name, len(firsts), middle * 1e3, late * 1e3, speed])
    print(f"{origin()}\n")
    print(table(["load", "light requests", "median, ms", "p95, ms", "tokens/s"], lines))


if __name__ == "__main__":
    main()
