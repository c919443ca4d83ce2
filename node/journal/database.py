"""The SQLite file: opened durable (WAL, synchronous FULL), migrated, with short immediate transactions."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from typing import Final

from node.domain.states import KINDS, OPENING_STATES, Priority, State, is_allowed
from node.errors import NodeError
from node.files import Durability, flush_file, fsync_folder

SCHEMA_VERSION: Final = 2
BUSY_TIMEOUT_S: Final = 30.0
_FILE_NAME: Final = "journal.sqlite"
_TAKEN: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
"""Primary result codes that pass when the other connection is done; the upper bits of a code only say more."""


class JournalUnusable(NodeError):
    """The journal cannot be opened: wrong version, damaged, or on a file system without locks."""


class IllegalTransition(NodeError):
    """Our bug: a step that is not in the table of states."""


def journal_path(state_dir: Path) -> Path:
    """Answers where the journal of a node lies."""
    return state_dir / _FILE_NAME


def open_database(state_dir: Path, *, create: bool = True, durability: Durability = Durability.POWER_LOSS) -> sqlite3.Connection:
    """Opens the journal of a node, creating or migrating it first.

    One connection serves one thread. Commits are flushed to the disk before they return (WAL, FULL): promise P1 rests
    on it. With `Durability.PROCESS_CRASH` they are handed to the kernel only, which outlives every process of ours.

    Raises
    ------
    JournalUnusable
        When the file is absent and `create` is False, damaged, or written by a newer radnode.
    """
    path = journal_path(state_dir)
    if not create and not path.exists():
        raise JournalUnusable(f"there is no journal at {path}: has `radnode serve` ever run with this state_dir?")
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        _configure(connection, durability)
        _migrate(connection, path)
    except (sqlite3.DatabaseError, OSError) as error:  # OSError: no room for the copy that a migration keeps
        connection.close()
        raise JournalUnusable(f"the journal {path} cannot be used: {error}") from error
    return connection


def _configure(connection: sqlite3.Connection, durability: Durability) -> None:
    # Switching a new file to WAL ignores the busy timeout: two first starters race, so the loser tries again.
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _TAKEN or time.monotonic() > deadline:  # a broken disk is told at once
                raise
            time.sleep(0.02)
    if mode != "wal":
        raise sqlite3.OperationalError(f"no write-ahead log on this file system (journal mode {mode})")
    connection.execute(f"PRAGMA synchronous = {'FULL' if durability is Durability.POWER_LOSS else 'NORMAL'}")
    connection.execute("PRAGMA foreign_keys = ON")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = _version(connection)
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"schema version {version} is newer than this radnode ({SCHEMA_VERSION}): {path}")
    if version == SCHEMA_VERSION:
        return
    with transaction(connection):
        version = _version(connection)  # asked again: another process may have been first
        if 0 < version < SCHEMA_VERSION:
            with closing(sqlite3.connect(path)) as reader:  # in the lock: whoever comes late cannot copy the new over the old
                back_up(reader, path.with_name(f"{path.stem}.before-v{SCHEMA_VERSION}.sqlite"))
        for script in _scripts_from(version):
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _scripts_from(version: int) -> Iterator[str]:
    """Answers what brings a journal of a version to the present one: the whole schema for a new file, else the steps that it lacks."""
    package = resources.files("node.journal")
    if version == 0:
        yield package.joinpath("schema.sql").read_text(encoding="utf-8")
        return
    for step in sorted(package.joinpath("migrations").iterdir(), key=lambda step: step.name):
        if step.name.endswith(".sql") and int(step.name[:4]) > version:
            yield step.read_text(encoding="utf-8")


def back_up(connection: sqlite3.Connection, target: Path) -> None:
    """Copies a journal, also one in use, to `target`: whole and durable there, or not at all.

    Raises sqlite3.Error or OSError when it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with closing(sqlite3.connect(temporary)) as copy:
            connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        flush_file(temporary)
        temporary.replace(target)
        fsync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Runs a block as one immediate transaction: all of it is durable when the block ends, or nothing is."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a failed commit leaves it open, and with it the lock that all others wait for
            connection.execute("ROLLBACK")
        raise


def by_urgency(column: str) -> str:
    """Answers an ORDER BY term for a column that holds a Priority: the urgent first."""
    return f"CASE {column} WHEN '{Priority.HIGH}' THEN 0 WHEN '{Priority.LOW}' THEN 2 ELSE 1 END"


def record_step(connection: sqlite3.Connection, key: str, before: State | None, after: State, *, now_s: float, reason: str = "") -> None:
    """Writes one step into the history, after asking the table of states; inside a transaction of the caller.

    Raises
    ------
    IllegalTransition
        When the table does not know the step.
    """
    kind = KINDS[type(after)]
    legal = OPENING_STATES[type(after)] is after if before is None else is_allowed(before, after)
    if not legal:
        raise IllegalTransition(f"{kind} {key}: {before} -> {after}")
    connection.execute(
        "INSERT INTO transition (at, kind, key, before, after, reason) VALUES (?, ?, ?, ?, ?, ?)",
        (now_s, kind, key, before or "", after, reason),
    )
