"""The journal's own upkeep: soundness, backups and their rotation, the write-ahead log, history that nobody asks for any more."""

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from node.errors import NodeError
from node.journal.database import SCHEMA_VERSION, JournalUnusable, back_up, journal_path, transaction

LARGE_WAL_BYTES: Final = 64 << 20
CHECKPOINT_WAIT_MS: Final = 1000
"""How long a checkpoint waits for readers, and writers for it."""

DROPPED_AT_ONCE: Final = 2000
"""Rows of the history that go in one transaction."""

_BACKUP_NAME: Final = re.compile(r"journal-\d{8}T\d{6}Z\.sqlite")
_LEFTOVER_NAME: Final = re.compile(r"\.journal-\d{8}T\d{6}Z\.sqlite\.\d+\.part(-journal)?")
_SPOOLED: Final = "spool/??/*.dcm"

_ENDED: Final = {
    "job": "SELECT 1 FROM job WHERE job_id = CAST(transition.key AS INTEGER) AND state IN ('COMPLETED', 'CANCELED')",
    "delivery": "SELECT 1 FROM delivery WHERE delivery_id = CAST(transition.key AS INTEGER)"
    " AND (state = 'COMMITTED' OR state = 'STORED' AND confirmation = 'WAIVED')",
    "series": "SELECT 1 FROM series WHERE series_instance_uid = transition.key AND state != 'RECEIVING'",
    "study": "SELECT 1 FROM study WHERE study_instance_uid = transition.key AND state = 'DECIDED'",
}
"""Of each kind in the history: whether the thing has come to its end."""


class BackupFailed(NodeError):
    """The journal could not be copied."""


def backups_folder(state_dir: Path, configured: Path | None) -> Path:
    """Answers where backups of a node's journal lie."""
    return configured if configured is not None else state_dir / "backups"


def list_backups(folder: Path) -> tuple[Path, ...]:
    """Answers the backups that radnode has made, the newest first; what has another name is nothing of ours."""
    found = [path for path in folder.iterdir() if _BACKUP_NAME.fullmatch(path.name)] if folder.is_dir() else []
    return tuple(sorted(found, reverse=True))


def moment_of(backup: Path) -> float:
    """Answers when a backup was made, in seconds since the epoch."""
    return datetime.strptime(backup.name, "journal-%Y%m%dT%H%M%SZ.sqlite").replace(tzinfo=UTC).timestamp()


def make_backup(connection: sqlite3.Connection, folder: Path, *, now_s: float, spare_bytes: int = 0) -> Path:
    """Copies the journal, also one in use, into a folder; `spare_bytes` of its disk stay free.

    Raises
    ------
    BackupFailed
        When it cannot be written; nothing is left of it.
    """
    target = folder / datetime.fromtimestamp(now_s, tz=UTC).strftime("journal-%Y%m%dT%H%M%SZ.sqlite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep_leftovers(folder)  # first: on a full disk they may be what is in the way
        free, needed = shutil.disk_usage(folder).free, size_bytes(connection)
    except OSError as error:
        raise BackupFailed(f"{folder} cannot take a backup: {error.strerror}") from error
    if free - needed < spare_bytes:
        raise BackupFailed(f"{folder} has {free >> 20} MiB free: too little for {needed >> 20} MiB and the reserve of the disk")
    return copy_to(connection, target)


def copy_to(connection: sqlite3.Connection, target: Path) -> Path:
    """Copies the journal to a file; raises BackupFailed when it cannot be written."""
    try:
        back_up(connection, target)
    except (OSError, sqlite3.Error) as error:
        raise BackupFailed(f"the journal could not be copied to {target}: {error} → name a file in a folder that can be written") from error
    return target


def rotate_backups(folder: Path, keep: int) -> tuple[Path, ...]:
    """Removes all but the newest `keep` backups; answers those that went."""
    old = list_backups(folder)[keep:]
    for path in old:
        path.unlink(missing_ok=True)
    return old


def _sweep_leftovers(folder: Path) -> None:
    """Removes what killed backups have left."""
    for path in list(folder.iterdir()):
        if _LEFTOVER_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def size_bytes(connection: sqlite3.Connection) -> int:
    """Answers how large the journal is, without its log."""
    return int(connection.execute("PRAGMA page_count").fetchone()[0]) * int(connection.execute("PRAGMA page_size").fetchone()[0])


def wal_bytes(state_dir: Path) -> int:
    """Answers how large the write-ahead log is."""
    path = journal_path(state_dir)
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        return 0


def truncate_wal(connection: sqlite3.Connection) -> bool:
    """Writes the log back into the journal and empties it; False when others were at it: then the next time."""
    before = connection.execute("PRAGMA busy_timeout").fetchone()[0]
    connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_WAIT_MS}")
    try:
        return int(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]) == 0
    finally:
        connection.execute(f"PRAGMA busy_timeout = {before}")


def drop_history(connection: sqlite3.Connection, *, before_s: float) -> int:
    """Forgets the steps before a moment of what has come to its end; answers how many. Short transactions, for a node that runs."""
    dropped = 0
    for kind, ended in _ENDED.items():
        while True:
            with transaction(connection):
                gone = connection.execute(
                    f"DELETE FROM transition WHERE rowid IN (SELECT rowid FROM transition WHERE kind = ? AND at < ?"  # noqa: S608 - words of our own
                    f" AND EXISTS ({ended}) LIMIT {DROPPED_AT_ONCE})",
                    (kind, before_s),
                ).rowcount
            dropped += gone
            if gone < DROPPED_AT_ONCE:
                break
    return dropped


def vacuum(connection: sqlite3.Connection) -> None:
    """Gives the room of removed rows back to the disk.

    Raises
    ------
    JournalUnusable
        When it cannot be done now, for instance because the disk has no room for a second copy.
    """
    try:
        truncate_wal(connection)
        connection.execute("VACUUM")
        truncate_wal(connection)
    except sqlite3.Error as error:
        raise JournalUnusable(
            f"the journal was not made smaller: {error} → stop the node, or make room on its disk, and try again"
        ) from error


def export_rows(connection: sqlite3.Connection, table: str) -> Iterator[dict[str, Any]]:
    """Answers the rows of a table, read in one go."""
    for row in connection.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - a name out of `tables_of`
        yield dict(row)


def columns_of(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    """Answers the names of the columns of a table."""
    return tuple(row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?) ORDER BY cid", (table,)))


def tables_of(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Answers the names of the tables."""
    return tuple(row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid"))


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about a journal that cannot be used."""

    state_dir: Path
    backups: Path

    def __str__(self) -> str:
        """Names the commands, with the newest backup."""
        newest = next(iter(list_backups(self.backups)), None)
        way = f"`radnode journal restore {newest}`" if newest else "`radnode journal restore --from-spool` (there is no backup)"
        return (
            f"stop the node, then {way}; the damaged file is kept aside, and every received image that lies in the spool is taken in again"
        )


def open_for_reading(state_dir: Path) -> sqlite3.Connection:
    """Opens a journal that may be damaged, in use or of an older version: nothing is created, migrated or configured.

    Raises
    ------
    JournalUnusable
        When there is none, or it cannot be read at all.
    """
    path = journal_path(state_dir)
    if not path.exists():
        raise JournalUnusable(f"there is no journal at {path}")
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10.0, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise JournalUnusable(f"the journal {path} cannot be read: {error}") from error
    return connection


def soundness_faults(connection: sqlite3.Connection, *, quick: bool = False) -> tuple[str, ...]:
    """Answers what SQLite finds wrong with the file; `quick` leaves out whether the indices agree with their tables."""
    try:
        found = connection.execute("PRAGMA quick_check(20)" if quick else "PRAGMA integrity_check(20)").fetchall()
    except sqlite3.DatabaseError as error:
        return (str(error),)
    return tuple(row[0] for row in found if row[0] != "ok")


def require_sound_journal(state_dir: Path, backups: Path | None = None) -> None:
    """Refuses to start on a damaged or lost journal; a first start has neither journal nor spool, and is none.

    Raises
    ------
    JournalUnusable
        Saying what is wrong, and the commands that mend it.
    """
    advice = Advice(state_dir, backups_folder(state_dir, backups))
    path = journal_path(state_dir)
    if not path.exists():
        if next(state_dir.glob(_SPOOLED), None) is not None:
            raise JournalUnusable(f"{path} is gone, but images lie in the spool → {advice}")
        return
    try:
        with closing(open_for_reading(state_dir)) as connection:
            faults = soundness_faults(connection, quick=True)
    except JournalUnusable as error:
        raise JournalUnusable(f"{error} → {advice}") from error
    if faults:
        raise JournalUnusable(f"the journal {path} is damaged: {faults[0]} → {advice}")


def judge_backup(file: Path) -> str:
    """Answers why a file cannot take the place of the journal, '' where it can."""
    if not file.is_file():
        return "there is no such file"
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as copy:
            version = int(copy.execute("PRAGMA user_version").fetchone()[0])
            faults = soundness_faults(copy)
    except sqlite3.DatabaseError as error:
        return f"it is no journal: {error}"
    if not 1 <= version <= SCHEMA_VERSION:
        return f"its schema version is {version}, this radnode reads 1 to {SCHEMA_VERSION}"
    return f"it is damaged: {faults[0]}" if faults else ""
