"""Journals of every released version come to the present one, whole, whatever happens on the way."""

import multiprocessing
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from node.domain.states import DeliveryState, JobState, SeriesState, StudyState
from node.journal import JournalUnusable, open_database
from node.journal.database import SCHEMA_VERSION, journal_path
from node.journal.queries import list_deliveries, list_jobs, list_series

SCHEMAS = Path(__file__).parent / "schemas"
RELEASED = sorted(int(path.stem[1:]) for path in SCHEMAS.glob("v*.sql"))
"""Every version that a hospital may have: its schema, as it was released, never edited."""


def fill(connection: sqlite3.Connection) -> None:
    """Rows in every table, and every state of every kind; with the columns of version 1 alone."""
    for number, state in enumerate(StudyState):
        connection.execute("INSERT INTO study VALUES (?, ?, ?, ?, ?)", (f"1.{number}", state, number, 10.5, 11.5))
    for number, series_state in enumerate(SeriesState):
        connection.execute("INSERT INTO series VALUES (?, '1.0', ?, ?, ?)", (f"1.0.{number}", series_state, "because", 12.5))
        connection.execute(
            "INSERT INTO instance VALUES (?, ?, ?, ?, '1.0', '1.2.840', '1.2.1', ?, 'PACS', ?)",
            (f"1.0.{number}.1", number, f"{number:064}", f"1.0.{number}", 100 + number, 13.5),
        )
    connection.execute("INSERT INTO open_association VALUES ('a1', '1.0')")
    for number, job_state in enumerate(JobState):
        connection.execute(
            "INSERT INTO job (job_key, study_instance_uid, series_instance_uid, route, model, model_digest, state, created_at,"
            " last_instance_at) VALUES (?, '1.0', '1.0.1', 'r', 'm', 'd', ?, 14.5, 13.5)",
            (f"k{number}", job_state),
        )
    connection.execute("UPDATE job SET predecessor_job_id = 1 WHERE job_id = 2")
    connection.execute("INSERT INTO job_input VALUES (1, '1.0.1.1', ?)", (f"{1:064}",))
    connection.execute("INSERT INTO job_destination VALUES (1, 'pacs')")
    connection.execute("INSERT INTO stage VALUES (1, 'infer', 2.5)")
    for number, (delivery_state, attempts) in enumerate([*((state, 3) for state in DeliveryState), (DeliveryState.PENDING, 0)]):
        connection.execute(
            "INSERT INTO evidence VALUES (?, 3, 0, 'seg', '66.4', '9', '/r/seg.dcm', 's', 10)",
            (f"9.{number}",),
        )
        connection.execute(
            "INSERT INTO delivery (sop_instance_uid, destination, state, attempts, next_attempt_at) VALUES (?, 'pacs', ?, ?, 15.5)",
            (f"9.{number}", delivery_state, attempts),
        )
    connection.execute("INSERT INTO transition VALUES (16.5, 'study', '1.0', '', 'RECEIVING', '')")


def rows_of(connection: sqlite3.Connection) -> dict[str, list[dict[str, Any]]]:
    connection.row_factory = sqlite3.Row
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    return {table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")] for table in tables}  # noqa: S608


def shape_of(connection: sqlite3.Connection) -> dict[str, Any]:
    """Columns, defaults, keys, indices with their conditions: all that tells one schema from another."""
    shape: dict[str, Any] = {}
    for table, kind, strict, without_rowid in connection.execute("SELECT name, type, strict, wr FROM pragma_table_list").fetchall():
        if kind != "table" or table.startswith("sqlite_"):
            continue
        indices = {}
        for _, index, unique, origin, partial in connection.execute(f"PRAGMA index_list({table})").fetchall():
            columns = tuple(row[2] for row in connection.execute(f"PRAGMA index_info({index})"))
            words = connection.execute("SELECT coalesce(max(sql), '') FROM sqlite_schema WHERE name = ?", (index,)).fetchone()[0]
            indices[index] = (unique, origin, partial, columns, re.sub(r"\s+", " ", words))
        shape[table] = (
            strict,
            without_rowid,
            tuple(map(tuple, connection.execute(f"PRAGMA table_xinfo({table})"))),
            tuple(map(tuple, connection.execute(f"PRAGMA foreign_key_list({table})"))),
            indices,
        )
    return shape


@pytest.fixture(params=RELEASED)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A state directory with a full journal of a released version."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    make_journal(state_dir, request.param)
    return state_dir


def make_journal(state_dir: Path, version: int) -> None:
    with closing(sqlite3.connect(journal_path(state_dir), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript((SCHEMAS / f"v{version}.sql").read_text(encoding="utf-8"))
        connection.execute(f"PRAGMA user_version = {version}")
        fill(connection)


def read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)


def test_the_schema_of_every_released_version_is_kept_for_these_tests() -> None:
    """Raising SCHEMA_VERSION means keeping the schema that it replaces, and a script that leads on from it."""
    assert list(range(1, SCHEMA_VERSION)) == RELEASED
    steps = sorted(path.name for path in (Path(__file__).parents[3] / "node" / "journal" / "migrations").glob("*.sql"))
    assert [int(name[:4]) for name in steps] == list(range(2, SCHEMA_VERSION + 1))


def test_a_migrated_journal_has_the_shape_of_a_new_one(released: Path, tmp_path: Path) -> None:
    fresh_dir = tmp_path / "fresh"
    fresh_dir.mkdir()
    with closing(open_database(released)) as migrated, closing(open_database(fresh_dir)) as fresh:
        assert shape_of(migrated) == shape_of(fresh)
        assert migrated.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        assert migrated.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert not migrated.execute("PRAGMA foreign_key_check").fetchall()


def test_a_migration_keeps_every_value_of_every_row(released: Path) -> None:
    with closing(read(journal_path(released))) as old:
        before = rows_of(old)
    assert all(before.values()), "a table without rows proves nothing"
    with closing(open_database(released)) as migrated:
        after = rows_of(migrated)
        for table, rows in before.items():
            assert [{column: row[column] for column in rows[0]} for row in after[table]] == rows
        assert len(list_jobs(migrated, all=True)) == len(JobState)
        assert len(list_series(migrated, all=True)) == len(SeriesState)
        assert len(list_deliveries(migrated, all=True)) == len(DeliveryState) + 1


def test_what_was_stored_is_asked_about_and_what_was_tried_may_have_arrived(tmp_path: Path) -> None:
    make_journal(tmp_path, 1)
    with closing(open_database(tmp_path)) as migrated:
        found = {
            (row["state"], row["attempts"]): (row["confirmation"], row["confirm_at"], row["unsure"])
            for row in migrated.execute("SELECT * FROM delivery")
        }
    assert found == {
        ("STORED", 3): ("AWAITED", 0.0, 0),
        ("PENDING", 3): ("", None, 1),
        ("PENDING", 0): ("", None, 0),
        ("COMMITTED", 3): ("", None, 0),
        ("REFUSED", 3): ("", None, 0),
        ("GIVEN UP", 3): ("", None, 0),
    }


def test_a_readable_copy_of_before_is_kept(released: Path) -> None:
    with closing(read(journal_path(released))) as old:
        version, before = old.execute("PRAGMA user_version").fetchone()[0], rows_of(old)
    open_database(released).close()
    with closing(read(released / f"journal.before-v{SCHEMA_VERSION}.sqlite")) as copy:
        assert copy.execute("PRAGMA user_version").fetchone()[0] == version
        assert rows_of(copy) == before
        assert copy.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def _open(state_dir: str, start: Any, answers: Any) -> None:
    start.wait(30)
    try:
        open_database(Path(state_dir)).close()
        answers.put("")
    except Exception as error:  # noqa: BLE001 - told to the test
        answers.put(repr(error))


def test_processes_that_start_at_once_migrate_once(released: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_open, args=(str(released), start, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [""] * 4
    for process in processes:
        process.join(30)
    with closing(open_database(released)) as migrated:
        assert migrated.execute("SELECT count(*) FROM study").fetchone()[0] == len(StudyState)
    with closing(read(released / f"journal.before-v{SCHEMA_VERSION}.sqlite")) as copy:
        assert copy.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION, "whoever came late has not copied over it"


DIES = """
import os, signal, sqlite3, sys
from pathlib import Path
from node.journal import open_database
left = int(sys.argv[2])
class Mortal(sqlite3.Connection):
    def execute(self, sql, *rest):
        global left
        if self.in_transaction or sql.startswith("BEGIN"):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return super().execute(sql, *rest)
connect = sqlite3.connect
sqlite3.connect = lambda *args, **options: connect(*args, **{**options, "factory": Mortal})
open_database(Path(sys.argv[1])).close()
"""


def test_a_kill_in_the_middle_of_a_migration_leaves_the_old_journal_intact(tmp_path: Path) -> None:
    """Before its first statement, after some, and just before the COMMIT."""
    make_journal(tmp_path, 1)
    with closing(read(journal_path(tmp_path))) as old:
        before = rows_of(old)
    statements = _statements_of_a_migration(tmp_path)
    for left in (0, 1, statements // 2, statements - 1):
        ended = subprocess.run([sys.executable, "-c", DIES, str(tmp_path), str(left)], check=False, capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        with closing(read(journal_path(tmp_path))) as survivor:
            assert survivor.execute("PRAGMA user_version").fetchone()[0] == 1
            assert rows_of(survivor) == before
    with closing(open_database(tmp_path)) as migrated:
        assert migrated.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION


def _statements_of_a_migration(folder: Path) -> int:
    """Counts from BEGIN to COMMIT, on a copy."""
    copy = folder / "counted"
    copy.mkdir()
    make_journal(copy, 1)
    script = DIES.replace("if left == 0:", "print(sql.split()[0]); sys.stdout.flush()\n            if left == -1:")
    ended = subprocess.run([sys.executable, "-c", script, str(copy), "1000"], check=True, capture_output=True, text=True)
    words = ended.stdout.split()
    assert (words[0], words[-1]) == ("BEGIN", "COMMIT")
    return len(words)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99])
def test_a_journal_of_a_newer_radnode_is_refused_and_left_as_it_is(tmp_path: Path, version: int) -> None:
    with closing(open_database(tmp_path)) as opened:
        opened.execute(f"PRAGMA user_version = {version}")
    content = journal_path(tmp_path).read_bytes()
    with pytest.raises(JournalUnusable, match=f"schema version {version} is newer than this radnode"):
        open_database(tmp_path)
    assert journal_path(tmp_path).read_bytes() == content
