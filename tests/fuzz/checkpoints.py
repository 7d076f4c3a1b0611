"""PEFT checkpoints, changed: config, header, numbers and bytes. What is accepted must answer."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx
import numpy as np

from adapters_store.store import AdapterStore
from server.adapters.porting.service import PortingService
from server.bases.base_files import load_base
from tests.adapters.made import make_adapter
from tests.fuzz.edits import edit, edited, written
from tests.fuzz.target import BOUND_S, Target, wrong_error
from tests.fuzz.trial import Case, Verdict

_METHODS: dict[str, dict[str, Any]] = {
    "vera": {},
    "randlora": {"method": "randlora", "targets": ["q_proj", "o_proj"]},
    "lora": {"method": "lora"},
    "narrow": {"method": "lora", "targets": ["q_proj", "mlp.down_proj"]},
}
# Over paths such as model.layers.0.self_attn.q_proj; a backtracking engine takes for ever for some.
_PATTERNS = [
    *("(a+)+$", "([a-z_.0-9]+)+!", "(.*)*!", "(.*.*.*.*.*.*)!", "((q|q_)+p*)+!", "(?:a|a)*!"),
    *("(([^!]|.)*)*!", "(\\w+\\W?)+!", "(x+x+)+y", ".*" * 30 + "!", "(.{1,99}){1,99}!"),
    *("(?x:([a-z_.0-9]+) +)!", "(?x:([a-z_.0-9]+)\n*)!", "[a-z_.0-9]+[a-z_.0-9]+!"),
    *(
        "q_proj",
        ".*q_proj",
        "(?<=l)f",
        "\\1(a)",
        "(?i)Q_PROJ",
        "(",
        "[",
        "*",
        "a{99999}",
        "^$",
        "|",
    ),
    *(
        "(?P<n>a)(?P=n)",
        "(?(1)a|b)",
        "a{1000}{1000}",
        "\\Z",
        "\\p{L}+",
        "\x00",
        "é.*",
        "all-linear",
    ),
]
_PATTERN_FIELDS = ("target_modules", "exclude_modules", "layers_pattern")
_NUMBERS = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30, 1e20, 1e10, 65520.0, 1e-40, 0.0, -1.0]
_LENGTHS = [0, 1, 7, 2**16, 89_000_000, 2**31, 2**40, 2**63 - 1, 2**64 - 1]
_ASKED = {"prompt": [5, 70, 281, 9], "max_tokens": 3, "logprobs": 1, "temperature": 0}


class _Checkpoint(NamedTuple):
    config: Mapping[str, Any]
    header: Mapping[str, Any]
    numbers: bytes


class Checkpoints:
    """Imports, and a question to what was taken in."""

    name = "checkpoints"

    def __init__(self, target: Target, *, big: bool) -> None:
        self._target = target
        self._big = big
        self._good = dict(_exported(target.base, target.folder / "exported"))
        self._kinds = list(self._good)

    def make(self, chance: Random) -> Case:
        kind = chance.choice(self._kinds)
        good = self._good[kind]
        case: Case = {"kind": kind, "config": [], "header": [], "numbers": [], "bytes": []}
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            what = chance.choice(["config", "config", "pattern", "header", "numbers", "bytes"])
            if what == "config":
                case["config"].append(edit(chance, good.config, big=self._big))
            elif what == "pattern":
                case["config"].append(_pattern(chance))
            elif what == "header":
                case["header"].append(edit(chance, good.header, big=self._big))
            elif what == "numbers":
                name = chance.choice(sorted(set(good.header) - {"__metadata__"}))
                place = chance.choice([None, 0, -1])  # all of them, the first or the last
                case["numbers"].append({"at": name, "put": chance.choice(_NUMBERS), "place": place})
            else:
                case["bytes"].append(self._byte_change(chance))
        return case

    def _byte_change(self, chance: Random) -> dict[str, Any]:
        op = chance.choice(["length", "cut", "flip", "append", "pad", "config"])
        if op == "length":
            return {"op": op, "at": 0, "put": chance.choice(_LENGTHS)}
        if op == "flip":
            return {"op": op, "at": chance.randrange(4000), "put": chance.randrange(256)}
        if op == "pad" and self._big and chance.random() < 0.2:
            return {"op": op, "at": 0, "put": 60_000_000}
        return {"op": op, "at": 0, "put": chance.choice([1, 8, 100, 5000, 100_000])}

    def judge(self, case: Case) -> Verdict:
        config, weights = self._files(case)
        files = {"config": ("adapter_config.json", config), "weights": ("w.safetensors", weights)}
        late = False
        try:
            name = {"name": "fuzzed"}
            response = self._target.http.post("/v1/adapters/import", data=name, files=files)
            outcome, wrong = self._after_import(response)
        except httpx.TimeoutException:
            outcome, wrong, late = "late", f"no answer to an import in {BOUND_S:g} s", True
        except httpx.TransportError as error:
            outcome, wrong = "broken", f"an import broke the connection: {error!r}"
        return Verdict(outcome, wrong or self._target.aftermath(), late)

    def _after_import(self, response: httpx.Response) -> tuple[str, str | None]:
        status = response.status_code
        if status >= 500:
            return str(status), f"an import is answered {status}: {response.text[:300]}"
        if status >= 400:
            return str(status), wrong_error(status, response.content)
        adapter = str(response.json()["id"])
        try:
            return "accepted", self._asked(adapter)
        finally:
            self._target.http.delete("/v1/adapters/fuzzed")

    def _asked(self, adapter: str) -> str | None:
        response = self._target.http.post("/v1/completions", json={"model": adapter, **_ASKED})
        if response.status_code != 200:
            told = response.text[:300]
            return f"an accepted checkpoint is answered {response.status_code}: {told}"
        scores = response.json()["choices"][0]["logprobs"]["token_logprobs"]
        if not all(math.isfinite(score) for score in scores):
            return f"an accepted checkpoint answers with the log-probabilities {scores}"
        return None

    def _files(self, case: Case) -> tuple[bytes, bytes]:
        """The two files of a case: the config, and the tensors."""
        good = self._good[case["kind"]]
        config = written(edited(good.config, case["config"])).encode("utf-8", "surrogatepass")
        numbers = bytearray(good.numbers)
        for change in case["numbers"]:
            _put_number(numbers, good.header[change["at"]]["data_offsets"], change)
        header = written(edited(good.header, case["header"])).encode("utf-8", "surrogatepass")
        pads = [change["put"] for change in case["bytes"] if change["op"] == "pad"]
        header += b" " * sum(pads)
        weights = bytearray(len(header).to_bytes(8, "little") + header + numbers)
        for change in case["bytes"]:
            op, put = change["op"], change["put"]
            if op == "length":
                weights[:8] = put.to_bytes(8, "little")
            elif op == "cut":
                del weights[-put:]
            elif op == "flip" and change["at"] < len(weights):
                weights[change["at"]] = put
            elif op == "append":
                weights += bytes(put)
            elif op == "config":
                config = config[:-put]
        return config, bytes(weights)


def _pattern(chance: Random) -> dict[str, Any]:
    pattern = chance.choice(_PATTERNS)
    field = chance.choice([*_PATTERN_FIELDS, "rank_pattern", "alpha_pattern"])
    if field.endswith("_pattern"):
        return {"op": "put", "at": [field], "put": {pattern: chance.choice([1, 4, 8])}}
    return {
        "op": "put",
        "at": [field],
        "put": chance.choice([pattern, [pattern], ["q_proj", pattern]]),
    }


def _put_number(numbers: bytearray, offsets: list[int], change: Mapping[str, Any]) -> None:
    start, end = offsets
    with np.errstate(all="ignore"):
        number = np.float32(change["put"]).tobytes()
    if change["place"] is None:
        numbers[start:end] = number * ((end - start) // 4)
    else:
        at = start if change["place"] == 0 else end - 4
        numbers[at : at + 4] = number


def _exported(base_folder: Path, folder: Path) -> Iterator[tuple[str, _Checkpoint]]:
    """A good checkpoint of each kind, as the server exports it."""
    base = load_base(str(base_folder), device="cpu")
    store = AdapterStore(folder / "adapters")
    porting = PortingService(base, store, str(base_folder), folder / "porting", max_rank=64)
    for kind, fields in _METHODS.items():
        made = make_adapter(base, rank=4, **fields)
        ref = store.publish("ann", kind, made.manifest, made.tensors)
        exported = porting.export_adapter(ref, "peft")
        config = json.loads((exported / "adapter_config.json").read_text())
        weights = (exported / "adapter_model.safetensors").read_bytes()
        size = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + size])
        yield kind, _Checkpoint(config, header, weights[8 + size :])
