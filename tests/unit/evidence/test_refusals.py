"""What cannot be said truly in DICOM is refused with an EvidenceError, not sent."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest

from node.domain.states import Outcome
from node.domain.volume import LabelMap
from node.errors import EvidenceError
from node.evidence.context import EvidenceContext
from node.evidence.header import normalise_source
from node.evidence.measurement_report import encode_report
from node.evidence.segmentation import encode_segmentation
from tests.conformance.cases import CONTEXT, Case, make_case, with_outcome


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path, slices=6, rows=24, columns=24, parts=2)


def test_nothing_segmented_is_no_segmentation(case: Case) -> None:
    nothing = with_outcome(case, Outcome.NOTHING_FOUND)
    with pytest.raises(EvidenceError, match="no voxel"):
        nothing.segmentation()
    failed = with_outcome(case, Outcome.FAILED)
    with pytest.raises(EvidenceError, match="label map"):
        failed.segmentation()


def test_labels_and_structures_must_agree(case: Case) -> None:
    labels = case.label_map.labels.copy()
    labels[0, 0, 0] = 99
    result = replace(case.result, label_map=LabelMap(labels, case.label_map.source))
    with pytest.raises(EvidenceError, match="99"):
        encode_segmentation(result, case.sources, CONTEXT)


def test_every_source_image_must_be_there(case: Case) -> None:
    with pytest.raises(EvidenceError, match="1 source images are missing"):
        encode_segmentation(case.result, case.sources[1:], CONTEXT)
    with pytest.raises(EvidenceError, match="headers"):
        encode_report(with_outcome(case, Outcome.FAILED).result, [], None, CONTEXT)


def test_a_report_of_findings_needs_its_segmentation(case: Case) -> None:
    with pytest.raises(EvidenceError):
        encode_report(case.result, case.sources, None, CONTEXT)
    with pytest.raises(EvidenceError):
        encode_report(with_outcome(case, Outcome.FAILED).result, case.sources, case.segmentation(), CONTEXT)


def test_an_image_without_uids_cannot_be_cited(case: Case) -> None:
    source = case.sources[0]
    del source.StudyInstanceUID
    with pytest.raises(EvidenceError, match="StudyInstanceUID"):
        normalise_source(source)


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(EvidenceError, match="time zone"):
        EvidenceContext("k", datetime(2026, 1, 1), "AE", "1")  # noqa: DTZ001
    assert EvidenceContext("k", datetime(2026, 1, 1, tzinfo=UTC), "AE", "1").uid("a") != CONTEXT.uid("a")


def test_frames_of_a_part_of_a_multi_frame_image_are_cited_truly(tmp_path: Path) -> None:
    case = make_case(tmp_path, "enhanced descending", parts=3)
    grid = case.label_map.source
    part = replace(grid, planes=grid.planes[4:-3])
    label_map = LabelMap(np.ascontiguousarray(case.label_map.labels[4:-3]), part)
    seg = encode_segmentation(replace(case.result, label_map=label_map), case.sources, CONTEXT)
    numbers = {plane.image_position_patient: plane.frame_number for plane in part.planes}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        position = tuple(float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient)
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedFrameNumber == numbers[position]


def test_a_private_sop_class_can_be_reported_on(case: Case) -> None:
    for source in case.sources:
        source.SOPClassUID = "1.3.12.2.1107.5.9.1"
    sr = encode_report(with_outcome(case, Outcome.NOT_ATTEMPTED).result, case.sources, None, CONTEXT)
    study = sr.CurrentRequestedProcedureEvidenceSequence[0]
    assert {item.ReferencedSOPClassUID for item in study.ReferencedSeriesSequence[0].ReferencedSOPSequence} == {"1.3.12.2.1107.5.9.1"}


def test_images_of_other_studies_are_pertinent_other_evidence(case: Case) -> None:
    prior = pydicom.dcmread(case.series.paths[0], stop_before_pixels=True)
    prior.StudyInstanceUID, prior.SeriesInstanceUID, prior.SOPInstanceUID = "1.2.9", "1.1.1", "1.1.1.1"
    sr = encode_report(with_outcome(case, Outcome.NOT_ATTEMPTED).result, [*case.sources, prior], None, CONTEXT)
    assert [study.StudyInstanceUID for study in sr.PertinentOtherEvidenceSequence] == ["1.2.9"]
    assert len(sr.CurrentRequestedProcedureEvidenceSequence) == 1
