"""Faults that the anomaly loops found, each on its own."""

import os
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from node.files import write_durably
from node.journal import JournalUnusable, open_database


class BrokenDisk(sqlite3.Connection):
    """A journal on a disk that fails at the first question."""

    tries = 0

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if "journal_mode" in sql:
            BrokenDisk.tries += 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
            raise error
        return super().execute(sql, *args)


def test_a_broken_disk_is_told_at_once_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that waited half a minute for it, with the writers' lock in hand, would answer nobody."""
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=BrokenDisk))
    with pytest.raises(JournalUnusable, match="disk I/O error"):
        open_database(tmp_path)
    assert BrokenDisk.tries == 1


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_writer_left_is_gone_after_the_next_one(tmp_path: Path) -> None:
    dead, alive, other = (
        tmp_path / f".{name}.part" for name in (f"seg.dcm.{dead_pid()}", f"seg.dcm.{os.getppid()}", f"sr.dcm.{dead_pid()}")
    )
    for leftover in (dead, alive, other):
        leftover.write_bytes(b"half")
    write_durably(tmp_path / "seg.dcm", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, other.name, "seg.dcm"])
    assert (tmp_path / "seg.dcm").read_bytes() == b"whole"
