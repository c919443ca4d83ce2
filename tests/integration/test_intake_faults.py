"""Nothing is answered with success that is not safe: the disk and the journal fail at every place, the listener is killed."""

import builtins
import contextlib
import errno
import functools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node.delivery.store_scu import contexts_for, read_part10, store_files
from node.errors import OutOfResources, PeerUnreachable, StoreOutOfResources
from node.intake.reception import Intake, StoreRequest
from node.intake.spool import FileIdentity, Spool, spooled_path
from node.journal import Recorded, open_database
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import config_for, data_set_of, digest, listening, open_scu, peer_of
from tests.peers import wait_until


class FaultyDisk:
    """Lets the n-th call that touches the disk fail, as a full or broken disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail_at = 0
        self.calls: list[str] = []
        self.errno = errno.ENOSPC
        for name in ("open", "fsync", "rename", "statvfs"):
            monkeypatch.setattr(os, name, functools.partial(self._call, name, getattr(os, name)))
        monkeypatch.setattr(builtins, "open", functools.partial(self._open_file, open))

    def _open_file(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        stream = real(*args, **kwargs)
        return FaultyStream(stream, self._count) if "xb" in args else stream

    def _call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._count(name)
        return real(*args, **kwargs)

    def _count(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.fail_at:
            raise OSError(self.errno, os.strerror(self.errno))

    def arm(self, fail_at: int, number: int = errno.ENOSPC) -> None:
        self.calls, self.fail_at, self.errno = [], fail_at, number


class FaultyStream:
    """A file whose writes count as calls, too."""

    def __init__(self, stream: Any, count: Callable[[str], None]) -> None:
        self._stream, self._count = stream, count

    def write(self, data: bytes) -> int:
        self._count("write")
        return int(self._stream.write(data))

    def flush(self) -> None:
        self._count("flush")
        self._stream.flush()

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


class FaultyConnection(sqlite3.Connection):
    """A journal whose n-th statement fails."""

    fail_at = 0
    statements = 0

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        cls = FaultyConnection
        if cls.fail_at and not sql.startswith(("PRAGMA", "ROLLBACK")):
            cls.statements += 1
            if cls.statements == cls.fail_at:
                raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct", slices=4)


@pytest.fixture
def faulty_disk(monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    return FaultyDisk(monkeypatch)


@pytest.fixture
def faulty_journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyConnection]]:
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=FaultyConnection))
    FaultyConnection.fail_at = FaultyConnection.statements = 0
    yield FaultyConnection
    FaultyConnection.fail_at = 0


def receive(intake: Intake, spool: Spool, path: Path) -> Recorded:
    """What the network side does with an instance."""
    file = read_part10(path)
    incoming = spool.open_incoming(FileIdentity(file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid))
    data = data_set_of(path)
    for place in range(0, len(data), 4000):
        incoming.write(data[place : place + 4000])
    return intake.accept(
        incoming, StoreRequest(file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid, "TESTER", "association")
    )


def open_files_of(folder: Path) -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(str(link.readlink()))
    return [name for name in found if name.startswith(str(folder))]


def recorded_in(state_dir: Path) -> dict[str, str]:
    connection = open_database(state_dir)
    try:
        return dict(connection.execute("SELECT sop_instance_uid, sha256 FROM instance").fetchall())
    finally:
        connection.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_wherever_the_disk_fails_the_instance_is_refused_and_nothing_of_it_stays(
    tmp_path: Path, ct: SyntheticSeries, faulty_disk: FaultyDisk, number: int
) -> None:
    """The n-th call fails, n = 1, 2, ... until none is left that could."""
    state_dir = tmp_path / "state"
    spool = Spool(state_dir / "spool")
    spool.prepare()
    intake = Intake(state_dir, spool)
    receive(intake, spool, ct.paths[1])  # opens the connection to the journal
    tried = []
    for fail_at in range(1, 100):
        faulty_disk.arm(fail_at, number)
        try:
            receive(intake, spool, ct.paths[0])
        except OutOfResources:
            tried.append(faulty_disk.calls[-1])
            faulty_disk.arm(0)
            assert not list((state_dir / "spool" / "incoming").iterdir())
            assert not open_files_of(state_dir / "spool")
            assert len(recorded_in(state_dir)) == 1
            spooled_path(state_dir, digest(data_set_of(ct.paths[0]))).unlink(missing_ok=True)  # else the next try takes another way
            continue
        break
    assert {"statvfs", "open", "write", "flush", "fsync", "rename"} <= set(tried)
    assert tried.count("fsync") == 2, "the file and its folder"
    assert digest(data_set_of(ct.paths[0])) in {path.stem for path in (state_dir / "spool").glob("??/*.dcm")}


def test_wherever_the_journal_fails_the_instance_is_refused_and_a_second_try_succeeds(
    tmp_path: Path, ct: SyntheticSeries, faulty_journal: type[FaultyConnection]
) -> None:
    state_dir = tmp_path / "state"
    spool = Spool(state_dir / "spool")
    spool.prepare()
    intake = Intake(state_dir, spool)
    failures = 0
    for fail_at in range(1, 100):
        faulty_journal.fail_at, faulty_journal.statements = fail_at, 0
        try:
            receive(intake, spool, ct.paths[0])
        except OutOfResources:
            failures += 1
            faulty_journal.fail_at = 0
            assert not recorded_in(state_dir)
            assert not list((state_dir / "spool" / "incoming").iterdir())
            continue
        break
    assert failures >= 5, "BEGIN, the rows, COMMIT"
    faulty_journal.fail_at = 0
    assert receive(intake, spool, ct.paths[0]) is Recorded.IDENTICAL


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failing_disk_is_answered_with_a700_and_the_association_goes_on(
    tmp_path: Path, ct: SyntheticSeries, faulty_disk: FaultyDisk, call: str
) -> None:
    files = [read_part10(path) for path in ct.paths]
    with listening(config_for(tmp_path / "state")) as listener, open_scu(listener.port, contexts_for(files)) as scu:
        faulty_disk.arm(0)
        scu.store(files[0])
        place = faulty_disk.calls.index(call) + 1
        faulty_disk.arm(place)
        with pytest.raises(StoreOutOfResources, match="A700"):
            scu.store(files[1])
        faulty_disk.arm(0)
        assert scu.store(files[1]) == ""
        assert listener.recorded().keys() == {files[0].sop_instance_uid, files[1].sop_instance_uid}
        assert not listener.leftovers()


def test_a_failing_commit_is_never_answered_with_success(
    tmp_path: Path, ct: SyntheticSeries, faulty_journal: type[FaultyConnection]
) -> None:
    files = [read_part10(path) for path in ct.paths]
    with listening(config_for(tmp_path / "state")) as listener, open_scu(listener.port, contexts_for(files)) as scu:
        for fail_at in range(1, 30):
            faulty_journal.fail_at, faulty_journal.statements = fail_at, 0
            try:
                scu.store(files[0])
            except StoreOutOfResources:
                faulty_journal.fail_at = 0
                assert not listener.recorded()
                continue
            break
        faulty_journal.fail_at = 0
        assert fail_at > 4
        assert listener.recorded().keys() == {files[0].sop_instance_uid}


def test_a_locked_journal_is_answered_with_a700(tmp_path: Path, ct: SyntheticSeries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.journal.database.BUSY_TIMEOUT_S", 0.2)
    files = [read_part10(path) for path in ct.paths]
    with listening(config_for(tmp_path / "state")) as listener, open_scu(listener.port, contexts_for(files)) as scu:
        scu.store(files[0])
        holder = sqlite3.connect(tmp_path / "state" / "journal.sqlite", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreOutOfResources, match="A700"):
            scu.store(files[1])
        holder.execute("ROLLBACK")
        holder.close()
        assert scu.store(files[1]) == ""
        assert len(listener.recorded()) == 2


def test_a_stop_lets_an_instance_that_has_arrived_get_its_answer(tmp_path: Path, ct: SyntheticSeries) -> None:
    """The journal is held while the listener is told to stop: what is under way ends well, and only then the association."""
    files = [read_part10(path) for path in ct.paths]
    answers: list[str] = []
    with listening(config_for(tmp_path / "state")) as listener:
        scu = open_scu(listener.port, contexts_for(files))
        scu.store(files[0])
        holder = sqlite3.connect(tmp_path / "state" / "journal.sqlite", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        sender = threading.Thread(target=lambda: answers.append(scu.store(files[1])))
        sender.start()
        wait_until(lambda: len(listener.spooled()) == 2, "the instance")
        threading.Timer(0.7, lambda: holder.execute("ROLLBACK")).start()
    sender.join(5)
    assert answers == [""]
    assert recorded_in(tmp_path / "state").keys() == {file.sop_instance_uid for file in files[:2]}
    with pytest.raises(PeerUnreachable):
        scu.store(files[2])
    holder.close()


LISTENER = """
import sys, threading
from pathlib import Path
from node.intake.association import run_listener
from tests.integration.intake_kit import config_for
run_listener(config_for(Path(sys.argv[1])), threading.Event())
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_answered_with_success(tmp_path: Path) -> None:
    """Four senders at once; the listener dies at a moment that nobody chose; what it had answered is there."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    series = [make_ct_series(tmp_path / str(number), slices=40, rows=128, columns=128, series=str(number)) for number in range(4)]
    answered: set[str] = set()
    for life in range(3):
        process, port = start_listener(state_dir)
        senders = [threading.Thread(target=send_all, args=(port, one, answered)) for one in series]
        for sender in senders:
            sender.start()
        wait_until(functools.partial(enough_answers, answered, len(answered) + 20, senders), "some answers", 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for sender in senders:
            sender.join(30)
        recorded = recorded_in(state_dir)
        assert answered <= recorded.keys(), f"lost in life {life}"
        for sha256 in recorded.values():
            assert digest(data_set_of(spooled_path(state_dir, sha256))) == sha256
    process, port = start_listener(state_dir)
    assert not list((state_dir / "spool" / "incoming").iterdir())
    for one in series:
        send_all(port, one, answered)
    process.kill()
    process.wait()
    assert answered == {uid for one in series for uid in one.sop_instance_uids}


def enough_answers(answered: set[str], goal: int, senders: list[threading.Thread]) -> bool:
    return len(answered) >= goal or not any(sender.is_alive() for sender in senders)


def start_listener(state_dir: Path) -> tuple[subprocess.Popen[bytes], int]:
    port_file = state_dir / "run" / "listener.port"
    port_file.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", LISTENER, str(state_dir)], stdout=subprocess.DEVNULL)
    wait_until(lambda: port_file.exists() or process.poll() is not None, "the listener")
    return process, int(port_file.read_text())


def send_all(port: int, series: SyntheticSeries, answered: set[str]) -> None:
    for outcome in store_files(peer_of(port), [read_part10(path) for path in series.paths]):
        if outcome.error is None:
            answered.add(outcome.sop_instance_uid)
        elif isinstance(outcome.error, PeerUnreachable):
            return
