"""Read-only views of the journal for people: listings of jobs, series and deliveries."""

import sqlite3

from node.domain.states import Confirmation, DeliveryState, JobState, SeriesState
from node.errors import UsageError
from node.journal.outbox import DELIVERIES, delivery_from_row
from node.journal.records import DeliveryRecord, JobRecord, SeriesRecord, TransitionRecord, job_from_row

UNFINISHED_JOBS = (JobState.SCHEDULED, JobState.IN_PROGRESS)


def list_jobs(connection: sqlite3.Connection, *, all: bool = False, study: str | None = None) -> tuple[JobRecord, ...]:
    """Answers the jobs that wait or run, or all; of one study where given."""
    rows = connection.execute(
        "SELECT * FROM job WHERE (? OR state IN (?, ?)) AND (? IS NULL OR study_instance_uid = ?) ORDER BY job_id",
        (all, *UNFINISHED_JOBS, study, study),
    ).fetchall()
    return tuple(job_from_row(row) for row in rows)


def find_job(connection: sqlite3.Connection, job_id: int) -> JobRecord:
    """Answers one job; raises UsageError when there is none."""
    row = connection.execute("SELECT * FROM job WHERE job_id = ?", (job_id,)).fetchone()
    if row is None:
        raise UsageError(f"there is no job {job_id} → see `radnode job list --all`")
    return job_from_row(row)


def job_stages(connection: sqlite3.Connection, job_id: int) -> dict[str, float]:
    """Answers the seconds of each stage of a job, in order."""
    rows = connection.execute("SELECT name, elapsed_s FROM stage WHERE job_id = ? ORDER BY rowid", (job_id,)).fetchall()
    return {row["name"]: row["elapsed_s"] for row in rows}


def list_series(connection: sqlite3.Connection, *, all: bool = False) -> tuple[SeriesRecord, ...]:
    """Answers the series that have no end yet or were declined; or all."""
    rows = connection.execute(
        "SELECT s.*, sum(i.revision = 0) AS instances, sum(i.revision > 0) AS changed, sum(i.revision = 0 AND i.purged_at IS NOT NULL)"
        " AS purged FROM series s LEFT JOIN instance i USING (series_instance_uid) WHERE ? OR s.state != ?"
        " GROUP BY s.series_instance_uid ORDER BY s.updated_at",
        (all, SeriesState.SELECTED),
    ).fetchall()
    return tuple(
        SeriesRecord(
            series_instance_uid=row["series_instance_uid"],
            study_instance_uid=row["study_instance_uid"],
            state=SeriesState(row["state"]),
            reason=row["reason"],
            instances=row["instances"] or 0,
            updated_at=row["updated_at"],
            changed=row["changed"] or 0,
            purged=row["purged"] or 0,
        )
        for row in rows
    )


def list_deliveries(connection: sqlite3.Connection, *, job_id: int | None = None, all: bool = False) -> tuple[DeliveryRecord, ...]:
    """Answers the deliveries that are not stored, or not confirmed though they should be, or all; of one job where given."""
    rows = connection.execute(
        f"{DELIVERIES} WHERE (? OR d.state NOT IN (?, ?) OR d.confirmation IN (?, ?)) AND (? IS NULL OR e.job_id = ?) ORDER BY d.delivery_id",
        (all, DeliveryState.STORED, DeliveryState.COMMITTED, Confirmation.AWAITED, Confirmation.MISSED, job_id, job_id),
    ).fetchall()
    return tuple(delivery_from_row(row) for row in rows)


def transitions_of(connection: sqlite3.Connection, kind: str, key: str) -> tuple[TransitionRecord, ...]:
    """Answers the history of a study, series, job or delivery."""
    rows = connection.execute(
        "SELECT at, before, after, reason FROM transition WHERE kind = ? AND key = ? ORDER BY rowid", (kind, key)
    ).fetchall()
    return tuple(TransitionRecord(*row) for row in rows)
