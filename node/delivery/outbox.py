"""The courier's process: for every destination threads that send, one an association, and one that has stored results confirmed.

A dead archive never delays another, and an archive that does not confirm delays no sending.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Collection
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from node.config import Config
from node.delivery.commitment import Confirmer
from node.delivery.courier import BATCH, Claims, Courier, refuse
from node.delivery.destination import Destination
from node.journal import CommitmentJournal, OutboxJournal, open_database

__all__ = ["Confirmer", "Courier", "Destination", "end_unknown_destinations", "run_courier"]

POLL_S: Final = 0.25
STOP_GRACE_S: Final = 3.0
PAUSE_AFTER_SURPRISE_S: Final = 10.0

log = structlog.get_logger("radnode")

Work = Callable[[sqlite3.Connection, threading.Event], None]


def run_courier(config: Config, stop: threading.Event) -> None:
    """Delivers until `stop`."""
    state_dir = config.node.state_dir
    destinations = [Destination.of(config, name) for name in config.peers]
    works: list[tuple[str, Work]] = []
    for one in destinations:
        deliver = partial(_deliver, one, Claims(one.associations))
        works += [(f"courier {one.name} {number}".removesuffix(" 1"), deliver) for number in range(1, one.associations + 1)]
    works += [(f"confirmation {one.name}", partial(_confirm, one)) for one in destinations]
    threads = [
        # daemons: a peer that holds the line must not hold the node
        threading.Thread(target=_work_until, args=(stop, state_dir, work), name=name, daemon=True)
        for name, work in works
    ]
    for thread in threads:
        thread.start()
    _work_until(stop, state_dir, partial(_end_unknown, frozenset(config.peers)))
    deadline = time.monotonic() + STOP_GRACE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _work_until(stop: threading.Event, state_dir: Path, work: Work) -> None:
    while not stop.is_set():
        try:
            with closing(open_database(state_dir)) as connection:
                work(connection, stop)
        except Exception:
            # The boundary of this thread: whatever it was, the other deliveries and the next attempt must not suffer from it.
            # The connection is closed over it: it may still be inside a transaction that failed, and hold everybody up.
            log.exception("courier.failed", thread=threading.current_thread().name)
            stop.wait(PAUSE_AFTER_SURPRISE_S)


def _deliver(destination: Destination, claims: Claims, connection: sqlite3.Connection, stop: threading.Event) -> None:
    courier = Courier(OutboxJournal(connection), destination, claims=claims)
    while not stop.wait(POLL_S):
        while not stop.is_set() and courier.deliver_due(time.time(), stop):
            pass


def _confirm(destination: Destination, connection: sqlite3.Connection, stop: threading.Event) -> None:
    confirmer = Confirmer(CommitmentJournal(connection), OutboxJournal(connection), destination)
    while not stop.wait(POLL_S):
        while not stop.is_set() and confirmer.confirm_due(time.time(), stop):
            pass


def _end_unknown(known: Collection[str], connection: sqlite3.Connection, stop: threading.Event) -> None:
    while not stop.wait(POLL_S):
        end_unknown_destinations(connection, known, time.time())


def end_unknown_destinations(connection: sqlite3.Connection, known: Collection[str], now_s: float) -> None:
    """Ends what is due at destinations that the configuration does not name any more, with that reason."""
    outbox, commitments = OutboxJournal(connection), CommitmentJournal(connection)
    for destination in set(outbox.destinations_due(now_s)).difference(known):
        for delivery in outbox.due(destination, now_s, limit=BATCH):
            refuse(outbox, delivery, f"the configuration has no peer {destination} any more", now_s)
    for destination in commitments.awaiting_destinations().difference(known):
        awaited = [one.delivery.delivery_id for one in commitments.awaited(destination, now_s=now_s, until_s=now_s)]
        if awaited:
            commitments.miss(awaited, reason=f"stored; the configuration has no peer {destination} any more")
