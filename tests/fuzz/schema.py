"""Schemathesis over /openapi.json: an endpoint that nobody listed in `requests.py` is tried too.

It knows no file, job or adapter but those that it is told, and judges statuses alone.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random

from tests.fuzz.target import BOUND_S, Target
from tests.fuzz.trial import Case, Verdict

_EXAMPLES = 30
_CHECKS = "not_a_server_error,unsupported_method"


class Schema:
    """A case is a whole run of the program, with a seed."""

    name = "schema"

    def __init__(self, target: Target, *, big: bool) -> None:
        self._target = target

    def make(self, chance: Random) -> Case:
        return {"seed": chance.randrange(2**31)}

    def judge(self, case: Case) -> Verdict:
        self._target.restock()
        stock = self._target.stock
        # Ended, so that a stream of its events ends as well.
        self._target.http.post(f"/v1/fine_tuning/jobs/{stock['job']}/cancel")
        known = {"file_id": stock["spare"], "job_id": stock["job"]}
        known |= dict.fromkeys(("adapter_id", "model_id"), stock["adapter"])
        settings = self._target.folder / "schemathesis.toml"
        pairs = (f"{name} = {json.dumps(value)}" for name, value in known.items())
        settings.write_text("\n".join(["[parameters]", *pairs]))
        program = str(Path(sys.executable).parent / "schemathesis")
        command = [
            program,
            "--config-file",
            str(settings),
            "run",
            f"{self._target.url}/openapi.json",
        ]
        limits = ["--max-examples", str(_EXAMPLES), "--request-timeout", f"{BOUND_S:g}"]
        chosen = [
            "--seed",
            str(case["seed"]),
            "--checks",
            _CHECKS,
            "--suppress-health-check",
            "all",
        ]
        done = subprocess.run([*command, *limits, *chosen], capture_output=True, text=True)
        cases = re.search(r"(\d+) generated", done.stdout)
        wrong = None
        if done.returncode != 0 or cases is None:
            story = done.stdout.partition("FAILURES")[2] or done.stdout + done.stderr
            wrong = f"schemathesis ends with {done.returncode}\n{story[:3000]}"
        outcome = f"run of {cases[1]} requests" if cases else "no run"
        return Verdict(outcome, wrong or self._target.aftermath())
