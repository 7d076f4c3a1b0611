"""`verandah jobs`: lists, shows, follows and controls training jobs. Knows no files."""

import argparse
from itertools import islice

from clients.python import Client, Job
from server.cli.arguments.server_address import add_server, connect, same_server
from server.cli.display.job_watch import watch_job
from server.cli.display.output import moment, print_fields, print_json, print_rows, short_moment
from server.config import BadOption

EXAMPLES = """examples:
  verandah jobs                         lists them, the newest first
  verandah jobs list --status running
  verandah jobs show ftjob-0123         one job, in full
  verandah jobs follow ftjob-0123       its progress, until it has ended
  verandah jobs cancel ftjob-0123       ends it; it leaves no adapter
  verandah jobs pause ftjob-0123        saves it, so that others may train
  verandah jobs resume ftjob-0123
"""

_ACTIONS = ("list", "show", "follow", "cancel", "pause", "resume")
_COLUMNS = ("job", "status", "name", "model", "step", "created", "result")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=_ACTIONS)
    parser.add_argument("job", nargs="?", help="the job's id, for all actions but list")
    parser.add_argument("--status", help="list only jobs of this status, such as running")
    parser.add_argument("--limit", type=int, default=20, help="how many to list; default: 20")
    parser.add_argument(
        "--json", action="store_true", help="print the server's documents as JSON; follow: events"
    )
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    if options.limit < 1:
        raise BadOption(f"--limit {options.limit}: ask for one job or more")
    if options.action != "list" and not options.job:
        raise BadOption(f"jobs {options.action} needs a job's id: `verandah jobs` lists them")
    with connect(options) as client:
        if options.action == "list":
            _list(client, options)
        elif options.action == "show":
            _show(client.job(options.job), options.json)
        elif options.action == "follow":
            _follow(client, options)
        else:
            _change(client, options)
    return 0


def _list(client: Client, options: argparse.Namespace) -> None:
    jobs = list(islice(client.jobs(status=options.status), options.limit))
    if options.json:
        print_json([job.raw for job in jobs])
    else:
        print_rows(_COLUMNS, map(_cells, jobs))


def _cells(job: Job) -> tuple[str, ...]:
    failure = job.error["code"] if job.error else ""
    return (
        job.id,
        job.status,
        job.raw["user_provided_suffix"] or "",
        job.model,
        _step(job),
        short_moment(job.raw["created_at"]),
        job.fine_tuned_model or failure,
    )


def _step(job: Job) -> str:
    ours = job.raw["verandah"]
    steps = (ours["appraisal"] or {}).get("steps")
    return f"{ours['step']}/{steps}" if steps else str(ours["step"])


def _show(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(job.raw)
        return
    raw, ours = job.raw, job.raw["verandah"]
    print_fields(
        {
            "id": job.id,
            "status": job.status,
            "name": raw["user_provided_suffix"],
            "model": job.model,
            "fine_tuned_model": job.fine_tuned_model,
            "error": raw["error"],
            "created": moment(raw["created_at"]),
            "finished": moment(raw["finished_at"]) or None,
            "estimated_finish": moment(raw["estimated_finish"]) or None,
            "step": _step(job),
            "trained_tokens": raw["trained_tokens"],
            "training_file": raw["training_file"],
            "validation_file": raw["validation_file"],
            "result_files": raw["result_files"],
            "seed": raw["seed"],
            "metadata": raw["metadata"],
            "hyperparameters": raw["hyperparameters"],
            "judgement": ours["judgement"],
        }
    )


def _follow(client: Client, options: argparse.Namespace) -> None:
    if options.json:
        for event in client.follow(options.job):
            print_json(event.raw)
        client.wait(options.job)
        return
    name = client.job(options.job).raw["user_provided_suffix"] or options.job
    print(watch_job(client, options.job, name, same_server(options)).fine_tuned_model)


def _change(client: Client, options: argparse.Namespace) -> None:
    changes = {"cancel": client.cancel, "pause": client.pause, "resume": client.resume}
    job = changes[options.action](options.job)
    if options.json:
        print_json(job.raw)
        return
    waits = options.action != "resume" and job.status == "running"
    later = ": its worker was asked, and stops it soon" if waits else ""
    print(f"{job.id}: {job.status}{later}")
