"""An object with an error never leaves the node: it lies in quarantine, the job says why, and a report tells the reader."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

import node.pipeline
from node.domain.states import JobState
from node.journal import open_database
from node.journal.queries import list_deliveries
from tests.faults.setting import copy_of, finish


def test_a_segmentation_that_does_not_lie_on_its_source_is_never_sent(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy_of(prepared, tmp_path / "node")
    encode = node.pipeline.encode_segmentation

    def moved(*arguments: Any) -> Dataset:
        seg = encode(*arguments)
        seg.FrameOfReferenceUID = "1.2.3.4.5"
        return seg

    monkeypatch.setattr(node.pipeline, "encode_segmentation", moved)
    (job,) = finish(config)
    assert (job.state, job.outcome, job.attempt) == (JobState.CANCELED, "failed", 1), "our bug: another attempt would end the same"
    assert "did not pass the conformance gate" in job.reason
    assert "SEG header: Frame of Reference UID is not that of the source images" in job.reason
    folder = config.node.state_dir / "results" / "1" / "0"
    assert dcmread(folder / "quarantine" / "seg.dcm").FrameOfReferenceUID == "1.2.3.4.5"
    with closing(open_database(config.node.state_dir)) as connection:
        (delivery,) = list_deliveries(connection)
    assert delivery.role == "sr", "the report that says so, and no segmentation"
    assert b"did not pass the conformance gate" in delivery.path.read_bytes()
