"""The housekeeper on a real spool and journal: what goes and what stays, crashes between the steps, the race with the listener."""

import functools
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from node import housekeeper
from node.domain.retention import Purge, Standing
from node.domain.states import Outcome
from node.errors import OutOfResources, UsageError
from node.intake import spool as spool_module
from node.intake.adoption import Reconciler
from node.intake.incoming import FileIdentity
from node.journal import JobJournal
from node.journal.retention import RetentionJournal
from node.journal.upkeep import list_backups, wal_bytes
from tests.integration.intake_kit import data_set_of
from tests.integration.retention_kit import HOUR_S, Place, digest_of

LATE_S = 200 * HOUR_S
"""Beyond the retention of what was delivered or declined."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(housekeeper, "FOLDERS_A_PASS", 256)
    return Place(tmp_path)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def results_of(place: Place) -> list[str]:
    folder = place.state_dir / "results"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.dcm"))


# ── what goes, what stays ───────────────────────────────────────────────────


def test_a_delivered_study_goes_when_its_time_is_over_and_its_history_stays(place: Place, logged: list[Any]) -> None:
    series = place.analysed("one")
    place.deliver()
    place.keep_house(168 * HOUR_S - 1)
    assert len(place.files_of(series)) == 3
    place.keep_house(168 * HOUR_S)
    assert place.files_of(series) == []
    assert not (place.state_dir / "results" / "1").exists()
    assert place.rows("SELECT DISTINCT purged_at FROM instance") == place.rows("SELECT DISTINCT purged_at FROM evidence")
    assert place.rows("SELECT state FROM job") == [("COMPLETED",)]
    (line,) = [line for line in logged if line["event"] == "study.purged"]
    assert (line["standing"], line["images"]) == (Standing.DELIVERED, 3)


def test_a_declined_study_goes_and_a_failed_one_stays_longer(place: Place) -> None:
    declined, failed = place.declined("declined"), place.analysed("failed", outcome=Outcome.FAILED)
    place.deliver()
    place.keep_house(LATE_S)
    assert (len(place.files_of(declined)), len(place.files_of(failed))) == (0, 3)
    place.keep_house(720 * HOUR_S)
    assert place.files_of(failed) == []


@pytest.mark.parametrize(
    ("state", "confirmation"), [("PENDING", ""), ("STORED", "AWAITED"), ("STORED", "MISSED"), ("REFUSED", ""), ("GIVEN UP", "")]
)
def test_nothing_undelivered_goes_however_old_it_is_and_however_full_the_disk(
    place: Place, logged: list[Any], state: str, confirmation: str
) -> None:
    series = place.analysed("one")
    place.deliver(state, confirmation)
    place.keep_house(1e9, retention={"purge_below_free_gib": 1e6})
    assert len(place.files_of(series)) == 3
    assert len(results_of(place)) == 2
    assert [line for line in logged if line["event"] == "retention.cannot_make_room"], "and the log says why there is no room"


def test_a_full_disk_takes_what_is_delivered_before_its_time_and_leaves_what_failed(place: Place) -> None:
    failed = place.analysed("failed", outcome=Outcome.FAILED)
    delivered = place.analysed("delivered")
    place.deliver()
    declined = place.declined("declined")
    place.keep_house(10.0, retention={"purge_below_free_gib": 1e6})
    assert [len(place.files_of(one)) for one in (failed, delivered, declined)] == [3, 0, 0]


def test_a_study_of_which_something_happens_between_the_plan_and_the_purge_stays(place: Place) -> None:
    series = place.declined("one", slices=2)
    with place.journal() as connection:
        journal = RetentionJournal(connection)
        facts = journal.facts_of(series.study_instance_uid)
        assert facts is not None
        place.send(place.series("one", slices=3).paths[2])  # a late instance
        assert journal.purge(Purge(facts, Standing.DECLINED, ""), now_s=1.0) is None
    assert place.rows("SELECT count(*) FROM instance WHERE purged_at IS NOT NULL") == [(0,)]


def test_the_rounds_reach_every_study_however_small_the_portions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeper, "STUDIES_A_PASS", 2)
    place.analysed("undelivered")
    series = [place.declined(f"s{number}", now_s=float(number)) for number in range(5)]
    with place.journal() as connection:
        keeper = housekeeper.Housekeeper(place.config(), connection)
        for _ in range(4):
            keeper.pass_once(LATE_S)
    assert [len(place.files_of(one)) for one in series] == [0] * 5
    assert len(results_of(place)) == 2


# ── what a purge means later ────────────────────────────────────────────────


def test_a_late_instance_of_a_purged_study_is_declined_with_the_reason_and_the_whole_series_again_is_decided_on(place: Place) -> None:
    place.declined("one", slices=3)
    place.keep_house(LATE_S)
    whole = place.series("one", slices=4)
    place.send(whole.paths[3])
    place.decide(LATE_S)
    ((state, reason),) = place.rows("SELECT state, reason FROM series")
    assert state == "DECLINED"
    assert reason.startswith("node: 3 of its 4 images were removed by retention on 1970-01-09: send the whole series again")
    place.send(*whole.paths)
    place.decide(LATE_S + 1)
    assert place.rows("SELECT state, reason FROM series") == [("DECLINED", "no route is configured")], "decided on anew, by the routes"
    assert len(place.files_of(whole)) == 4


def test_a_resend_of_a_purged_study_that_was_analysed_keeps_the_bytes_again_and_is_no_new_work(place: Place) -> None:
    series = place.analysed("one")
    place.deliver()
    place.keep_house(LATE_S)
    place.send(*series.paths)
    assert place.rows("SELECT count(*) FROM instance WHERE purged_at IS NULL") == [(3,)]
    assert place.rows("SELECT state FROM study") == [("DECIDED",)]
    place.require_every_row_has_its_file()
    place.keep_house(time.time() + 1)
    assert len(place.files_of(series)) == 3, "its time counts from the new bytes"


def test_a_job_whose_images_are_gone_is_not_retried(place: Place) -> None:
    series = place.analysed("one", outcome=Outcome.FAILED)
    place.deliver()
    place.keep_house(1e9)
    with place.journal() as connection, pytest.raises(UsageError, match="3 images of job 1 were removed by retention"):
        JobJournal(connection).retry(1, now_s=1.0)
    place.send(*series.paths)
    with place.journal() as connection:
        JobJournal(connection).retry(1, now_s=1.0)
    place.keep_house(2e9)
    assert len(place.files_of(series)) == 3


# ── crashes and races ───────────────────────────────────────────────────────


class Crash(BaseException):
    """A kill -9, as far as the code can tell."""


def test_wherever_a_purge_dies_no_row_loses_its_file_and_the_next_passes_finish_it(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th step on the disk or of the journal is the last one, n = 1, 2, ... until a purge gets through."""
    steps = 0
    die_at = 0

    def step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            raise Crash

    class Mortal(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            step()
            cursor = super().execute(*args)
            step()
            return cursor

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Mortal))
    unlink, rmdir = Path.unlink, os.rmdir
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: (step(), unlink(self, missing_ok=missing_ok), step())[1])
    monkeypatch.setattr(os, "rmdir", lambda *args, **kwargs: (step(), rmdir(*args, **kwargs))[1])
    monkeypatch.setattr(housekeeper, "FOLDERS_A_PASS", 0)  # the purge alone; the pass after it goes through the folders
    for die_at in range(1, 300):
        steps = -(10**9)
        series = place.analysed(f"s{die_at}")
        place.deliver()
        try:
            with place.journal() as connection:
                steps = 0
                housekeeper.Housekeeper(place.config(), connection).pass_once(LATE_S)
        except Crash:
            steps = -(10**9)
            place.require_every_row_has_its_file()
            with monkeypatch.context() as whole:
                whole.setattr(housekeeper, "FOLDERS_A_PASS", 256)
                place.keep_house(LATE_S)
            assert place.files_of(series) == []
            assert results_of(place) == []
            continue
        break
    assert die_at > 20


def test_a_resend_that_found_the_file_there_keeps_it_from_the_purge_that_had_just_committed(place: Place) -> None:
    """The listener stands between 'the file is there' and its row; the housekeeper between its commit and the unlink."""
    series = place.declined("one", slices=1)
    path = series.paths[0]
    sha256 = digest_of(path)
    removed: list[int] = []

    def unlink() -> None:
        with place.journal() as connection:
            removed.append(Reconciler(place.spool, connection).remove_unnamed([sha256]))

    with place.journal() as connection:
        journal = RetentionJournal(connection)
        facts = journal.facts_of(series.study_instance_uid)
        assert facts is not None
        assert journal.purge(Purge(facts, Standing.DECLINED, ""), now_s=1.0) is not None
    incoming = place.spool.open_incoming(FileIdentity("1.2", "1.2.3", "1.2.840.10008.1.2.1"))
    incoming.write(data_set_of(path))
    with place.spool.keeping(incoming) as kept:
        assert kept.sha256 == sha256
        housekeeping = threading.Thread(target=unlink)
        housekeeping.start()
        housekeeping.join(0.2)
        assert housekeeping.is_alive(), "the unlink waits for the folder"
        with place.journal() as connection:
            connection.execute("UPDATE instance SET purged_at = NULL")  # what record_instance does
    housekeeping.join(5)
    assert removed == [0]
    assert kept.path.exists()


def test_a_resend_that_comes_after_the_unlink_keeps_the_file_anew(place: Place) -> None:
    series = place.declined("one", slices=1)
    place.keep_house(LATE_S)
    assert place.files_of(series) == []
    place.send(*series.paths)
    place.require_every_row_has_its_file()
    assert len(place.files_of(series)) == 1


def test_senders_and_purges_that_race_leave_every_row_with_its_file(place: Place) -> None:
    series = place.declined("one", slices=4)
    over = threading.Event()
    faults: list[BaseException] = []

    def purge() -> None:
        dice = random.Random(1)
        try:
            while not over.is_set():
                place.keep_house(1e10)
                time.sleep(dice.random() * 0.005)
        except BaseException as error:  # noqa: BLE001 - told below
            faults.append(error)

    purging = threading.Thread(target=purge)
    purging.start()
    deadline = time.monotonic() + 4.0
    rounds = 0
    try:
        while (time.monotonic() < deadline or rounds <= 5) and not faults:  # on a busy machine it takes longer
            place.send(*series.paths)
            place.decide(1e10)
            rounds += 1
    finally:
        over.set()
        purging.join(10)
    assert not faults
    place.require_every_row_has_its_file()
    assert place.rows("SELECT count(*) FROM instance") == [(4,)]


KEEPER = """
import sys, threading
from pathlib import Path
from node import housekeeper
from node.config import load_config
housekeeper.PASS_EVERY_S = 0.02
housekeeper.FOLDERS_A_PASS = 256
print("ready", flush=True)
housekeeper.run_housekeeper(load_config(Path(sys.argv[1])), threading.Event())
"""


@pytest.mark.slow
def test_a_housekeeper_that_is_killed_again_and_again_never_takes_a_file_from_a_row(place: Place) -> None:
    """Real processes: one purges everything at once and is killed at moments that nobody chose, the other sends it all again."""
    (place.folder / "node.toml").write_text(
        '[node]\nae_title = "RADNODE"\nstate_dir = "state"\nmodels_dir = "."\n[retention]\ndeclined_h = 0.0\n[backup]\nevery_h = 0.0\n'
    )
    dice = random.Random(3)
    series = [place.declined(f"s{number}", now_s=time.time() - 1, slices=4) for number in range(3)]
    purged = 0
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", KEEPER, str(place.folder / "node.toml")], stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 0.3 + 0.7 * dice.random()
        while time.monotonic() < deadline:
            for one in series:
                place.send(*one.paths)
                place.decide(time.time())
        process.kill()
        process.communicate()
        place.require_every_row_has_its_file()
        purged += bool(place.rows("SELECT 1 FROM transition WHERE reason = 'a late instance' LIMIT 1"))
    assert purged, "nothing was ever removed: the test has shown nothing"
    with place.journal() as connection:
        keeper = housekeeper.Housekeeper(place.config(), connection)
        keeper.pass_once(time.time() + LATE_S)
    assert [place.files_of(one) for one in series] == [[], [], []]


def test_a_folder_that_somebody_holds_costs_the_purge_its_turn_not_the_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "LOCK_WAIT_S", 0.05)
    series = place.declined("one", slices=1)
    folder = digest_of(series.paths[0])[:2]
    with place.spool.alone_with(folder):
        place.keep_house(LATE_S)
        assert len(place.files_of(series)) == 1
        with pytest.raises(OutOfResources, match="held by another process"), place.spool.alone_with(folder):
            pass
    place.keep_house(LATE_S)
    assert place.files_of(series) == []


# ── files without a row ─────────────────────────────────────────────────────


def orphan(place: Place, name: str, age_s: float) -> Path:
    """A file in the spool of which the journal knows nothing."""
    series = place.series(name, slices=1)
    place.send(*series.paths)
    with place.journal() as connection:
        for table in ("open_association", "instance", "series", "study"):
            connection.execute(f"DELETE FROM {table} WHERE study_instance_uid = ?", (series.study_instance_uid,))  # noqa: S608
    (path,) = place.files_of(series)
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def test_a_file_without_a_row_is_taken_in_after_an_hour_and_not_before(place: Place) -> None:
    old, young = orphan(place, "old", 3700.0), orphan(place, "young", 60.0)
    place.keep_house(time.time())
    ((sha256, sender, size),) = place.rows("SELECT sha256, calling_ae_title, size_bytes FROM instance")
    assert (sha256, sender, size) == (old.stem, "PACS", len(data_set_of(old)))
    assert place.rows("SELECT state FROM study") == [("RECEIVING",)], "decided on as any other"
    assert place.rows("SELECT count(*) FROM open_association") == [(0,)]
    assert young.exists()


@pytest.mark.parametrize("damage", [b"", b"no DICOM", None], ids=["empty", "rubbish", "truncated"])
def test_a_file_that_is_no_whole_instance_is_reported_once_and_left_alone(place: Place, logged: list[Any], damage: bytes | None) -> None:
    path = orphan(place, "torn", 0.0)
    path.chmod(0o640)
    path.write_bytes(path.read_bytes()[:-10] if damage is None else damage)
    os.utime(path, (1.0, 1.0))
    with place.journal() as connection:
        keeper = housekeeper.Housekeeper(place.config(), connection)
        keeper.pass_once(time.time())
        keeper.pass_once(time.time())
    assert [line["file"] for line in logged if line["event"] == "spool.unreadable"] == [f"{path.stem[:2]}/{path.name}"]
    assert path.exists()
    assert place.rows("SELECT count(*) FROM instance") == [(0,)]


def test_results_that_no_row_names_are_left(place: Place) -> None:
    stray = place.state_dir / "results" / "77" / "0" / "seg.dcm"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"?")
    place.keep_house(1e9)
    assert stray.exists()


# ── the journal's upkeep ────────────────────────────────────────────────────


def test_backups_are_made_in_time_and_only_their_own_names_are_rotated(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    foreign = [folder / "journal-mine.sqlite", folder / "journal-20200101T000000Z.sqlite.bak", folder / "notes.txt"]
    for path in foreign:
        path.write_text("keep me")
    leftover = folder / ".journal-20200101T000000Z.sqlite.123.part"
    leftover.write_text("half a backup")
    section = {"every_h": 24.0, "keep": 2, "folder": str(folder)}
    place.declined("one")
    now_s = 1.8e9
    for hours in (0, 23, 24, 48, 72):
        place.keep_house(now_s + hours * HOUR_S, backup=section, retention={"declined_h": 1e6})
    assert [path.name for path in list_backups(folder)] == ["journal-20270118T080000Z.sqlite", "journal-20270117T080000Z.sqlite"]
    assert all(path.exists() for path in foreign)
    assert not leftover.exists()
    copy = sqlite3.connect(list_backups(folder)[0])
    assert copy.execute("SELECT count(*) FROM instance").fetchone() == (3,)
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy.close()


def test_a_backup_that_fails_is_told_and_tried_again_and_everything_else_goes_on(place: Place, tmp_path: Path, logged: list[Any]) -> None:
    blocked = tmp_path / "backups"
    blocked.write_text("a file where the folder should be")
    series = place.declined("one")
    section = {"every_h": 1.0, "keep": 2, "folder": str(blocked)}
    with place.journal() as connection:
        keeper = housekeeper.Housekeeper(place.config(backup=section), connection)
        keeper.pass_once(LATE_S)
        keeper.pass_once(LATE_S + 30)
        assert place.files_of(series) == []
        assert len([line for line in logged if line["event"] == "journal.backup_failed"]) == 1
        blocked.unlink()
        keeper.pass_once(LATE_S + 601)
    assert len(list_backups(blocked)) == 1


def test_a_large_write_ahead_log_is_emptied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeper, "LARGE_WAL_BYTES", 1000)
    with place.journal() as connection:
        place.declined("one")
        assert wal_bytes(place.state_dir) > 1000
        housekeeper.Housekeeper(place.config(), connection).pass_once(1.0)
        assert wal_bytes(place.state_dir) == 0


def test_a_journal_that_cannot_be_had_interrupts_the_housekeeper_and_does_not_end_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    monkeypatch.setattr(housekeeper, "PAUSE_AFTER_SURPRISE_S", 0.01)
    monkeypatch.setattr(housekeeper, "PASS_EVERY_S", 0.01)
    stop = threading.Event()
    faults = iter([sqlite3.OperationalError("database is locked"), OSError("disk")])
    real = housekeeper.Housekeeper.pass_once

    def pass_once(self: housekeeper.Housekeeper, now_s: float) -> None:
        for fault in faults:
            raise fault
        real(self, now_s)
        stop.set()

    monkeypatch.setattr(housekeeper.Housekeeper, "pass_once", pass_once)
    housekeeper.run_housekeeper(place.config(), stop)
    assert [line["fault"] for line in logged if line["event"] == "housekeeper.interrupted"] == ["OperationalError", "OSError"]
