"""The gate lets every object of ours through, and catches every error that was seeded: those that other validators find, and those none does."""

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from node.evidence.gate import Severity, examine_object, examine_set
from node.evidence.gate.view import View
from node.evidence.gate.volumes import segment_volumes_mm3
from node.evidence.sop_common import part10_bytes
from tests.conformance.cases import GEOMETRIES, Case, make_case
from tests.conformance.test_identity import HEADERS

Pair = SimpleNamespace
Seed = Callable[[Any], None]


def read_again(dataset: Dataset) -> Dataset:
    return pydicom.dcmread(BytesIO(part10_bytes(dataset)))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("gate"), "oblique", 3)


def errors_of(pair: Any, case: Case) -> list[str]:
    return [str(fault) for _, fault in examine_set([pair.seg, pair.sr], case.sources) if fault.severity is Severity.ERROR]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("parts", [1, 17])
def test_ours_pass_without_a_word(tmp_path: Path, geometry: str, parts: int) -> None:
    made = make_case(tmp_path, geometry, parts)
    objects = [read_again(made.segmentation()), read_again(made.report())]
    told = [str(fault) for _, fault in examine_set(objects, made.sources)]
    if objects[0].Rows * objects[0].Columns % 8:
        (warning,) = told
        assert "a label map would be shown" in warning, "what viewers cannot read is legal, and told"
    else:
        assert told == []
    volumes = segment_volumes_mm3(View(objects[0]), [View(source) for source in made.sources])
    stated = [measured.value * 1000 for segment in made.result.segments for measured in segment.measurements]
    assert np.allclose([volumes[number] for number in sorted(volumes)], stated, rtol=1e-4)


# ── seeds ───────────────────────────────────────────────────────────────────


def segments(pair: Any) -> Any:
    return pair.seg.SegmentSequence


def frames(pair: Any) -> Any:
    return pair.seg.PerFrameFunctionalGroupsSequence


def items(node: Any, concept: str) -> list[Any]:
    found = []
    for item in node.get("ContentSequence", []):
        names = item.get("ConceptNameCodeSequence")
        if names and names[0].CodeValue == concept:
            found.append(item)
        found += items(item, concept)
    return found


def groups(pair: Any) -> list[Any]:
    return [group for group in items(pair.sr, "125007") if any(one.get("ValueType") == "NUM" for one in group.ContentSequence)]


def without(node: Any, concept: str) -> None:
    node.ContentSequence = [
        one for one in node.ContentSequence if not one.get("ConceptNameCodeSequence") or one.ConceptNameCodeSequence[0].CodeValue != concept
    ]


def shift_frame(pair: Any) -> None:
    position = frames(pair)[2].PlanePositionSequence[0]
    position.ImagePositionPatient = [float(one) + 0.5 for one in position.ImagePositionPatient]


def flip_orientation(pair: Any) -> None:
    orientation = pair.seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [-float(one) for one in orientation.ImageOrientationPatient]


def shear_orientation(pair: Any) -> None:
    orientation = pair.seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    values = [float(one) for one in orientation.ImageOrientationPatient]
    orientation.ImageOrientationPatient = [*values[:3], *values[:3]]


def overlap_segments(pair: Any) -> None:
    """Gives the second segment the pixels of the first where both have a frame."""
    size = pair.seg.Rows * pair.seg.Columns // 8
    data = bytearray(pair.seg.PixelData)
    places: dict[tuple[float, ...], int] = {}
    for number, frame in enumerate(frames(pair)):
        position = tuple(float(one) for one in frame.PlanePositionSequence[0].ImagePositionPatient)
        if position in places:
            first = places[position]
            data[number * size : (number + 1) * size] = data[first * size : (first + 1) * size]
        places.setdefault(position, number)
    pair.seg.PixelData = bytes(data)


def add_scoord3d(pair: Any) -> None:
    pair.sr.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "SCOORD3D"
    item.GraphicType, item.GraphicData = "POINT", [0.0, 0.0, 0.0]
    item.ReferencedFrameOfReferenceUID = pair.seg.FrameOfReferenceUID
    groups(pair)[0].ContentSequence.append(item)


def scale_volume(pair: Any) -> None:
    (value,) = items(groups(pair)[0], "118565006")[0].MeasuredValueSequence
    value.NumericValue = str(float(value.NumericValue) * 1.01)[:16]


def swap_meaning(pair: Any) -> None:
    """The code of the thalamus, called brain stem."""
    segments(pair)[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Brain stem"


def say_absent(pair: Any) -> None:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "CODE"
    for keyword, code in (("ConceptNameCodeSequence", ("42695009", "Thalamus")), ("ConceptCodeSequence", ("272519000", "Absent"))):
        coded = Dataset()
        coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = code[0], "SCT", code[1]
        setattr(item, keyword, [coded])
    groups(pair)[0].ContentSequence.append(item)


def algorithm(pair: Any) -> Any:
    return segments(pair)[0].SegmentationAlgorithmIdentificationSequence[0]


SEEDS: Final[dict[str, tuple[Seed, str]]] = {
    # SEG: other validators find these
    "SEG no algorithm name": (lambda p: segments(p)[0].pop("SegmentAlgorithmName"), "Segment Algorithm Name is absent"),
    "SEG no label": (lambda p: setattr(segments(p)[1], "SegmentLabel", ""), "it has no label"),
    "SEG no algorithm version": (lambda p: algorithm(p).pop("AlgorithmVersion"), "AlgorithmVersion"),
    "SEG no algorithm family": (lambda p: algorithm(p).pop("AlgorithmFamilyCodeSequence"), "AlgorithmFamilyCodeSequence"),
    "SEG no dimension index": (lambda p: p.seg.pop("DimensionIndexSequence"), "Dimension Index Sequence is absent"),
    "SEG wrong number of frames": (lambda p: setattr(p.seg, "NumberOfFrames", p.seg.NumberOfFrames - 1), "Number of Frames"),
    "SEG no referenced series": (lambda p: p.seg.pop("ReferencedSeriesSequence"), "names no source image"),
    "SEG gap in segment numbers": (lambda p: setattr(segments(p)[2], "SegmentNumber", 9), "segments are numbered"),
    "SEG frame of an unknown segment": (
        lambda p: setattr(frames(p)[0].SegmentIdentificationSequence[0], "ReferencedSegmentNumber", 99), "segment 99",
    ),
    "SEG truncated pixels": (lambda p: setattr(p.seg, "PixelData", p.seg.PixelData[:-40]), "Pixel Data has"),
    "SEG bad UID": (lambda p: setattr(p.seg, "SeriesInstanceUID", "1.2..3"), "is no UID"),
    "SEG of another patient": (lambda p: setattr(p.seg, "PatientID", "SOMEBODY-ELSE"), "PatientID is not that"),
    "SEG of another study": (lambda p: setattr(p.seg, "StudyInstanceUID", "1.2.3.4"), "StudyInstanceUID is not that"),
    "SEG tracking ID alone": (lambda p: segments(p)[0].pop("TrackingUID"), "Tracking ID and Tracking UID"),
    "SEG no category": (lambda p: segments(p)[0].pop("SegmentedPropertyCategoryCodeSequence"), "has 0 items"),
    "SEG no content label": (lambda p: p.seg.pop("ContentLabel"), "ContentLabel is absent"),
    # SR
    "SR no completion flag": (lambda p: p.sr.pop("CompletionFlag"), "Completion Flag"),
    "SR verified by nobody": (lambda p: setattr(p.sr, "VerificationFlag", "VERIFIED"), "nobody is named"),
    "SR reference not in evidence": (
        lambda p: setattr(items(p.sr, "121191")[0].ReferencedSOPSequence[0], "ReferencedSOPInstanceUID", "1.2.3"), "no Evidence Sequence",
    ),
    "SR no evidence": (lambda p: p.sr.pop("CurrentRequestedProcedureEvidenceSequence"), "Evidence Sequence is absent"),
    "SR number without unit": (
        lambda p: items(p.sr, "118565006")[0].MeasuredValueSequence[0].pop("MeasurementUnitsCodeSequence"), "has no unit",
    ),
    "SR 3D coordinates in a 2D class": (add_scoord3d, "SCOORD3D is not allowed"),
    "SR tracking identifier contained": (
        lambda p: setattr(items(groups(p)[0], "112039")[0], "RelationshipType", "CONTAINS"), "not HAS OBS CONTEXT",
    ),
    "SR volume without segment": (lambda p: without(groups(p)[0], "121191"), "without a Referenced Segment"),
    "SR no source series": (lambda p: without(groups(p)[0], "121232"), "source images or source series"),
    "SR item without relationship": (lambda p: items(groups(p)[0], "118565006")[0].pop("RelationshipType"), "no Relationship Type"),
    "SR item without concept": (lambda p: items(groups(p)[0], "118565006")[0].pop("ConceptNameCodeSequence"), "no concept name"),
    "SR half a code": (lambda p: items(groups(p)[0], "121071")[0].ConceptCodeSequence[0].pop("CodeMeaning"), "lacks a part"),
    "SR of another patient": (lambda p: setattr(p.sr, "PatientName", "Else^Somebody"), "PatientName is not that"),
    "SR value that is none": (lambda p: items(groups(p)[0], "118565006")[0].pop("MeasuredValueSequence"), "neither a value"),
    # none of the others finds these
    "wrong frame of reference": (lambda p: setattr(p.seg, "FrameOfReferenceUID", generate_uid()), "Frame of Reference UID is not that"),
    "wrong position": (shift_frame, "it lies at"),
    "empty derivation": (lambda p: frames(p)[1].pop("DerivationImageSequence"), "names no source image"),
    "reference without segment number": (
        lambda p: items(p.sr, "121191")[0].ReferencedSOPSequence[0].pop("ReferencedSegmentNumber"), "does not say to which segment",
    ),
    "wrong unit": (
        lambda p: setattr(items(p.sr, "118565006")[0].MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0], "CodeValue", "mm"),
        "cannot be measured in mm",
    ),
    "wrong code meaning": (swap_meaning, "does not mean 'Brain stem'"),
    "no observer": (lambda p: without(p.sr, "121005"), "who observed"),
    "no tracking identifiers": (lambda p: (without(groups(p)[0], "112039"), without(groups(p)[0], "112040")), "has no Tracking"),
    # and what only makes sense between objects
    "orientation turned round": (flip_orientation, "orientation is not that of its source"),
    "orientation no rotation": (shear_orientation, "perpendicular"),
    "other pixel spacing": (
        lambda p: setattr(p.seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [1.0, 1.0]), "pixel spacing is not",
    ),
    "segments that overlap": (overlap_segments, "share a pixel"),
    "volume one percent off": (scale_volume, "the pixels of segment 1 make"),
    "other tracking UID": (lambda p: setattr(segments(p)[0], "TrackingUID", generate_uid()), "Tracking UID is not that of segment 1"),
    "other finding": (lambda p: setattr(items(groups(p)[0], "121071")[0].ConceptCodeSequence[0], "CodeValue", "10200004"), "not what segment 1"),
    "other algorithm version": (lambda p: setattr(algorithm(p), "AlgorithmVersion", "9"), "AlgorithmVersion is not that of segment 1"),
    "other algorithm device": (lambda p: setattr(items(p.sr, "121012")[0], "UID", generate_uid()), "observer's UID"),
    "absent and outlined": (say_absent, "says Absent"),
    "source image that is none": (
        lambda p: setattr(frames(p)[0].DerivationImageSequence[0].SourceImageSequence[0], "ReferencedSOPInstanceUID", "1.2.3.4"),
        "is not among the source images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seeded_error_is_caught(case: Case, seed: str) -> None:
    pair = Pair(seg=read_again(case.segmentation()), sr=read_again(case.report()))
    assert errors_of(pair, case) == []
    break_it, words = SEEDS[seed]
    break_it(pair)
    found = errors_of(pair, case)
    assert any(words in one for one in found), found


def test_faults_of_many_frames_are_told_in_a_few_lines(case: Case) -> None:
    seg = read_again(case.segmentation())
    for frame in seg.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    told = [str(fault) for fault in examine_object(seg)]
    assert len(told) < 8
    assert any("further frames" in one for one in told)


def test_whatever_is_absent_the_check_ends(case: Case) -> None:
    """Every element of ours, taken away or emptied, one after the other: faults at most, never an exception."""
    for make in (case.segmentation, case.report):
        whole = part10_bytes(make())
        for tag in sorted(pydicom.dcmread(BytesIO(whole)).keys()):
            for empty in (False, True):
                dataset = pydicom.dcmread(BytesIO(whole))
                if empty:
                    dataset[tag].value = None
                else:
                    del dataset[tag]
                for fault in examine_object(dataset):
                    assert "the check itself failed" not in str(fault), (tag, str(fault))


@pytest.mark.parametrize("headers", HEADERS.values(), ids=list(HEADERS))
def test_what_hospitals_send_gets_through(tmp_path: Path, headers: Mapping[str, Any]) -> None:
    """The gate judges our work, not the patient's data: odd headers of a source cost no result."""
    made = make_case(tmp_path, slices=6, rows=32, columns=32, headers=headers)
    found = examine_set([read_again(made.segmentation()), read_again(made.report())], made.sources)
    assert [str(fault) for _, fault in found if fault.severity is Severity.ERROR] == []
