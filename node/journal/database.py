"""The SQLite file: opened durable (WAL, synchronous FULL), migrated, with short immediate transactions."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Final

from node.domain.states import KINDS, OPENING_STATES, State, is_allowed
from node.errors import NodeError

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 30.0
_FILE_NAME: Final = "journal.sqlite"


class JournalUnusable(NodeError):
    """The journal cannot be opened: wrong version, damaged, or on a file system without locks."""


class IllegalTransition(NodeError):
    """Our bug: a step that is not in the table of states."""


def journal_path(state_dir: Path) -> Path:
    """Answers where the journal of a node lies."""
    return state_dir / _FILE_NAME


def open_database(state_dir: Path, *, create: bool = True) -> sqlite3.Connection:
    """Opens the journal of a node, creating or migrating it first.

    One connection serves one thread. Commits are flushed to the disk before they return (WAL, FULL): promise P1 rests
    on it.

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
        _configure(connection)
        _migrate(connection, path)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise JournalUnusable(f"the journal {path} cannot be used: {error}") from error
    return connection


def _configure(connection: sqlite3.Connection) -> None:
    # Switching a new file to WAL ignores the busy timeout: two first starters race, so the loser tries again.
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    if mode != "wal":
        raise sqlite3.OperationalError(f"no write-ahead log on this file system (journal mode {mode})")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = _version(connection)
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"schema version {version} is newer than this radnode ({SCHEMA_VERSION}): {path}")
    if version == SCHEMA_VERSION:
        return
    schema = resources.files("node.journal").joinpath("schema.sql").read_text(encoding="utf-8")
    with transaction(connection):
        if _version(connection) == 0:
            for statement in _statements(schema):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


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
