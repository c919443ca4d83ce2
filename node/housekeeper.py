"""The housekeeper: the process that keeps the disk from filling up, the journal copied, and the spool in step with it.

Everything is done in short transactions and small portions, a portion a pass: many thousands of studies must not hold up the listener.
"""

import shutil
import sqlite3
import threading
import time
from contextlib import closing
from typing import Final

import structlog

from node.config import Config
from node.domain.retention import Purge, RetentionPolicy, StudyFacts, plan_purge
from node.errors import OutOfResources
from node.intake.adoption import ADOPTION, Reconciler
from node.intake.spool import FOLDERS, Spool
from node.journal import JournalUnusable, ReceivedJournal, open_database
from node.journal.retention import BEGINNING, Place, Purged, RetentionJournal
from node.journal.upkeep import (
    LARGE_WAL_BYTES,
    BackupFailed,
    backups_folder,
    list_backups,
    make_backup,
    moment_of,
    rotate_backups,
    truncate_wal,
    wal_bytes,
)

PASS_EVERY_S: Final = 30.0
STUDIES_A_PASS: Final = 1000
PURGES_A_PASS: Final = 100
FOLDERS_A_PASS: Final = 4
RESULTS_A_PASS: Final = 500
ADOPT_AFTER_S: Final = 3600.0
"""A file that no row names may be on its way into the journal for so long; its sender has given up by then."""

BACKUP_AGAIN_S: Final = 600.0
PAUSE_AFTER_SURPRISE_S: Final = 10.0
REMIND_EVERY_S: Final = 3600.0

log = structlog.get_logger("radnode")


def run_housekeeper(config: Config, stop: threading.Event) -> None:
    """Keeps house until `stop` is set."""
    while not stop.is_set():
        try:
            with closing(open_database(config.node.state_dir)) as connection:
                housekeeper = Housekeeper(config, connection)
                housekeeper.begin()
                while not stop.is_set():
                    housekeeper.pass_once(time.time())
                    stop.wait(PASS_EVERY_S)
        except (OSError, sqlite3.Error, JournalUnusable) as error:
            # The disk or the journal does not let us now. The connection is closed over it: it may be inside a transaction that failed.
            log.warning("housekeeper.interrupted", fault=type(error).__name__, reason=str(error))
            stop.wait(PAUSE_AFTER_SURPRISE_S)


class Housekeeper:
    """Where the rounds have come to; one connection to the journal. One object serves one thread."""

    def __init__(self, config: Config, connection: sqlite3.Connection) -> None:
        retention, gib = config.retention, 1 << 30
        self._config = config
        self._state_dir = config.node.state_dir
        self._connection = connection
        self._journal = RetentionJournal(connection)
        self._spool = Spool(self._state_dir / "spool")
        self._reconciler = Reconciler(self._spool, connection)
        self._policy = RetentionPolicy(
            delivered_s=retention.delivered_h * 3600,
            declined_s=retention.declined_h * 3600,
            failed_s=retention.failed_h * 3600,
            purge_below_free_bytes=int(retention.purge_below_free_gib * gib),
        )
        self._reserve_bytes = int(config.listener.refuse_below_free_gib * gib) // 2
        self._place: Place = BEGINNING
        self._folder = 0
        self._job_id = 0
        self._told_unreadable: set[str] = set()
        self._backup_not_before_s = 0.0
        self._short_told_s = 0.0

    def begin(self) -> None:
        """Ends what an earlier life left open."""
        ReceivedJournal(self._connection).close_association(ADOPTION)

    def pass_once(self, now_s: float) -> None:
        """Does a portion of everything that is due at `now_s`."""
        self._retain(now_s)
        self._reconcile(now_s)
        self._sweep_results()
        self._back_up(now_s)
        if wal_bytes(self._state_dir) > LARGE_WAL_BYTES and truncate_wal(self._connection):
            log.info("journal.log_emptied")

    # ── retention ───────────────────────────────────────────────────────────

    def _retain(self, now_s: float) -> None:
        studies = self._next_studies()
        free_bytes = shutil.disk_usage(self._state_dir).free
        plan = plan_purge(studies, self._policy, free_bytes=free_bytes, now_s=now_s)
        freed = sum(self._purge(purge, now_s) for purge in plan[:PURGES_A_PASS])
        if len(plan) > PURGES_A_PASS:
            self._place = BEGINNING  # the rest of the plan is at the front again
        short = free_bytes < self._policy.purge_below_free_bytes
        if short and not freed and self._place == BEGINNING and now_s - self._short_told_s >= REMIND_EVERY_S:
            self._short_told_s = now_s
            log.warning(
                "retention.cannot_make_room",
                free_mib=free_bytes >> 20,
                meaning="below purge_below_free_gib, and all that is left is under way, undelivered or failed: see `radnode delivery list`",
            )

    def _next_studies(self) -> list[StudyFacts]:
        """Answers the next portion of studies, from the oldest on; behind the last comes the first."""
        places = self._journal.studies_with_files(self._place, STUDIES_A_PASS)
        self._place = places[-1] if len(places) == STUDIES_A_PASS else BEGINNING
        facts = [self._journal.facts_of(uid) for _, uid in places]
        return [one for one in facts if one is not None]

    def _purge(self, purge: Purge, now_s: float) -> int:
        """Gives up a study and removes its files; answers the bytes that this frees."""
        purged = self._journal.purge(purge, now_s=now_s)
        if purged is None:
            return 0  # something has come between: judged again at the next round
        self._remove(purged)
        log.info(
            "study.purged",
            study_instance_uid=purge.study.study_instance_uid,
            standing=purge.standing,
            reason=purge.reason,
            images=len(purged.instances),
            megabytes=round(purge.study.kept_bytes / 1e6, 1),
        )
        return purge.study.kept_bytes

    def _remove(self, purged: Purged) -> None:
        by_folder: dict[str, list[str]] = {}
        for sha256 in dict.fromkeys(purged.instances):
            by_folder.setdefault(sha256[:2], []).append(sha256)
        for digests in by_folder.values():
            try:
                self._reconciler.remove_unnamed(digests)
            except OutOfResources as error:
                log.warning("retention.folder_busy", reason=str(error))  # swept when the round comes by
        for job_id in purged.job_ids:
            self._remove_results(job_id)

    def _remove_results(self, job_id: int) -> None:
        runs = self._journal.runs_given_up(job_id)
        if runs is None:
            return
        folder = self._state_dir / "results" / str(job_id)
        for run in range(runs):
            shutil.rmtree(folder / str(run), ignore_errors=True)  # what stays now is swept when the round comes by
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    # ── what a crash or a restored backup leaves ────────────────────────────

    def _reconcile(self, now_s: float) -> None:
        for _ in range(FOLDERS_A_PASS):
            folder = FOLDERS[self._folder]
            self._folder = (self._folder + 1) % len(FOLDERS)
            try:
                found = self._reconciler.reconcile(folder, now_s=now_s, younger_than_s=ADOPT_AFTER_S)
            except OutOfResources as error:
                log.warning("spool.folder_busy", reason=str(error))
                continue
            if found.adopted or found.swept:
                log.warning("spool.reconciled", folder=folder, adopted=found.adopted, swept=found.swept)
            for name in found.unreadable:
                if name not in self._told_unreadable:
                    self._told_unreadable.add(name)
                    log.error(
                        "spool.unreadable", file=f"{folder}/{name}", meaning="no row names it and it is no whole instance: left alone"
                    )

    def _sweep_results(self) -> None:
        """Removes results of purged studies that a crash between the commit and the removal has left."""
        folder = self._state_dir / "results"
        names = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []
        portion = [job_id for job_id in names if job_id > self._job_id][:RESULTS_A_PASS]
        for job_id in portion:
            self._remove_results(job_id)
        self._job_id = portion[-1] if len(portion) == RESULTS_A_PASS else 0

    # ── backups ─────────────────────────────────────────────────────────────

    def _back_up(self, now_s: float) -> None:
        section = self._config.backup
        if not section.every_h or now_s < self._backup_not_before_s:
            return
        folder = backups_folder(self._state_dir, section.folder)
        try:
            newest = next(iter(list_backups(folder)), None)
            if newest is not None and abs(now_s - moment_of(newest)) < section.every_h * 3600:
                return
            # Half of what the listener leaves free is the journal's own; the other half bears a backup.
            made = make_backup(self._connection, folder, now_s=now_s, spare_bytes=self._reserve_bytes)
            rotate_backups(folder, section.keep)
        except (BackupFailed, OSError) as error:
            self._backup_not_before_s = now_s + BACKUP_AGAIN_S
            log.error("journal.backup_failed", reason=str(error), again_in_s=BACKUP_AGAIN_S)
            return
        self._backup_not_before_s = now_s + section.every_h * 3600  # also where a clock that was set back leaves newer names
        log.info("journal.backed_up", file=str(made))
