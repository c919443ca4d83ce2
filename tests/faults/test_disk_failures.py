"""Faults that the anomaly loops found, each on its own."""

import errno
import os
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from node.delivery.store_scu import contexts_for, read_part10
from node.errors import PeerUnreachable
from node.files import write_durably
from node.intake.conversation import Conversation
from node.intake.incoming import FileIdentity
from node.intake.spool import Spool
from node.journal import JournalUnusable, open_database
from tests.factories import make_ct_series
from tests.integration.intake_kit import config_for, listening, open_scu
from tests.peers import wait_until


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


def test_a_disk_that_does_not_even_remove_costs_no_association(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`discard` is called where nothing may be raised; what stays is swept at the next start."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    incoming = spool.open_incoming(FileIdentity("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1"))

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("os.unlink", broken)
        incoming.discard()
    assert not incoming.is_open
    assert list(spool.sealed()) == []
    assert not list((tmp_path / "spool" / "incoming").iterdir())


def test_a_fault_of_ours_in_an_association_holds_no_study_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [read_part10(path) for path in make_ct_series(tmp_path / "ct", slices=2).paths]
    last_words: list[type[BaseException]] = []
    monkeypatch.setattr("threading.excepthook", lambda thread: last_words.append(thread.exc_type))
    with listening(config_for(tmp_path / "state")) as listener, open_scu(listener.port, contexts_for(files)) as scu:
        scu.store(files[0])
        assert listener.open_associations() == 1

        def broken(*_: Any) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(Conversation, "_take", broken)
        with pytest.raises(PeerUnreachable):
            scu.store(files[1])
        wait_until(lambda: listener.open_associations() == 0, "the end of the association", 10)
        wait_until(lambda: last_words == [RuntimeError], "the end of its thread", 10)


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
