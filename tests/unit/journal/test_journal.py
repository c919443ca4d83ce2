"""The verbs of the journal on a real SQLite file."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.domain.states import DeliveryState, JobState, Outcome, SeriesState, StudyState
from node.errors import UsageError
from node.journal import (
    EvidenceRecord,
    JobEnd,
    JobJournal,
    JournalUnusable,
    NewJob,
    OutboxJournal,
    ReceivedInstance,
    ReceivedJournal,
    Recorded,
    open_database,
    transaction,
)
from node.journal.database import IllegalTransition, record_step
from node.journal.queries import list_deliveries, list_jobs, list_series, transitions_of

INSTANCE = ReceivedInstance(
    sop_instance_uid="1.2.3.1",
    series_instance_uid="1.2.3",
    study_instance_uid="1.2",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    sha256="a" * 64,
    size_bytes=100,
    calling_ae_title="PACS",
)
NEW_JOB = NewJob(
    job_key="key-1",
    study_instance_uid="1.2",
    series_instance_uid="1.2.3",
    route="head",
    model="brain",
    model_digest="d",
    inputs={"1.2.3.1": "a" * 64},
    destinations=("pacs", "research"),
)
SEG = EvidenceRecord("9.1", "seg", "66.4", "9", Path("/r/seg.dcm"), "s", 10)
SR = EvidenceRecord("9.2", "sr", "88.34", "8", Path("/r/sr.dcm"), "t", 10)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A fresh journal."""
    opened = open_database(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def received(connection: sqlite3.Connection) -> ReceivedJournal:
    """A journal that holds INSTANCE, its association closed."""
    verbs = ReceivedJournal(connection)
    assert verbs.record_instance(INSTANCE, association="a1", now_s=10) is Recorded.NEW
    verbs.close_association("a1")
    return verbs


def open_job(connection: sqlite3.Connection, job: NewJob = NEW_JOB, now_s: float = 50) -> bool:
    with transaction(connection):
        return JobJournal(connection).open_job(job, last_instance_s=10, now_s=now_s)


def decide(connection: sqlite3.Connection, received: ReceivedJournal, now_s: float = 45) -> bool:
    (study,) = received.gathering_studies()
    with transaction(connection):
        received.end_series({"1.2.3": (SeriesState.SELECTED, "")}, now_s=now_s)
        return received.mark_decided(study, now_s=now_s, reason="quiet")


def end(jobs: JobJournal, owner: str = "w", evidence: tuple[EvidenceRecord, ...] = (SEG, SR), state: JobState = JobState.COMPLETED) -> None:
    job = jobs.claim(owner, now_s=60)
    assert job is not None
    assert jobs.end(job, JobEnd(state, Outcome.FOUND, "", evidence, {"infer": 1.5}), now_s=70)


def test_a_commit_is_flushed_to_disk(connection: sqlite3.Connection) -> None:
    """P1 rests on these two settings."""
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_identical_bytes_make_no_new_row(received: ReceivedJournal, connection: sqlite3.Connection) -> None:
    assert received.record_instance(INSTANCE, association="a2", now_s=20) is Recorded.IDENTICAL
    assert connection.execute("SELECT count(*) FROM instance").fetchone()[0] == 1


def test_other_bytes_under_one_uid_are_kept_beside_the_first(received: ReceivedJournal) -> None:
    assert received.record_instance(replace(INSTANCE, sha256="b" * 64), association="a2", now_s=20) is Recorded.CHANGED
    assert [i.sha256 for i in received.instances_of_study("1.2")] == ["a" * 64]


def test_open_associations_are_counted_until_closed_or_cleared(received: ReceivedJournal) -> None:
    received.record_instance(replace(INSTANCE, sop_instance_uid="1.2.3.2", sha256="c" * 64), association="a2", now_s=11)
    assert received.gathering_studies()[0].open_associations == 1
    received.clear_associations()
    assert received.gathering_studies()[0].open_associations == 0


def test_a_late_instance_opens_the_study_and_its_series_again(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    assert decide(connection, received)
    assert received.gathering_studies() == ()
    received.record_instance(replace(INSTANCE, sop_instance_uid="1.2.3.2", sha256="c" * 64), association="a2", now_s=90)
    (study,) = received.gathering_studies()
    assert (study.opened_at, study.revision, study.state) == (90, 1, StudyState.RECEIVING)
    assert [step.after for step in transitions_of(connection, "series", "1.2.3")] == ["RECEIVING", "SELECTED", "RECEIVING"]


def test_a_resend_of_a_decided_study_changes_nothing(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    decide(connection, received)
    assert received.record_instance(INSTANCE, association="a3", now_s=99) is Recorded.IDENTICAL
    assert received.gathering_studies() == ()


def test_a_decision_is_void_when_an_instance_came_in_between(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    (study,) = received.gathering_studies()
    received.record_instance(replace(INSTANCE, sop_instance_uid="1.2.3.2", sha256="c" * 64), association="a2", now_s=44)
    with transaction(connection):
        assert not received.mark_decided(study, now_s=45, reason="quiet")


def test_a_forced_decision_holds_and_opens_the_study_again_for_what_came(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    (study,) = received.gathering_studies()
    received.record_instance(replace(INSTANCE, sop_instance_uid="1.2.3.2", sha256="c" * 64), association="a2", now_s=44)
    with transaction(connection):
        assert received.mark_decided(study, now_s=45, reason="maximum wait", forced=True)
    (again,) = received.gathering_studies()
    assert (again.revision, again.opened_at) == (1, 45)


def test_images_that_come_again_under_another_series_are_that_series(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    """An archive that splits or merges studies keeps the SOP Instance UIDs."""
    moved = replace(INSTANCE, series_instance_uid="1.7.3", study_instance_uid="1.7", sha256="d" * 64)
    assert received.record_instance(moved, association="a2", now_s=20) is Recorded.CHANGED
    assert [i.sha256 for i in received.instances_of_study("1.7")] == ["d" * 64]
    assert [i.sha256 for i in received.instances_of_study("1.2")] == ["a" * 64]


def test_a_job_waits_for_the_one_that_it_supersedes(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    jobs = JobJournal(connection)
    first = jobs.claim("w1", now_s=60)
    open_job(connection, replace(NEW_JOB, job_key="key-2"))
    assert first is not None
    assert jobs.claim("w2", now_s=61) is None
    jobs.end(first, JobEnd(JobState.COMPLETED, Outcome.FOUND, "", (SR,), {}), now_s=62)
    second = jobs.claim("w2", now_s=63)
    assert second is not None
    predecessor = jobs.predecessor_report(second)
    assert predecessor is not None
    assert predecessor.sop_instance_uid == SR.sop_instance_uid


def test_another_route_to_the_model_supersedes_nothing(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    jobs = JobJournal(connection)
    end(jobs)
    open_job(connection, replace(NEW_JOB, job_key="key-2", route="other route"))
    job = jobs.claim("w", now_s=80)
    assert job is not None
    assert job.predecessor_job_id is None
    assert jobs.predecessor_report(job) is None


def test_one_key_is_one_job_whatever_asks(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    assert open_job(connection)
    assert not open_job(connection)
    assert not open_job(connection, replace(NEW_JOB, route="other route"))
    assert len(list_jobs(connection, all=True)) == 1


def test_a_new_destination_of_a_finished_job_gets_its_evidence(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    end(JobJournal(connection))
    assert not open_job(connection, replace(NEW_JOB, destinations=("third",)))
    queued = {(d.destination, d.role) for d in list_deliveries(connection)}
    assert queued == {(place, role) for place in ("pacs", "research", "third") for role in ("seg", "sr")}


def test_attempts_are_counted_at_the_claim(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    jobs = JobJournal(connection)
    first = jobs.claim("w1", now_s=60)
    assert first is not None
    assert first.attempt == 1
    assert jobs.claim("w2", now_s=60) is None
    assert jobs.release_jobs_of("w1", reason="died") == 1
    second = jobs.claim("w2", now_s=61)
    assert second is not None
    assert second.attempt == 2


def test_a_clean_stop_takes_the_attempt_back(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    jobs = JobJournal(connection)
    jobs.claim("w1", now_s=60)
    jobs.release_jobs_of("w1", reason="stopped", forgive=True)
    again = jobs.claim("w2", now_s=61)
    assert again is not None
    assert again.attempt == 1


def test_a_worker_thought_dead_cannot_end_the_job(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    jobs = JobJournal(connection)
    slow = jobs.claim("w1", now_s=60)
    jobs.release_jobs_of("w1", reason="thought dead")
    quick = jobs.claim("w2", now_s=61)
    assert slow is not None
    assert quick is not None
    done = JobEnd(JobState.COMPLETED, Outcome.FOUND, "", (SEG, SR), {})
    assert not jobs.end(slow, done, now_s=70)
    assert not jobs.enter_step(slow, "infer")
    assert jobs.end(quick, done, now_s=70)
    assert len(list_deliveries(connection)) == 4


def test_the_moment_of_encoding_is_fixed_once(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    jobs = JobJournal(connection)
    job = jobs.claim("w1", now_s=60)
    assert job is not None
    assert jobs.fix_encoded_at(job, 65) == jobs.fix_encoded_at(job, 99) == 65


def test_postponed_jobs_wait(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    jobs = JobJournal(connection)
    job = jobs.claim("w1", now_s=60)
    assert job is not None
    jobs.postpone(job, until_s=100, reason="out of memory")
    assert jobs.claim("w1", now_s=99) is None
    assert jobs.claim("w1", now_s=100) is not None


def test_a_later_job_of_the_model_names_the_report_before_it(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    jobs = JobJournal(connection)
    end(jobs)
    open_job(connection, replace(NEW_JOB, job_key="key-2"))
    job = jobs.claim("w", now_s=80)
    assert job is not None
    predecessor = jobs.predecessor_report(job)
    assert predecessor is not None
    assert predecessor.sop_instance_uid == "9.2"


def test_a_retried_job_is_a_new_run_that_names_its_own_earlier_report(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    jobs = JobJournal(connection)
    end(jobs, evidence=(SR,), state=JobState.CANCELED)
    jobs.retry(1, now_s=90)
    job = jobs.claim("w", now_s=91)
    assert job is not None
    assert (job.run, job.attempt, job.encoded_at) == (1, 1, None)
    predecessor = jobs.predecessor_report(job)
    assert predecessor is not None
    assert predecessor.sop_instance_uid == SR.sop_instance_uid


def test_only_a_canceled_job_can_be_retried(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    with pytest.raises(UsageError, match="only a CANCELED job"):
        JobJournal(connection).retry(1, now_s=90)
    with pytest.raises(UsageError, match="there is no job 7"):
        JobJournal(connection).retry(7, now_s=90)


def test_own_results_that_come_back_are_known(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    end(JobJournal(connection))
    received.record_instance(replace(INSTANCE, sop_instance_uid="9.1", series_instance_uid="9", sha256="e" * 64), association="a", now_s=80)
    assert received.own_series("1.2") == {"9"}


def test_the_outbox_hands_out_what_is_due_the_seg_before_the_sr(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    open_job(connection)
    end(JobJournal(connection))
    outbox = OutboxJournal(connection)
    assert set(outbox.destinations_due(70)) == {"pacs", "research"}
    seg, sr = outbox.due("pacs", 70)
    assert (seg.role, sr.role) == ("seg", "sr")
    assert outbox.begin_attempt(seg.delivery_id, 71) == (1, 71)
    assert outbox.begin_attempt(seg.delivery_id, 75) == (2, 71)
    outbox.postpone(seg.delivery_id, until_s=100, now_s=75, reason="unreachable")
    outbox.mark_stored(sr.delivery_id, now_s=75)
    assert outbox.due("pacs", 99) == ()
    outbox.refuse(seg.delivery_id, now_s=100, reason="0xA900")
    states = {d.role: d.state for d in list_deliveries(connection, all=True) if d.destination == "pacs"}
    assert states == {"seg": DeliveryState.REFUSED, "sr": DeliveryState.STORED}


def test_a_step_outside_the_table_is_refused_and_leaves_nothing(connection: sqlite3.Connection) -> None:
    with pytest.raises(IllegalTransition), transaction(connection):
        record_step(connection, "1", JobState.COMPLETED, JobState.SCHEDULED, now_s=1)
    assert connection.execute("SELECT count(*) FROM transition").fetchone()[0] == 0


def test_a_commit_that_fails_leaves_no_lock_behind(connection: sqlite3.Connection, tmp_path: Path) -> None:
    def break_a_promise_at_the_commit() -> None:
        with transaction(connection):
            connection.execute("PRAGMA defer_foreign_keys = ON")
            connection.execute("INSERT INTO job_destination (job_id, destination) VALUES (99, 'nowhere')")

    with pytest.raises(sqlite3.IntegrityError):
        break_a_promise_at_the_commit()
    assert not connection.in_transaction
    other = open_database(tmp_path)
    with transaction(other):
        assert other.execute("SELECT count(*) FROM job_destination").fetchone()[0] == 0
    other.close()


def test_declined_series_keep_their_reason(connection: sqlite3.Connection, received: ReceivedJournal) -> None:
    with transaction(connection):
        received.end_series({"1.2.3": (SeriesState.DECLINED, "card brain: Modality is US")}, now_s=45)
    (series,) = list_series(connection)
    assert (series.state, series.reason, series.instances) == (SeriesState.DECLINED, "card brain: Modality is US", 1)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    opened = open_database(tmp_path)
    opened.execute("PRAGMA user_version = 99")
    opened.close()
    with pytest.raises(JournalUnusable, match="newer than this radnode"):
        open_database(tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"no database " * 1000)
    with pytest.raises(JournalUnusable, match="cannot be used"):
        open_database(tmp_path)


def test_an_absent_journal_is_not_made_by_a_listing(tmp_path: Path) -> None:
    with pytest.raises(JournalUnusable, match="there is no journal"):
        open_database(tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []
