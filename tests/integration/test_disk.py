"""A disk that runs full, for real: a small file system of its own. What was acknowledged is whole, the rest was refused, the journal lives."""

import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from node.delivery.store_scu import Part10File, contexts_for, read_part10
from node.domain.states import DeliveryState, JobState, Outcome
from node.errors import OutOfResources, StoreOutOfResources
from node.files import Durability
from node.intake import incoming as incoming_module
from node.intake import slots
from node.intake.incoming import FileIdentity, IncomingFile
from node.intake.spool import Spool
from node.intake.watermark import FAR_ABOVE_BYTES, LOOK_EVERY_S, REMIND_EVERY_S, BelowWatermark, Watermark
from node.journal import JobEnd, JobJournal, NewJob, OutboxJournal, open_database, transaction
from node.journal.queries import list_deliveries, list_jobs
from tests.factories import make_ct_series
from tests.integration.intake_kit import RunningListener, config_for, data_set_of, digest, listening, open_scu
from tests.integration.retention_kit import Place

DISK_MIB = 48
LIMIT_MIB = 16
IDENTITY = FileIdentity("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of DISK_MIB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def fill(disk: Path, leave_mib: float) -> Path:
    """Takes the room of a disk, but for so much."""
    ballast = disk / "ballast"
    with ballast.open("wb") as stream:
        take = shutil.disk_usage(disk).free - int(leave_mib * (1 << 20))
        for _ in range(take >> 16):
            stream.write(b"\0" * (1 << 16))
    return ballast


def offer(listener: RunningListener, files: list[Part10File]) -> set[str]:
    """Sends over one association; answers what was acknowledged. Everything else must have been answered with A700."""
    acknowledged = set()
    with open_scu(listener.port, contexts_for(files)) as scu:
        for file in files:
            try:
                scu.store(file)
            except StoreOutOfResources as error:
                if "A700" not in str(error):
                    raise
            else:
                acknowledged.add(file.sop_instance_uid)
    return acknowledged


def require_whole(listener: RunningListener, acknowledged: set[str]) -> None:
    kept = listener.kept()
    assert acknowledged <= kept.keys()
    recorded = listener.recorded()
    assert all(digest(content) == recorded[uid] for uid, content in kept.items())
    assert not listener.leftovers()
    assert listener.rows("PRAGMA integrity_check") == [("ok",)]


def test_a_disk_that_runs_full_costs_nothing_that_was_acknowledged_and_takes_the_rest_when_there_is_room(
    disk: Path, tmp_path: Path
) -> None:
    """Without a watermark: the worst case."""
    files = [read_part10(path) for path in make_ct_series(tmp_path / "ct", slices=40, rows=256, columns=256).paths]
    with listening(config_for(disk / "state")) as listener:
        ballast = fill(disk, leave_mib=1.5)
        first = offer(listener, files)
        assert 0 < len(first) < len(files)
        require_whole(listener, first)
        ballast.unlink()
        assert offer(listener, files) == {file.sop_instance_uid for file in files}
        require_whole(listener, {file.sop_instance_uid for file in files})


def test_below_the_watermark_everything_is_refused_and_the_log_says_so_once(disk: Path, tmp_path: Path, logged: list[Any]) -> None:
    files = [read_part10(path) for path in make_ct_series(tmp_path / "ct", slices=20).paths]
    with listening(config_for(disk / "state", refuse_below_free_gib=LIMIT_MIB / 1024)) as listener:
        assert len(offer(listener, files[:5])) == 5
        ballast = fill(disk, leave_mib=LIMIT_MIB - 0.5)
        assert offer(listener, files) == set()
        require_whole(listener, {file.sop_instance_uid for file in files[:5]})
        ballast.unlink()
        assert len(offer(listener, files)) == 20
        require_whole(listener, {file.sop_instance_uid for file in files})
    (line,) = [line for line in logged if line["event"] == "disk.below_watermark"]
    assert "C-STORE is answered 0xA700 until 16 MiB are free" in line["meaning"]
    assert (line["log_level"], line["free_mib"], line["refuse_below_mib"]) == ("error", 15, 16)
    (end,) = [line for line in logged if line["event"] == "disk.has_room"]
    assert end["refused"] == 20
    assert not [line for line in logged if line["event"] == "instance.refused"]


def test_the_journal_goes_on_while_instances_are_refused(disk: Path, tmp_path: Path) -> None:
    """What the listener leaves free is room for the ends of jobs and deliveries: no ballast is needed beside it."""
    place = Place(disk / "node")
    place.analysed("earlier")
    place.deliver()
    files = [read_part10(path) for path in make_ct_series(tmp_path / "ct", slices=2).paths]
    with listening(config_for(place.state_dir, refuse_below_free_gib=LIMIT_MIB / 1024)) as listener:
        fill(disk, leave_mib=LIMIT_MIB - 1)
        assert offer(listener, files) == set()
        with closing(open_database(place.state_dir)) as connection:
            jobs, outbox = JobJournal(connection), OutboxJournal(connection)
            (study, series, inputs) = connection.execute(
                "SELECT study_instance_uid, series_instance_uid, sha256 FROM instance LIMIT 1"
            ).fetchone()
            for number in range(200):
                new = NewJob(f"k{number}", study, series, f"r{number}", "m", "d", {"1.2.3": inputs}, ("pacs",))
                with transaction(connection):
                    jobs.open_job(new, last_instance_s=1.0, now_s=1.0)
                job = jobs.claim("w", now_s=2.0)
                assert job is not None
                evidence = (place._evidence(job.job_id, "x", "sr"),)
                assert jobs.end(job, JobEnd(JobState.COMPLETED, Outcome.FOUND, "", evidence, {"infer": 1.0}), now_s=3.0)
            for delivery in list_deliveries(connection):
                outbox.begin_attempt(delivery.delivery_id, 4.0)
                outbox.refuse(delivery.delivery_id, now_s=5.0, reason="0xA900")
            assert len([job for job in list_jobs(connection, all=True) if job.state is JobState.COMPLETED]) == 201
            assert len([one for one in list_deliveries(connection, all=True) if one.state is DeliveryState.REFUSED]) == 200
        assert offer(listener, files) == set()
        require_whole(listener, set())


def test_a_huge_instance_is_given_up_on_its_way_before_it_takes_what_must_stay_free(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_module, "LOOK_EVERY_BYTES", 1 << 20)
    spool = Spool(disk / "spool", refuse_below_free_bytes=LIMIT_MIB << 20)
    spool.prepare()
    incoming = spool.open_incoming(IDENTITY)
    least = DISK_MIB << 20
    for _ in range(400):  # 100 MiB
        incoming.write(b"\1" * (1 << 18))
        least = min(least, shutil.disk_usage(disk).free)
    with pytest.raises(BelowWatermark, match="the listener refuses below 16 MiB"):
        incoming.check()
    assert least >= (LIMIT_MIB - 2) << 20
    assert not any(path.stat().st_size for path in (disk / "spool" / "incoming").iterdir())
    assert shutil.disk_usage(disk).free > (DISK_MIB - 2) << 20


# ── the watermark, on a clock and a disk of the test's ──────────────────────


class Gauge:
    """Stands for the free space of a disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_mib = 1000.0
        self.now_s = 0.0
        monkeypatch.setattr(Watermark, "free_bytes", lambda _: int(self.free_mib * (1 << 20)))
        self.watermark = Watermark(Path(), 100 << 20, clock=lambda: self.now_s)

    def events(self, logged: list[Any]) -> list[str]:
        found = [line["event"] for line in logged]
        logged.clear()
        return found


def test_a_reminder_comes_at_most_every_minute_and_the_end_is_told(monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    gauge = Gauge(monkeypatch)
    assert gauge.watermark.objection() is None
    gauge.free_mib = 99.0
    for _ in range(1000):
        assert isinstance(gauge.watermark.objection(), OutOfResources)
    assert gauge.events(logged) == ["disk.below_watermark"]
    gauge.now_s = REMIND_EVERY_S - 1
    gauge.watermark.objection()
    assert gauge.events(logged) == []
    gauge.now_s = REMIND_EVERY_S
    gauge.watermark.objection()
    assert gauge.events(logged) == ["disk.below_watermark"]
    gauge.watermark.look()
    assert gauge.events(logged) == []
    gauge.free_mib = 200.0
    gauge.watermark.look()
    assert logged[0]["refused"] == 1002
    assert gauge.events(logged) == ["disk.has_room"]
    assert gauge.watermark.objection() is None


def test_a_disk_at_the_limit_does_not_flicker(monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    gauge = Gauge(monkeypatch)
    for free_mib in (99.9, 100.1, 99.9, 104.9):
        gauge.free_mib = free_mib
        assert gauge.watermark.objection() is not None
    gauge.free_mib = 105.0
    assert gauge.watermark.objection() is None
    assert gauge.events(logged) == ["disk.below_watermark", "disk.has_room"]


# ── durability ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("durability", "flushes"), [(Durability.POWER_LOSS, 1), (Durability.PROCESS_CRASH, 0)])
def test_only_power_loss_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, flushes: int) -> None:
    spool = Spool(tmp_path / "spool", durability=durability)
    spool.prepare()
    spool.refill()
    calls: list[int] = []
    for name in ("fsync", "fdatasync"):
        flush = getattr(os, name)
        monkeypatch.setattr(os, name, lambda descriptor, flush=flush: (calls.append(descriptor), flush(descriptor))[1])
    incoming = spool.open_incoming(IDENTITY)
    incoming.write(b"\1" * 100)
    sealed = incoming.seal()
    assert len(calls) == flushes, "one an instance; its name was flushed before it came"
    with spool.settling([sealed]) as kept:
        assert len(calls) == 2 * flushes, "and the folder that names it, when nobody waits"
        assert data_set_of(kept[0].path) == b"\1" * 100


def test_a_file_whose_name_was_not_made_ahead_has_its_folder_flushed_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk does not let names be made for a moment: else a power cut takes the name, and the instance with it."""
    flushed: list[bool] = []
    for name in ("fsync", "fdatasync"):
        flush = getattr(os, name)
        monkeypatch.setattr(os, name, lambda of, flush=flush: (flushed.append(stat.S_ISDIR(os.fstat(of).st_mode)), flush(of))[1])
    incoming = IncomingFile(slots.Place(str(tmp_path / "new.part")), IDENTITY)
    incoming.write(b"\1" * 100)
    incoming.seal()
    assert flushed == [False, True]


@pytest.mark.parametrize(("durability", "synchronous"), [("power-loss", 2), ("process-crash", 1)])
def test_the_configured_durability_reaches_the_spool_and_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, synchronous: int
) -> None:
    """2 is FULL: a commit waits for the disk; 1 is NORMAL: for the kernel."""
    files = [read_part10(path) for path in make_ct_series(tmp_path / "ct", slices=2).paths]
    found: list[int] = []
    connect = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            if args[0].startswith("INSERT INTO instance"):
                found.append(super().execute("PRAGMA synchronous").fetchone()[0])
            return super().execute(*args)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "factory": Watched}))
    with listening(config_for(tmp_path / "state", durability=durability)) as listener:
        flushed: list[int] = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(descriptor), fsync(descriptor))[1])
        assert len(offer(listener, files)) == 2
    assert set(found) == {synchronous}
    assert bool(flushed) is (durability == "power-loss")


def test_where_there_is_far_more_room_than_the_limit_the_disk_is_not_asked_for_every_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = Gauge(monkeypatch)
    gauge.free_mib = 100 + (FAR_ABOVE_BYTES >> 20)
    assert gauge.watermark.objection() is None
    gauge.free_mib = 0
    assert gauge.watermark.objection() is None, "it was asked a moment ago"
    gauge.now_s = LOOK_EVERY_S
    assert isinstance(gauge.watermark.objection(), OutOfResources)
    assert isinstance(gauge.watermark.objection(), OutOfResources)
