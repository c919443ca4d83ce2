"""Confirmations: what was stored and is not yet answered for, what was asked, and what the archive said."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from node.domain.commitment import AfterFailure, CommitmentReport, judge_failure, words_of_failure
from node.domain.delivery import archived_as
from node.domain.states import Confirmation, DeliveryState
from node.journal.database import record_step, transaction
from node.journal.outbox import DELIVERIES, delivery_from_row
from node.journal.records import DeliveryRecord

NOT_CONFIRMED_YET: Final = "stored, not confirmed yet: "
"""How the reason of a delivery begins that was asked about without success."""


@dataclass(frozen=True, slots=True)
class AwaitedConfirmation:
    """A stored object that the archive has not answered for yet."""

    delivery: DeliveryRecord
    unreported: int
    """How many requests for commitment since it was stored had no report."""


class CommitmentJournal:
    """The verbs of confirmation. One object serves one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def record_report(self, report: CommitmentReport, *, now_s: float) -> bool:
        """Notes what an archive says about a transaction of ours, durably; answers False when the transaction is not ours.

        Only objects of that transaction are touched. What the report does not mention stays awaited.
        """
        with transaction(self._connection) as connection:
            request = connection.execute(
                "UPDATE commitment SET reported_at = coalesce(reported_at, ?) WHERE transaction_uid = ? RETURNING requested_at",
                (now_s, report.transaction_uid),
            ).fetchone()
            if request is None:
                return False
            rows = connection.execute(
                "SELECT d.delivery_id, d.sop_instance_uid, d.sent_as, d.state, d.stored_at FROM commitment_item i"
                " JOIN delivery d USING (delivery_id) WHERE i.transaction_uid = ?",
                (report.transaction_uid,),
            ).fetchall()
            for row in rows:
                if row["state"] != DeliveryState.STORED:
                    continue  # it has another end already, or is on its way again and will be asked about again
                _, uid = archived_as("", row["sop_instance_uid"], row["sent_as"])
                if uid in report.committed:
                    self._give(row["delivery_id"], "", now_s)
                elif uid in report.failed and row["stored_at"] <= request["requested_at"]:
                    # an older failure says nothing about what was stored after the request
                    self._fail(row["delivery_id"], report.failed[uid], now_s)
        return True

    def awaited(self, destination: str, *, now_s: float, until_s: float, limit: int = 500) -> tuple[AwaitedConfirmation, ...]:
        """Answers what is to be asked about at a destination, () while nothing is due; what is due by `until_s` goes along."""
        rows = self._connection.execute(
            "SELECT x.*, (SELECT count(*) FROM commitment_item i JOIN commitment c USING (transaction_uid)"  # noqa: S608 - words of our own
            " WHERE i.delivery_id = x.delivery_id AND c.reported_at IS NULL AND c.requested_at >= x.stored_at) AS unreported"
            f" FROM ({DELIVERIES} WHERE d.confirmation = 'AWAITED' AND d.destination = ? AND d.confirm_at <= ?) x"
            " ORDER BY x.confirm_at, x.delivery_id LIMIT ?",
            (destination, until_s, limit),
        ).fetchall()
        if not rows or rows[0]["confirm_at"] > now_s:
            return ()
        return tuple(AwaitedConfirmation(delivery_from_row(row), row["unreported"]) for row in rows)

    def awaiting_destinations(self) -> frozenset[str]:
        """Answers the destinations that have something to confirm."""
        rows = self._connection.execute("SELECT DISTINCT destination FROM delivery WHERE confirmation = 'AWAITED'").fetchall()
        return frozenset(row["destination"] for row in rows)

    def open_request(self, transaction_uid: str, destination: str, ask_again_at: Mapping[int, float], *, now_s: float) -> None:
        """Notes a request for commitment before it is made; `ask_again_at` says for each delivery when to ask again without a report."""
        with transaction(self._connection) as connection:
            connection.execute("INSERT INTO commitment VALUES (?, ?, ?, NULL)", (transaction_uid, destination, now_s))
            connection.executemany("INSERT INTO commitment_item VALUES (?, ?)", [(transaction_uid, one) for one in ask_again_at])
            self._ask_later(ask_again_at)

    def close_request(self, transaction_uid: str, *, now_s: float) -> None:
        """Notes that the archive refused a request: no report will come."""
        self._connection.execute("UPDATE commitment SET reported_at = ? WHERE transaction_uid = ?", (now_s, transaction_uid))

    def is_reported(self, transaction_uid: str) -> bool:
        """Answers whether the report on a request has come, on whatever association."""
        row = self._connection.execute("SELECT reported_at FROM commitment WHERE transaction_uid = ?", (transaction_uid,)).fetchone()
        return row is not None and row["reported_at"] is not None

    def ask_later(self, ask_again_at: Mapping[int, float], *, reason: str) -> None:
        """Notes that deliveries could not be confirmed now, and why; `ask_again_at` says for each when to ask again."""
        with transaction(self._connection):
            self._ask_later(ask_again_at)
            self._explain(list(ask_again_at), reason)

    def explain(self, delivery_ids: list[int], *, reason: str) -> None:
        """Notes why deliveries are not confirmed yet; when they are asked about again was set with the request."""
        with transaction(self._connection):
            self._explain(delivery_ids, reason)

    def _explain(self, delivery_ids: list[int], reason: str) -> None:
        self._connection.executemany(
            "UPDATE delivery SET reason = ? WHERE delivery_id = ? AND confirmation = 'AWAITED'",
            [(NOT_CONFIRMED_YET + reason, one) for one in delivery_ids],
        )

    def _ask_later(self, ask_again_at: Mapping[int, float]) -> None:
        self._connection.executemany(
            "UPDATE delivery SET confirm_attempts = confirm_attempts + 1, confirm_at = ? WHERE delivery_id = ? AND confirmation = 'AWAITED'",
            [(when_s, delivery_id) for delivery_id, when_s in ask_again_at.items()],
        )

    def give(self, delivery_id: int, *, reason: str, now_s: float) -> None:
        """Notes that the archive has a stored object, as `reason` says how."""
        with transaction(self._connection):
            if self._is_stored(delivery_id):
                self._give(delivery_id, reason, now_s)

    def send_again(self, delivery_id: int, *, reason: str, now_s: float) -> None:
        """Notes that the archive does not have a stored object: it is due again at once."""
        with transaction(self._connection):
            if self._is_stored(delivery_id):
                self._send_again(delivery_id, reason, now_s)

    def waive(self, delivery_ids: list[int], *, reason: str) -> None:
        """Notes that the archive is not asked (any more) about stored objects."""
        self._end(delivery_ids, Confirmation.WAIVED, reason)

    def miss(self, delivery_ids: list[int], *, reason: str) -> None:
        """Notes that the time for asking is over without an answer."""
        self._end(delivery_ids, Confirmation.MISSED, reason)

    def _end(self, delivery_ids: list[int], confirmation: Confirmation, reason: str) -> None:
        with transaction(self._connection) as connection:
            connection.executemany(
                "UPDATE delivery SET confirmation = ?, confirm_at = NULL, reason = ? WHERE delivery_id = ? AND confirmation = 'AWAITED'",
                [(confirmation, reason, one) for one in delivery_ids],
            )

    def _is_stored(self, delivery_id: int) -> bool:
        """A report may have come on another association while we asked."""
        row = self._connection.execute("SELECT state FROM delivery WHERE delivery_id = ?", (delivery_id,)).fetchone()
        return bool(row["state"] == DeliveryState.STORED)

    def _give(self, delivery_id: int, reason: str, now_s: float) -> None:
        self._step(delivery_id, DeliveryState.COMMITTED, reason, now_s)
        self._connection.execute(
            "UPDATE delivery SET confirmation = ?, confirm_at = NULL WHERE delivery_id = ?", (Confirmation.GIVEN, delivery_id)
        )

    def _fail(self, delivery_id: int, failure: int, now_s: float) -> None:
        said = words_of_failure(failure)
        match judge_failure(failure):
            case AfterFailure.SEND_AGAIN:
                self._send_again(delivery_id, f"stored, and then not committed ({said}): the archive does not have it", now_s)
            case AfterFailure.ASK_AGAIN:
                self._explain([delivery_id], f"the archive answered {said}")
            case AfterFailure.ASK_A_PERSON:
                self._step(delivery_id, DeliveryState.REFUSED, f"stored, but the archive will not answer for it ({said})", now_s)
                self._connection.execute("UPDATE delivery SET confirmation = '', confirm_at = NULL WHERE delivery_id = ?", (delivery_id,))

    def _send_again(self, delivery_id: int, reason: str, now_s: float) -> None:
        if not self._was_lost_before(delivery_id):  # patience counts from the first loss, however long ago it was stored
            self._connection.execute("UPDATE delivery SET first_attempt_at = ? WHERE delivery_id = ?", (now_s, delivery_id))
        self._step(delivery_id, DeliveryState.PENDING, reason, now_s)
        self._connection.execute(
            "UPDATE delivery SET next_attempt_at = ?, confirmation = '', confirm_at = NULL, confirm_attempts = 0 WHERE delivery_id = ?",
            (now_s, delivery_id),
        )

    def _was_lost_before(self, delivery_id: int) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM transition WHERE kind = 'delivery' AND key = ? AND before = ? AND after = ? LIMIT 1",
            (str(delivery_id), DeliveryState.STORED, DeliveryState.PENDING),
        ).fetchone()
        return found is not None

    def _step(self, delivery_id: int, state: DeliveryState, reason: str, now_s: float) -> None:
        record_step(self._connection, str(delivery_id), DeliveryState.STORED, state, now_s=now_s, reason=reason)
        self._connection.execute("UPDATE delivery SET state = ?, reason = ? WHERE delivery_id = ?", (state, reason, delivery_id))
