"""Deliveries: which are due, and what came of each attempt."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node.domain.delivery import Outage
from node.domain.states import Confirmation, DeliveryState, Priority
from node.errors import UsageError
from node.journal.database import by_urgency, record_step, transaction
from node.journal.records import DeliveryRecord

DELIVERIES: Final = (
    "SELECT d.*, e.job_id, e.role, e.sop_class_uid, e.path, e.series_instance_uid, j.study_instance_uid, j.priority"
    " FROM delivery d JOIN evidence e USING (sop_instance_uid) JOIN job j USING (job_id)"
)
"""What `delivery_from_row` reads."""

ENDED_BADLY: Final = (DeliveryState.REFUSED, DeliveryState.GIVEN_UP)
"""Ends from which a person can send a delivery on its way again."""


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
        """Answers what is due at a destination: by priority, oldest job first, its SEG before the SR that cites it."""
        rows = self._connection.execute(
            f"{DELIVERIES} WHERE d.state = 'PENDING' AND d.destination = ? AND d.next_attempt_at <= ?"
            f" ORDER BY {by_urgency('j.priority')}, e.job_id, e.role LIKE 'sr%', d.delivery_id LIMIT ?",
            (destination, now_s, limit),
        ).fetchall()
        return tuple(delivery_from_row(row) for row in rows)

    def begin_attempt(self, delivery_id: int, now_s: float, sent_as: str = "") -> tuple[int, float]:
        """Counts an attempt before it is made; answers (attempts, first_attempt_at). Until an answer is noted, its end is unknown.

        `sent_as` is the SOP class in which it is sent, where that is not its own.
        """
        row = self._connection.execute(
            "UPDATE delivery SET attempts = attempts + 1, first_attempt_at = coalesce(first_attempt_at, ?), unsure = 1,"
            " sent_as = ? WHERE delivery_id = ? RETURNING attempts, first_attempt_at",
            (now_s, sent_as, delivery_id),
        ).fetchone()
        return int(row["attempts"]), float(row["first_attempt_at"])

    def begin_waiting(self, destination: str, now_s: float) -> None:
        """Notes that what is due at a destination is tried: patience counts from here, also through an outage."""
        self._connection.execute(
            "UPDATE delivery SET first_attempt_at = ?"
            " WHERE state = 'PENDING' AND destination = ? AND next_attempt_at <= ? AND first_attempt_at IS NULL",
            (now_s, destination, now_s),
        )

    def waiting_since_before(self, destination: str, moment_s: float) -> tuple[DeliveryRecord, ...]:
        """Answers the deliveries to a destination that were first tried at `moment_s` or earlier and have no end."""
        rows = self._connection.execute(
            f"{DELIVERIES} WHERE d.state = 'PENDING' AND d.destination = ? AND d.first_attempt_at <= ? ORDER BY d.delivery_id",
            (destination, moment_s),
        ).fetchall()
        return tuple(delivery_from_row(row) for row in rows)

    def mark_stored(self, delivery_id: int, *, now_s: float, note: str = "", confirm_at_s: float | None = None) -> None:
        """Notes that the destination has the object; it is asked at `confirm_at_s` whether it keeps it (default: at once)."""
        with transaction(self._connection) as connection:
            self._advance(delivery_id, DeliveryState.STORED, now_s, note)
            connection.execute(
                "UPDATE delivery SET stored_at = ?, unsure = 0, confirmation = ?, confirm_at = ?, confirm_attempts = 0 WHERE delivery_id = ?",
                (now_s, Confirmation.AWAITED, now_s if confirm_at_s is None else confirm_at_s, delivery_id),
            )

    def refuse(self, delivery_id: int, *, now_s: float, reason: str) -> None:
        """Notes that the destination refuses the object for good."""
        with transaction(self._connection) as connection:
            self._advance(delivery_id, DeliveryState.REFUSED, now_s, reason)
            connection.execute("UPDATE delivery SET unsure = 0 WHERE delivery_id = ?", (delivery_id,))

    def give_up(self, delivery_id: int, *, now_s: float, reason: str) -> None:
        """Notes that the time for trying is over."""
        with transaction(self._connection):
            self._advance(delivery_id, DeliveryState.GIVEN_UP, now_s, reason)

    def postpone(self, delivery_id: int, *, until_s: float, now_s: float, reason: str) -> None:
        """Sets the moment of the next attempt; the failed one stays in `reason`."""
        del now_s  # the same arguments as the other verbs, for callers that hold them in a table
        self._connection.execute(
            "UPDATE delivery SET next_attempt_at = ?, reason = ? WHERE delivery_id = ?", (until_s, reason, delivery_id)
        )

    def clear_doubt(self, delivery_id: int) -> None:
        """Notes that the destination does not have the object of an attempt without an answer, as far as can be learnt."""
        self._connection.execute("UPDATE delivery SET unsure = 0 WHERE delivery_id = ?", (delivery_id,))

    def open_again(self, delivery_ids: Sequence[int], *, now_s: float) -> None:
        """Does again what ended badly, as a person asked: sends what was refused or given up, asks about what was not confirmed.

        Raises
        ------
        UsageError
            When there is no such delivery, or one did not end badly; nothing is changed then.
        """
        with transaction(self._connection) as connection:
            for delivery_id in delivery_ids:
                row = connection.execute("SELECT state, confirmation FROM delivery WHERE delivery_id = ?", (delivery_id,)).fetchone()
                if row is None:
                    raise UsageError(f"there is no delivery {delivery_id} → see `radnode delivery list --all`")
                if row["state"] in ENDED_BADLY:
                    self._send_again(delivery_id, now_s)
                elif row["confirmation"] == Confirmation.MISSED:
                    self._ask_again(delivery_id, now_s)
                else:
                    raise UsageError(
                        f"delivery {delivery_id} is {row['state']}; only one that is REFUSED or GIVEN UP, or whose confirmation is MISSED,"
                        " can be retried"
                    )

    def _send_again(self, delivery_id: int, now_s: float) -> None:
        self._advance(delivery_id, DeliveryState.PENDING, now_s, "asked by a person")
        self._connection.execute(
            "UPDATE delivery SET attempts = 0, first_attempt_at = NULL, next_attempt_at = ?, stored_at = NULL, confirmation = '',"
            " confirm_at = NULL, confirm_attempts = 0 WHERE delivery_id = ?",
            (now_s, delivery_id),
        )

    def _ask_again(self, delivery_id: int, now_s: float) -> None:
        self._connection.execute(
            "UPDATE delivery SET confirmation = ?, confirm_at = ?, confirm_attempts = 0, reason = 'asked by a person' WHERE delivery_id = ?",
            (Confirmation.AWAITED, now_s, delivery_id),
        )

    def refused(self, destination: str | None = None) -> tuple[int, ...]:
        """Answers the deliveries that were refused or given up, at a destination or all."""
        rows = self._connection.execute(
            "SELECT delivery_id FROM delivery WHERE state IN (?, ?) AND (? IS NULL OR destination = ?) ORDER BY delivery_id",
            (*ENDED_BADLY, destination, destination),
        ).fetchall()
        return tuple(row["delivery_id"] for row in rows)

    def missed(self, destination: str | None = None) -> tuple[int, ...]:
        """Answers the deliveries that were stored and never confirmed, at a destination or all."""
        rows = self._connection.execute(
            "SELECT delivery_id FROM delivery WHERE confirmation = ? AND (? IS NULL OR destination = ?) ORDER BY delivery_id",
            (Confirmation.MISSED, destination, destination),
        ).fetchall()
        return tuple(row["delivery_id"] for row in rows)

    def outage(self, destination: str) -> Outage | None:
        """Answers the outage of a destination, None while it can be reached as far as we know."""
        return self.outages().get(destination)

    def outages(self) -> dict[str, Outage]:
        """Answers the destinations that cannot be reached."""
        rows = self._connection.execute("SELECT destination, failures, down_since, next_attempt_at, reason FROM destination").fetchall()
        return {row["destination"]: Outage(*row) for row in rows}

    def begin_outage(self, outage: Outage) -> None:
        """Notes that a destination cannot be reached, or still not."""
        self._connection.execute(
            "INSERT OR REPLACE INTO destination (destination, failures, down_since, next_attempt_at, reason) VALUES (?, ?, ?, ?, ?)",
            (outage.destination, outage.failures, outage.down_since_s, outage.next_attempt_s, outage.reason),
        )

    def end_outage(self, destination: str) -> None:
        """Notes that a destination can be reached again."""
        self._connection.execute("DELETE FROM destination WHERE destination = ?", (destination,))

    def _advance(self, delivery_id: int, state: DeliveryState, now_s: float, reason: str) -> None:
        row = self._connection.execute("SELECT state FROM delivery WHERE delivery_id = ?", (delivery_id,)).fetchone()
        record_step(self._connection, str(delivery_id), DeliveryState(row["state"]), state, now_s=now_s, reason=reason)
        self._connection.execute("UPDATE delivery SET state = ?, reason = ? WHERE delivery_id = ?", (state, reason, delivery_id))


def delivery_from_row(row: sqlite3.Row) -> DeliveryRecord:
    """Answers a delivery out of a row of `DELIVERIES`."""
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
        study_instance_uid=row["study_instance_uid"],
        series_instance_uid=row["series_instance_uid"],
        priority=Priority(row["priority"]),
        unsure=bool(row["unsure"]),
        confirmation=Confirmation(row["confirmation"]) if row["confirmation"] else None,
        confirm_at=row["confirm_at"],
        confirm_attempts=row["confirm_attempts"],
        sent_as=row["sent_as"],
    )
