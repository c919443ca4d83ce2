"""Whether the journal and the files agree, and how a journal is put back: what `radnode journal check` and `restore` do."""

import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from node.domain.states import KINDS, DeliveryState, JobState, SeriesState, StudyState
from node.errors import IntakeError, NodeError, UsageError
from node.files import flush_file, fsync_folder
from node.intake.adoption import Reconciler, read_kept
from node.intake.spool import FOLDERS, UNVERIFIED, Spool
from node.journal import JournalUnusable, journal_path, open_database, transaction
from node.journal.database import SCHEMA_VERSION
from node.journal.retention import RetentionJournal
from node.journal.upkeep import Advice, judge_backup, open_for_reading, soundness_faults
from node.locks import HeldLock, LockHeld, is_free

LARGEST_HEAD_BYTES: Final = 1024
"""Preamble and file meta information of a kept file are shorter."""

SECOND_LOOK_S: Final = 1.5
_SHOWN: Final = 5

Progress = Callable[[str, float], None]


class NodeRuns(NodeError):
    """Not while the node runs."""


class Verdict(StrEnum):
    """What a check says."""

    OK = "ok"
    NOTE = "note"
    WRONG = "WRONG"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; `advice` says what to do."""

    check: str
    verdict: Verdict
    count: int
    text: str
    advice: str = ""


def node_lock(state_dir: Path) -> Path:
    """Answers the lock file that a running node holds."""
    return state_dir / "run" / "node.lock"


# ── check ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Examination:
    state_dir: Path
    connection: sqlite3.Connection
    deep: bool
    progress: Progress


def examine(state_dir: Path, backups: Path, progress: Progress, *, deep: bool = False) -> Iterator[Finding]:
    """Checks the journal, and that every file it names is there; nothing is changed, the node may run. `deep` reads every byte."""
    advice = Advice(state_dir, backups)
    try:
        connection = open_for_reading(state_dir)
    except JournalUnusable as error:
        yield Finding("file", Verdict.WRONG, 1, str(error), str(advice))
        return
    with closing(connection):
        faults = soundness_faults(connection)
        if faults:
            yield Finding("file", Verdict.WRONG, len(faults), f"the journal is damaged: {faults[0]}", str(advice))
            return
        yield Finding("file", Verdict.OK, 0, "SQLite finds nothing wrong")
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version != SCHEMA_VERSION:
            text = f"schema version {version}, this radnode uses {SCHEMA_VERSION}: the next start brings it there"
            verdict = Verdict.NOTE if version < SCHEMA_VERSION else Verdict.WRONG
            yield Finding("schema", verdict, 0, text, "" if version < SCHEMA_VERSION else "use the radnode that wrote it")
            return
        examination = _Examination(state_dir, connection, deep, progress)
        yield _references(examination)
        yield _states(examination)
        yield _endless_series(examination)
        yield _owners(examination)
        yield _undelivered(examination)
        yield _images(examination)
        yield _evidence(examination)
        yield _orphans(examination)
        yield _set_aside(examination)


def _finding(check: str, wrong: list[str], fine: str, fault: str, advice: str) -> Finding:
    if not wrong:
        return Finding(check, Verdict.OK, 0, fine)
    shown = ", ".join(wrong[:_SHOWN]) + (", …" if len(wrong) > _SHOWN else "")
    return Finding(check, Verdict.WRONG, len(wrong), f"{fault}: {shown}", advice)


def _references(examination: _Examination) -> Finding:
    broken = [f"{row[0]} → {row[2]}" for row in examination.connection.execute("PRAGMA foreign_key_check")]
    return _finding("references", broken, "every row has what it refers to", "rows refer to what is not there", "restore a backup")


def _set_aside(examination: _Examination) -> Finding:
    folder = examination.state_dir / "spool" / UNVERIFIED
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return _finding(
        "unverified",
        names,
        "no image was set aside",
        f"images that may not be whole since the machine went down, in {folder}",
        "have the studies of that hour sent again, then remove these files",
    )


def _states(examination: _Examination) -> Finding:
    wrong = []
    for kind, name in KINDS.items():
        known = {member.value for member in kind}
        found = {row[0] for row in examination.connection.execute(f"SELECT DISTINCT state FROM {name}")}  # noqa: S608 - a word of our own
        wrong += [f"{name} {state!r}" for state in sorted(found - known)]
    return _finding("states", wrong, "every state is in the table", "states that no table knows", "restore a backup")


def _endless_series(examination: _Examination) -> Finding:
    rows = examination.connection.execute(
        "SELECT series_instance_uid FROM series JOIN study USING (study_instance_uid) WHERE series.state = ? AND study.state = ?",
        (SeriesState.RECEIVING, StudyState.DECIDED),
    )
    wrong = [row[0] for row in rows]
    text = "every series of a decided study has its end"
    return _finding(
        "ends", wrong, text, "series without an end, their study decided on", "send one image of the study again; please report this"
    )


def _owners(examination: _Examination) -> Finding:
    runs = not is_free(node_lock(examination.state_dir))
    dead = _held_by_the_dead(examination)
    if dead and runs:
        time.sleep(SECOND_LOOK_S)  # the dispatcher gives them back within moments
        dead &= _held_by_the_dead(examination)
    if dead and not runs:
        text = "jobs were in hand when the node stopped: its next start takes them up"
        return Finding("owners", Verdict.NOTE, len(dead), text)
    held = [f"job {job_id}" for job_id in sorted(dead)]
    return _finding(
        "owners", held, "every job in hand has a living worker", "jobs of dead workers", "start the node again, and look at its log"
    )


def _held_by_the_dead(examination: _Examination) -> set[int]:
    rows = examination.connection.execute("SELECT job_id, owner FROM job WHERE state = ?", (JobState.IN_PROGRESS,)).fetchall()
    run_dir = examination.state_dir / "run"
    return {row["job_id"] for row in rows if row["owner"] and is_free(run_dir / f"{row['owner']}.lock")}


def _undelivered(examination: _Examination) -> Finding:
    count = examination.connection.execute(
        "SELECT count(*) FROM delivery WHERE state IN (?, ?) OR confirmation = 'MISSED'", (DeliveryState.REFUSED, DeliveryState.GIVEN_UP)
    ).fetchone()[0]
    if not count:
        return Finding("deliveries", Verdict.OK, 0, "none waits for a person")
    return Finding(
        "deliveries", Verdict.NOTE, count, "refused, given up or never confirmed: their studies are never removed", "radnode delivery list"
    )


def _images(examination: _Examination) -> Finding:
    spool = Spool(examination.state_dir / "spool")
    journal = RetentionJournal(examination.connection)
    rows = examination.connection.execute("SELECT sha256, size_bytes FROM instance WHERE purged_at IS NULL").fetchall()
    wrong = []
    for number, row in enumerate(rows):
        if number % 100 == 0:
            examination.progress("images", number / len(rows))
        fault = _image_fault(spool.path_of(row["sha256"]), row, deep=examination.deep)
        if fault and journal.is_named(row["sha256"]):  # asked again: retention may have removed it meanwhile
            wrong.append(f"{row['sha256'][:12]}… {fault}")
    fine = f"{len(rows)} images lie where they should" + (", byte for byte" if examination.deep else "")
    return _finding("images", wrong, fine, "images are not as they came", "have the archive send these studies again")


def _image_fault(path: Path, row: sqlite3.Row, *, deep: bool) -> str:
    try:
        head = path.stat().st_size - row["size_bytes"]
        if not 0 < head <= LARGEST_HEAD_BYTES:
            return "has another size"
        if deep:
            read_kept(path, row["sha256"])
    except FileNotFoundError:
        return "is gone"
    except (IntakeError, OSError) as error:
        return str(error)
    return ""


def _evidence(examination: _Examination) -> Finding:
    query = "SELECT sop_instance_uid, path, sha256 FROM evidence WHERE purged_at IS NULL"
    rows = examination.connection.execute(query).fetchall()
    wrong = []
    for number, row in enumerate(rows):
        if number % 10 == 0:
            examination.progress("results", number / len(rows))
        fault = _evidence_fault(Path(row["path"]), row["sha256"])
        again = "SELECT 1 FROM evidence WHERE sop_instance_uid = ? AND purged_at IS NULL"
        if fault and examination.connection.execute(again, (row["sop_instance_uid"],)).fetchone():
            wrong.append(f"{row['sop_instance_uid']} {fault}")
    fine = f"{len(rows)} results lie where they should, byte for byte"
    return _finding(
        "results", wrong, fine, "results are not as they were made", "see `radnode delivery list`: those not delivered are lost"
    )


def _evidence_fault(path: Path, sha256: str) -> str:
    try:
        with path.open("rb") as stream:
            return "" if hashlib.file_digest(stream, "sha256").hexdigest() == sha256 else "has other bytes"
    except OSError:
        return "is gone"


def _orphans(examination: _Examination) -> Finding:
    spool = Spool(examination.state_dir / "spool")
    journal = RetentionJournal(examination.connection)
    unknown = sum(not journal.is_named(sha256) for folder in FOLDERS for sha256, _ in spool.kept_in(folder))
    if not unknown:
        return Finding("orphans", Verdict.OK, 0, "every file of the spool has its row")
    return Finding("orphans", Verdict.NOTE, unknown, "files in the spool without a row: the running node takes them in, or sweeps them")


# ── restore ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore has done."""

    kept_aside: Path | None
    adopted: int
    missing: int
    """Images that the backup knows and that are gone: retention removed them after it, or they were lost."""
    unreadable: tuple[str, ...]


def restore(state_dir: Path, backup: Path | None, progress: Progress) -> Restored:
    """Puts a backup in the place of the journal, None: an empty one, and takes in what lies in the spool and it does not know.

    The present journal is kept aside. Whatever ends this half-way: done again, it goes on from there.

    Raises
    ------
    NodeRuns
        When the node runs.
    UsageError
        When the backup cannot be used; nothing has been changed.
    """
    fault = judge_backup(backup) if backup is not None else ""
    if fault:
        raise UsageError(f"{backup} cannot take the place of the journal: {fault} → name another backup, or use --from-spool")
    try:
        lock = HeldLock(node_lock(state_dir))
    except LockHeld as error:
        raise NodeRuns(f"the node of {state_dir} runs → stop it first: nothing may write while its journal is exchanged") from error
    try:
        kept_aside = _exchange(state_dir, backup)
        with closing(open_database(state_dir)) as connection:
            missing = _mark_missing(state_dir, connection)
            adopted, unreadable = _adopt_all(state_dir, connection, progress)
        return Restored(kept_aside, adopted, missing, unreadable)
    finally:
        lock.release()


def _exchange(state_dir: Path, backup: Path | None) -> Path | None:
    journal = journal_path(state_dir)
    incoming = journal.with_name(f".{journal.name}.restored")
    incoming.unlink(missing_ok=True)
    if backup is not None:
        shutil.copyfile(backup, incoming)
        flush_file(incoming)
    kept_aside = None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    # First the journal, then its log: a log that stays beside another journal would be taken for that one's.
    for suffix in ("", "-wal", "-shm"):
        present = journal.with_name(journal.name + suffix)
        if present.exists():
            aside = journal.with_name(f"{journal.stem}.damaged-{stamp}.sqlite{suffix}")
            present.rename(aside)
            kept_aside = kept_aside or aside
    fsync_folder(state_dir)
    if backup is not None:
        incoming.rename(journal)
        fsync_folder(state_dir)
    return kept_aside


def _mark_missing(state_dir: Path, connection: sqlite3.Connection) -> int:
    """Notes what the backup thinks is there and is not, as retention would have."""
    now_s = time.time()
    spool = Spool(state_dir / "spool")
    rows = connection.execute("SELECT sha256 FROM instance WHERE purged_at IS NULL").fetchall()
    missing = RetentionJournal(connection).mark_missing({row[0]: spool.path_of(row[0]).exists() for row in rows}, now_s=now_s)
    results = connection.execute("SELECT sop_instance_uid, path FROM evidence WHERE purged_at IS NULL").fetchall()
    gone = [(now_s, row["sop_instance_uid"]) for row in results if not os.path.exists(row["path"])]  # noqa: PTH110 - as it stands in the row
    with transaction(connection):
        connection.executemany("UPDATE evidence SET purged_at = ? WHERE sop_instance_uid = ?", gone)
    return missing


def _adopt_all(state_dir: Path, connection: sqlite3.Connection, progress: Progress) -> tuple[int, tuple[str, ...]]:
    reconciler = Reconciler(Spool(state_dir / "spool"), connection)
    adopted, unreadable = 0, []
    for number, folder in enumerate(FOLDERS):
        progress("spool", number / len(FOLDERS))
        found = reconciler.adopt_all(folder, now_s=time.time())
        adopted += found.adopted
        unreadable += [f"{folder}/{name}" for name in found.unreadable]
    return adopted, tuple(unreadable)
