"""Twenty owners ask for each other's things at random, and no byte of another's comes out."""

import json
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any
from urllib.parse import unquote

import pytest

from adapters_store.outside_values import shown
from tests.api.tenants.asgi import Answer, Caller
from tests.api.tenants.attacks import BENDS, Attack, attacks
from tests.api.tenants.town import Team, Town

OWNERS = 20
REQUESTS = 10_000


@pytest.fixture
def teams(town: Town) -> list[Team]:
    return [town.add_team(f"team-{number:02}") for number in range(OWNERS)]


def ids_of_nobody(team: Team) -> dict[str, str]:
    """Ids as long as a team's, of things that are not there."""
    nobody = {kind: re.sub(r"[0-9a-f]{24}", "5" * 24, it) for kind, it in team.ids.items()}
    return nobody | {"project": "team-xx", "adapter": "pirate-team-xx", "admin_key": "key_x"}


def masked(answer: Answer, names: Iterable[str]) -> tuple[int, bytes]:
    """An answer without the ids that the request itself named, however they are escaped."""
    text = answer.head + b"\n\n" + answer.content
    read = {it for name in names for it in (name, unquote(name), unquote(unquote(name)))}
    read |= {shown(it)[1:-1] for it in read}  # errors quote a part of what is long
    forms = {form for it in read for form in (it, json.dumps(it)[1:-1])}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form.encode(errors="replace"), b"ID")
    return answer.status, re.sub(rb"content-length: \d+", b"", text)


@pytest.mark.slow
def test_no_byte_of_anothers_data(town: Town, call: Caller, teams: list[Team]) -> None:
    secrets = re.compile("|".join(team.secret for team in teams).encode())
    nobody = ids_of_nobody(teams[0])
    for team in teams:
        team.ids["admin_key"] = "key_of_no_team"
        own = call("GET", f"/v1/files/{team.ids['results']}/content", key=team.member)
        assert own.content == team.secret.encode(), "the secrets are what one's own answers have"
    before, told = town.digest(), list[str]()
    statuses = dict[int, int]()

    def send(attack: Attack) -> Answer:
        answer = call(attack.method, attack.target, key=attack.key, **attack.options)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        seen = {it.decode() for it in secrets.findall(answer.head + answer.content)}
        if answer.status >= 500 or not seen <= {attack.team.secret}:
            told.append(f"{attack.team.id}: {attack} got {answer}")
        return answer

    for foreign, unknown in islice(attacks(teams, nobody, seed=16), REQUESTS // 2):
        first, second = send(foreign), send(unknown)
        if masked(first, foreign.named) != masked(second, unknown.named):
            told.append(f"{foreign.team.id}: {foreign} got {first}, and {unknown} got {second}")
    assert "\n".join(told[:9]) == ""
    assert town.digest() == before, "nothing of anybody has changed"
    assert statuses.keys() >= {200, 400, 403, 404}, statuses


def test_a_name_from_outside_leads_to_ones_own_folder(
    town: Town, call: Caller, team: Team, rival: Team
) -> None:
    before = town.files()
    names = {team.ids["adapter"], f"{team.id}/{team.ids['adapter']}", team.ids["file"], team.id}
    for name in {bend(name) for bend in BENDS for name in names}:
        peft = {"config": b"{}", "weights": (name, b"w")}
        job = {"model": "base", "training_file": rival.ids["file"], "suffix": name[:70]}
        for answer in (
            call("POST", "/v1/adapters/import", key=rival.member, data={"name": name}, files=peft),
            call("POST", "/v1/files", key=rival.member, **upload_named(name)),
            call("POST", "/v1/fine_tuning/jobs", key=rival.member, json=job),
        ):
            assert answer.status in (200, 400, 409), (name, answer)
            assert team.secret.encode() not in answer.head + answer.content, (name, answer)
    after = town.files()
    assert before.items() <= after.items(), "what was there is untouched"
    uploads = {file.id for file in town.services.files.list(rival.id, limit=10_000).items}
    adapters = town.folder / "adapters" / rival.id
    astray = [it for it in after if it not in before and not it.is_relative_to(adapters)]
    assert [it for it in astray if it.name not in uploads] == []
    assert len(after) > len(before) + 20, "some names are good ones"


def upload_named(name: str) -> dict[str, Any]:
    return {"data": {"purpose": "fine-tune"}, "files": {"file": (name, b'{"prompt": "a"}')}}
