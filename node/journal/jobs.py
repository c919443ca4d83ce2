"""Jobs: opened by the dispatcher, claimed and ended by a worker, opened again by a person."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from node.domain.objects import DEFAULT_OBJECTS, ResultObject
from node.domain.result import PredecessorDocument
from node.domain.states import DeliveryState, JobState, Outcome, Priority
from node.errors import UsageError
from node.journal.database import by_urgency, record_step, transaction
from node.journal.records import EvidenceRecord, JobRecord, job_from_row


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to open: one model on one series."""

    job_key: str
    study_instance_uid: str
    series_instance_uid: str
    route: str
    model: str
    model_digest: str
    inputs: Mapping[str, str]
    """SOP Instance UID → sha256 of the bytes to use."""
    destinations: tuple[str, ...]
    priority: Priority = Priority.MEDIUM
    objects: Mapping[str, tuple[ResultObject, ...]] = field(default_factory=dict)
    """Destination → the objects that it gets, where not DEFAULT_OBJECTS."""


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended, with all it made."""

    state: JobState
    outcome: Outcome
    reason: str
    evidence: tuple[EvidenceRecord, ...]
    stages: Mapping[str, float]


class JobJournal:
    """The verbs on jobs. One object serves one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def open_job(self, new: NewJob, *, last_instance_s: float, now_s: float) -> bool:
        """Opens a job, in the caller's transaction; False when this model has had these very bytes before.

        Then only destinations that are new to it are added, and what exists is queued for them.
        """
        row = self._connection.execute("SELECT job_id FROM job WHERE job_key = ?", (new.job_key,)).fetchone()
        if row is not None:
            self._add_destinations(row["job_id"], new, now_s)
            return False
        predecessor = self._connection.execute(
            "SELECT job_id FROM job WHERE study_instance_uid = ? AND model = ? AND route = ? ORDER BY job_id DESC LIMIT 1",
            (new.study_instance_uid, new.model, new.route),
        ).fetchone()
        cursor = self._connection.execute(
            "INSERT INTO job (job_key, study_instance_uid, series_instance_uid, route, model, model_digest, state,"
            " predecessor_job_id, created_at, last_instance_at, priority) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                new.job_key, new.study_instance_uid, new.series_instance_uid, new.route, new.model, new.model_digest,
                JobState.SCHEDULED, predecessor["job_id"] if predecessor else None, now_s, last_instance_s, new.priority,
            ),
        )  # fmt: skip
        job_id = int(cursor.lastrowid or 0)
        record_step(self._connection, str(job_id), None, JobState.SCHEDULED, now_s=now_s)
        self._connection.executemany(
            "INSERT INTO job_input VALUES (?, ?, ?)", [(job_id, uid, sha256) for uid, sha256 in new.inputs.items()]
        )
        self._add_destinations(job_id, new, now_s)
        if predecessor:
            self._supersede(predecessor["job_id"], job_id, now_s)
        return True

    def _supersede(self, job_id: int, by_job_id: int, now_s: float) -> None:
        """Cancels a job that nobody has in hand: a newer one has its images and more, and will report."""
        row = self._connection.execute("SELECT state FROM job WHERE job_id = ? AND owner = ''", (job_id,)).fetchone()
        if row is None or row["state"] not in {JobState.SCHEDULED, JobState.IN_PROGRESS}:
            return
        reason = f"superseded by job {by_job_id}, which has more images"
        record_step(self._connection, str(job_id), JobState(row["state"]), JobState.CANCELED, now_s=now_s, reason=reason)
        self._connection.execute(
            "UPDATE job SET state = ?, outcome = ?, reason = ?, ended_at = ? WHERE job_id = ?",
            (JobState.CANCELED, Outcome.NOT_ATTEMPTED, reason, now_s, job_id),
        )

    def _add_destinations(self, job_id: int, new: NewJob, now_s: float) -> None:
        self._connection.executemany(
            "INSERT OR IGNORE INTO job_destination (job_id, destination, objects) VALUES (?, ?, ?)",
            [(job_id, destination, ",".join(new.objects.get(destination, DEFAULT_OBJECTS))) for destination in new.destinations],
        )
        self._queue_deliveries(job_id, now_s)

    def _queue_deliveries(self, job_id: int, now_s: float) -> None:
        missing = self._connection.execute(
            "SELECT e.sop_instance_uid, d.destination FROM evidence e JOIN job_destination d USING (job_id)"
            " LEFT JOIN delivery x ON x.sop_instance_uid = e.sop_instance_uid AND x.destination = d.destination"
            " WHERE job_id = ? AND x.delivery_id IS NULL AND instr(',' || d.objects || ',', ',' || e.role || ',')"
            " ORDER BY d.destination, e.role",
            (job_id,),
        ).fetchall()
        for sop_instance_uid, destination in missing:
            cursor = self._connection.execute(
                "INSERT INTO delivery (sop_instance_uid, destination, state, next_attempt_at) VALUES (?, ?, ?, ?)",
                (sop_instance_uid, destination, DeliveryState.PENDING, now_s),
            )
            record_step(self._connection, str(cursor.lastrowid), None, DeliveryState.PENDING, now_s=now_s)

    def claim(self, owner: str, *, now_s: float) -> JobRecord | None:
        """Takes the next job for a worker, the urgent first, and counts the attempt; None when nothing waits.

        A job waits until the one that it supersedes has ended, so that reports come in the order of their predecessors.
        """
        with transaction(self._connection) as connection:
            row = connection.execute(
                "SELECT * FROM job WHERE state IN ('SCHEDULED', 'IN PROGRESS') AND owner = '' AND not_before <= ? AND NOT EXISTS"  # noqa: S608 - words of our own
                " (SELECT 1 FROM job p WHERE p.job_id = job.predecessor_job_id AND p.state IN ('SCHEDULED', 'IN PROGRESS'))"
                f" ORDER BY {by_urgency('priority')}, job_id LIMIT 1",
                (now_s,),
            ).fetchone()
            if row is None:
                return None
            if row["state"] == JobState.SCHEDULED:
                record_step(connection, str(row["job_id"]), JobState.SCHEDULED, JobState.IN_PROGRESS, now_s=now_s, reason=owner)
            row = connection.execute(
                "UPDATE job SET state = ?, owner = ?, attempt = attempt + 1, epoch = epoch + 1 WHERE job_id = ? RETURNING *",
                (JobState.IN_PROGRESS, owner, row["job_id"]),
            ).fetchone()
            return job_from_row(row)

    def awaits(self, study_instance_uid: str) -> bool:
        """Answers whether a job on a study waits for a worker."""
        row = self._connection.execute(
            "SELECT 1 FROM job WHERE study_instance_uid = ? AND state IN (?, ?) AND owner = ''",
            (study_instance_uid, JobState.SCHEDULED, JobState.IN_PROGRESS),
        ).fetchone()
        return row is not None

    def holders(self) -> tuple[str, ...]:
        """Answers the workers that hold jobs, alive or not."""
        rows = self._connection.execute("SELECT DISTINCT owner FROM job WHERE owner != ''").fetchall()
        return tuple(row["owner"] for row in rows)

    def release_jobs_of(self, owner: str, *, reason: str, forgive: bool = False) -> int:
        """Frees the jobs of a dead worker for the next one; answers how many.

        `forgive` takes the attempt back: the worker was stopped on purpose, the job is not to blame.
        """
        with transaction(self._connection) as connection:
            return connection.execute(
                "UPDATE job SET owner = '', reason = ?, attempt = max(0, attempt - ?) WHERE owner = ? AND state = ?",
                (reason, int(forgive), owner, JobState.IN_PROGRESS),
            ).rowcount

    def inputs_of(self, job_id: int) -> dict[str, str]:
        """Answers SOP Instance UID → sha256 of the bytes that a job uses."""
        rows = self._connection.execute("SELECT sop_instance_uid, sha256 FROM job_input WHERE job_id = ?", (job_id,)).fetchall()
        return {row["sop_instance_uid"]: row["sha256"] for row in rows}

    def objects_of(self, job_id: int) -> frozenset[ResultObject]:
        """Answers which objects the destinations of a job get, together."""
        rows = self._connection.execute("SELECT objects FROM job_destination WHERE job_id = ?", (job_id,)).fetchall()
        return frozenset(ResultObject(name) for row in rows for name in row["objects"].split(",") if name)

    def enter_step(self, job: JobRecord, step: str) -> bool:
        """Notes the step a job is in; False when another worker holds it by now."""
        return bool(
            self._connection.execute(
                "UPDATE job SET step = ? WHERE job_id = ? AND epoch = ? AND state = ?",
                (step, job.job_id, job.epoch, JobState.IN_PROGRESS),
            ).rowcount
        )

    def fix_encoded_at(self, job: JobRecord, now_s: float) -> float:
        """Answers the moment of the first encoding of this job's evidence; every later encoding uses the same."""
        row = self._connection.execute(
            "UPDATE job SET encoded_at = coalesce(encoded_at, ?) WHERE job_id = ? RETURNING encoded_at", (now_s, job.job_id)
        ).fetchone()
        return float(row["encoded_at"])

    def postpone(self, job: JobRecord, *, until_s: float, reason: str, forgive: bool = False) -> None:
        """Gives a job back after a failed attempt, to be taken again at `until_s`; `forgive` takes the attempt back."""
        with transaction(self._connection) as connection:
            connection.execute(
                "UPDATE job SET owner = '', not_before = ?, reason = ?, attempt = max(0, attempt - ?) WHERE job_id = ? AND epoch = ?",
                (until_s, reason, int(forgive), job.job_id, job.epoch),
            )

    def end(self, job: JobRecord, end: JobEnd, *, now_s: float) -> bool:
        """Ends a job: its state, its evidence and the deliveries in one commit; False when fenced by another worker."""
        with transaction(self._connection) as connection:
            changed = connection.execute(
                "UPDATE job SET state = ?, outcome = ?, reason = ?, owner = '', step = '', ended_at = ?"
                " WHERE job_id = ? AND epoch = ? AND state = ?",
                (end.state, end.outcome, end.reason, now_s, job.job_id, job.epoch, JobState.IN_PROGRESS),
            )
            if changed.rowcount == 0:
                return False
            record_step(connection, str(job.job_id), JobState.IN_PROGRESS, end.state, now_s=now_s, reason=end.reason)
            connection.executemany(
                "INSERT OR REPLACE INTO stage VALUES (?, ?, ?)",
                [(job.job_id, name, elapsed_s) for name, elapsed_s in end.stages.items()],
            )
            connection.executemany(
                "INSERT INTO evidence (sop_instance_uid, job_id, run, role, sop_class_uid, series_instance_uid, path, sha256, size_bytes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                [
                    (
                        e.sop_instance_uid,
                        job.job_id,
                        job.run,
                        e.role,
                        e.sop_class_uid,
                        e.series_instance_uid,
                        str(e.path),
                        e.sha256,
                        e.size_bytes,
                    )
                    for e in end.evidence
                ],
            )
            self._queue_deliveries(job.job_id, now_s)
            return True

    def predecessor_report(self, job: JobRecord) -> PredecessorDocument | None:
        """Answers the SR that this run supersedes: of an earlier run of the job, else of the newest earlier job of the model on the study."""
        row = self._connection.execute(
            "SELECT j.study_instance_uid, e.series_instance_uid, e.sop_class_uid, e.sop_instance_uid"
            " FROM job j JOIN evidence e USING (job_id) WHERE e.role = 'sr' AND j.study_instance_uid = ? AND j.model = ? AND j.route = ?"
            " AND (j.job_id < ? OR (j.job_id = ? AND e.run < ?)) ORDER BY j.job_id DESC, e.run DESC LIMIT 1",
            (job.study_instance_uid, job.model, job.route, job.job_id, job.job_id, job.run),
        ).fetchone()
        if row is None:
            return None
        return PredecessorDocument(
            study_instance_uid=row["study_instance_uid"],
            series_instance_uid=row["series_instance_uid"],
            sop_class_uid=row["sop_class_uid"],
            sop_instance_uid=row["sop_instance_uid"],
        )

    def evidence_of(self, job_id: int) -> tuple[EvidenceRecord, ...]:
        """Answers what a job has made."""
        rows = self._connection.execute("SELECT * FROM evidence WHERE job_id = ? ORDER BY run, role", (job_id,)).fetchall()
        return tuple(
            EvidenceRecord(
                sop_instance_uid=row["sop_instance_uid"],
                role=row["role"],
                sop_class_uid=row["sop_class_uid"],
                series_instance_uid=row["series_instance_uid"],
                path=Path(row["path"]),
                sha256=row["sha256"],
                size_bytes=row["size_bytes"],
            )
            for row in rows
        )

    def retry(self, job_id: int, *, now_s: float) -> None:
        """Opens a canceled job again, as a person asked.

        Raises
        ------
        UsageError
            When there is no such job, or it was not canceled.
        """
        with transaction(self._connection) as connection:
            row = connection.execute("SELECT state FROM job WHERE job_id = ?", (job_id,)).fetchone()
            if row is None:
                raise UsageError(f"there is no job {job_id} → see `radnode job list --all`")
            if row["state"] != JobState.CANCELED:
                raise UsageError(f"job {job_id} is {row['state']}; only a CANCELED job can be retried")
            gone = connection.execute(
                "SELECT count(*) FROM job_input n JOIN instance i USING (sop_instance_uid, sha256) WHERE n.job_id = ? AND i.purged_at IS NOT NULL",
                (job_id,),
            ).fetchone()[0]
            if gone:
                raise UsageError(f"{gone} images of job {job_id} were removed by retention → send its series again, then retry")
            record_step(connection, str(job_id), JobState.CANCELED, JobState.SCHEDULED, now_s=now_s, reason="asked by a person")
            connection.execute(
                "UPDATE job SET state = ?, outcome = '', reason = '', run = run + 1, attempt = 0, not_before = 0, encoded_at = NULL,"
                " ended_at = NULL WHERE job_id = ?",
                (JobState.SCHEDULED, job_id),
            )
