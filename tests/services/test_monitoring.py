"""Prometheus reads a server that works, and every query of the dashboard and the alerts answers.

A query's answer counts if it has figures: a name or a label that the server does not have would
give none. What a healthy server has no figures for is provoked: a request that is refused for its
owner's limit (429), one for a model that nobody has (404), and one that takes too long (504).
"""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients.python import Client

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "grafana"
BOARD = json.loads((FOLDER / "verandah.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
KEY = "the key of the server's admin"
QUESTION = "What makes a good friend? " * 8  # long enough for the prefix cache
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None or shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    return program


@contextmanager
def running(command: list[str], folder: Path, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def url(promtool: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that needs a key, with its engine and its worker in processes."""
    folder = tmp_path_factory.mktemp("served")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("VERANDAH_")}
    options = ["--port", "0", "--home", str(folder / "home"), "--engine-process", "yes"]
    with running(
        [sys.executable, "-m", "server", "serve", *options, "--request-timeout-s", "8"],
        folder,
        env=inherited | {"VERANDAH_API_KEY": KEY, "VERANDAH_MODEL": "porch"},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving at "), (folder / "log").read_text()
        yield line.removeprefix("serving at ").strip()


class Prometheus:
    """Calls Prometheus's API."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(self._url + path, params=parameters, timeout=30)
        assert answer.is_success, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def figures(self, query: str) -> dict[str, float]:
        """What the query answers now, by its labels, without what is no number."""
        found = self.get("/query", query=query)["result"]
        values = {json.dumps(it["metric"]): float(it["value"][1]) for it in found}
        return {labels: value for labels, value in values.items() if not math.isnan(value)}


@pytest.fixture(scope="module")
def prometheus(
    promtool: str, url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus with our configuration. It asks each second, and another address."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "key").write_text(KEY)
    shutil.copy(FOLDER / "alerts.yml", folder)
    text = (FOLDER / "prometheus.yml").read_text()
    for ours, here in (
        ("/run/secrets/verandah_key", str(folder / "key")),
        ("verandah:8000", url.removeprefix("http://")),
        ("interval: 15s", "interval: 1s"),
    ):
        assert ours in text
        text = text.replace(ours, here)
    (folder / "prometheus.yml").write_text(text)
    checked = subprocess.run(
        [promtool, "check", "config", str(folder / "prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [f"--web.listen-address={address}", f"--storage.tsdb.path={folder / 'data'}"]
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", *options]
    with running(command, folder):
        wait_for(lambda: _ready(f"http://{address}/-/ready"), "Prometheus is ready")
        prometheus = Prometheus(f"http://{address}")
        wait_for(lambda: prometheus.figures("up == 1") != {}, "Prometheus reads the server")
        yield prometheus


def _ready(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def traffic(url: str, prometheus: Prometheus, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A job, answers of the base and of what it made, and what is refused and fails."""
    file = tmp_path_factory.mktemp("data") / "pirate.jsonl"
    lines = (ROOT / "examples" / "pirate.jsonl").read_text().splitlines()
    file.write_text("\n".join(lines[:16]))
    messages = [{"role": "user", "content": QUESTION}]

    def ask(model: str, key: str = KEY, **more: object) -> int:
        body = {"model": model, "messages": messages, "max_tokens": 8, **more}
        bearer = {"authorization": f"Bearer {key}"}
        sent = httpx.post(f"{url}/v1/chat/completions", json=body, headers=bearer, timeout=60)
        return sent.status_code

    with Client(url, KEY) as client:
        client.admin.create_owner("busy")
        client.admin.limit_owner("busy", {"requests_a_minute": 2})
        limited = client.admin.create_key("busy", "two a minute")["value"]
        job = client.train(client.upload(file).id, suffix="pirate", hyperparameters={"n_epochs": 2})

        def is_done() -> bool:
            return ask("base") == 200 and client.job(job.id).status == "succeeded"

        wait_for(is_done, "the job is done")
    assert [ask("pirate"), ask("nobody"), ask("base", limited)] == [200, 404, 200]
    # What was counted before Prometheus saw a name is in no rate.
    wait_until_read(prometheus, 'verandah:owner_requests_total{owner="busy"}')
    assert [ask("pirate"), ask("base", limited), ask("base", limited)] == [200, 200, 429]
    assert ask("base", n=128, max_tokens=900, ignore_eos=True) == 504
    wait_until_read(prometheus, 'verandah:http_requests_total{status="504"} > 0')


def wait_until_read(prometheus: Prometheus, query: str) -> None:
    wait_for(lambda: prometheus.figures(query) != {}, f"Prometheus has read {query}")


def asked_by_grafana(query: str) -> str:
    """The query, with what Grafana puts for its variables."""
    values = {"$job": "verandah", "$instance": ".*", "$__rate_interval": "5m", "$__range": "5m"}
    for variable, value in values.items():
        query = query.replace(variable, value)
    assert "$" not in query
    return query


# What is 0 on a server that has nothing to do now and no trouble, or is counted once a minute. The
# rest counts what was asked.
MAY_BE_0 = re.compile(
    "ALERTS|num_requests_|num_adapters_running|kv_cache_usage|num_preemptions|adapter_evictions"
    '|adapters_pinned|adapters_stored|replica_requests|restarts_total|changes|status!~"succeeded'
)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_the_queries_of_a_panel_answer(
    panel: dict[str, Any], prometheus: Prometheus, traffic: None
) -> None:
    for query in (target["expr"] for target in panel["targets"]):
        figures = prometheus.figures(asked_by_grafana(query))
        assert figures, f"{query} has no figures"
        assert MAY_BE_0.search(query) or max(figures.values()) > 0, f"{query}: {figures}"


def test_owners_and_adapters_have_names(prometheus: Prometheus, traffic: None) -> None:
    names = {
        "Busiest adapters": '"adapter": "pirate"',
        "Busiest owners": '"owner": "busy"',
        "Owners with refused requests": '"owner": "busy"',
    }
    panels = {panel["title"]: panel for panel in PANELS}
    for title, name in names.items():
        figures = prometheus.figures(asked_by_grafana(panels[title]["targets"][0]["expr"]))
        assert any(name in labels and value > 0 for labels, value in figures.items()), figures


def test_what_was_refused_is_told_by_its_status(prometheus: Prometheus, traffic: None) -> None:
    counted = prometheus.figures("sum by (status) (verandah:http_requests_total) > 0")
    assert {json.loads(labels)["status"] for labels in counted} >= {"200", "404", "429", "504"}
    refused = 'verandah:admission_rejections_total{reason="rate_limit"}'
    assert list(prometheus.figures(refused).values()) == [1]


def test_the_variables_of_the_dashboard_have_values(
    prometheus: Prometheus, url: str, traffic: None
) -> None:
    found = {}
    for variable in BOARD["templating"]["list"][1:]:
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert match is not None, variable
        series = asked_by_grafana(match[1])
        found[variable["name"]] = prometheus.get(f"/label/{match[2]}/values", **{"match[]": series})
    assert found == {"job": ["verandah"], "instance": [url.removeprefix("http://")]}


def test_the_alerts_answer_and_are_silent(prometheus: Prometheus, traffic: None) -> None:
    """Without their bounds they have figures, so that they would fire beyond these."""
    (group,) = prometheus.get("/rules", type="alert")["groups"]
    assert len(group["rules"]) == len(ALERTS)
    for rule in group["rules"]:
        unbounded = re.sub(r" (==|>) [0-9.]+", "", rule["query"])
        assert unbounded != rule["query"], rule
        assert prometheus.figures(unbounded), rule["query"]
        assert (rule["health"], rule.get("lastError")) == ("ok", None), rule
        assert rule["state"] != "firing", rule


ALERTS = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text())


def test_the_alerts_fire_when_they_should(promtool: str) -> None:
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    tried = set(re.findall(r'alertname="(\w+)"', (FOLDER / "alerts_test.yml").read_text()))
    assert tried == set(ALERTS)


def test_panels_are_whole_and_side_by_side() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24 and at["w"] * at["h"] > 0, panel["title"]
        columns, lines = (range(at[a], at[a] + at[size]) for a, size in ("xw", "yh"))
        fields = {(x, y) for x in columns for y in lines}
        assert not taken & fields, f"{panel['title']} lies over another panel"
        taken |= fields
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs), panel["title"]
        for query in (panel, *panel["targets"]):
            assert query["datasource"] == source, panel["title"]
        for target in panel["targets"]:
            assert "verandah:" in target["expr"] or '{job="$job"' in target["expr"]


def test_compose_mounts_what_there_is() -> None:
    compose = (ROOT / "docker" / "compose.yaml").read_text()
    mounted = dict(re.findall(r"- \./grafana/(\S+?):(\S+):ro", compose))
    assert set(mounted) == {path.name for path in FOLDER.iterdir()} - {"alerts_test.yml"}
    provider = (FOLDER / "dashboards.yml").read_text()
    assert f"path: {Path(mounted['verandah.json']).parent}\n" in provider
    scrape = (FOLDER / "prometheus.yml").read_text()
    (key,) = re.findall(r"credentials_file: /run/secrets/(\w+)", scrape)
    assert f"  {key}:\n    environment: VERANDAH_API_KEY" in compose
