"""What retention reads and writes: the standing of studies, and that the bytes of one are gone.

That bytes are gone is no state: `purged_at` says it, and the log. The rows stay: what was received and what became of it is history.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from node.domain.retention import DeliveryFacts, JobFacts, Purge, StudyFacts, judge_standing
from node.domain.states import Confirmation, DeliveryState, JobState, Outcome, SeriesState, StudyState
from node.journal.database import transaction

_HAS_FILES = (
    "(EXISTS (SELECT 1 FROM instance i WHERE i.study_instance_uid = s.study_instance_uid AND i.purged_at IS NULL)"
    " OR EXISTS (SELECT 1 FROM job j JOIN evidence e USING (job_id)"
    " WHERE j.study_instance_uid = s.study_instance_uid AND e.purged_at IS NULL))"
)
_NAMED = (
    "SELECT EXISTS (SELECT 1 FROM instance WHERE sha256 = :sha256 AND purged_at IS NULL)"
    " OR EXISTS (SELECT 1 FROM instance i JOIN job j USING (study_instance_uid) JOIN job_input n"
    " ON n.job_id = j.job_id AND n.sop_instance_uid = i.sop_instance_uid AND n.sha256 = i.sha256"
    " WHERE i.sha256 = :sha256 AND j.state IN ('SCHEDULED', 'IN PROGRESS'))"
)

Place = tuple[float, str]
"""How far the round through the studies has come: last instance, Study Instance UID."""

BEGINNING: Place = (float("-inf"), "")


@dataclass(frozen=True, slots=True)
class Purged:
    """What was given up of a study: files that nobody needs any more, unless another row names them."""

    instances: tuple[str, ...]
    """Their digests."""
    job_ids: tuple[int, ...]


class RetentionJournal:
    """The housekeeper's verbs. One object serves one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def studies_with_files(self, after: Place, limit: int) -> tuple[Place, ...]:
        """Answers studies that have been decided on and still have files, in order of their last instance, from `after` on."""
        rows = self._connection.execute(
            "SELECT last_instance_at, study_instance_uid FROM study s WHERE state = ? AND (last_instance_at, study_instance_uid) > (?, ?)"  # noqa: S608 - words of our own
            f" AND {_HAS_FILES} ORDER BY last_instance_at, study_instance_uid LIMIT ?",
            (StudyState.DECIDED, *after, limit),
        ).fetchall()
        return tuple((row[0], row[1]) for row in rows)

    def facts_of(self, study_instance_uid: str) -> StudyFacts | None:
        """Answers what retention asks about a study, None where there is no such study."""
        study = self._connection.execute(
            "SELECT *, (SELECT count(*) FROM open_association o WHERE o.study_instance_uid = s.study_instance_uid) AS open_associations"
            " FROM study s WHERE study_instance_uid = ?",
            (study_instance_uid,),
        ).fetchone()
        if study is None:
            return None
        series = self._connection.execute(
            "SELECT DISTINCT state FROM series WHERE study_instance_uid = ?", (study_instance_uid,)
        ).fetchall()
        images = self._connection.execute(
            "SELECT coalesce(sum(size_bytes), 0) AS bytes, max(received_at) AS newest FROM instance"
            " WHERE study_instance_uid = ? AND purged_at IS NULL",
            (study_instance_uid,),
        ).fetchone()
        results = self._connection.execute(
            "SELECT coalesce(sum(e.size_bytes) FILTER (WHERE e.purged_at IS NULL), 0) AS bytes,"
            " count(*) FILTER (WHERE NOT EXISTS (SELECT 1 FROM delivery d WHERE d.sop_instance_uid = e.sop_instance_uid)"
            " AND NOT EXISTS (SELECT 1 FROM job_destination w WHERE w.job_id = e.job_id"
            " AND NOT instr(',' || w.objects || ',', ',' || e.role || ','))) AS unqueued"
            " FROM job j JOIN evidence e USING (job_id) WHERE j.study_instance_uid = ?",
            (study_instance_uid,),
        ).fetchone()
        return StudyFacts(
            study_instance_uid=study_instance_uid,
            state=StudyState(study["state"]),
            open_associations=study["open_associations"],
            series=tuple(SeriesState(row["state"]) for row in series),
            last_instance_at=max(study["last_instance_at"], images["newest"] or 0.0),  # newer where removed images came again
            jobs=self._jobs_of(study_instance_uid),
            deliveries=self._deliveries_of(study_instance_uid),
            unqueued_evidence=results["unqueued"],
            kept_bytes=images["bytes"] + results["bytes"],
        )

    def _jobs_of(self, study_instance_uid: str) -> tuple[JobFacts, ...]:
        rows = self._connection.execute(
            "SELECT state, outcome, ended_at, EXISTS (SELECT 1 FROM evidence e WHERE e.job_id = job.job_id AND e.run = job.run) AS has_report,"
            " EXISTS (SELECT 1 FROM job later WHERE later.study_instance_uid = job.study_instance_uid"
            " AND later.predecessor_job_id = job.job_id) AS has_successor FROM job WHERE study_instance_uid = ?",
            (study_instance_uid,),
        ).fetchall()
        return tuple(
            JobFacts(
                state=JobState(row["state"]),
                outcome=row["outcome"],
                ended_at=row["ended_at"],
                has_report=bool(row["has_report"]),
                # canceled before anybody had it in hand; one that failed without a report stays silent, whatever came after it
                is_superseded=bool(row["has_successor"]) and not row["has_report"] and row["outcome"] == Outcome.NOT_ATTEMPTED,
            )
            for row in rows
        )

    def _deliveries_of(self, study_instance_uid: str) -> tuple[DeliveryFacts, ...]:
        rows = self._connection.execute(
            "SELECT d.state, d.confirmation, max(coalesce(d.stored_at, 0), coalesce((SELECT max(t.at) FROM transition t"
            " WHERE t.kind = 'delivery' AND t.key = CAST(d.delivery_id AS TEXT)), 0)) AS settled_at"
            " FROM job j JOIN evidence e USING (job_id) JOIN delivery d USING (sop_instance_uid) WHERE j.study_instance_uid = ?",
            (study_instance_uid,),
        ).fetchall()
        return tuple(
            DeliveryFacts(
                DeliveryState(row["state"]), Confirmation(row["confirmation"]) if row["confirmation"] else None, row["settled_at"]
            )
            for row in rows
        )

    def purge(self, purge: Purge, *, now_s: float) -> Purged | None:
        """Gives up the files of a study, in one transaction that judges it again; None when something has happened to it since.

        After the commit the files may go. Whatever kills us before they have gone, `is_named` still says that nobody needs them.
        """
        uid = purge.study.study_instance_uid
        with transaction(self._connection) as connection:
            facts = self.facts_of(uid)
            if facts is None or judge_standing(facts) is not purge.standing or facts.last_event_at != purge.study.last_event_at:
                return None
            instances = connection.execute(
                "UPDATE instance SET purged_at = ? WHERE study_instance_uid = ? AND purged_at IS NULL RETURNING sha256", (now_s, uid)
            ).fetchall()
            connection.execute(
                "UPDATE evidence SET purged_at = ? WHERE purged_at IS NULL AND job_id IN (SELECT job_id FROM job WHERE study_instance_uid = ?)",
                (now_s, uid),
            )
            jobs = connection.execute("SELECT job_id FROM job WHERE study_instance_uid = ?", (uid,)).fetchall()
        return Purged(tuple(row["sha256"] for row in instances), tuple(row["job_id"] for row in jobs))

    def is_named(self, sha256: str) -> bool:
        """Answers whether a row needs the file of these bytes: an instance that is not purged, or an input of an unfinished job."""
        return bool(self._connection.execute(_NAMED, {"sha256": sha256}).fetchone()[0])

    def is_known(self, sha256: str) -> bool:
        """Answers whether these bytes were ever recorded."""
        return self._connection.execute("SELECT 1 FROM instance WHERE sha256 = ? LIMIT 1", (sha256,)).fetchone() is not None

    def runs_given_up(self, job_id: int) -> int | None:
        """Answers how many runs of a job have results that nobody needs; None while they may be needed.

        They are when the job has ended and its study has no file that a row names. A later run would write beside them.
        """
        row = self._connection.execute(
            f"SELECT j.run + 1, j.state IN ('COMPLETED', 'CANCELED') AND s.state = 'DECIDED' AND NOT {_HAS_FILES}"  # noqa: S608 - words of our own
            " AND EXISTS (SELECT 1 FROM instance i WHERE i.study_instance_uid = s.study_instance_uid)"
            " FROM job j JOIN study s USING (study_instance_uid) WHERE j.job_id = ?",
            (job_id,),
        ).fetchone()
        return int(row[0]) if row is not None and row[1] else None

    def mark_missing(self, files: Mapping[str, bool], *, now_s: float) -> int:
        """Notes which bytes are not there although a row says so (digest → whether they are); answers of how many instances."""
        gone = [(now_s, sha256) for sha256, is_there in files.items() if not is_there]
        with transaction(self._connection) as connection:
            return connection.executemany("UPDATE instance SET purged_at = ? WHERE sha256 = ? AND purged_at IS NULL", gone).rowcount
