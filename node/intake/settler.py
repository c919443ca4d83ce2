"""Sealed instances get their names and their rows: in batches, by one thread, when nobody waits for an answer.

Whatever is sealed is safe (seal.py), so this may be late and may be tried again, and a crash in the middle costs nothing: the next start
finds what is sealed and not yet settled. It is not late for long: it waits while bytes arrive in haste, a second at the most.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from node.errors import IntakeError, OutOfResources
from node.files import Durability
from node.intake.adoption import ADOPTION, read_sealed
from node.intake.backlog import BATCH, Arrival, Filing, What
from node.intake.spool import KeptFile, Spool
from node.journal import ReceivedInstance, ReceivedJournal, Reception, Recorded, open_database
from node.journal.database import JournalUnusable

STOP_GRACE_S: Final = 10.0

log = structlog.get_logger("radnode")


class Settler(Filing):
    """Names and records what was sealed, in order. `submit` and `submit_end` serve all threads."""

    def __init__(
        self,
        state_dir: Path,
        spool: Spool,
        durability: Durability,
        on_trouble: Callable[[OutOfResources | None], None] = lambda _trouble: None,
    ) -> None:
        """`on_trouble` is told why filing fails, and None when it works again."""
        super().__init__(spool.refill)
        self._on_trouble = on_trouble
        self._state_dir = state_dir
        self._spool = spool
        self._durability = durability
        self._trouble: OutOfResources | None = None
        self._connection: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="settler", daemon=True)

    def recover(self) -> int:
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
        return found

    def start(self) -> int:
        """Settles what an earlier life has sealed, and answers how many instances that was; settles by itself from here on.

        Raises what keeps the journal or the spool from being used.
        """
        found = self.recover()
        self.begin()
        return found

    def begin(self) -> None:
        """Settles by itself from here on."""
        self._backlog.make_places()
        self._thread.start()

    def check(self) -> None:
        """Raises OutOfResources while the journal or the spool does not take what was sealed before."""
        if self._trouble is not None:
            raise self._trouble

    def stop(self) -> None:
        """Settles what is outstanding, and ends."""
        self._backlog.stop()
        if self._thread.ident is not None:
            self._thread.join(STOP_GRACE_S)

    # ── the thread ──────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            left = self._backlog.run(self._try)
            if left:
                log.warning("instances.unsettled", count=left, meaning="sealed: taken in at the next start")
        except Exception:  # our bug: nobody files any more, so nobody is to be told success either
            log.exception("settler.failed", meaning="instances are refused until the listener is started anew")
            self._trouble = OutOfResources("nobody files what arrives")
            self._on_trouble(self._trouble)
        finally:
            self._close_journal()

    def _try(self, batch: list[What]) -> bool:
        """Settles a batch; answers False when it is to be tried again."""
        try:
            self._settle([one for one in batch if not isinstance(one, str)])
            for association in batch:
                if isinstance(association, str):
                    ReceivedJournal(self._journal()).close_association(association)
        except (sqlite3.Error, JournalUnusable, OSError, OutOfResources) as error:
            self._close_journal()  # it may still be inside the transaction that failed
            if self._trouble is None:
                log.warning(
                    "intake.stopped", reason=str(error), meaning="instances are refused until the journal and the spool can be written"
                )
            self._trouble = error if isinstance(error, OutOfResources) else OutOfResources(f"the journal cannot be written: {error}")
            self._on_trouble(self._trouble)
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
            self._on_trouble(None)
        return True

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
        """Answers False for a file that was taken out of the spool by hand, or cut: the others must not wait for it for ever."""
        try:
            is_whole = arrival.file.path.stat().st_size >= arrival.file.seal.end_bytes
        except FileNotFoundError:
            log.error(
                "instance.gone",
                sop_instance_uid=arrival.request.sop_instance_uid,
                meaning="answered with success, and removed from spool/incoming by somebody else: have the study sent again",
            )
            return False
        if not is_whole:
            self._spool.set_aside(arrival.file.path)
        return is_whole

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
