"""Nothing is answered with success that is not safe: the disk and the journal fail at every place, the listener is killed."""

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

from node.custody import Verdict, examine
from node.delivery.store_scu import contexts_for, read_part10, store_files
from node.errors import OutOfResources, PeerUnreachable, StoreOutOfResources
from node.files import Durability
from node.intake import watermark
from node.intake.incoming import FileIdentity
from node.intake.reception import Intake
from node.intake.seal import SEAL_BYTES, decode_seal
from node.intake.spool import Spool, spooled_path
from node.intake.uids import StoreRequest
from node.journal import open_database
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import config_for, data_set_of, digest, leftovers, listening, open_scu, peer_of
from tests.peers import wait_until


class FaultyDisk:
    """Lets the n-th call that touches the disk fail, as a full or broken disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail_at = 0
        self.calls: list[str] = []
        self.errno = errno.ENOSPC
        for name in ("open", "pwritev", "pwrite", "fsync", "fdatasync", "stat", "chmod", "link", "statvfs"):
            monkeypatch.setattr(os, name, functools.partial(self._call, name, getattr(os, name)))

    def _call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._count(name)
        return real(*args, **kwargs)

    def _count(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.fail_at:
            raise OSError(self.errno, os.strerror(self.errno))

    def arm(self, fail_at: int, number: int = errno.ENOSPC) -> None:
        self.calls, self.fail_at, self.errno = [], fail_at, number


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


def receive(intake: Intake, spool: Spool, path: Path) -> None:
    """What the network side does with an instance."""
    file = read_part10(path)
    incoming = spool.open_incoming(FileIdentity(file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid))
    data = data_set_of(path)
    for place in range(0, len(data), 4000):
        incoming.write(data[place : place + 4000])
    intake.accept(incoming, StoreRequest(file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid, "TESTER", "association"))()


def prepared_spool(state_dir: Path) -> Spool:
    spool = Spool(state_dir / "spool")
    spool.prepare()
    return spool


def restarted(state_dir: Path) -> int:
    """What a listener does at its start; answers how many instances it found answered for, and without a row."""
    intake = Intake(state_dir, prepared_spool(state_dir))
    found = intake.start()
    intake.stop()
    return found


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
    tmp_path: Path, ct: SyntheticSeries, faulty_disk: FaultyDisk, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th call fails, n = 1, 2, ... until none is left that could. Nothing is settled meanwhile: the answer is what counts."""
    monkeypatch.setattr(watermark, "LOOK_EVERY_S", 0.0)
    state_dir = tmp_path / "state"
    spool = prepared_spool(state_dir)
    intake = Intake(state_dir, spool)
    receive(intake, spool, ct.paths[1])  # makes places ahead
    (sealed,) = leftovers(state_dir)
    tried = []
    for fail_at in range(1, 100):
        faulty_disk.arm(fail_at, number)
        try:
            receive(intake, spool, ct.paths[0])
        except OutOfResources:
            tried.append(faulty_disk.calls[-1])
            faulty_disk.arm(0)
            assert leftovers(state_dir) == [sealed]
            assert not open_files_of(state_dir / "spool")
            continue
        break
    assert {"statvfs", "open", "pwritev", "pwrite", "fdatasync"} <= set(tried)
    assert tried.count("fdatasync") + tried.count("fsync") == 1, "one flush an instance"
    faulty_disk.arm(0)
    assert restarted(state_dir) == 2
    assert set(recorded_in(state_dir).values()) == {digest(data_set_of(path)) for path in ct.paths[:2]}


def test_wherever_the_disk_fails_behind_the_answer_the_instance_is_named_and_recorded_as_soon_as_it_can_be(
    tmp_path: Path, ct: SyntheticSeries, faulty_disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.intake.backlog.AGAIN_S", 0.01)
    tried = set()
    for fail_at in range(1, 100):
        state_dir = tmp_path / str(fail_at)
        spool = prepared_spool(state_dir)
        intake = Intake(state_dir, spool)
        receive(intake, spool, ct.paths[0])
        monkeypatch.setattr(Spool, "sealed", lambda _: iter(()))  # it is the same life
        faulty_disk.arm(fail_at)
        intake.start()
        assert intake.settle(5)
        ended = len(faulty_disk.calls) < fail_at
        tried |= {faulty_disk.calls[fail_at - 1]} if not ended else set()
        faulty_disk.arm(0)
        intake.stop()
        assert list(recorded_in(state_dir).values()) == [digest(data_set_of(ct.paths[0]))]
        assert [path.stem for path in (state_dir / "spool").glob("??/*.dcm")] == [digest(data_set_of(ct.paths[0]))]
        assert not leftovers(state_dir)
        if ended:
            break
    assert {"open", "stat", "chmod", "link", "fsync"} <= tried


def test_wherever_the_journal_fails_the_row_is_written_as_soon_as_it_can_be(
    tmp_path: Path, ct: SyntheticSeries, faulty_journal: type[FaultyConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.intake.backlog.AGAIN_S", 0.01)
    for fail_at in range(1, 100):
        state_dir = tmp_path / str(fail_at)
        spool = prepared_spool(state_dir)
        open_database(state_dir).close()
        intake = Intake(state_dir, spool)
        intake.start()
        faulty_journal.fail_at, faulty_journal.statements = fail_at, 0
        receive(intake, spool, ct.paths[0])
        assert intake.settle(5)
        failed = faulty_journal.statements >= fail_at
        faulty_journal.fail_at = 0
        intake.stop()
        assert list(recorded_in(state_dir).values()) == [digest(data_set_of(ct.paths[0]))]
        assert not leftovers(state_dir)
        if not failed:
            break
    assert fail_at > 5, "BEGIN, the rows, COMMIT"


def test_the_same_bytes_again_are_one_file_and_one_row(tmp_path: Path, ct: SyntheticSeries) -> None:
    state_dir = tmp_path / "state"
    spool = prepared_spool(state_dir)
    intake = Intake(state_dir, spool)
    intake.start()
    for _ in range(3):
        receive(intake, spool, ct.paths[0])
    intake.stop()
    assert len(recorded_in(state_dir)) == len(list((state_dir / "spool").glob("??/*.dcm"))) == 1
    assert not leftovers(state_dir)


def test_a_file_that_somebody_takes_out_of_the_spool_holds_up_no_other(tmp_path: Path, ct: SyntheticSeries) -> None:
    state_dir = tmp_path / "state"
    spool = prepared_spool(state_dir)
    intake = Intake(state_dir, spool)
    for path in ct.paths[:2]:
        receive(intake, spool, path)
    next(path for path in leftovers(state_dir) if sealed_digest(path) == digest(data_set_of(ct.paths[0]))).unlink()
    with pytest.MonkeyPatch.context() as same_life:
        same_life.setattr(Spool, "sealed", lambda _: iter(()))
        intake.start()
    intake.stop()
    assert list(recorded_in(state_dir).values()) == [digest(data_set_of(ct.paths[1]))]


def sealed_digest(path: Path) -> str:
    seal = decode_seal(path.read_bytes()[:SEAL_BYTES])
    return seal.sha256.hex() if seal else ""


@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
def test_a_failing_disk_is_answered_with_a700_and_the_association_goes_on(
    tmp_path: Path, ct: SyntheticSeries, faulty_disk: FaultyDisk, call: str
) -> None:
    files = [read_part10(path) for path in ct.paths]
    with listening(config_for(tmp_path / "state")) as listener, open_scu(listener.port, contexts_for(files)) as scu:
        scu.store(files[0])
        listener.settled()
        faulty_disk.arm(0)
        scu.store(files[1])
        place = faulty_disk.calls.index(call) + 1
        listener.settled()
        faulty_disk.arm(place)
        with pytest.raises(StoreOutOfResources, match="A700"):
            scu.store(files[2])
        faulty_disk.arm(0)
        assert scu.store(files[2]) == ""
        assert listener.recorded().keys() == {file.sop_instance_uid for file in files[:3]}
        assert not listener.leftovers()


def test_while_the_journal_is_locked_nothing_more_is_taken_and_what_was_answered_gets_its_row_afterwards(
    tmp_path: Path, ct: SyntheticSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.journal.database.BUSY_TIMEOUT_S", 0.2)
    files = [read_part10(path) for path in ct.paths]
    with listening(config_for(tmp_path / "state")) as listener, open_scu(listener.port, contexts_for(files)) as scu:
        scu.store(files[0])
        listener.settled()
        holder = sqlite3.connect(tmp_path / "state" / "journal.sqlite", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        assert scu.store(files[1]) == "", "it is sealed"

        def is_refused() -> bool:
            try:
                scu.store(files[2])
            except StoreOutOfResources as error:
                return "A700" in str(error)
            return False

        wait_until(is_refused, "the refusal")
        holder.execute("ROLLBACK")
        holder.close()
        wait_until(lambda: not is_refused(), "the end of it")
        assert listener.recorded().keys() == {file.sop_instance_uid for file in files[:3]}


def test_a_stop_writes_the_rows_that_are_outstanding(tmp_path: Path, ct: SyntheticSeries) -> None:
    """The journal is held while the listener is told to stop."""
    files = [read_part10(path) for path in ct.paths]
    with listening(config_for(tmp_path / "state")) as listener:
        scu = open_scu(listener.port, contexts_for(files))
        scu.store(files[0])
        listener.settled()
        holder = sqlite3.connect(tmp_path / "state" / "journal.sqlite", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        assert scu.store(files[1]) == ""
        threading.Timer(0.7, lambda: holder.execute("ROLLBACK")).start()
    assert recorded_in(tmp_path / "state").keys() == {file.sop_instance_uid for file in files[:2]}
    with pytest.raises(PeerUnreachable):
        scu.store(files[2])
    holder.close()


def test_bytes_that_were_sealed_without_a_digest_before_the_machine_went_down_are_set_aside(
    tmp_path: Path, ct: SyntheticSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be torn, and nobody can tell: never an image that looks whole and is not."""
    state_dir = tmp_path / "state"
    spool = Spool(state_dir / "spool", durability=Durability.PROCESS_CRASH)
    spool.prepare()
    intake = Intake(state_dir, spool, Durability.PROCESS_CRASH)
    receive(intake, spool, ct.paths[0])
    monkeypatch.setattr("node.intake.spool.this_boot", lambda: b"another run of it")
    assert restarted(state_dir) == 0
    (aside,) = (state_dir / "spool" / "unverified").iterdir()
    findings = {one.check: one for one in examine(state_dir, tmp_path / "backups", lambda _text, _fraction: None)}
    assert findings["unverified"].verdict is Verdict.WRONG
    assert aside.name in findings["unverified"].text


def test_torn_bytes_under_a_seal_are_set_aside(tmp_path: Path, ct: SyntheticSeries) -> None:
    """The power went during the flush: the seal came to the disk, and not all of the bytes."""
    state_dir = tmp_path / "state"
    spool = prepared_spool(state_dir)
    receive(Intake(state_dir, spool), spool, ct.paths[0])
    (sealed,) = leftovers(state_dir)
    content = bytearray(sealed.read_bytes())
    content[-1000:] = bytes(1000)
    sealed.write_bytes(content)
    assert restarted(state_dir) == 0
    assert len(list((state_dir / "spool" / "unverified").iterdir())) == 1


LISTENER = """
import sys, threading
from pathlib import Path
from node.intake.listener import run_listener
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
        restarted(state_dir)
        recorded = recorded_in(state_dir)
        assert answered <= recorded.keys(), f"lost in life {life}"
        for sha256 in recorded.values():
            assert digest(data_set_of(spooled_path(state_dir, sha256))) == sha256
    process, port = start_listener(state_dir)
    assert not leftovers(state_dir)
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
