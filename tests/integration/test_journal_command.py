"""`radnode journal`: it finds what is wrong, also in a damaged file; what it restores loses nothing that was acknowledged."""

import csv
import io
import json
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node import custody
from node.cli import main
from node.codes import ExitCode
from node.domain.states import Outcome
from node.journal import JournalUnusable, journal_path, transaction
from node.journal.upkeep import require_sound_journal
from node.locks import HeldLock
from tests.integration.intake_kit import data_set_of
from tests.integration.retention_kit import HOUR_S, Place, digest_of

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    (tmp_path / "node.toml").write_text('[node]\nae_title = "RADNODE"\nstate_dir = "state"\nmodels_dir = "."\n')
    return made


@pytest.fixture
def radnode(place: Place, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what the node's own parts have logged
        status = main(["journal", *map(str, words), "--config", str(place.folder / "node.toml")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def findings(radnode: Command, *words: str) -> dict[str, dict[str, Any]]:
    status, out, _ = radnode("check", "--json", *words)
    found = {one["check"]: one for one in json.loads(out)}
    assert status == (ExitCode.FAILED if any(one["verdict"] == "WRONG" for one in found.values()) else ExitCode.OK)
    return found


def damage(place: Place) -> None:
    """Overwrites the middle of the journal, as a broken disk does."""
    with place.journal() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = journal_path(place.state_dir)
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(os.urandom(path.stat().st_size - 8192))


# ── check ───────────────────────────────────────────────────────────────────


def test_a_sound_journal_passes_every_check_while_the_node_runs(place: Place, radnode: Command) -> None:
    place.analysed("one")
    place.deliver()
    place.declined("two")
    with HeldLock(custody.node_lock(place.state_dir)), place.journal() as connection:
        connection.execute("BEGIN IMMEDIATE")  # a writer in the middle of its work
        found = findings(radnode, "--deep")
        connection.execute("ROLLBACK")
    assert {name: one["verdict"] for name, one in found.items()} == dict.fromkeys(
        ("file", "references", "states", "ends", "owners", "deliveries", "images", "results", "orphans", "unverified"), "ok"
    )
    assert found["images"]["text"] == "6 images lie where they should, byte for byte"


def spoil_image(place: Place, path: Path) -> None:
    path.chmod(0o640)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_changed_byte_of_an_image_is_found_by_a_deep_check_alone(place: Place, radnode: Command) -> None:
    series = place.declined("one")
    spoil_image(place, place.files_of(series)[1])
    assert findings(radnode)["images"]["verdict"] == "ok"
    found = findings(radnode, "--deep")["images"]
    assert (found["verdict"], found["count"]) == ("WRONG", 1)
    assert "not the bytes that were kept" in found["text"]


@pytest.mark.parametrize(
    ("check", "spoil", "text"),
    [
        ("images", lambda place, path: path.unlink(), "is gone"),
        ("images", lambda place, path: (path.chmod(0o640), path.write_bytes(path.read_bytes()[:-1000])), "has another size"),
        ("results", lambda place, path: (place.state_dir / "results/1/0/seg.dcm").write_bytes(b"other"), "has other bytes"),
        ("results", lambda place, path: (place.state_dir / "results/1/0/sr.dcm").unlink(), "is gone"),
        ("states", lambda place, path: place.rows("UPDATE job SET state = 'DREAMING' RETURNING 1"), "job 'DREAMING'"),
        ("ends", lambda place, path: place.rows("UPDATE series SET state = 'RECEIVING' RETURNING 1"), "without an end"),
        ("references", lambda place, path: unhinge(place), "job_destination → job"),
    ],
    ids=["image gone", "image truncated", "result changed", "result gone", "state", "endless series", "reference"],
)
def test_what_is_wrong_is_found_and_named(
    place: Place, radnode: Command, check: str, spoil: Callable[[Place, Path], object], text: str
) -> None:
    series = place.analysed("one")
    place.deliver()
    spoil(place, place.files_of(series)[0])
    found = findings(radnode)
    assert {name for name, one in found.items() if one["verdict"] == "WRONG"} == {check}
    assert text in found[check]["text"]
    assert found[check]["advice"]
    status, out, _ = radnode("check")
    assert status == ExitCode.FAILED
    assert "WRONG" in out


def unhinge(place: Place) -> None:
    with place.journal() as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("INSERT INTO job_destination (job_id, destination) VALUES (99, 'nowhere')")


def test_jobs_of_dead_workers_are_wrong_only_while_a_node_runs(place: Place, radnode: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custody, "SECOND_LOOK_S", 0.01)
    place.analysed("one")
    place.rows("UPDATE job SET state = 'IN PROGRESS', owner = 'worker-cpu-1' RETURNING 1")
    assert findings(radnode)["owners"]["verdict"] == "note"
    with HeldLock(custody.node_lock(place.state_dir)):
        assert findings(radnode)["owners"]["verdict"] == "WRONG"
        with HeldLock(place.state_dir / "run" / "worker-cpu-1.lock"):
            assert findings(radnode)["owners"]["verdict"] == "ok"


def test_what_waits_for_a_person_and_files_without_a_row_are_notes(place: Place, radnode: Command) -> None:
    place.analysed("one")
    place.deliver("GIVEN UP", "")
    series = place.declined("two")
    place.rows("DELETE FROM instance WHERE study_instance_uid = ? RETURNING 1", series.study_instance_uid)
    found = findings(radnode)
    assert (found["deliveries"]["verdict"], found["deliveries"]["count"]) == ("note", 2)
    assert (found["orphans"]["verdict"], found["orphans"]["count"]) == ("note", 3)


def test_a_check_changes_nothing(place: Place, radnode: Command) -> None:
    place.declined("one")
    before = {path: path.stat().st_mtime_ns for path in place.state_dir.rglob("*") if path.is_file() and "-shm" not in path.name}
    findings(radnode, "--deep")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_damaged_journal_is_said_to_be_and_what_to_do(place: Place, radnode: Command) -> None:
    place.declined("one", slices=4)
    status, out, _ = radnode("backup")
    assert status == ExitCode.OK
    damage(place)
    found = findings(radnode)["file"]
    assert found["verdict"] == "WRONG"
    assert f"radnode journal restore {out.strip()}" in found["advice"]
    with pytest.raises(JournalUnusable, match=f"damaged.*radnode journal restore {out.strip()}"):
        require_sound_journal(place.state_dir)


@pytest.mark.parametrize("content", [b"no journal at all " * 500, b"SQLite format 3\0" + bytes(5000)], ids=["rubbish", "zeros"])
def test_a_journal_that_is_none_is_said_to_be(place: Place, radnode: Command, content: bytes) -> None:
    journal_path(place.state_dir).write_bytes(content)
    assert findings(radnode)["file"]["verdict"] == "WRONG"
    with pytest.raises(JournalUnusable, match="--from-spool"):
        require_sound_journal(place.state_dir)


def test_a_lost_journal_stops_the_start_only_where_images_lie_in_the_spool(place: Place) -> None:
    require_sound_journal(place.state_dir)
    place.declined("one")
    require_sound_journal(place.state_dir)
    for path in place.state_dir.glob("journal.sqlite*"):
        path.unlink()
    with pytest.raises(JournalUnusable, match="is gone, but images lie in the spool"):
        require_sound_journal(place.state_dir)


# ── backup and restore ──────────────────────────────────────────────────────


def test_a_restore_takes_in_what_was_acknowledged_after_the_backup(place: Place, radnode: Command) -> None:
    old = place.declined("old")
    _, out, _ = radnode("backup")
    new = place.declined("new")
    damage(place)
    status, told, err = radnode("restore", out.strip())
    assert (status, told) == (ExitCode.OK, "3 images of the spool that the journal did not know were taken in\n")
    assert ".damaged-" in err
    assert len(list(place.state_dir.glob("journal.damaged-*.sqlite"))) == 1
    recorded = {row[0] for row in place.rows("SELECT sha256 FROM instance WHERE purged_at IS NULL")}
    assert recorded == {digest_of(path) for path in (*old.paths, *new.paths)}
    assert set(place.rows("SELECT study_instance_uid, state FROM study")) == {
        (old.study_instance_uid, "DECIDED"),
        (new.study_instance_uid, "RECEIVING"),
    }
    assert place.rows("SELECT count(*) FROM open_association") == [(0,)]
    assert {name: one["verdict"] for name, one in findings(radnode, "--deep").items() if one["verdict"] != "ok"} == {}
    require_sound_journal(place.state_dir)


def test_a_restore_knows_what_retention_removed_after_the_backup_and_keeps_what_came_again(place: Place, radnode: Command) -> None:
    gone, again = place.declined("gone"), place.declined("again")
    place.rows("UPDATE instance SET purged_at = 1.0 WHERE study_instance_uid = ? RETURNING 1", again.study_instance_uid)
    _, out, _ = radnode("backup")
    place.send(*again.paths)
    for path in place.files_of(gone):
        path.unlink()
    status, _, err = radnode("restore", out.strip())
    assert status == ExitCode.OK
    assert "3 images that the backup names are gone from the spool" in err
    assert place.rows("SELECT count(*) FROM instance WHERE purged_at IS NULL") == [(3,)]
    assert len(place.files_of(again)) == 3
    place.require_every_row_has_its_file()


def test_a_lost_journal_is_made_anew_from_the_spool(place: Place, radnode: Command) -> None:
    series = [place.declined("one"), place.analysed("two", outcome=Outcome.FAILED)]
    before = place.rows("SELECT sop_instance_uid, sha256, series_instance_uid, size_bytes, calling_ae_title FROM instance ORDER BY 1")
    for path in place.state_dir.glob("journal.sqlite*"):
        path.unlink()
    status, out, _ = radnode("restore", "--from-spool")
    assert (status, out.split()[0]) == (ExitCode.OK, "6")
    after = place.rows("SELECT sop_instance_uid, sha256, series_instance_uid, size_bytes, calling_ae_title FROM instance ORDER BY 1")
    assert after == before
    assert {row[0] for row in place.rows("SELECT state FROM study")} == {"RECEIVING"}, "decided on when the node starts"
    assert all(len(place.files_of(one)) == 3 for one in series)


def test_a_restore_waits_for_nobody_it_refuses_while_the_node_runs(place: Place, radnode: Command) -> None:
    place.declined("one")
    _, out, _ = radnode("backup")
    content = journal_path(place.state_dir).read_bytes()
    with HeldLock(custody.node_lock(place.state_dir)):
        status, _, err = radnode("restore", out.strip())
    assert status == ExitCode.FAILED
    assert "stop it first" in err
    assert journal_path(place.state_dir).read_bytes() == content


@pytest.mark.parametrize("content", [None, b"", b"no journal " * 1000], ids=["absent", "empty", "rubbish"])
def test_a_backup_that_is_none_is_refused_and_changes_nothing(
    place: Place, radnode: Command, tmp_path: Path, content: bytes | None
) -> None:
    place.declined("one")
    backup = tmp_path / "backup.sqlite"
    if content is not None:
        backup.write_bytes(content)
    status, _, err = radnode("restore", backup)
    assert status == ExitCode.USAGE
    assert "cannot take the place of the journal" in err
    assert place.rows("SELECT count(*) FROM instance") == [(3,)]
    assert not list(place.state_dir.glob("*damaged*"))


def test_a_restore_needs_to_be_told_from_what(radnode: Command) -> None:
    for words in ((), ("x.sqlite", "--from-spool")):
        assert radnode("restore", *words)[0] == ExitCode.USAGE


def test_wherever_a_restore_dies_doing_it_again_succeeds(place: Place, radnode: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th rename is the last thing, n = 1, 2, ... until a restore gets through."""
    series = place.declined("one")
    _, out, _ = radnode("backup")
    backup = place.folder / "backup.sqlite"
    Path(out.strip()).rename(backup)
    rename = Path.rename
    for die_at in range(1, 10):
        left = [die_at]

        def dying(self: Path, target: Path, left: list[int] = left) -> Path:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", dying)
            status, _, _ = radnode("restore", backup)
        if status == ExitCode.OK:
            break
        assert radnode("restore", backup)[0] == ExitCode.OK
        assert {row[0] for row in place.rows("SELECT sha256 FROM instance")} == {digest_of(path) for path in series.paths}
    assert die_at >= 3


def test_a_backup_taken_while_instances_come_in_is_whole(place: Place, radnode: Command, tmp_path: Path) -> None:
    series = place.series("one", slices=12)
    with place.journal():
        pass  # it is there before anything comes
    sender = threading.Thread(target=place.send, args=series.paths)
    sender.start()
    for number in range(5):
        status, out, _ = radnode("backup", tmp_path / f"{number}.sqlite")
        assert status == ExitCode.OK
        with sqlite3.connect(out.strip()) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        copy.close()
    sender.join()
    assert place.rows("SELECT count(*) FROM instance") == [(12,)]


def test_a_backup_never_overwrites_and_says_when_it_cannot_be_written(place: Place, radnode: Command, tmp_path: Path) -> None:
    place.declined("one")
    assert radnode("backup", journal_path(place.state_dir))[0] == ExitCode.USAGE
    status, _, err = radnode("backup", tmp_path / "nowhere" / "x.sqlite")
    assert status == ExitCode.FAILED
    assert "could not be copied" in err


# ── export and vacuum ───────────────────────────────────────────────────────


def test_an_export_has_every_row_of_every_table(place: Place, radnode: Command, tmp_path: Path) -> None:
    place.analysed("one")
    output = tmp_path / "journal.jsonl"
    assert radnode("export", "--output", output)[0] == ExitCode.OK
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    for table in ("study", "series", "instance", "job", "job_input", "stage", "evidence", "delivery", "transition"):
        ((count,),) = place.rows(f"SELECT count(*) FROM {table}")  # noqa: S608
        assert len([row for row in rows if row["table"] == table]) == count, table
    status, out, _ = radnode("export", "--format", "csv", "--table", "instance")
    assert status == ExitCode.OK
    records = list(csv.DictReader(io.StringIO(out)))
    assert [record["sha256"] for record in records] == [row[0] for row in place.rows("SELECT sha256 FROM instance")]


def test_an_export_names_nobody(place: Place, radnode: Command) -> None:
    """What the images say about the patient is in no row; a name in a peer's words is masked."""
    series = place.analysed("one")
    place.rows("UPDATE delivery SET reason = 'refused: DOE^JANE^MARY is unknown' RETURNING 1")
    _, out, _ = radnode("export")
    assert "DOE^JANE" not in out
    from pydicom import dcmread

    header = dcmread(series.paths[0])
    assert str(header.PatientName) not in out
    assert f'"{header.PatientID}"' not in out


@pytest.mark.parametrize(
    ("words", "text"), [(("--table", "patients"), "there is no table patients"), (("--format", "csv"), "name it with --table")]
)
def test_a_wrong_export_says_what_to_do(place: Place, radnode: Command, words: tuple[str, ...], text: str) -> None:
    place.declined("one")
    status, _, err = radnode("export", *words)
    assert (status, text in err) == (ExitCode.USAGE, True)


def test_vacuum_gives_room_back_and_forgets_the_history_of_what_ended_alone(place: Place, radnode: Command) -> None:
    place.analysed("one")
    with place.journal() as connection, transaction(connection):
        connection.executemany(
            "INSERT INTO transition VALUES (1.0, 'job', ?, '', 'SCHEDULED', ?)",
            [*(("1", "x" * 500) for _ in range(5000)), *(("77", "of a job that is not there") for _ in range(3))],
        )
    size = journal_path(place.state_dir).stat().st_size
    status, out, err = radnode("vacuum", "--history-days", "30")
    assert status == ExitCode.OK
    assert "MB before" in out
    assert "steps of the history forgotten" in err
    assert journal_path(place.state_dir).stat().st_size < size / 4
    ((jobs, deliveries),) = place.rows("SELECT sum(kind = 'job'), sum(kind = 'delivery') FROM transition")
    assert (jobs, deliveries) == (3, 2), "what is not there is no ended thing; the deliveries are on their way"
    assert place.rows("PRAGMA integrity_check") == [("ok",)]


def test_the_age_of_the_history_must_be_a_number(radnode: Command) -> None:
    for words in ("soon", "-1", "nan"):
        with pytest.raises(SystemExit):
            radnode("vacuum", "--history-days", words)


def test_series_list_counts_what_came_changed_and_what_was_removed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    series = place.declined("one", slices=3)
    changed = place.folder / "changed.dcm"
    content = bytearray(series.paths[0].read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert data_set_of(changed) != data_set_of(series.paths[0])
    place.send(changed)
    place.rows("UPDATE instance SET purged_at = ? WHERE sha256 = ? RETURNING 1", HOUR_S, digest_of(series.paths[1]))
    capsys.readouterr()
    assert main(["series", "list", "--config", str(place.folder / "node.toml")]) == ExitCode.OK
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["STATE", "IMAGES", "CHANGED", "PURGED"]
    assert row.split()[1:4] == ["3", "1", "1"]
