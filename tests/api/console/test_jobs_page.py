"""The pages of jobs: what they show, to whom, and that their forms do what the API does."""

import html
import io
import json
import re
import time
from typing import Any, cast

import httpx
import pytest
from sqlalchemy import Table, insert, select

from server.api.app_services import Services
from server.console.jobs.job_options import as_python
from server.db.tables import JobRow
from server.jobs.queue.evaluation import Evaluation, Sample
from server.jobs.queue.job import Job
from server.jobs.queue.training_metrics import TrainingMetrics
from server.tenancy.principal import DEFAULT_OWNER
from tests.api.console.conftest import SERVER_KEY, Browser, MakeKey
from tests.api.running import Running

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def make(services: Services, owner: str = DEFAULT_OWNER, **more: Any) -> Job:
    """A job that waits."""
    file = services.files.create(owner, more.pop("file", "a.jsonl"), "fine-tune", io.BytesIO(b"{}"))
    return services.jobs.create(owner, "base", file.id, **more)


def run(services: Services, steps: int = 3, **more: Any) -> Job:
    """A job in mid-training."""
    make(services, **more)
    job = services.jobs.claim("worker-1", 300)
    assert job is not None
    services.jobs.record_evaluation(job, Evaluation(6, True, 3.5), "info", "The base's loss is 3.5")
    for step in range(1, steps + 1):
        figures = TrainingMetrics(step, total_steps=10, train_loss=3.0 / step, learning_rate=0.01)
        services.jobs.append_event(job, "info", f"Step {step}/10", figures)
        services.jobs.heartbeat(job, step=step, estimated_finish=int(time.time()) + 100)
    return job


def succeed(services: Services, **more: Any) -> Job:
    job = run(services, **more)
    found = Evaluation(6, True, 3.5, None, 1.25, 1.3, 2, "better")
    services.jobs.record_evaluation(job, found, "info", "evaluated")
    services.jobs.add_samples(job, [Sample("a question", "of the file", "of the base", "")])
    services.jobs.add_checkpoint(job, 2, "poet@1", TrainingMetrics(2, valid_loss=1.25))
    return services.jobs.finish(job, "poet@1", 1234)


def test_an_empty_list_leads_to_data(server: Running) -> None:
    page = server.http.get("/console/jobs").text
    assert "Nothing has been trained yet" in page
    assert 'href="/console/data">Add data' in page
    assert "every 3s" not in page


def test_the_list_shows_how_far_jobs_are(server: Running) -> None:
    job = run(server.services, suffix="poet", file="verses.jsonl")
    page = server.http.get("/console/jobs").text
    assert f'href="/console/jobs/{job.id}">poet' in page
    assert "step 3 of 10" in page
    assert 'value="0.3000"' in page
    assert "1.000 <small>training" in page
    assert "verses.jsonl" in page
    assert re.search(r"1 min \d+ s <small>left", page)
    assert 'hx-trigger="every 3s"' in page


def test_a_list_whose_jobs_have_all_ended_rests(server: Running) -> None:
    succeed(server.services, suffix="poet")
    page = server.http.get("/console/jobs").text
    assert "every 3s" not in page
    assert "1.250 <small>held out" in page


def test_the_list_has_pages_and_filters(server: Running) -> None:
    made = [make(server.services).id for _ in range(23)]
    first = server.http.get("/console/jobs").text
    assert [job for job in made if f"row-{job}" in first] == made[3:]
    older = html.unescape(re.search(r'href="([^"]+)">Older jobs', first)[1])  # type: ignore[index]
    second = server.http.get(older).text
    assert [job for job in made if f"row-{job}" in second] == made[:3]
    assert "Older jobs" not in second
    server.services.jobs.cancel(DEFAULT_OWNER, made[5])
    cancelled = server.http.get("/console/jobs?status=cancelled").text
    assert [job for job in made if f"row-{job}" in cancelled] == [made[5]]
    assert "None of your jobs is paused" in server.http.get("/console/jobs?status=paused").text
    refused = server.http.get("/console/jobs?status=<b>")
    assert (refused.status_code, "<b>" in refused.text) == (400, False)
    part = server.http.get("/console/jobs", headers={"hx-request": "true"}).text
    assert part.lstrip().startswith('<div id="jobs"')


def test_a_running_job(server: Running) -> None:
    job = run(server.services, suffix="poet", metadata={"team": "red"}, seed=7)
    page = server.http.get(f"/console/jobs/{job.id}").text
    assert "of 10, 30%" in page
    assert f'hx-get="/console/jobs/{job.id}" hx-trigger="every 2s' in page
    assert 'data-base="3.5"' in page
    told = json.loads(html.unescape(re.search(r"data-job='([^']+)'", page)[1]))  # type: ignore[index]
    newest = server.services.jobs.events(DEFAULT_OWNER, job.id, limit=1).items[0].id
    assert told == {"id": job.id, "ended": False, "after": newest, "continues": False}
    assert "Fine-tuning job started" in page
    assert "Step 2/10" not in page  # steps are on the curve
    assert "seed=7" in html.unescape(page)
    assert ">red<" in page


def test_a_job_that_succeeded(server: Running) -> None:
    job = succeed(server.services, suffix="poet")
    page = server.http.get(f"/console/jobs/{job.id}").text
    assert "Better than the base" in page
    assert "6 lines that it did not learn from fell from 3.5000 to 1.2500, by 64%" in page
    assert "The best state was that of step 2" in page
    for answer in ("a question", "of the file", "of the base", "(nothing)"):
        assert answer in page
    assert 'href="/console/compare?model=poet%401"' in page or "model=poet@1" in page
    assert 'href="/console/adapters/poet"' in page
    assert "every 2s" not in page
    assert ">Pause<" not in page
    assert "cancel-job" not in page.split('<dialog id="cancel-job"')[0]


@pytest.mark.parametrize(
    ("code", "remedy"), [("made_worse", "learning rate"), ("of_tomorrow", "log")]
)
def test_a_failed_job_says_what_to_do(server: Running, code: str, remedy: str) -> None:
    job = run(server.services)
    server.services.jobs.fail(job, code, "it is worse")
    page = server.http.get(f"/console/jobs/{job.id}").text
    assert "It is worse" in page
    assert remedy in page.split("What to do:")[1].split("</p>")[0]


def test_forms_do_what_the_api_does(server: Running) -> None:
    job, form = make(server.services), {"origin": server.url}

    def status() -> str:
        return server.sdk.fine_tuning.jobs.retrieve(job.id).status

    path = f"/console/jobs/{job.id}"
    answer = server.http.post(f"{path}/pause", headers=form)
    assert (answer.status_code, answer.headers["location"], status()) == (303, path, "paused")
    part = server.http.post(f"{path}/resume", headers=form | {"hx-request": "true"})
    assert (part.status_code, status()) == (200, "queued")
    assert 'id="job-state"' in part.text
    assert ">Pause<" in part.text
    server.http.post(f"{path}/cancel", headers=form)
    assert status() == "cancelled"
    late = server.http.post(f"{path}/pause", headers=form | {"hx-request": "true"})
    assert (late.status_code, late.headers["hx-retarget"]) == (409, "#notices")


def test_nobody_else_sees_a_job(keyed: Running, browser: Browser, make_key: MakeKey) -> None:
    ann, none = browser(make_key("team-a", "jobs")), "ftjob-none"
    job = make(keyed.services).id
    for path in ("", "/events", "/checkpoints"):
        foreign = ann.get(f"/console/jobs/{job}{path}")
        missing = ann.get(f"/console/jobs/{none}{path}")
        assert (foreign.status_code, missing.status_code) == (404, 404)
        assert foreign.text.replace(job, none) == missing.text
    for what in ("cancel", "pause", "resume"):
        assert ann.post(f"/console/jobs/{job}/{what}").status_code == 404
    assert ann.get(f"/console/jobs/compare?job={job}").status_code == 404
    assert keyed.services.jobs.get(DEFAULT_OWNER, job).status == "queued"
    assert browser(SERVER_KEY).get(f"/console/jobs/{job}").status_code == 200


@pytest.mark.parametrize("path", ["", "/{}", "/{}/events", "/{}/checkpoints", "/compare?job={}"])
def test_a_key_without_the_scope_sees_none(
    keyed: Running, browser: Browser, make_key: MakeKey, path: str
) -> None:
    key = make_key("team-a", "files", "models.use")
    job = make(keyed.services, "team-a").id
    assert browser(key).get(f"/console/jobs{path.format(job)}").status_code == 403


def test_a_key_for_jobs_alone_sees_no_files_and_asks_nothing(
    keyed: Running, browser: Browser, make_key: MakeKey
) -> None:
    key = make_key("team-a", "jobs")
    job = make(keyed.services, "team-a", file="secret-name.jsonl")
    page = browser(key).get(f"/console/jobs/{job.id}").text
    assert job.training_file in page
    assert "secret-name" not in page + browser(key).get("/console/jobs").text
    assert 'id="ask"' not in page
    refused = browser(key).post(f"/console/jobs/{job.id}/pause")
    assert refused.status_code == 303


def test_whatever_others_wrote_is_text(server: Running) -> None:
    services = server.services
    named = re.sub(r"[/\\]", "", EVIL)
    job = run(services, metadata={EVIL[:64]: EVIL}, file=named)
    services.jobs.append_event(job, "warn", EVIL)
    services.jobs.add_samples(job, [Sample(EVIL, EVIL, EVIL, EVIL)])
    services.jobs.record_plan(job, {"method": EVIL})
    paths = [f"/{job.id}", "", f"/compare?job={job.id}&job={make(services, file=named).id}"]
    services.jobs.fail(job, "made_worse", EVIL, EVIL)
    for path in paths:
        page = server.http.get(f"/console/jobs{path}").text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "onerror=alert(2)&gt;" in page
        assert not re.search(r"""=["'][^"']*"'>""", page)


def test_compared_jobs_show_what_differs(server: Running) -> None:
    one, two = succeed(server.services, suffix="poet"), run(server.services, suffix="bard")
    server.services.jobs.record_plan(two, {"learning_rate": 0.0666666, "rank": 8})
    path = f"/console/jobs/compare?job={one.id}&job={two.id}&job={one.id}"
    page = server.http.get(path).text
    assert "Compare 2 jobs" in page
    told = json.loads(html.unescape(re.search(r"data-jobs='([^']+)'", page)[1]))  # type: ignore[index]
    assert [(it["id"], it["ended"]) for it in told] == [(one.id, True), (two.id, False)]
    assert "0.06667" in page
    assert "1.2500" in page
    assert ">method<" not in page  # the same in both
    assert server.http.get("/console/jobs/compare").status_code == 200
    many = "&".join(f"job=ftjob-{i}" for i in range(9))
    refused = server.http.get(f"/console/jobs/compare?{many}")
    assert (refused.status_code, "choose 8 at most" in refused.text) == (400, True)


def test_a_log_is_cut_with_a_way_to_see_all(server: Running) -> None:
    job = run(server.services)
    for number in range(120):
        server.services.jobs.append_event(job, "warn", f"word {number};")
    page = server.http.get(f"/console/jobs/{job.id}").text
    seen = [re.findall(r"word (\d+);", page)]
    while earlier := re.search(r'hx-get="([^"]+/events\?after=[^"]+)"', page):
        page = server.http.get(html.unescape(earlier[1]), headers={"hx-request": "true"}).text
        seen.insert(0, re.findall(r"word (\d+);", page))
    assert [int(it) for part in seen for it in part] == [*range(120)]
    assert max(map(len, seen)) <= 50


def test_the_code_starts_the_same_job(server: Running) -> None:
    job = make(server.services, suffix="poet", seed=7, metadata={"a": EVIL})
    code = as_python(job, server.url)
    asked: dict[str, object] = {}

    class Client:
        def __init__(self, **_: object) -> None:
            self.fine_tuning = self.jobs = self

        def create(self, **fields: object) -> None:
            asked.update(fields)

    exec(code.replace("from openai import OpenAI", ""), {"OpenAI": Client})
    body = {"model": "base", "training_file": job.training_file, "suffix": "poet", "seed": 7}
    assert asked == body | {"metadata": {"a": EVIL}, "extra_body": {"verandah": {"method": "vera"}}}


def test_many_jobs_make_no_page_slow(server: Running) -> None:
    job = succeed(server.services)
    table = cast(Table, JobRow.__table__)
    with server.services.jobs._database.transaction() as session:
        row = dict(session.execute(select(table)).mappings().one())
        del row["number"]
        session.execute(insert(table), [row | {"id": f"j{i}"} for i in range(10_000)])
    assert server.services.jobs.count_of(DEFAULT_OWNER) == 10_001
    assert quickest(server.http, "/console/jobs") < 0.1
    assert quickest(server.http, f"/console/jobs/{job.id}") < 0.1


def quickest(http: httpx.Client, path: str) -> float:
    times = []
    for _ in range(8):
        began = time.perf_counter()
        assert http.get(path).status_code == 200
        times.append(time.perf_counter() - began)
    return min(times)


def test_a_job_that_may_wait_for_ever_says_so(server: Running) -> None:
    waits, runs = run(server.services), make(server.services)
    told = "This server runs no training worker"
    assert told in server.http.get(f"/console/jobs/{runs.id}").text
    assert told not in server.http.get(f"/console/jobs/{waits.id}").text
