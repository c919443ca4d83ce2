"""Complete studies become jobs: the process that asks the domain what is complete and which series goes where."""

import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from node.config import Config
from node.domain.completeness import Completeness, CompletenessPolicy, judge_completeness
from node.domain.identifiers import derive_job_key
from node.domain.instance import InstanceHeader, SeriesHeader
from node.domain.modelcard import ModelCard
from node.domain.objects import ResultObject, objects_for
from node.domain.retention import purged_reason
from node.domain.routing import Route, StudyDecision, decide_study
from node.domain.states import SeriesState
from node.errors import CannotUnderstand, ModelError, UsageError
from node.intake.headers import read_header, read_series_headers
from node.intake.spool import spooled_path
from node.journal import InstanceRecord, JobJournal, NewJob, ReceivedJournal, StudyRecord, open_database, transaction
from node.locks import is_free
from node.modelstore import find_card, require_confirmed

TICK_S = 0.5
READ_AHEAD_S = 0.15
"""How much of a tick goes to headers of studies that still arrive: what is read now need not be read when they are complete."""

MOST_HEADERS_AHEAD = 5000
"""So many headers are kept, 20 kB each; of what comes beyond, they are read when the study is complete."""

log = structlog.get_logger("radnode")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the dispatcher decides by."""

    routes: tuple[Route, ...]
    cards: Mapping[str, ModelCard]
    policy: CompletenessPolicy
    objects: Mapping[str, tuple[ResultObject, ...]] = field(default_factory=dict)
    """Destination → the objects that it gets, where not the default."""


def run_dispatcher(config: Config, stop: threading.Event) -> None:
    """Turns complete studies into jobs until `stop` is set."""
    rules = Rules(
        routes=tuple(route.as_route() for route in config.routes),
        cards=usable_cards(config),
        policy=CompletenessPolicy(config.study_complete.quiet_s, config.study_complete.max_wait_s),
        objects={name: objects_for(peer.objects) for name, peer in config.peers.items()},
    )
    dispatcher = Dispatcher(open_database(config.node.state_dir), config.node.state_dir, rules)
    while not stop.wait(TICK_S):
        dispatcher.tick(time.time())


def usable_cards(config: Config) -> dict[str, ModelCard]:
    """Answers the cards of the routed models; one that is broken is told, and costs its own routes alone."""
    cards = {}
    for model in dict.fromkeys(route.model for route in config.routes):
        try:
            card = find_card(config.node.models_dir, model)
            require_confirmed(card)
            cards[model] = card
        except (ModelError, UsageError) as error:
            log.error("model.unusable", model=model, reason=str(error))
    return cards


class Dispatcher:
    """Decides on studies; holds the connection to the journal. One object serves one thread."""

    def __init__(self, connection: sqlite3.Connection, state_dir: Path, rules: Rules) -> None:
        self._connection = connection
        self._state_dir = state_dir
        self._rules = rules
        self._received = ReceivedJournal(connection)
        self._jobs = JobJournal(connection)
        self._headers: dict[str, dict[str, InstanceHeader | None]] = {}
        """Study → digest → the header that was read ahead, None where it could not be."""

    def tick(self, now_s: float) -> None:
        """Frees the jobs of dead workers, then decides on every study that is complete at `now_s`."""
        release_jobs_of_the_dead(self._jobs, self._state_dir)
        gathering = self._received.gathering_studies()
        self._headers = {study.study_instance_uid: self._headers.get(study.study_instance_uid, {}) for study in gathering}
        incomplete = []
        for study in gathering:
            completeness = judge_completeness(
                first_instance_s=study.opened_at,
                last_instance_s=study.last_instance_at,
                open_associations=study.open_associations,
                now_s=now_s,
                policy=self._rules.policy,
            )
            if completeness.is_complete:
                self._decide(study, completeness, now_s)
            else:
                incomplete.append(study)
        self._read_ahead(incomplete, until_s=time.monotonic() + READ_AHEAD_S)

    def _read_ahead(self, studies: Sequence[StudyRecord], *, until_s: float) -> None:
        """Reads headers of what has arrived of studies that are not complete; one that cannot be read is told when they are."""
        for study in studies:
            known = self._headers[study.study_instance_uid]
            for instance in self._received.instances_of_study(study.study_instance_uid):
                if instance.sha256 in known or instance.purged_at is not None:
                    continue
                if time.monotonic() >= until_s or sum(map(len, self._headers.values())) >= MOST_HEADERS_AHEAD:
                    return
                try:
                    known[instance.sha256] = read_header(spooled_path(self._state_dir, instance.sha256))
                except (CannotUnderstand, OSError):
                    known[instance.sha256] = None

    def _decide(self, study: StudyRecord, completeness: Completeness, now_s: float) -> None:
        instances = self._received.instances_of_study(study.study_instance_uid)
        readable: frozenset[str] = frozenset()
        incomplete: Mapping[str, str] = {}
        try:
            incomplete = series_with_purged(instances)
            whole = [instance for instance in instances if instance.series_instance_uid not in incomplete]
            series = self._read_series(whole, self._headers[study.study_instance_uid])
            readable = frozenset(one.series_instance_uid for one in series)
            decision = decide_study(series, self._rules.routes, self._rules.cards, self._received.own_series(study.study_instance_uid))
        except Exception as error:  # noqa: BLE001 - the boundary of this thread, see below
            # A study that breaks the decision must not stop the others, nor stay silent.
            log.error("study.undecidable", study_instance_uid=study.study_instance_uid, fault=type(error).__name__)
            decision, fault = StudyDecision((), ()), f"node: the decision failed ({type(error).__name__}): see the log"
        else:
            fault = ""
        reasons = {
            uid: incomplete.get(uid) or fault or (decision.reason_for(uid) if uid in readable else "node: none of its images could be read")
            for uid in dict.fromkeys(instance.series_instance_uid for instance in instances)
        }
        self._record(study, instances, decision, reasons, completeness=completeness, now_s=now_s)

    def _record(
        self,
        study: StudyRecord,
        instances: Sequence[InstanceRecord],
        decision: StudyDecision,
        reasons: Mapping[str, str],
        *,
        completeness: Completeness,
        now_s: float,
    ) -> None:
        selected = {uid for selection in decision.selections for uid in selection.series_instance_uids}
        ends = {uid: (SeriesState.SELECTED, "") if uid in selected else (SeriesState.DECLINED, reason) for uid, reason in reasons.items()}
        with transaction(self._connection):
            if not self._received.mark_decided(study, now_s=now_s, reason=completeness.value, forced=completeness is Completeness.FORCED):
                return  # an instance came while we were reading: judge again
            self._received.end_series(ends, now_s=now_s)
            opened = [
                job
                for job in self._jobs_for(study, instances, decision)
                if self._jobs.open_job(job, last_instance_s=study.last_instance_at, now_s=now_s)
            ]
        for job in opened:
            log.info("job.scheduled", study_instance_uid=study.study_instance_uid, model=job.model, images=len(job.inputs))
        log.info("study.decided", study_instance_uid=study.study_instance_uid, series=len(ends), selected=len(selected), jobs=len(opened))

    def _jobs_for(self, study: StudyRecord, instances: Sequence[InstanceRecord], decision: StudyDecision) -> list[NewJob]:
        jobs = []
        for selection in decision.selections:
            card = self._rules.cards[selection.route.model]
            inputs = {i.sop_instance_uid: i.sha256 for i in instances if i.series_instance_uid in selection.series_instance_uids}
            jobs.append(
                NewJob(
                    job_key=derive_job_key(card.digest, study.study_instance_uid, inputs.values()),
                    study_instance_uid=study.study_instance_uid,
                    series_instance_uid=selection.series_instance_uid,
                    route=selection.route.name,
                    model=card.name,
                    model_digest=card.digest,
                    inputs=inputs,
                    destinations=selection.route.deliver_to,
                    priority=selection.route.priority,
                    objects={name: self._rules.objects[name] for name in selection.route.deliver_to if name in self._rules.objects},
                )
            )
        return jobs

    def _read_series(self, instances: Sequence[InstanceRecord], known: Mapping[str, InstanceHeader | None]) -> tuple[SeriesHeader, ...]:
        def tell(path: Path, reason: str) -> None:
            log.warning("instance.unreadable", file=path.name, reason=reason)

        paths = {spooled_path(self._state_dir, instance.sha256): instance.sha256 for instance in instances}
        return read_series_headers(paths, tell, lambda path: known.get(paths[path]) or read_header(path))


def series_with_purged(instances: Sequence[InstanceRecord]) -> dict[str, str]:
    """Answers the series of which retention has removed images, each with the reason that a person reads: a fragment is never analysed."""
    moments: dict[str, list[float | None]] = {}
    for instance in instances:
        moments.setdefault(instance.series_instance_uid, []).append(instance.purged_at)
    return {uid: reason for uid, purged_at in moments.items() if (reason := purged_reason(purged_at))}


def release_jobs_of_the_dead(jobs: JobJournal, state_dir: Path) -> None:
    """Gives back the jobs whose worker's lock is free: it died, however it died."""
    for holder in jobs.holders():
        lock = worker_lock(state_dir, holder)
        if is_free(lock):
            released = jobs.release_jobs_of(holder, reason="the worker died")
            lock.unlink(missing_ok=True)
            if released:
                log.warning("worker.died", worker=holder, jobs_released=released)


def worker_lock(state_dir: Path, worker: str) -> Path:
    """Answers the lock file that a living worker holds."""
    return state_dir / "run" / f"{worker}.lock"
