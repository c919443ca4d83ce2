"""What arrived: studies, series, instances, and whether they are complete."""

import sqlite3
from collections.abc import Mapping, Sequence

from node.domain.states import SeriesState, StudyState
from node.journal.database import record_step, transaction
from node.journal.records import InstanceRecord, ReceivedInstance, Reception, Recorded, StudyRecord


class ReceivedJournal:
    """The listener's and the dispatcher's verbs. One object serves one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def record_instance(self, received: ReceivedInstance, *, association: str, now_s: float) -> Recorded:
        """Records an instance, as `record_instances` does."""
        return self.record_instances([Reception(received, association, now_s)])[0]

    def record_instances(self, receptions: Sequence[Reception]) -> list[Recorded]:
        """Records instances whose bytes are durable, in one transaction; when this returns, so are the records.

        A new or changed instance opens its study again: late instances lead to a new decision, never to silence.
        Raises sqlite3.OperationalError when the journal stays locked or the disk is full.
        """
        with transaction(self._connection):
            return [self._record(*reception) for reception in receptions]

    def _record(self, received: ReceivedInstance, association: str, now_s: float) -> Recorded:
        known = self._connection.execute(
            "SELECT sha256, series_instance_uid FROM instance WHERE sop_instance_uid = ?", (received.sop_instance_uid,)
        ).fetchall()
        if any(row["sha256"] == received.sha256 for row in known):
            if not self._bring_back(received, association, now_s):
                self._touch(received, association, now_s)
            return Recorded.IDENTICAL
        self._open_study(received.study_instance_uid, now_s)
        self._open_series(received, now_s)
        self._connection.execute(
            "INSERT INTO instance VALUES (:sop_instance_uid, :revision, :sha256, :series_instance_uid, :study_instance_uid,"
            " :sop_class_uid, :transfer_syntax_uid, :size_bytes, :calling_ae_title, :received_at, NULL)",
            {
                "sop_instance_uid": received.sop_instance_uid,
                # counted within the series: an archive that splits a study sends the same images under new series
                "revision": sum(row["series_instance_uid"] == received.series_instance_uid for row in known),
                "sha256": received.sha256,
                "series_instance_uid": received.series_instance_uid,
                "study_instance_uid": received.study_instance_uid,
                "sop_class_uid": received.sop_class_uid,
                "transfer_syntax_uid": received.transfer_syntax_uid,
                "size_bytes": received.size_bytes,
                "calling_ae_title": received.calling_ae_title,
                "received_at": now_s,
            },
        )
        self._carry(received.study_instance_uid, association)
        return Recorded.CHANGED if known else Recorded.NEW

    def _bring_back(self, received: ReceivedInstance, association: str, now_s: float) -> bool:
        """Notes that the sender has brought back what retention had removed; answers whether the study is to be decided on again.

        It is where the series was declined, maybe for want of these very bytes. What a job carries is no new work.
        """
        brought = self._connection.execute(
            "UPDATE instance SET purged_at = NULL, received_at = ? WHERE sop_instance_uid = ? AND sha256 = ? AND purged_at IS NOT NULL",
            (now_s, received.sop_instance_uid, received.sha256),
        )
        declined = self._connection.execute(
            "SELECT 1 FROM series WHERE series_instance_uid = ? AND state = ?", (received.series_instance_uid, SeriesState.DECLINED)
        ).fetchone()
        if not brought.rowcount or declined is None:
            return False
        self._open_study(received.study_instance_uid, now_s)
        self._open_series(received, now_s)
        self._carry(received.study_instance_uid, association)
        return True

    def _touch(self, received: ReceivedInstance, association: str, now_s: float) -> None:
        """A re-send of a study that is still gathering keeps it open; of a decided one it changes nothing."""
        touched = self._connection.execute(
            "UPDATE study SET last_instance_at = ? WHERE study_instance_uid = ? AND state = ?",
            (now_s, received.study_instance_uid, StudyState.RECEIVING),
        )
        if touched.rowcount:
            self._carry(received.study_instance_uid, association)

    def _carry(self, study_instance_uid: str, association: str) -> None:
        self._connection.execute("INSERT OR IGNORE INTO open_association VALUES (?, ?)", (association, study_instance_uid))

    def _open_study(self, study_instance_uid: str, now_s: float) -> None:
        row = self._connection.execute("SELECT state FROM study WHERE study_instance_uid = ?", (study_instance_uid,)).fetchone()
        if row is None:
            record_step(self._connection, study_instance_uid, None, StudyState.RECEIVING, now_s=now_s)
            self._connection.execute(
                "INSERT INTO study (study_instance_uid, state, opened_at, last_instance_at) VALUES (?, ?, ?, ?)",
                (study_instance_uid, StudyState.RECEIVING, now_s, now_s),
            )
        elif row["state"] == StudyState.DECIDED:
            record_step(
                self._connection, study_instance_uid, StudyState.DECIDED, StudyState.RECEIVING,
                now_s=now_s, reason="a late instance",
            )  # fmt: skip
            self._connection.execute(
                "UPDATE study SET state = ?, opened_at = ?, last_instance_at = ? WHERE study_instance_uid = ?",
                (StudyState.RECEIVING, now_s, now_s, study_instance_uid),
            )
        else:
            self._connection.execute("UPDATE study SET last_instance_at = ? WHERE study_instance_uid = ?", (now_s, study_instance_uid))

    def _open_series(self, received: ReceivedInstance, now_s: float) -> None:
        uid = received.series_instance_uid
        row = self._connection.execute("SELECT state FROM series WHERE series_instance_uid = ?", (uid,)).fetchone()
        if row is None:
            record_step(self._connection, uid, None, SeriesState.RECEIVING, now_s=now_s)
            self._connection.execute(
                "INSERT INTO series (series_instance_uid, study_instance_uid, state, updated_at) VALUES (?, ?, ?, ?)",
                (uid, received.study_instance_uid, SeriesState.RECEIVING, now_s),
            )
        elif row["state"] != SeriesState.RECEIVING:
            self._end_series(uid, SeriesState.RECEIVING, "a late instance", now_s)

    def close_association(self, association: str) -> None:
        """Notes that an association has ended, however it ended."""
        with transaction(self._connection) as connection:
            connection.execute("DELETE FROM open_association WHERE association = ?", (association,))

    def clear_associations(self) -> None:
        """Notes, at the start of the listener, that no association of an earlier life is open."""
        with transaction(self._connection) as connection:
            connection.execute("DELETE FROM open_association")

    def gathering_studies(self) -> tuple[StudyRecord, ...]:
        """Answers the studies that wait for completeness."""
        rows = self._connection.execute(
            "SELECT study.*, (SELECT count(*) FROM open_association o WHERE o.study_instance_uid = study.study_instance_uid)"
            " AS open_associations FROM study WHERE state = ? ORDER BY opened_at",
            (StudyState.RECEIVING,),
        ).fetchall()
        return tuple(
            StudyRecord(
                study_instance_uid=row["study_instance_uid"],
                state=StudyState(row["state"]),
                revision=row["revision"],
                opened_at=row["opened_at"],
                last_instance_at=row["last_instance_at"],
                open_associations=row["open_associations"],
            )
            for row in rows
        )

    def instances_of_study(self, study_instance_uid: str) -> tuple[InstanceRecord, ...]:
        """Answers the first-kept bytes of every instance of a study, in order of arrival."""
        rows = self._connection.execute(
            "SELECT sop_instance_uid, series_instance_uid, sop_class_uid, sha256, purged_at FROM instance"
            " WHERE study_instance_uid = ? AND revision = 0 ORDER BY received_at, rowid",
            (study_instance_uid,),
        ).fetchall()
        return tuple(InstanceRecord(*row) for row in rows)

    def own_series(self, study_instance_uid: str) -> frozenset[str]:
        """Answers the series of a study that this node has made itself (the ledger of loop protection)."""
        rows = self._connection.execute(
            "SELECT DISTINCT i.series_instance_uid FROM instance i JOIN evidence e ON e.sop_instance_uid = i.sop_instance_uid"
            " OR e.series_instance_uid = i.series_instance_uid WHERE i.study_instance_uid = ?",
            (study_instance_uid,),
        ).fetchall()
        return frozenset(row[0] for row in rows)

    def end_series(self, ends: Mapping[str, tuple[SeriesState, str]], *, now_s: float) -> None:
        """Gives series their ends with reasons; for the caller's transaction of a decision."""
        for series_instance_uid, (state, reason) in ends.items():
            self._end_series(series_instance_uid, state, reason, now_s)

    def _end_series(self, series_instance_uid: str, state: SeriesState, reason: str, now_s: float) -> None:
        row = self._connection.execute("SELECT state FROM series WHERE series_instance_uid = ?", (series_instance_uid,)).fetchone()
        before = SeriesState(row["state"])
        if before is not state:
            record_step(self._connection, series_instance_uid, before, state, now_s=now_s, reason=reason)
        self._connection.execute(
            "UPDATE series SET state = ?, reason = ?, updated_at = ? WHERE series_instance_uid = ?",
            (state, reason, now_s, series_instance_uid),
        )

    def mark_decided(self, study: StudyRecord, *, now_s: float, reason: str, forced: bool = False) -> bool:
        """Ends the gathering of a study, in the caller's transaction; False when an instance has arrived since `study` was read.

        `forced` decides all the same, and opens the study again at once for what has arrived: the maximum wait is a bound.
        """
        row = self._connection.execute(
            "SELECT last_instance_at FROM study WHERE study_instance_uid = ? AND state = ?",
            (study.study_instance_uid, StudyState.RECEIVING),
        ).fetchone()
        if row is None:
            return False
        more_came = row["last_instance_at"] != study.last_instance_at
        if more_came and not forced:
            return False
        record_step(self._connection, study.study_instance_uid, StudyState.RECEIVING, StudyState.DECIDED, now_s=now_s, reason=reason)
        self._connection.execute(
            "UPDATE study SET state = ?, revision = revision + 1 WHERE study_instance_uid = ?",
            (StudyState.DECIDED, study.study_instance_uid),
        )
        if more_came:
            self._open_study(study.study_instance_uid, now_s)
        return True
