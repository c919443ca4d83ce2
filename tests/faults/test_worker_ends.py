"""Whatever a study, a card or the disk breaks in the worker: the job ends with a reason, and the next job runs."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

import node.worker
from node.config import load_config
from node.domain.states import JobState
from node.intake.spool import spooled_path
from node.journal import JobJournal, open_database
from node.journal.queries import list_deliveries
from node.worker import Worker
from tests.factories import make_ct_series
from tests.faults.setting import add_study, copy_of, finish, jobs, prepare


def lose_a_spooled_file(folder: Path) -> None:
    connection = open_database(folder / "state")
    sha256 = next(iter(JobJournal(connection).inputs_of(1).values()))
    connection.close()
    spooled_path(folder / "state", sha256).unlink()


def damage_a_spooled_file(folder: Path) -> None:
    connection = open_database(folder / "state")
    sha256 = next(iter(JobJournal(connection).inputs_of(1).values()))
    connection.close()
    path = spooled_path(folder / "state", sha256)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:300])


def lose_every_spooled_file(folder: Path) -> None:
    for path in (folder / "state" / "spool").rglob("*.dcm"):
        path.unlink()


@pytest.mark.parametrize("damage", [lose_a_spooled_file, damage_a_spooled_file, lose_every_spooled_file])
def test_a_job_that_cannot_even_be_reported_ends_and_the_next_one_runs(
    prepared: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    config = copy_of(prepared, tmp_path / "node")
    damage(tmp_path / "node")
    add_study(tmp_path / "node", make_ct_series(tmp_path / "second", study="second", series="second"))
    for _ in range(3):  # waits between attempts are passed over
        make_due(tmp_path / "node")
        first, second = finish(config)
    assert (first.state, second.state) == (JobState.CANCELED, JobState.COMPLETED)
    assert first.reason


def make_due(folder: Path) -> None:
    connection = open_database(folder / "state")
    connection.execute("UPDATE job SET not_before = 0")
    connection.close()


def test_a_model_whose_folder_is_gone_costs_its_own_jobs_alone(prepared: Path, tmp_path: Path) -> None:
    config = copy_of(prepared, tmp_path / "node")
    shutil.rmtree(tmp_path / "node" / "models" / "thresholds")
    (job,) = finish(config)
    assert (job.state, job.outcome) == (JobState.CANCELED, "failed")
    assert "there is no model 'thresholds'" in job.reason


def test_a_data_set_without_sop_class_uid_is_analysed(prepared: Path, tmp_path: Path) -> None:
    """The listener takes it: the request and the file meta information name the class."""
    config = copy_of(prepared, tmp_path / "node")

    def strip(dataset: Dataset, _index: int) -> None:
        del dataset.SOPClassUID

    add_study(tmp_path / "node", make_ct_series(tmp_path / "bare", study="bare", series="bare", edit=strip))
    _, job = finish(config)
    assert job.state == JobState.COMPLETED, job.reason
    report = dcmread(tmp_path / "node" / "state" / "results" / "2" / "0" / "sr.dcm")
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    classes = {str(i.ReferencedSOPClassUID) for series in study.ReferencedSeriesSequence for i in series.ReferencedSOPSequence}
    assert "1.2.840.10008.5.1.4.1.1.2" in classes


def test_a_picture_that_fails_costs_no_result(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = copy_of(prepared, tmp_path / "node")

    def fail(*_: Any) -> None:
        raise ValueError("no font")

    monkeypatch.setattr(node.worker, "illustrate", fail)
    (job,) = finish(config)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 1)


def test_a_full_disk_costs_no_attempt_and_no_result(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = copy_of(prepared, tmp_path / "node")
    worker = Worker(config, "cpu", "worker")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        for _ in range(config.worker.max_attempts + 2):
            make_due(tmp_path / "node")
            assert worker.work_once()
    (job,) = jobs(config)
    assert (job.state, job.attempt, job.owner) == (JobState.IN_PROGRESS, 0, "")
    make_due(tmp_path / "node")
    (job,) = finish(config)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 1)
    connection = open_database(config.node.state_dir)
    assert sorted(delivery.role for delivery in list_deliveries(connection)) == ["seg", "sr"]
    connection.close()


def test_an_older_job_that_waits_is_superseded_by_the_one_with_more_images(tmp_path: Path) -> None:
    prepare(tmp_path, missing=(23,))
    add_study(tmp_path, make_ct_series(tmp_path / "whole"))
    first, second = finish(load_config(tmp_path / "node.toml"))
    assert (first.state, second.state) == (JobState.CANCELED, JobState.COMPLETED)
    assert first.reason == "superseded by job 2, which has more images"
    assert first.attempt == 0
