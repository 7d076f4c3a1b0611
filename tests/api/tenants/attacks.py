"""Requests at random with ids of others, bent in ways that have fooled servers. Sends nothing."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import quote

from tests.api.tenants.rows import MATRIX, Reach, Row
from tests.api.tenants.town import Team

_LOOK_ALIKES = str.maketrans("aeopcx", "аеорсх")  # noqa: RUF001
_WIDE = str.maketrans({chr(one): chr(one + 0xFEE0) for one in range(0x21, 0x7F)})

BENDS: tuple[Callable[[str], str], ...] = (
    *(str, str, str, str),  # as it is: what most attackers try
    *(str.upper, str.title, str.swapcase),
    lambda it: it.translate(_LOOK_ALIKES),
    lambda it: it.translate(_WIDE),
    lambda it: it.replace("/", "\uff0f"),
    lambda it: it.replace("/", "\u2215"),
    lambda it: it.replace("/", "//"),
    lambda it: it.replace("/", "\\"),
    lambda it: it.replace("-", "\u2010"),
    lambda it: it.replace("i", "\u0131").replace("s", "\u017f").replace("k", "\u212a"),
    lambda it: unicodedata.normalize("NFD", f"{it}é"),
    *(lambda it: f"{it}\u200d", lambda it: f"\ufeff{it}", lambda it: f"{it}\u0301"),
    *(lambda it: f"{it}\0", lambda it: f"{it}\0.jsonl", lambda it: f"{it} ", lambda it: f" {it}"),
    *(lambda it: f"{it}\n", lambda it: f"{it}.", lambda it: f"{it}/", lambda it: f"/{it}"),
    *(lambda it: f"../{it}", lambda it: f"../../{it}", lambda it: f"./{it}", lambda it: f"{it}/.."),
    *(lambda it: f"..\\{it}", lambda it: f"x/../{it}", lambda it: f"..;/{it}"),
    *(lambda it: f"../../files/{it}", lambda it: f"/etc/../{it}", lambda it: f"file:{it}"),
    *(
        lambda it: f"{it}@1",
        lambda it: f"{it}@01",
        lambda it: f"{it}@-1",
        lambda it: f"{it}@\uff11",
    ),
    *(lambda it: f"{it};x", lambda it: f"{it}#x", lambda it: f"{it}?x=1", lambda it: f"{it}&x=1"),
    *(lambda it: f"{it}' OR '1'='1", lambda it: f"{it}%", lambda it: f"{it}*", lambda it: it[:-1]),
    *(lambda it: f"{it},{it}", lambda it: f'"{it}"', lambda it: f"{it}{'x' * 300}"),
)

ENCODINGS: tuple[Callable[[str], str], ...] = (
    *(lambda it: quote(it, safe="/@~"), lambda it: quote(it, safe="/@~;'*,")),
    lambda it: quote(it, safe=""),
    lambda it: quote(quote(it, safe="")),
    lambda it: "".join(f"%{byte:02x}" for byte in it.encode()),
    lambda it: quote(it, safe="@~").replace("..", "%2e%2e"),
    lambda it: quote(it, safe="@~").replace("%2F", "%c0%af"),
)

_LISTS = {
    "/v1/files": "file",
    "/v1/fine_tuning/jobs": "job",
    "/v1/fine_tuning/jobs/<own ended>/events": "event",
    "/v1/fine_tuning/jobs/<own ended>/checkpoints": "checkpoint",
    "/v1/organization/projects": "project",
    "/v1/organization/projects/<own project>/users": "user",
    "/v1/organization/projects/<own project>/service_accounts": "account",
    "/v1/organization/projects/<own project>/api_keys": "key",
}
_ALL = "/v1/organization"
_OWN = f"{_ALL}/projects/<own project>"
_USAGE = "usage/completions?start_time=1700000000&group_by[]=project_id"
_FILTERED = (
    "audit_logs?project_ids[]=<project>",
    "audit_logs?resource_ids[]=<key>",
    "audit_logs?actor_ids[]=<user>",
    "audit_logs?after=<key>",
    f"{_USAGE}&project_ids[]=<project>",
    f"{_USAGE}&user_ids[]=<user>",
    f"{_USAGE}&api_key_ids[]=<key>",
    f"{_USAGE}&models[]=<project>/<adapter>",
)
_JOB = {"model": "base", "training_file": "<own file>"}
MORE: tuple[tuple[str, Row], ...] = (
    *(("GET", Row(Reach.KEY, f"{path}?after=<{kind}>")) for path, kind in _LISTS.items()),
    ("GET", Row(Reach.KEY, "/v1/adapters/<own adapter>/analysis?compare=<project>/<adapter>")),
    ("GET", Row(Reach.KEY, "/v1/fine_tuning/jobs?metadata[secret]=<job>")),
    ("GET", Row(Reach.KEY, "/v1/fine_tuning/jobs/<own ended>/events?stream=true&after=<event>")),
    *(("GET", Row(Reach.KEY, f"{_ALL}/{asked}")) for asked in _FILTERED),
    ("POST", Row(Reach.KEY, "/v1/fine_tuning/jobs", _JOB | {"model": "<project>/<adapter>"})),
    ("POST", Row(Reach.KEY, "/v1/fine_tuning/jobs", _JOB | {"validation_file": "<file>"})),
    ("POST", Row(Reach.KEY, f"{_OWN}/api_keys", {"name": "x", "user_id": "<user>"})),
    ("POST", Row(Reach.KEY, f"{_OWN}/api_keys/<key>/rotate", {})),
    ("DELETE", Row(Reach.KEY, f"{_OWN}/api_keys/<key>")),
    ("POST", Row(Reach.KEY, f"{_OWN}/users/<user>", {"role": "owner"})),
    ("GET", Row(Reach.KEY, f"{_OWN}/users/<user>")),
    ("DELETE", Row(Reach.KEY, f"{_OWN}/service_accounts/<account>")),
)
_NAMED = [
    (operation.partition(" ")[0], row)
    for operation, row in MATRIX.items()
    if row.reach in (Reach.THING, Reach.PROJECT, Reach.SERVER, Reach.ENGINE)
]
_PLACE = re.compile(r"<(own )?(\w+)>(?:/<(\w+)>(@1)?)?")


@dataclass(frozen=True)
class Attack:
    """One request by `team`. `named` are the ids of others in it, in each form that they have."""

    team: Team
    key: str
    method: str
    target: str
    body: Any
    named: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.target} {self.body or ''}"

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.body is None else {"json": self.body}


def attacks(teams: list[Team], nobody: dict[str, str], seed: int) -> Iterator[tuple[Attack, ...]]:
    """Pairs without end: a request with the ids of another team, and the same with ids of the
    same length that nobody has."""
    random = Random(seed)
    while True:
        team, victim = random.sample(teams, 2)
        method, row = random.choice([*_NAMED, *MORE])
        key = random.choice((team.admin, team.member))
        bend, encode = random.choice(BENDS), random.choice(ENCODINGS)
        yield tuple(
            _attack(team, key, method, row, ids, bend, encode) for ids in (victim.ids, nobody)
        )


def _attack(
    team: Team,
    key: str,
    method: str,
    row: Row,
    ids: dict[str, str],
    bend: Callable[[str], str],
    encode: Callable[[str], str],
) -> Attack:
    named: list[str] = []

    def put(value: Any, encode: Callable[[str], str]) -> Any:
        if isinstance(value, dict):
            return {name: put(one, encode) for name, one in value.items()}
        return _PLACE.sub(place(encode), value) if isinstance(value, str) else value

    def place(encode: Callable[[str], str]) -> Callable[[re.Match[str]], str]:
        def place(found: re.Match[str]) -> str:
            own, kind, rest, version = found.groups()
            if own:
                return team.ids[kind]
            plain = ids[kind] if rest is None else f"{ids[kind]}/{ids[rest]}{version or ''}"
            named.extend((encode(bend(plain)), bend(plain), plain, ids[kind], ids[rest or kind]))
            return encode(bend(plain))

        return place

    return Attack(
        team, key, method, put(row.target, encode), put(row.body, str), tuple(dict.fromkeys(named))
    )
