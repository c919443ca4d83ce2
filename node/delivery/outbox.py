"""The courier: takes results to their destinations, tries again through outages, ends every delivery with an answer or a reason."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Self

import structlog

from node.config import Config
from node.delivery.store_scu import Part10File, StoreScu, contexts_for, read_part10
from node.delivery.upper_layer import MAX_CONTEXTS, Peer, Timeouts
from node.domain.delivery import GiveUp, RetryAt, RetryPolicy, decide_retry
from node.errors import DeliveryError, StoreRefused
from node.journal import DeliveryRecord, OutboxJournal, open_database

POLL_S: Final = 0.25
BATCH: Final = 100
STOP_GRACE_S: Final = 3.0
PAUSE_AFTER_SURPRISE_S: Final = 10.0

log = structlog.get_logger("radnode")


def run_courier(config: Config, stop: threading.Event) -> None:
    """Delivers until `stop`, one thread per destination, so that a dead archive never delays another."""
    state_dir = config.node.state_dir
    couriers = [
        threading.Thread(
            target=_work_until,
            args=(stop, state_dir, partial(_deliver, Destination.of(config, name))),
            name=f"courier {name}",
            daemon=True,  # a peer that holds the line must not hold the node
        )
        for name in config.peers
    ]
    for courier in couriers:
        courier.start()
    _work_until(stop, state_dir, partial(_refuse_unknown, frozenset(config.peers)))
    deadline = time.monotonic() + STOP_GRACE_S
    for courier in couriers:
        courier.join(max(0.0, deadline - time.monotonic()))


def _work_until(stop: threading.Event, state_dir: Path, work: Callable[[OutboxJournal, threading.Event], None]) -> None:
    while not stop.is_set():
        try:
            with closing(open_database(state_dir)) as connection:
                work(OutboxJournal(connection), stop)
        except Exception:
            # The boundary of this thread: whatever it was, the other deliveries and the next attempt must not suffer from it.
            # The connection is closed over it: it may still be inside a transaction that failed, and hold everybody up.
            log.exception("courier.failed", thread=threading.current_thread().name)
            stop.wait(PAUSE_AFTER_SURPRISE_S)


def _deliver(destination: "Destination", outbox: OutboxJournal, stop: threading.Event) -> None:
    courier = Courier(outbox, destination)
    while not stop.wait(POLL_S):
        while not stop.is_set() and courier.deliver_due(time.time(), stop):
            pass


def _refuse_unknown(known: frozenset[str], outbox: OutboxJournal, stop: threading.Event) -> None:
    while not stop.wait(POLL_S):
        refuse_unknown_destinations(outbox, known, time.time())


def refuse_unknown_destinations(outbox: OutboxJournal, known: frozenset[str], now_s: float) -> None:
    """Ends the deliveries to destinations that the configuration does not name any more."""
    for destination in set(outbox.destinations_due(now_s)) - known:
        for delivery in outbox.due(destination, now_s, limit=BATCH):
            _refuse(outbox, delivery, f"the configuration has no peer {destination} any more", now_s)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results go, and how patient we are with it."""

    name: str
    peer: Peer
    policy: RetryPolicy
    timeouts: Timeouts = field(default_factory=Timeouts)

    @classmethod
    def of(cls, config: Config, name: str) -> Self:
        """Answers a peer of the configuration as destination."""
        section = config.peers[name]
        return cls(name, Peer(section.host, section.port, section.ae_title, config.node.ae_title), section.retry.as_policy())


class Courier:
    """Takes what is due to one destination. One object serves one thread."""

    def __init__(self, outbox: OutboxJournal, destination: Destination) -> None:
        self._outbox = outbox
        self._destination = destination

    def deliver_due(self, now_s: float, stop: threading.Event | None = None) -> int:
        """Tries what is due, over one association; answers how many attempts were made."""
        sendable = self._readable(self._outbox.due(self._destination.name, now_s, limit=BATCH))
        if not sendable:
            return 0
        try:
            scu = StoreScu(self._destination.peer, contexts_for(file for _, file in sendable), self._destination.timeouts)
        except DeliveryError as error:
            for delivery, _ in sendable:
                self._fail(delivery, error, *self._outbox.begin_attempt(delivery.delivery_id, time.time()))
            return len(sendable)
        made = 0
        with scu:
            for delivery, file in sendable:
                if not scu.is_open or (stop is not None and stop.is_set()):
                    break  # the rest is still due
                self._attempt(scu, delivery, file)
                made += 1
        return made

    def _readable(self, due: Sequence[DeliveryRecord]) -> list[tuple[DeliveryRecord, Part10File]]:
        found: list[tuple[DeliveryRecord, Part10File]] = []
        for delivery in due:
            try:
                file = read_part10(delivery.path)
            except StoreRefused as error:
                _refuse(self._outbox, delivery, str(error), time.time())
                continue
            if len(contexts_for([*(file for _, file in found), file])) > MAX_CONTEXTS:
                break
            found.append((delivery, file))
        return found

    def _attempt(self, scu: StoreScu, delivery: DeliveryRecord, file: Part10File) -> None:
        started_s = time.time()
        attempts, first_attempt_s = self._outbox.begin_attempt(delivery.delivery_id, started_s)
        try:
            note = scu.store(file)
        except DeliveryError as error:
            self._fail(delivery, error, attempts, first_attempt_s)
            return
        now_s = time.time()
        self._outbox.mark_stored(delivery.delivery_id, now_s=now_s, note=note)
        log.info("delivery.stored", **_facts(delivery), attempts=attempts, note=note, elapsed_s=round(now_s - started_s, 3))

    def _fail(self, delivery: DeliveryRecord, error: DeliveryError, attempts: int, first_attempt_s: float) -> None:
        now_s = time.time()
        if not error.retryable:
            _refuse(self._outbox, delivery, str(error), now_s)
            return
        decision = decide_retry(
            attempts=attempts,
            first_attempt_s=first_attempt_s,
            now_s=now_s,
            policy=self._destination.policy,
            chance=random.random(),  # noqa: S311 - spreads load, guards nothing
        )
        match decision:
            case RetryAt(when_s):
                self._outbox.postpone(delivery.delivery_id, until_s=when_s, now_s=now_s, reason=str(error))
                log.warning("delivery.postponed", **_facts(delivery), attempts=attempts, reason=str(error), wait_s=round(when_s - now_s, 1))
            case GiveUp(reason):
                self._outbox.give_up(delivery.delivery_id, now_s=now_s, reason=f"{reason}; last: {error}")
                log.error("delivery.given_up", **_facts(delivery), attempts=attempts, reason=str(error))


def _refuse(outbox: OutboxJournal, delivery: DeliveryRecord, reason: str, now_s: float) -> None:
    outbox.refuse(delivery.delivery_id, now_s=now_s, reason=reason)
    log.error("delivery.refused", **_facts(delivery), reason=reason)


def _facts(delivery: DeliveryRecord) -> dict[str, str | int]:
    return {
        "destination": delivery.destination,
        "sop_instance_uid": delivery.sop_instance_uid,
        "role": delivery.role,
        "job": delivery.job_id,
    }
