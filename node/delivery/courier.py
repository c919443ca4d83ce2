"""One destination's pass: what is due goes over one association; a destination that is down is left alone until its time.

Several couriers may serve one destination, each over an association of its own: `Claims` sees to it that no two send the same.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from pydicom.uid import UID

from node.delivery.destination import Destination, facts_of
from node.delivery.query import FIND_CONTEXT
from node.delivery.store_scu import Part10File, StoreScu, contexts_for_results, read_part10
from node.delivery.upper_layer import MAX_CONTEXTS
from node.delivery.variants import EVERY_COMPRESSION
from node.domain.delivery import GiveUp, Outage, RetryAt, backoff_s, decide_outage, decide_retry, end_of_patience
from node.errors import DeliveryError, PeerUnreachable, StoreRefused
from node.journal import DeliveryRecord, OutboxJournal

BATCH: Final = 100
FOUND_BY_QUERY: Final = "found by query: an attempt without an answer had arrived"

log = structlog.get_logger("radnode")


class Claims:
    """Which deliveries to a destination are in whose hands, for the couriers that share it."""

    def __init__(self, couriers: int = 1) -> None:
        self._couriers = couriers
        self._lock = threading.Lock()
        self._held: set[int] = set()
        self._open = 0

    @property
    def open_associations(self) -> int:
        """How many couriers have an association now."""
        return self._open

    @contextmanager
    def claim(self, due: Callable[[], Sequence[DeliveryRecord]], *, alone: bool) -> Iterator[Sequence[DeliveryRecord]]:
        """Gives a share of what is due and in nobody's hands, as long as the block runs; `alone`: nothing while others hold something.

        What is due is asked for inside: whoever puts a delivery down has noted its end before.
        """
        with self._lock:
            found = () if alone and self._held else due()
            share = -(-len(found) // self._couriers)
            mine = [delivery for delivery in found if delivery.delivery_id not in self._held][:share]
            ids = {delivery.delivery_id for delivery in mine}
            self._held |= ids
        try:
            yield mine
        finally:
            with self._lock:
                self._held -= ids

    @contextmanager
    def association(self) -> Iterator[None]:
        """Counts an association as long as the block runs."""
        with self._lock:
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """A delivery that was sent, and has no answer yet."""

    delivery: DeliveryRecord
    sent_as: str
    attempts: int
    first_attempt_s: float


class Courier:
    """Takes what is due to one destination. One object serves one thread."""

    def __init__(
        self,
        outbox: OutboxJournal,
        destination: Destination,
        *,
        clock: Callable[[], float] | None = None,
        chance: Callable[[], float] | None = None,
        claims: Claims | None = None,
    ) -> None:
        """`claims` are shared with the other couriers of the destination, where there are any."""
        self._outbox = outbox
        self._destination = destination
        self._clock = clock or time.time
        self._chance = chance or random.random
        self._claims = claims or Claims()
        self._rests_until_s = 0.0

    def deliver_due(self, now_s: float, stop: threading.Event | None = None) -> int:
        """Tries what is due, over one association; answers how many attempts were made.

        While the destination is down, nothing is tried before its time; then one association, and when that cannot be had either,
        the outage goes on.
        """
        name = self._destination.name
        outage = self._outbox.outage(name)
        if now_s < self._rests_until_s or (outage is not None and now_s < outage.next_attempt_s):
            return 0
        with self._claims.claim(lambda: self._outbox.due(name, now_s, limit=BATCH), alone=outage is not None) as due:
            sendable = self._readable(due)
            if not sendable:
                return 0
            scu = self._open(sendable, outage)
            if scu is None:
                return 0
            with self._claims.association(), scu:
                return self._deliver(scu, sendable, stop)

    def _deliver(self, scu: StoreScu, sendable: Sequence[tuple[DeliveryRecord, Part10File]], stop: threading.Event | None) -> int:
        """Sends as many at once as the peer allows. What was sent before without an answer goes alone: it may be what broke the association."""
        begun: dict[int, Attempt] = {}
        made = 0
        for delivery, file in sendable:
            if delivery.unsure:
                self._finish(scu, begun)
            if not scu.is_open or (stop is not None and stop.is_set()):
                break  # the rest is still due
            made += 1
            if delivery.unsure and self._needs_no_attempt(scu, delivery):
                continue
            self._begin(scu, delivery, file, begun)
            self._finish(scu, begun, most=0 if delivery.unsure else scu.operations - 1)
        self._finish(scu, begun)
        return made

    def _readable(self, due: Sequence[DeliveryRecord]) -> list[tuple[DeliveryRecord, Part10File]]:
        found: list[tuple[DeliveryRecord, Part10File]] = []
        for delivery in due:
            if self._is_lost_for_good(delivery):
                continue
            try:
                file = read_part10(delivery.path)
            except StoreRefused as error:
                refuse(self._outbox, delivery, str(error), self._clock())
                continue
            if (
                len(contexts_for_results([*(file for _, file in found), file], EVERY_COMPRESSION)) >= MAX_CONTEXTS
            ):  # one is left for queries
                break
            found.append((delivery, file))
        return found

    def _is_lost_for_good(self, delivery: DeliveryRecord) -> bool:
        """Gives up what the archive stores and loses again and again: its answers are no fault, so nothing else would."""
        if delivery.stored_at is None or delivery.first_attempt_at is None:
            return False
        now_s = self._clock()
        ended = end_of_patience(
            attempts=delivery.attempts, first_attempt_s=delivery.first_attempt_at, now_s=now_s, policy=self._destination.policy
        )
        if ended is not None:
            self._give_up(delivery, ended, delivery.reason, now_s)
        return ended is not None

    def _open(self, sendable: Sequence[tuple[DeliveryRecord, Part10File]], outage: Outage | None) -> StoreScu | None:
        """Answers an association, None when there is none: the outage is noted then.

        A rejection counts as outage too, also a permanent one: that the archive does not know our AE title is corrected by a person,
        and no result is lost meanwhile.
        """
        contexts = contexts_for_results((file for _, file in sendable), self._destination.compression)
        if any(delivery.unsure for delivery, _ in sendable):
            contexts += (FIND_CONTEXT,)
        try:
            scu = StoreScu(self._destination.peer, contexts, self._destination.timeouts)
        except DeliveryError as error:
            if self._claims.open_associations:  # it takes no further one beside those that we have
                self._rests_until_s = self._clock() + self._destination.policy.first_s
            elif outage is not None or self._outbox.outage(self._destination.name) is None:  # else another courier has noted it
                self._begin_outage(outage, error)
            return None
        if outage is not None:
            self._outbox.end_outage(self._destination.name)
            down_s = round(self._clock() - outage.down_since_s, 1)
            log.info("destination.back", destination=self._destination.name, down_s=down_s, failures=outage.failures)
        return scu

    def _begin_outage(self, before: Outage | None, error: DeliveryError) -> None:
        name, policy, now_s = self._destination.name, self._destination.policy, self._clock()
        self._outbox.begin_waiting(name, now_s)
        outage = decide_outage(before, destination=name, reason=str(error), now_s=now_s, policy=policy, chance=self._chance())
        self._outbox.begin_outage(outage)
        wait_s = round(outage.next_attempt_s - now_s, 1)
        log.warning("destination.down", destination=name, failures=outage.failures, reason=str(error), wait_s=wait_s)
        for delivery in self._outbox.waiting_since_before(name, now_s - policy.give_up_h * 3600):
            first_attempt_s = delivery.first_attempt_at or now_s
            ended = end_of_patience(attempts=delivery.attempts, first_attempt_s=first_attempt_s, now_s=now_s, policy=policy)
            if ended is not None:
                self._give_up(delivery, ended, str(error), now_s)

    def _begin(self, scu: StoreScu, delivery: DeliveryRecord, file: Part10File, begun: dict[int, Attempt]) -> None:
        """Sends an object; the attempt is durable before."""
        sent_as = scu.sent_as(file)
        attempt = Attempt(delivery, sent_as, *self._outbox.begin_attempt(delivery.delivery_id, self._clock(), sent_as))
        try:
            begun[scu.begin(file, delivery.priority)] = attempt
        except StoreRefused as error:
            self._end_attempt(attempt, error)

    def _finish(self, scu: StoreScu, begun: dict[int, Attempt], *, most: int = 0) -> None:
        """Takes answers until at most so many attempts are without one."""
        while len(begun) > most:
            try:
                answer = scu.finish()
            except PeerUnreachable as error:
                lost = list(begun.values())
                begun.clear()
                for attempt in lost:
                    self._end_attempt(attempt, error)
                return
            self._end_attempt(begun.pop(answer.message_id), answer.error, answer.note)

    def _end_attempt(self, attempt: Attempt, error: DeliveryError | None, note: str = "") -> None:
        delivery = attempt.delivery
        if error is None:
            self._mark_stored(delivery, "; ".join(part for part in (note, _in_class(attempt.sent_as)) if part), attempt.attempts)
            return
        if not isinstance(error, PeerUnreachable):  # else it may have arrived
            self._outbox.clear_doubt(delivery.delivery_id)
        self._fail(delivery, error, attempt.attempts, attempt.first_attempt_s)

    def _needs_no_attempt(self, scu: StoreScu, delivery: DeliveryRecord) -> bool:
        """Asks about an object whose last attempt had no answer; answers whether that was all for now."""
        try:
            if not scu.has(delivery):
                return False
        except DeliveryError as error:
            # No answer is no answer: the object waits, and costs no attempt.
            now_s = self._clock()
            self._outbox.begin_waiting(self._destination.name, now_s)
            first_attempt_s = delivery.first_attempt_at or now_s
            self._fail(delivery, error, max(1, delivery.attempts), first_attempt_s)
            return True
        self._mark_stored(delivery, FOUND_BY_QUERY, delivery.attempts)
        return True

    def _mark_stored(self, delivery: DeliveryRecord, note: str, attempts: int) -> None:
        """Notes success; an archive that lost the object before is asked about it the later, the more often it did."""
        now_s = self._clock()
        if delivery.stored_at is None:
            confirm_at_s = now_s + self._destination.confirmation.settle_s
        else:
            confirm_at_s = now_s + backoff_s(attempts, self._destination.policy, self._chance())
        self._outbox.mark_stored(delivery.delivery_id, now_s=now_s, note=note, confirm_at_s=confirm_at_s)
        log.info("delivery.stored", **facts_of(delivery), attempts=attempts, note=note)

    def _fail(self, delivery: DeliveryRecord, error: DeliveryError, attempts: int, first_attempt_s: float) -> None:
        now_s = self._clock()
        if not error.retryable:
            refuse(self._outbox, delivery, str(error), now_s)
            return
        decision = decide_retry(
            attempts=attempts, first_attempt_s=first_attempt_s, now_s=now_s, policy=self._destination.policy, chance=self._chance()
        )
        match decision:
            case RetryAt(when_s):
                self._outbox.postpone(delivery.delivery_id, until_s=when_s, now_s=now_s, reason=str(error))
                wait_s = round(when_s - now_s, 1)
                log.warning("delivery.postponed", **facts_of(delivery), attempts=attempts, reason=str(error), wait_s=wait_s)
            case GiveUp():
                self._give_up(delivery, decision, str(error), now_s)

    def _give_up(self, delivery: DeliveryRecord, ended: GiveUp, last: str, now_s: float) -> None:
        self._outbox.give_up(delivery.delivery_id, now_s=now_s, reason=f"{ended.reason}; last: {last}")
        log.error("delivery.given_up", **facts_of(delivery), attempts=delivery.attempts, reason=last)


def _in_class(sent_as: str) -> str:
    return f"sent as {UID(sent_as).name}: it takes no richer class" if sent_as else ""


def refuse(outbox: OutboxJournal, delivery: DeliveryRecord, reason: str, now_s: float) -> None:
    """Ends a delivery that would end the same another time."""
    outbox.refuse(delivery.delivery_id, now_s=now_s, reason=reason)
    log.error("delivery.refused", **facts_of(delivery), reason=reason)
