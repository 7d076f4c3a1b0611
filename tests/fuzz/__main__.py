"""All fuzzers, by a command; each area's module says what it sends.

    python -m tests.fuzz [AREA ...] [--seed N] [--minutes M | --cases K] [--device cuda]
    python -m tests.fuzz AREA --seed N --only NUMBER
    python -m tests.fuzz AREA --replay CASE

It prints a table, and each fault with the commands that show it again. The status is 1 if there is
a fault.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from tests.fuzz.areas import AREAS, opened
from tests.fuzz.trial import HEAD, Case, Fuzzer, Report, case_of, hunt


def main() -> int:
    options = _options()
    logging.disable()  # training in this process tells of each job
    disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        if options.only is not None or options.replay:
            return _one_case(options, Path(folder))
        reports = [_report(area, options, Path(folder) / area) for area in options.areas or AREAS]
    print(f"\nseed {options.seed}\n\n{HEAD}")
    print("\n".join(report.row for report in reports))
    print("\n".join(["", *(report.story for report in reports if report.faults)]))
    return int(any(report.faults for report in reports))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}: all")
    parser.add_argument("--seed", type=int, default=0, help="says which cases there are")
    parser.add_argument("--minutes", type=float, help="for all areas together, in equal parts")
    parser.add_argument("--cases", type=int, default=100, help="instead: so many of each area")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="the server's")
    parser.add_argument("--small", action="store_true", help="the tests' cases: no megabytes")
    parser.add_argument("--only", type=int, help="judge the case of this number")
    parser.add_argument("--replay", help="judge this case")
    options = parser.parse_args()
    if unknown := set(options.areas) - {*AREAS}:
        parser.error(f"{', '.join(sorted(unknown))}: known areas are {', '.join(AREAS)}")
    if (options.only is not None or options.replay) and len(options.areas) != 1:
        parser.error("--only and --replay need the name of one area")
    return options


def _report(area: str, options: argparse.Namespace, folder: Path) -> Report:
    minutes = options.minutes and options.minutes / len(options.areas or AREAS)
    print(f"{area}: seed {options.seed}", flush=True)
    big = not options.small
    with opened(area, folder, device=options.device, big=big) as fuzzer:
        end = time.monotonic() + 60 * (minutes or 0)

        def more(number: int) -> bool:
            return time.monotonic() < end if minutes else number < options.cases

        def tell(told: str) -> None:
            print(f"  {told}", flush=True)

        return hunt(fuzzer, options.seed, more, tell=tell, small=options.small)


def _one_case(options: argparse.Namespace, folder: Path) -> int:
    (area,) = options.areas
    with opened(area, folder, device=options.device, big=not options.small) as fuzzer:
        case = _case(fuzzer, options)
        print(json.dumps(case))
        verdict = fuzzer.judge(case)
    print(f"{verdict.outcome}: {verdict.wrong or 'nothing is wrong'}")
    return int(verdict.wrong is not None)


def _case(fuzzer: Fuzzer, options: argparse.Namespace) -> Case:
    if options.replay:
        read: Case = json.loads(options.replay)
        return read
    return case_of(fuzzer, options.seed, options.only)


if __name__ == "__main__":
    sys.exit(main())
