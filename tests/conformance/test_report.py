"""Every SR passes other people's validators, says how the analysis ended, and agrees with its SEG."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from node.domain.result import PredecessorDocument
from node.domain.states import Outcome
from node.domain.volume import QualityNote
from tests.conformance.cases import Case, found, make_case, predecessor_uids, with_outcome, write
from tests.conformance.validators import (
    consistency_faults,
    html_of,
    iod_faults,
    presence_faults,
    read_report,
    template_faults_of,
    tree_faults,
)

pytestmark = pytest.mark.peer

ENDINGS = {
    Outcome.FOUND: "111222",
    Outcome.NOTHING_FOUND: "111222",
    Outcome.NOT_ATTEMPTED: "111225",
    Outcome.FAILED: "111224",
}
CASES: dict[str, tuple[dict[str, Any], Outcome]] = {
    "found": ({}, Outcome.FOUND),
    "17 found": ({"geometry": "oblique", "parts": 17}, Outcome.FOUND),
    "enhanced": ({"geometry": "enhanced"}, Outcome.FOUND),
    "nothing found": ({"parts": 3}, Outcome.NOTHING_FOUND),
    "not attempted": ({"parts": 3}, Outcome.NOT_ATTEMPTED),
    "failed": ({}, Outcome.FAILED),
}


@pytest.fixture(params=list(CASES), scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(request.param, tmp_path_factory.mktemp("case"))


def case_of(name: str, folder: Path) -> Case:
    options, outcome = CASES[name]
    made = make_case(folder, **options)
    return made if outcome is Outcome.FOUND else with_outcome(made, outcome)


@pytest.fixture(scope="module")
def path(case: Case) -> Path:
    return write(case.report(), case.series.folder.parent / "sr.dcm")


def test_dicom3tools_and_dcmtk_find_no_fault(path: Path, case: Case) -> None:
    assert iod_faults(path) == []
    assert tree_faults(path) == []
    files = [*case.series.paths, path]
    if case.result.outcome is Outcome.FOUND:
        files.append(write(case.segmentation(), path.with_name("seg.dcm")))
    assert consistency_faults(files) == []


def test_nothing_mandatory_is_absent(path: Path) -> None:
    assert presence_faults(path) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pixelmed_finds_no_fault_in_the_templates(tmp_path: Path) -> None:
    paths = [write(case_of(name, tmp_path / str(number)).report(), tmp_path / f"{number}.dcm") for number, name in enumerate(CASES)]
    paths.append(write(some_found(tmp_path / "some").report(), tmp_path / "some.dcm"))
    assert {path.name: faults for path, faults in template_faults_of(paths).items() if faults} == {}


def test_dcmqi_reads_the_volumes(path: Path, case: Case, tmp_path: Path) -> None:
    groups = read_report(path, tmp_path / "report.json").get("Measurements", [])
    volumes = [float(group["measurementItems"][0]["value"]) for group in groups if group["measurementItems"]]
    assert volumes == [segment.measurements[0].value for segment in case.result.segments if segment.present]
    assert len(groups) == 2 * len(volumes), "each measured by its segment, and outlined on its key slice"


def test_every_report_concludes(path: Path, case: Case) -> None:
    conclusions = _conclusions(pydicom.dcmread(path))
    endings = [item.ConceptCodeSequence[0].CodeValue for item in conclusions if _name(item) == "111065"]
    assert endings == [ENDINGS[case.result.outcome]]
    absent = [item for item in conclusions if item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeValue == "272519000"]
    told = len(case.result.card.segments) if case.result.outcome is Outcome.NOTHING_FOUND else 0
    assert len(absent) == told, "a run that failed says nothing about structures"
    assert conclusions[1].TextValue.startswith(("AI result, not verified", "The analysis "))


@pytest.mark.parametrize("geometry", ["axial", "sagittal", "oblique", "tilted", "enhanced"])
def test_the_outline_lies_around_the_structure_on_its_key_slice(tmp_path: Path, geometry: str) -> None:
    """For viewers that draw coordinates and no segments: closed, never of four or five points, under the Tracking UID of the segment."""
    case = make_case(tmp_path, geometry, 3)
    seg, sr = case.segmentation(), case.report()
    planes = {(plane.sop_instance_uid, plane.frame_number): k for k, plane in enumerate(case.label_map.source.planes)}
    outlined = [group for group in _groups(sr) if _value(group, "111030")]
    assert [_value(group, "112040").UID for group in outlined] == [item.TrackingUID for item in seg.SegmentSequence]
    for number, group in enumerate(outlined, 1):
        region = _value(group, "111030")
        points = np.array(region.GraphicData, dtype=float).reshape(-1, 2)
        assert (region.GraphicType, len(points) >= 6) == ("POLYLINE", True)
        assert np.array_equal(points[0], points[-1])
        (reference,) = region.ContentSequence[0].ReferencedSOPSequence
        frame = reference.get("ReferencedFrameNumber")
        plane = case.label_map.labels[planes[str(reference.ReferencedSOPInstanceUID), int(frame) if frame else None]] == 2 * number
        areas = (case.label_map.labels == 2 * number).sum(axis=(1, 2))
        assert plane.sum() == areas.max()
        picture = Image.new("1", plane.shape[::-1])
        ImageDraw.Draw(picture).polygon([(x - 0.5, y - 0.5) for x, y in points], fill=1)
        drawn = np.asarray(picture)
        assert 2 * (drawn & plane).sum() / (drawn.sum() + plane.sum()) > 0.85


def test_dsr2html_shows_what_was_found(path: Path, case: Case, tmp_path: Path) -> None:
    html = html_of(path, tmp_path / "report.html")
    words = {
        Outcome.FOUND: "Thalamus",
        Outcome.NOTHING_FOUND: "Absent",
        Outcome.NOT_ATTEMPTED: "Not Attempted",
        Outcome.FAILED: "Failed",
    }
    assert words[case.result.outcome] in html
    assert ("at most 8 mm" in html) == bool(case.result.reason)


def test_header_says_unverified_and_preliminary(path: Path, case: Case) -> None:
    sr = pydicom.dcmread(path)
    assert sr.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert (sr.CompletionFlag, sr.VerificationFlag, sr.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert sr.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert sr.ContentQualification == "RESEARCH"
    assert sr.SeriesDescription == "AI Parts of an organ 1.0.0 SR"


def test_evidence_cites_every_image_that_was_used(path: Path, case: Case) -> None:
    sr = pydicom.dcmread(path)
    cited = {
        instance.ReferencedSOPInstanceUID
        for study in sr.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert set(case.series.sop_instance_uids) <= cited
    assert len(cited) == len(case.series.sop_instance_uids) + (case.result.outcome is Outcome.FOUND)


def test_report_and_segmentation_agree(tmp_path: Path) -> None:
    case = make_case(tmp_path, "axial", 17)
    seg, sr = case.segmentation(), case.report()
    segments = {int(item.SegmentNumber): item for item in seg.SegmentSequence}
    groups = [group for group in _groups(sr) if _value(group, "121191")]
    assert len(groups) == len(segments) == 17
    assert len(_groups(sr)) == 34
    counts = np.bincount(case.label_map.labels.reshape(-1) // 2)
    voxel_cm3 = 3.0 * 2.0 * 2.0 / 1000
    for group in groups:
        reference = _value(group, "121191").ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        segment = segments[int(reference.ReferencedSegmentNumber)]
        assert _value(group, "112040").UID == segment.TrackingUID
        assert _value(group, "112039").TextValue == segment.TrackingID
        number = _value(group, "118565006").MeasuredValueSequence[0]
        assert number.MeasurementUnitsCodeSequence[0].CodeValue == "cm3"
        assert math.isclose(float(number.NumericValue), counts[segment.SegmentNumber] * voxel_cm3, rel_tol=1e-4)
        assert _value(group, "121071").ConceptCodeSequence[0].CodeValue == "42695009"


def test_observer_algorithm_and_contributing_equipment_are_one(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    for evidence in (case.segmentation(), case.report()):
        processing = [
            item for item in evidence.ContributingEquipmentSequence if item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        ]
        assert len(processing) == 1
        item = processing[0]
        assert item.DeviceUID == case.result.card.device_uid
        assert (item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions) == ("radnode tests", "test-parts", "1.0.0")
    sr = case.report()
    observer = {name: _value(sr, name) for name in ("121012", "121014", "121015")}
    assert observer["121012"].UID == item.DeviceUID
    assert observer["121014"].TextValue == item.Manufacturer
    assert observer["121015"].TextValue == item.ManufacturerModelName
    for group in _groups(sr):
        assert _value(group, "111001").TextValue == item.ManufacturerModelName
        assert _value(group, "111003").TextValue == item.SoftwareVersions


def test_a_structure_that_is_absent_is_no_finding(tmp_path: Path) -> None:
    sr = with_outcome(make_case(tmp_path, parts=3), Outcome.NOTHING_FOUND).report()
    assert not [item for item in sr.ContentSequence if _name(item) == "126010"]
    told = [item for item in _conclusions(sr) if _name(item) == "42695009"]
    assert [item.ConceptCodeSequence[0].CodeValue for item in told] == ["272519000"] * 3


def some_found(folder: Path) -> Case:
    case = make_case(folder, parts=4)
    case.label_map.labels[case.label_map.labels == 4] = 0
    return replace(case, result=found(case.result.card, case.label_map))


def test_some_found_and_some_not(tmp_path: Path) -> None:
    case = some_found(tmp_path)
    seg, sr = case.segmentation(), case.report()
    assert [(item.SegmentNumber, item.SegmentLabel) for item in seg.SegmentSequence] == [(1, "Part 1"), (2, "Part 3"), (3, "Part 4")]
    references = [_value(group, "121191") for group in _groups(sr)]
    numbers = [item.ReferencedSOPSequence[0].ReferencedSegmentNumber for item in references if item]
    assert numbers == [1, 2, 3]
    assert [item.TextValue for item in _conclusions(sr) if "Part 2" in str(item.get("TextValue"))]
    path = write(sr, tmp_path / "sr.dcm")
    assert iod_faults(path) == tree_faults(path) == []


def test_incomplete_input_makes_the_report_partial(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    notes = (
        QualityNote("Resampled", "The slices were resampled."),
        QualityNote("MissingSliceInterpolated", "One slice of 24 was missing and was interpolated – µ" + "x" * 60, degraded=True),
    )
    sr = replace(case, result=replace(case.result, notes=notes)).report()
    assert sr.CompletionFlag == "PARTIAL"
    assert sr.CompletionFlagDescription.startswith("One slice of 24 was missing")
    comments = [item.TextValue for item in _conclusions(sr) if _name(item) == "121106"]
    assert {note.text for note in notes} <= set(comments)
    path = write(sr, tmp_path / "sr.dcm")
    assert iod_faults(path) == tree_faults(path) == []


def test_request_and_predecessor_are_told(tmp_path: Path) -> None:
    def order(dataset: Dataset, index: int) -> None:
        item = Dataset()
        item.RequestedProcedureID = "RP7"
        item.ScheduledProcedureStepID = "SPS7"
        item.RequestedProcedureDescription = "CT Schädel"
        dataset.RequestAttributesSequence = [item]

    case = make_case(tmp_path, edit=order)
    predecessor = PredecessorDocument(*predecessor_uids())
    case = replace(case, context=replace(case.context, predecessor=predecessor))
    path = write(case.report(), tmp_path / "sr.dcm")
    sr = pydicom.dcmread(path)
    request = sr.ReferencedRequestSequence[0]
    assert request.StudyInstanceUID == case.series.study_instance_uid
    assert request.AccessionNumber == "RN0001"
    assert (request.RequestedProcedureID, request.RequestedProcedureDescription) == ("RP7", "CT Schädel")
    earlier = sr.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert earlier.ReferencedSOPInstanceUID == predecessor.sop_instance_uid
    assert iod_faults(path) == presence_faults(path) == tree_faults(path) == []


def _groups(sr: Dataset) -> list[Dataset]:
    measurements = next(item for item in sr.ContentSequence if _name(item) == "126010")
    return list(measurements.ContentSequence)


def _conclusions(sr: Dataset) -> list[Dataset]:
    (container,) = [item for item in sr.ContentSequence if _name(item) == "C0034375"]
    return list(container.ContentSequence)


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def _value(parent: Dataset, code: str) -> Any:
    return next((item for item in parent.ContentSequence if _name(item) == code), None)
