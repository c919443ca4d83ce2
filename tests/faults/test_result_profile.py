"""Each destination gets the objects that it is configured to get; one that cannot be made costs no other."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

import node.pipeline
import node.worker
from node.config import Config
from node.dispatcher import Dispatcher, Rules
from node.domain.completeness import CompletenessPolicy
from node.domain.objects import CONFIGURABLE, ResultObject, objects_for
from node.domain.states import JobState
from node.errors import EvidenceError
from node.evidence.gate import Severity, examine_set
from node.intake.spool import spooled_path
from node.journal import JobJournal, open_database
from node.journal.queries import list_deliveries
from node.modelstore import load_cards
from tests.faults.setting import copy_of, finish, jobs

EVERYTHING = ",".join(CONFIGURABLE)


def want(config: Config, **objects: str) -> None:
    with closing(open_database(config.node.state_dir)) as connection:
        connection.execute("DELETE FROM job_destination")
        connection.executemany("INSERT INTO job_destination VALUES (1, ?, ?)", list(objects.items()))


def delivered(config: Config) -> dict[str, set[str]]:
    with closing(open_database(config.node.state_dir)) as connection:
        found: dict[str, set[str]] = {}
        for one in list_deliveries(connection, all=True):
            found.setdefault(one.destination, set()).add(one.role)
        return found


def test_each_destination_gets_what_it_is_to_get_and_all_of_it_passes(prepared: Path, tmp_path: Path) -> None:
    config = copy_of(prepared, tmp_path / "node")
    want(config, research=EVERYTHING, pacs="sr,seg", old="sr,sc,pdf", quiet="kos")
    (job,) = finish(config)
    assert job.state == JobState.COMPLETED, job.reason
    made = set(CONFIGURABLE) - {ResultObject.PM}  # this model gives scores of classes, not one probability
    assert delivered(config) == {"research": made, "pacs": {"sr", "seg"}, "old": {"sr", "sc", "pdf"}, "quiet": {"kos"}}
    folder = config.node.state_dir / "results" / "1" / "0"
    with closing(open_database(config.node.state_dir)) as connection:
        inputs = JobJournal(connection).inputs_of(1).values()
    sources = [dcmread(spooled_path(config.node.state_dir, digest), stop_before_pixels=True) for digest in inputs]
    objects = [dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    assert len(objects) == len(made)
    assert len({str(one.SeriesInstanceUID) for one in objects}) == len(made), "a series each"
    assert [str(fault) for _, fault in examine_set(objects, sources) if fault.severity is Severity.ERROR] == []


def test_a_picture_that_cannot_be_made_costs_no_other_result(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = copy_of(prepared, tmp_path / "node")
    want(config, old="sr,sc,kos")

    def fail(*_: Any) -> None:
        raise OSError("no font")

    monkeypatch.setattr(node.pipeline, "encode_secondary_capture", fail)
    (job,) = finish(config)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 1)
    assert delivered(config) == {"old": {"sr", "kos"}}


def test_a_further_object_with_an_error_stays_in_quarantine_alone(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = copy_of(prepared, tmp_path / "node")
    want(config, old="sr,seg,kos")
    encode = node.pipeline.encode_key_objects

    def of_somebody_else(*arguments: Any) -> Any:
        made = encode(*arguments)
        made.PatientID = "SOMEBODY-ELSE"
        return made

    monkeypatch.setattr(node.pipeline, "encode_key_objects", of_somebody_else)
    (job,) = finish(config)
    assert job.state == JobState.COMPLETED
    assert delivered(config) == {"old": {"sr", "seg"}}
    assert [path.name for path in (config.node.state_dir / "results" / "1" / "0" / "quarantine").iterdir()] == ["kos.dcm"]


def test_the_dispatcher_writes_down_what_the_configuration_says(prepared: Path, tmp_path: Path) -> None:
    config = copy_of(prepared, tmp_path / "node")
    with closing(open_database(config.node.state_dir)) as connection:
        connection.executescript("DELETE FROM job_input; DELETE FROM job_destination; DELETE FROM job")
        connection.execute("UPDATE study SET state = 'RECEIVING'")
        rules = Rules(
            tuple(route.as_route() for route in config.routes),
            load_cards(tmp_path / "node" / "models"),
            CompletenessPolicy(0.0, 60.0),
            {"archive": (ResultObject.SR, ResultObject.PDF)},
        )
        Dispatcher(connection, config.node.state_dir, rules).tick(1e12)
        (row,) = connection.execute("SELECT destination, objects FROM job_destination").fetchall()
    assert tuple(row) == ("archive", "sr,pdf")
    (job,) = jobs(config)
    finish(config)
    assert delivered(config) == {"archive": {"sr", "pdf"}}
    assert job.state == JobState.SCHEDULED


def test_a_destination_of_label_maps_gets_a_report_that_cites_them(prepared: Path, tmp_path: Path) -> None:
    config = copy_of(prepared, tmp_path / "node")
    want(config, modern=",".join(objects_for(["sr", "labelmap"])), pacs="sr,seg", both=",".join(objects_for(["sr", "seg", "labelmap"])))
    (job,) = finish(config)
    assert job.state == JobState.COMPLETED, job.reason
    assert delivered(config) == {"modern": {"sr-labelmap", "labelmap"}, "pacs": {"sr", "seg"}, "both": {"sr", "seg", "labelmap"}}
    folder = config.node.state_dir / "results" / "1" / "0"
    report, label_map = dcmread(folder / "sr-labelmap.dcm"), dcmread(folder / "labelmap.dcm")
    assert label_map.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    cited = {str(i.ReferencedSOPInstanceUID) for series in report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
             for i in series.ReferencedSOPSequence}  # fmt: skip
    assert label_map.SOPInstanceUID in cited
    assert dcmread(folder / "seg.dcm").SOPInstanceUID not in cited
    assert report.SOPInstanceUID != dcmread(folder / "sr.dcm").SOPInstanceUID


def test_a_destination_of_label_maps_is_told_of_a_failure(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = copy_of(prepared, tmp_path / "node")
    want(config, modern=",".join(objects_for(["sr", "labelmap"])))

    def fail(*_: Any) -> None:
        raise EvidenceError("nothing will do")

    monkeypatch.setattr(node.worker, "analyse", fail)
    (job,) = finish(config)
    assert job.outcome == "failed"
    assert delivered(config) == {"modern": {"sr-labelmap"}}


def test_a_report_that_cannot_cite_its_label_map_is_no_silence(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = copy_of(prepared, tmp_path / "node")
    want(config, modern=",".join(objects_for(["sr", "labelmap"])))

    def fail(*_: Any) -> None:
        raise EvidenceError("no label map today")

    monkeypatch.setattr(node.pipeline, "encode_label_map", fail)
    (job,) = finish(config)
    assert (job.outcome, job.reason) == ("failed", "no label map today")
    assert delivered(config) == {"modern": {"sr-labelmap"}}, "the report that says so"
