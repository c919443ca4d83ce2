"""Sealed instances get their names and their rows: in batches, by one thread, when nobody waits for an answer.

Whatever is sealed is safe (seal.py), so this may be late and may be tried again, and a crash in the middle costs nothing: the next start
finds what is sealed and not yet settled. It is not late for long: it waits while bytes arrive in haste, a second at the most.
"""

import sqlite3
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from node.errors import IntakeError, OutOfResources
from node.files import Durability
from node.intake.adoption import ADOPTION, read_sealed
from node.intake.incoming import SealedFile
from node.intake.spool import KeptFile, Spool
from node.intake.uids import InstanceUids, StoreRequest
from node.journal import ReceivedInstance, ReceivedJournal, Reception, Recorded, open_database
from node.journal.database import JournalUnusable

LULL_S: Final = 0.02
"""Without a new instance for so long, nobody is in haste."""

LATEST_S: Final = 1.0
"""No instance waits longer for its row while others keep coming."""

BATCH: Final = 64
MOST_WAITING: Final = 20_000
"""More than these wait for nobody: senders of small objects are held up until rows have caught up."""

AGAIN_S: Final = 0.5
STOP_GRACE_S: Final = 10.0

log = structlog.get_logger("radnode")


class Arrival(NamedTuple):
    """A sealed instance and what is to stand in its row."""

    file: SealedFile
    uids: InstanceUids
    request: StoreRequest


def is_due(*, waiting: bool, urgent: bool, idle_s: float, oldest_s: float) -> bool:
    """Answers whether to settle now: there is something, and it is urgent, or nothing comes, or the oldest has waited long enough.

    `urgent`: an association has ended behind it, or the listener is about to stop.
    """
    return waiting and (urgent or idle_s >= LULL_S or oldest_s >= LATEST_S)


class Settler:
    """Names and records what was sealed, in order. `submit` and `submit_end` serve all threads."""

    def __init__(self, state_dir: Path, spool: Spool, durability: Durability) -> None:
        self._state_dir = state_dir
        self._spool = spool
        self._durability = durability
        self._waiting: deque[tuple[float, Arrival | str]] = deque()
        """What came, and when: an instance, or the name of an association that has ended."""
        self._changed = threading.Condition()
        self._last_s = time.monotonic()
        self._ends = 0
        self._under_way = 0
        self._stopping = False
        self._places_wanted = True
        self._trouble: OutOfResources | None = None
        self._connection: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="settler", daemon=True)

    def start(self) -> int:
        """Settles what an earlier life has sealed; answers how many instances that was.

        Raises what keeps the journal or the spool from being used.
        """
        found = 0
        batch: list[Arrival] = []
        self._journal()  # also where nothing is found: what keeps it from being used is told now, and not to the first sender
        for file in self._spool.sealed():
            try:
                batch.append(Arrival(file, *read_sealed(file)))
            except IntakeError as error:  # it was understood when it came: bytes that have changed since
                log.error("instance.unreadable", file=file.path.name, reason=str(error))
                self._spool.set_aside(file.path)
                continue
            found += 1
            if len(batch) == BATCH:
                self._settle(batch, now_s=time.time())
                batch = []
        self._settle(batch, now_s=time.time())
        if found:
            ReceivedJournal(self._journal()).close_association(ADOPTION)
        self._close_journal()
        while self._places_wanted:
            self._refill()
        self._thread.start()
        return found

    def check(self) -> None:
        """Raises OutOfResources while the journal or the spool does not take what was sealed before."""
        if self._trouble is not None:
            raise self._trouble

    def submit(self, arrival: Arrival) -> None:
        """Takes a sealed instance; waits where very many are unsettled."""
        self._put(arrival)
        if len(self._waiting) > MOST_WAITING:
            with self._changed:
                self._changed.wait_for(lambda: len(self._waiting) <= MOST_WAITING or self._trouble is not None, LATEST_S)

    def submit_end(self, association: str) -> None:
        """Takes note that an association has ended, behind the instances that came over it."""
        with self._changed:
            self._ends += 1
        self._put(association)

    def _put(self, what: Arrival | str) -> None:
        now_s = time.monotonic()
        with self._changed:
            self._waiting.append((now_s, what))
            self._last_s = now_s
            if len(self._waiting) == 1 or isinstance(what, str):  # else the thread is up, and looks by itself
                self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Waits until everything is settled that was submitted before; answers False where that takes longer."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._waiting or self._under_way:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, LULL_S))
        return True

    def stop(self) -> None:
        """Settles what is outstanding, and ends."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(STOP_GRACE_S)

    # ── the thread ──────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                while not self._try(batch):
                    with self._changed:
                        if self._stopping:
                            log.warning("instances.unsettled", count=len(batch), meaning="sealed: taken in at the next start")
                            return
                        self._changed.wait(AGAIN_S)
                with self._changed:
                    self._under_way = 0
                    self._changed.notify_all()
        finally:
            self._close_journal()

    def _next_batch(self) -> list[Arrival | str] | None:
        """Waits until something is due; answers None when the listener stops and nothing is left."""
        with self._changed:
            while not self._is_due():
                if self._stopping and not self._waiting:
                    return None
                if self._places_wanted and not self._waiting:
                    self._changed.release()  # those who come meanwhile wait for nothing
                    try:
                        self._refill()
                    finally:
                        self._changed.acquire()
                    continue
                self._changed.wait(LULL_S if self._waiting else None)
            batch = [self._waiting.popleft()[1] for _ in range(min(BATCH, len(self._waiting)))]
            self._ends -= sum(isinstance(one, str) for one in batch)
            self._under_way = len(batch)
            return batch

    def _is_due(self) -> bool:
        now_s = time.monotonic()
        oldest_s = now_s - self._waiting[0][0] if self._waiting else 0.0
        urgent = self._ends > 0 or self._stopping
        return is_due(waiting=bool(self._waiting), urgent=urgent, idle_s=now_s - self._last_s, oldest_s=oldest_s)

    def _try(self, batch: list[Arrival | str]) -> bool:
        """Settles a batch; answers False when it is to be tried again."""
        try:
            self._settle([one for one in batch if not isinstance(one, str)])
            for association in batch:
                if isinstance(association, str):
                    ReceivedJournal(self._journal()).close_association(association)
            self._places_wanted = True
        except (sqlite3.Error, JournalUnusable, OSError, OutOfResources) as error:
            self._close_journal()  # it may still be inside the transaction that failed
            if self._trouble is None:
                log.warning(
                    "intake.stopped", reason=str(error), meaning="instances are refused until the journal and the spool can be written"
                )
            self._trouble = error if isinstance(error, OutOfResources) else OutOfResources(f"the journal cannot be written: {error}")
            return False
        except Exception:  # our bug in one instance must not hold up all others, for ever
            self._close_journal()
            if len(batch) == 1:
                log.exception("instance.unsettled", meaning="it stays sealed in the spool: taken in at the next start")
                return True
            outcomes = [self._try([one]) for one in batch]  # every one of them, also behind one that fails
            return all(outcomes)
        if self._trouble is not None:
            log.info("intake.resumed")
            self._trouble = None
        return True

    def _refill(self) -> None:
        """Makes some places for what will come; a disk that does not let us is met, and told, by what arrives."""
        try:
            self._places_wanted = self._spool.refill()
        except OSError:
            self._places_wanted = False

    def _settle(self, arrivals: list[Arrival], now_s: float | None = None) -> None:
        arrivals = [arrival for arrival in arrivals if self._is_there(arrival)]
        if not arrivals:
            return
        with self._spool.settling([arrival.file for arrival in arrivals]) as kept:
            receptions = [_reception(arrival, file, now_s) for arrival, file in zip(arrivals, kept, strict=True)]
            recorded = ReceivedJournal(self._journal()).record_instances(receptions)
        for arrival, what in zip(arrivals, recorded, strict=True):
            if what is Recorded.CHANGED:
                request = arrival.request
                log.warning(
                    "instance.changed",
                    sop_instance_uid=request.sop_instance_uid,
                    sop_class_uid=request.sop_class_uid,
                    calling_ae_title=request.calling_ae_title,
                )

    def _is_there(self, arrival: Arrival) -> bool:
        """Answers False for a file that was taken out of the spool by hand: the others must not wait for it for ever."""
        if arrival.file.path.exists():
            return True
        log.error(
            "instance.gone",
            sop_instance_uid=arrival.request.sop_instance_uid,
            meaning="answered with success, and removed from spool/incoming by somebody else: have the study sent again",
        )
        return False

    def _journal(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_database(self._state_dir, durability=self._durability)
        return self._connection

    def _close_journal(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _reception(arrival: Arrival, kept: KeptFile, now_s: float | None) -> Reception:
    received = ReceivedInstance(
        sop_instance_uid=arrival.uids.sop_instance,
        series_instance_uid=arrival.uids.series,
        study_instance_uid=arrival.uids.study,
        sop_class_uid=arrival.uids.sop_class,
        transfer_syntax_uid=arrival.request.transfer_syntax_uid,
        sha256=kept.sha256,
        size_bytes=kept.size_bytes,
        calling_ae_title=arrival.request.calling_ae_title,
    )
    return Reception(received, arrival.request.association, arrival.file.seal.sealed_at_s if now_s is None else now_s)
