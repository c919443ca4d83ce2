"""`radnode job`: what became of each study that a model was asked about."""

import argparse
import time
from typing import TYPE_CHECKING

from node.cli.common import Verbs, add_config, add_json, local_time, open_journal, print_json, print_table, say
from node.codes import ExitCode

if TYPE_CHECKING:
    import sqlite3


def register(verbs: Verbs) -> None:
    """Adds the verbs."""
    nouns = verbs.add_parser("job", help="list, show or retry jobs").add_subparsers(metavar="VERB", required=True)
    listing = nouns.add_parser("list", help="jobs that wait or run; all with --all")
    listing.add_argument("--all", action="store_true", help="also those that ended")
    listing.add_argument("--study", metavar="UID", help="of this Study Instance UID only")
    show = nouns.add_parser("show", help="one job: state, seconds per stage, evidence, deliveries, history")
    retry = nouns.add_parser("retry", help="open a canceled job again")
    for parser, act in ((listing, _list), (show, _show), (retry, _retry)):
        if parser is not listing:
            parser.add_argument("job_id", type=int, metavar="JOB")
        if parser is not retry:
            add_json(parser)
        add_config(parser)
        parser.set_defaults(act=act)


def _list(arguments: argparse.Namespace) -> int:
    from node.journal.queries import list_jobs

    jobs = list_jobs(open_journal(arguments), all=arguments.all, study=arguments.study)
    if arguments.json:
        print_json(jobs)
        return ExitCode.OK
    rows = [
        (
            job.job_id,
            job.state,
            job.step or job.outcome,
            job.model,
            local_time(job.created_at),
            job.attempt,
            job.study_instance_uid,
            job.reason,
        )
        for job in jobs
    ]
    empty = "no jobs yet" if arguments.all else "no job waits or runs (ended ones: radnode job list --all)"
    print_table(("JOB", "STATE", "STEP", "MODEL", "OPENED", "TRY", "STUDY", "REASON"), rows, empty=empty)
    return ExitCode.OK


def _show(arguments: argparse.Namespace) -> int:
    from node.journal import JobJournal
    from node.journal.queries import find_job, job_stages, list_deliveries, transitions_of

    journal = open_journal(arguments)
    job = find_job(journal, arguments.job_id)
    stages = job_stages(journal, job.job_id)
    evidence = JobJournal(journal).evidence_of(job.job_id)
    deliveries = list_deliveries(journal, job_id=job.job_id, all=True)
    history = transitions_of(journal, "job", str(job.job_id))
    if arguments.json:
        print_json({"job": job, "stages": stages, "evidence": evidence, "deliveries": deliveries, "history": history})
        return ExitCode.OK
    facts = {
        "job": job.job_id,
        "state": " ".join(part for part in (job.state, job.step) if part),
        "outcome": job.outcome,
        "reason": job.reason,
        "model": job.model,
        "route": job.route,
        "study": job.study_instance_uid,
        "series": job.series_instance_uid,
        "follows job": job.predecessor_job_id,
    }
    _print_facts(facts)
    _print_section("stages", ("STAGE", "SECONDS"), [(name, f"{elapsed_s:.2f}") for name, elapsed_s in stages.items()])
    _print_section("evidence", ("ROLE", "SOP INSTANCE UID", "FILE"), [(item.role, item.sop_instance_uid, item.path) for item in evidence])
    _print_section(
        "deliveries",
        ("TO", "ROLE", "STATE", "TRIES", "STORED", "REASON"),
        [(item.destination, item.role, item.state, item.attempts, local_time(item.stored_at), item.reason) for item in deliveries],
    )
    _print_section("history", ("AT", "STATE", "REASON"), [(local_time(step.at), step.after, step.reason) for step in history])
    return ExitCode.OK


def _print_facts(facts: dict[str, object]) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if value not in {None, ""}:
            print(f"{name.ljust(width)}  {value}")


def _print_section(title: str, headings: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    if rows:
        print(f"\n{title}")
        print_table(headings, rows, empty="")


def _retry(arguments: argparse.Namespace) -> int:
    from node.journal import JobJournal

    journal: sqlite3.Connection = open_journal(arguments)
    JobJournal(journal).retry(arguments.job_id, now_s=time.time())
    say(f"job {arguments.job_id} waits for a worker again → radnode job show {arguments.job_id}")
    return ExitCode.OK
