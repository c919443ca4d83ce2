"""Deliveries: which are due, and what came of each attempt."""

import sqlite3
from pathlib import Path

from node.domain.states import DeliveryState
from node.journal.database import record_step, transaction
from node.journal.records import DeliveryRecord


class OutboxJournal:
    """The courier's verbs. One object serves one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def destinations_due(self, now_s: float) -> tuple[str, ...]:
        """Answers the destinations that have something due."""
        rows = self._connection.execute(
            "SELECT DISTINCT destination FROM delivery WHERE state = 'PENDING' AND next_attempt_at <= ?", (now_s,)
        ).fetchall()
        return tuple(row["destination"] for row in rows)

    def due(self, destination: str, now_s: float, *, limit: int = 100) -> tuple[DeliveryRecord, ...]:
        """Answers what is due at a destination, oldest job first, its SEG before the SR that cites it."""
        rows = self._connection.execute(
            "SELECT d.*, e.job_id, e.role, e.sop_class_uid, e.path FROM delivery d JOIN evidence e USING (sop_instance_uid)"
            " WHERE d.state = 'PENDING' AND d.destination = ? AND d.next_attempt_at <= ?"
            " ORDER BY e.job_id, e.role = 'sr', d.delivery_id LIMIT ?",
            (destination, now_s, limit),
        ).fetchall()
        return tuple(delivery_from_row(row) for row in rows)

    def begin_attempt(self, delivery_id: int, now_s: float) -> tuple[int, float]:
        """Counts an attempt before it is made; answers (attempts, first_attempt_at)."""
        row = self._connection.execute(
            "UPDATE delivery SET attempts = attempts + 1, first_attempt_at = coalesce(first_attempt_at, ?)"
            " WHERE delivery_id = ? RETURNING attempts, first_attempt_at",
            (now_s, delivery_id),
        ).fetchone()
        return int(row["attempts"]), float(row["first_attempt_at"])

    def mark_stored(self, delivery_id: int, *, now_s: float, note: str = "") -> None:
        """Notes that the destination has answered success."""
        self._advance(delivery_id, DeliveryState.STORED, now_s, note)

    def refuse(self, delivery_id: int, *, now_s: float, reason: str) -> None:
        """Notes that the destination refuses the object for good."""
        self._advance(delivery_id, DeliveryState.REFUSED, now_s, reason)

    def give_up(self, delivery_id: int, *, now_s: float, reason: str) -> None:
        """Notes that the time for trying is over."""
        self._advance(delivery_id, DeliveryState.GIVEN_UP, now_s, reason)

    def postpone(self, delivery_id: int, *, until_s: float, now_s: float, reason: str) -> None:
        """Sets the moment of the next attempt; the failed one stays in `reason`."""
        del now_s  # the same arguments as the other verbs, for callers that hold them in a table
        self._connection.execute(
            "UPDATE delivery SET next_attempt_at = ?, reason = ? WHERE delivery_id = ?", (until_s, reason, delivery_id)
        )

    def _advance(self, delivery_id: int, state: DeliveryState, now_s: float, reason: str) -> None:
        with transaction(self._connection) as connection:
            row = connection.execute("SELECT state FROM delivery WHERE delivery_id = ?", (delivery_id,)).fetchone()
            before = DeliveryState(row["state"])
            record_step(connection, str(delivery_id), before, state, now_s=now_s, reason=reason)
            connection.execute(
                "UPDATE delivery SET state = ?, reason = ?, stored_at = CASE WHEN ? = 'STORED' THEN ? ELSE stored_at END"
                " WHERE delivery_id = ?",
                (state, reason, state, now_s, delivery_id),
            )


def delivery_from_row(row: sqlite3.Row) -> DeliveryRecord:
    """Answers a delivery out of a row of `delivery` joined with its `evidence`."""
    return DeliveryRecord(
        delivery_id=row["delivery_id"],
        job_id=row["job_id"],
        sop_instance_uid=row["sop_instance_uid"],
        sop_class_uid=row["sop_class_uid"],
        role=row["role"],
        path=Path(row["path"]),
        destination=row["destination"],
        state=DeliveryState(row["state"]),
        attempts=row["attempts"],
        first_attempt_at=row["first_attempt_at"],
        next_attempt_at=row["next_attempt_at"],
        reason=row["reason"],
        stored_at=row["stored_at"],
    )
