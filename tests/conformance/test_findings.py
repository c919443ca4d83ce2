"""Answers, boxes, points and structures that overlap: every object passes other people's validators, and says what was found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.codes import UCUM_NO_UNITS, Code
from node.delivery.variants import EXPLICIT, older_report
from node.domain.objects import ResultObject
from node.domain.states import Outcome
from node.domain.volume import Volume, VolumeGeometry
from node.errors import EvidenceError, StoreRefused
from node.evidence.encapsulated_pdf import encode_pdf_report
from node.evidence.gate import Severity, examine_set
from node.evidence.key_image import render_key_image
from node.evidence.key_objects import encode_key_objects
from node.evidence.measurement_report import encode_report
from node.evidence.presentation_state import encode_presentation_state
from node.evidence.secondary_capture import encode_secondary_capture
from node.evidence.segmentation import encode_label_map, encode_segmentation
from node.evidence.sop_common import part10_bytes
from node.evidence.structure_set import encode_structure_set
from node.pipeline import Analysis, Stopwatch, Wanted, encode, illustrate
from tests.conformance.cases import CONTEXT, Case, found, make_card, write
from tests.conformance.findings import DENSITY, classified, detected, located, objects_of, overlapping, radiographs, source_paths
from tests.conformance.other_objects import masks_of, volume_of
from tests.conformance.validators import (
    consistency_faults,
    decoded_segments,
    html_of,
    iod_faults,
    presence_faults,
    read_report,
    template_faults,
    tree_faults,
)

pytestmark = pytest.mark.peer

CASES: Final[Mapping[str, Callable[[Path], Case]]] = {
    "classifier": classified,
    "no bleeding": lambda folder: classified(folder, bleeding=0.1),
    "no box": lambda folder: detected(folder, 0),
    "one box": lambda folder: detected(folder, 1, "axial descending"),
    "three boxes": lambda folder: detected(folder, 3),
    "enhanced boxes": lambda folder: detected(folder, 2, "enhanced descending"),
    "point": located,
    "overlapping": overlapping,
    "radiographs": radiographs,
}
IN_PIXELMED: Final = ("one box", "radiographs")
"""The others hold no other kind of content."""


@dataclass(frozen=True)
class Made:
    """A case with all its objects, in files."""

    case: Case
    paths: Mapping[str, Path]

    @property
    def sr(self) -> Dataset:
        return pydicom.dcmread(self.paths["sr"])


def shown_of(case: Case) -> Volume | list[Volume]:
    """What was analysed: a small volume of the scene, or the radiographs."""
    if case.result.card.reads == "volume":
        (grid, *_) = case.result.grids
        full = replace(case, result=found(make_card(1), _nothing(grid)))
        return volume_of(full)
    return [
        Volume(_ramp(grid.shape), VolumeGeometry(grid.shape, np.diag([1.0, 0.2, 0.2, 1.0])), grid, "CR", UCUM_NO_UNITS)
        for grid in case.result.grids
    ]


def _nothing(grid: Any) -> Any:
    from node.domain.volume import LabelMap

    return LabelMap(np.zeros(grid.shape, np.uint8), grid)


def _ramp(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.linspace(0, 1000, int(np.prod(shape)), dtype=np.float32).reshape(shape)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Made]:
    """Every case with what the pipeline makes of it."""
    answer = {}
    for name, make in CASES.items():
        folder = tmp_path_factory.mktemp("findings")
        case = make(folder)
        result, sources = case.result, case.sources
        objects = objects_of(case)
        shown = shown_of(case)
        objects["sc"] = encode_secondary_capture(result, sources, shown, CONTEXT)
        objects["pdf"] = encode_pdf_report(result, sources, CONTEXT, key_image=render_key_image(shown, result), language="zh")
        if result.detections or result.landmarks or result.segments:
            objects["kos"] = encode_key_objects(result, sources, CONTEXT)
            objects["gsps"] = encode_presentation_state(result, sources, CONTEXT)
        if result.segments:
            objects["rtstruct"] = encode_structure_set(result, sources, CONTEXT)
        answer[name] = Made(case, {role: write(one, folder / f"{role}.dcm") for role, one in objects.items()})
    return answer


@pytest.fixture(params=list(CASES))
def one(request: pytest.FixtureRequest, made: Mapping[str, Made]) -> Made:
    return made[request.param]


# ── validators ──────────────────────────────────────────────────────────────


def test_dicom3tools_dcmtk_and_the_tables_find_no_fault(one: Made) -> None:
    assert {role: iod_faults(path) for role, path in one.paths.items()} == {role: [] for role in one.paths}
    assert {role: presence_faults(path) for role, path in one.paths.items()} == {role: [] for role in one.paths}
    assert tree_faults(one.paths["sr"]) == []
    assert consistency_faults([*source_paths(one.case), *one.paths.values()]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PIXELMED)
def test_pixelmed_finds_no_fault_in_the_template(made: Mapping[str, Made], name: str) -> None:
    assert template_faults(made[name].paths["sr"]) == []


def test_the_gate_lets_all_pass(one: Made) -> None:
    objects = [pydicom.dcmread(path) for path in one.paths.values()]
    assert [str(fault) for _, fault in examine_set(objects, one.case.sources) if fault.severity is Severity.ERROR] == []


def test_dcmqi_reads_every_group(one: Made, tmp_path: Path) -> None:
    groups = read_report(one.paths["sr"], tmp_path / "report.json").get("Measurements", [])
    assert len(groups) == len(groups_of(one.sr))


def test_equal_results_give_equal_bytes(made: Mapping[str, Made]) -> None:
    case = made["three boxes"].case
    shuffled = replace(case, result=replace(case.result, detections=case.result.detections[::-1]), sources=case.sources[::-1])
    assert part10_bytes(objects_of(shuffled)["sr"]) == made["three boxes"].paths["sr"].read_bytes()


# ── answers ─────────────────────────────────────────────────────────────────


def answers(sr: Dataset) -> list[tuple[str, str, dict[str, float]]]:
    """Answers question, answer and the probabilities by answer, as a reader finds them."""
    told = []
    for item in conclusions_of(sr):
        if item.ValueType == "CODE" and "ContentSequence" in item:
            shares = {}
            for number in (child for child in item.ContentSequence if child.ValueType == "NUM"):
                assert number.RelationshipType == "HAS PROPERTIES"
                assert (name_of(number), unit_of(number)) == ("122157", "%")
                (modifier,) = number.ContentSequence
                assert (modifier.RelationshipType, name_of(modifier)) == ("HAS CONCEPT MOD", name_of(item))
                shares[modifier.ConceptCodeSequence[0].CodeMeaning] = float(number.MeasuredValueSequence[0].NumericValue)
            told.append((item.ConceptNameCodeSequence[0].CodeMeaning, item.ConceptCodeSequence[0].CodeMeaning, shares))
    return told


def test_a_classifier_tells_its_answers_with_the_probability_of_each(made: Mapping[str, Made], tmp_path: Path) -> None:
    density, bleeding = answers(made["classifier"].sr)
    assert density[:2] == ("Breast composition", "Scattered fibroglandular densities")
    assert density[2] == {"Scattered fibroglandular densities": 62.0, "Heterogeneously dense": 31.0, "Almost entirely fat": 7.0}
    assert bleeding == ("Intracranial hemorrhage", "Present", {"Present": 85.0, "Absent": 15.0})
    assert answers(made["no bleeding"].sr)[1] == ("Intracranial hemorrhage", "Absent", {"Absent": 90.0, "Present": 10.0})
    assert "Scattered fibroglandular densities" in html_of(made["classifier"].paths["sr"], tmp_path / "report.html")
    assert not groups_of(made["classifier"].sr), "no measurement group without a place: OHIF would show nothing of the report"
    assert "from a probability of 30 % on" in " ".join(str(item.get("TextValue")) for item in conclusions_of(made["classifier"].sr))


def test_an_answer_about_one_image_names_it(made: Mapping[str, Made]) -> None:
    items = [item for item in conclusions_of(made["radiographs"].sr) if "ContentSequence" in item]
    images = [child for item in items for child in item.ContentSequence if child.ValueType == "IMAGE"]
    assert [image.RelationshipType for image in images] == ["INFERRED FROM"] * 2
    assert [image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for image in images] == ["1.2.3.4.1", "1.2.3.4.2"]
    assert [answer for _, answer, _ in answers(made["radiographs"].sr)] == ["Heterogeneously dense", "Almost entirely fat"]


def test_private_codes_of_questions_and_boxes_are_identified(made: Mapping[str, Made], tmp_path: Path) -> None:
    case = made["classifier"].case
    question = replace(DENSITY, concept=Code("Q1", "99ASKED", "A question of our own"))
    model = replace(case.result.card, evaluations=(question,))
    evaluation = replace(case.result.evaluations[0], definition=question)
    sr = encode_report(replace(case.result, card=model, evaluations=(evaluation,)), case.sources, None, CONTEXT)
    assert [item.CodingSchemeDesignator for item in sr.CodingSchemeIdentificationSequence] == ["99ASKED"]
    assert iod_faults(write(sr, tmp_path / "sr.dcm")) == []


# ── boxes and points ────────────────────────────────────────────────────────


def test_boxes_are_told_the_surest_first_on_an_image_and_in_space(made: Mapping[str, Made]) -> None:
    sr = made["three boxes"].sr
    on_images, in_space = groups_of(sr)[::2], groups_of(sr)[1::2]
    scores = [float(child(group, "111012").MeasuredValueSequence[0].NumericValue) for group in on_images]
    assert scores == [91.0, 72.04, 55.0]
    assert {unit_of(child(group, "111012")) for group in on_images} == {"%"}
    assert [child(group, "112039").TextValue for group in on_images] == [
        "test-findings Mass 1", "test-findings Nodule 2", "test-findings Nodule 3",
    ]  # fmt: skip
    assert [child(group, "112040").UID for group in on_images] == [child(group, "112040").UID for group in in_space]
    assert not any(child(group, "111012") for group in in_space), "nothing but the place stands in space alone"
    case = made["three boxes"].case
    for group, solid, score in zip(on_images, in_space, (0.91, 0.7204, 0.55), strict=True):
        (box,) = [detection for detection in case.result.detections if detection.score == score]
        assert child(group, "121071").ConceptCodeSequence[0].CodeValue == box.definition.type.value
        centre, axes = np.asarray(box.centre_mm), np.asarray(box.half_axes_mm)
        faces = [item for item in solid.ContentSequence if item.ValueType == "SCOORD3D"]
        assert {item.ReferencedFrameOfReferenceUID for item in faces} == {case.result.grids[0].frame_of_reference_uid}
        corners = np.unique(np.round([np.reshape(item.GraphicData, (-1, 3)) for item in faces], 3).reshape(-1, 3), axis=0)
        in_axes = np.linalg.solve(axes.T, (corners - centre).T)
        assert (len(faces), len(corners)) == (6, 8)
        assert np.allclose(np.abs(in_axes), 1.0, atol=1e-2)
        placed = in_patient(child(group, "111030"), case)
        inside = np.abs(np.linalg.solve(axes.T, (placed - centre).T))
        normal = case.result.grids[0].normal
        if score > 0.6:  # the third lies between two slices
            assert inside.max() == pytest.approx(1.0, abs=1e-3), "the line is where the box ends"
        assert np.ptp(placed @ normal) < 1e-6
        assert len(placed) >= 6
        assert np.array_equal(placed[0], placed[-1])


def in_patient(region: Dataset, case: Case) -> NDArray[np.float64]:
    """Answers where the coordinates of a region lie: by the equation of the standard, not by our code."""
    (reference,) = region.ContentSequence[0].ReferencedSOPSequence
    (image,) = [source for source in case.sources if source.SOPInstanceUID == reference.ReferencedSOPInstanceUID]
    position, cosines = np.array(image.ImagePositionPatient, float), np.array(image.ImageOrientationPatient, float)
    down, across = (float(value) for value in image.PixelSpacing)
    pixels = np.reshape(np.array(region.GraphicData, float), (-1, 2)) - 0.5
    return np.asarray(position + pixels[:, :1] * across * cosines[:3] + pixels[:, 1:] * down * cosines[3:])


def test_a_point_is_told_on_an_image_and_in_space_and_one_that_was_not_found_in_words(made: Mapping[str, Made]) -> None:
    one = made["point"]
    on_image, in_space = groups_of(one.sr)
    region, solid = child(on_image, "111030"), child(in_space, "121231")
    assert (region.GraphicType, solid.GraphicType) == ("POINT", "POINT")
    truth = np.asarray(one.case.result.landmarks[0].position_mm)
    assert np.allclose(solid.GraphicData, truth, atol=1e-4)
    away = in_patient(region, one.case)[0] - truth
    normal = one.case.result.grids[0].normal
    assert np.linalg.norm(away - (away @ normal) * normal) < 1e-3
    assert abs(away @ normal) <= 1.5
    texts = [str(item.get("TextValue")) for item in conclusions_of(one.sr)]
    assert "Apex: not located by the model in these images." in texts
    assert not [item for item in conclusions_of(one.sr) if item.ValueType == "CODE" and name_of(item) == "86598002"]


def test_what_a_detector_did_not_find_is_absent(made: Mapping[str, Made]) -> None:
    def absent(name: str) -> list[str]:
        items = [item for item in conclusions_of(made[name].sr) if item.ValueType == "CODE"]
        return [name_of(item) for item in items if item.ConceptCodeSequence[0].CodeValue == "272519000"]

    assert absent("no box") == ["27925004", "4147007"]
    assert absent("one box") == ["4147007"]
    assert absent("three boxes") == []
    assert groups_of(made["no box"].sr) == []
    assert made["no box"].case.result.outcome is Outcome.NOTHING_FOUND


def test_radiographs_have_no_space(made: Mapping[str, Made]) -> None:
    groups = groups_of(made["radiographs"].sr)
    assert not any(item.ValueType == "SCOORD3D" for group in groups for item in group.ContentSequence)
    box, point = (child(group, "111030") for group in groups)
    assert box.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.2"
    assert np.ptp(np.reshape(box.GraphicData, (-1, 2)), axis=0).tolist() == pytest.approx([20.0, 30.0])
    assert list(point.GraphicData) == pytest.approx([20.5, 25.5])


@pytest.mark.parametrize("older", ["33", "22"])
@pytest.mark.parametrize("name", ["three boxes", "point", "classifier"])
def test_an_older_class_gets_all_but_the_space(made: Mapping[str, Made], tmp_path: Path, name: str, older: str) -> None:
    uid = f"1.2.840.10008.5.1.4.1.1.88.{older}"
    path = made[name].paths["sr"]
    report = pydicom.filereader.read_dataset(BytesIO(older_report(path, uid, EXPLICIT)), False, True)
    report.file_meta = pydicom.dcmread(path).file_meta
    report.file_meta.MediaStorageSOPClassUID, report.file_meta.MediaStorageSOPInstanceUID = report.SOPClassUID, report.SOPInstanceUID
    report.save_as(tmp_path / "older.dcm")
    assert iod_faults(tmp_path / "older.dcm") == tree_faults(tmp_path / "older.dcm") == []
    assert [child(group, "112040").UID for group in groups_of(report)] == [
        child(group, "112040").UID for group in groups_of(made[name].sr)[::2]
    ]


def test_what_is_said_in_space_alone_is_not_left_out(made: Mapping[str, Made], tmp_path: Path) -> None:
    sr = made["point"].sr
    measurements = next(item for item in sr.ContentSequence if name_of(item) == "126010")
    measurements.ContentSequence = measurements.ContentSequence[1:]
    with pytest.raises(StoreRefused, match="coordinates in space"):
        older_report(write(sr, tmp_path / "sr.dcm"), "1.2.840.10008.5.1.4.1.1.88.33", EXPLICIT)


def test_a_finding_beside_its_images_is_refused(made: Mapping[str, Made]) -> None:
    case = made["one box"].case
    (box,) = case.result.detections
    x, y, z = box.centre_mm
    beside = replace(case.result, detections=(replace(box, centre_mm=(x + 4000, y, z)),))
    with pytest.raises(EvidenceError, match="beside"):
        encode_report(beside, case.sources, None, CONTEXT)
    with pytest.raises(EvidenceError, match="where its images lie"):
        encode_report(replace(case.result, grids=()), case.sources, None, CONTEXT)
    point = made["point"].case
    landmark = replace(point.result.landmarks[0], position_mm=(4000.0, 0.0, 0.0))
    with pytest.raises(EvidenceError, match="beside"):
        encode_report(replace(point.result, landmarks=(landmark,)), point.sources, None, CONTEXT)


def test_key_objects_and_presentation_state_show_the_slices_of_the_findings(made: Mapping[str, Made]) -> None:
    one = made["three boxes"]
    kos, gsps = (pydicom.dcmread(one.paths[role]) for role in ("kos", "gsps"))
    images = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in kos.ContentSequence if item.ValueType == "IMAGE"]
    in_report = {
        child(group, "111030").ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID for group in groups_of(one.sr)[::2]
    }
    assert set(images) == in_report
    drawn = [graphic for annotation in gsps.GraphicAnnotationSequence for graphic in annotation.GraphicObjectSequence]
    assert len(drawn) == 3
    assert all(graphic.GraphicType == "POLYLINE" for graphic in drawn)
    crosses = pydicom.dcmread(made["point"].paths["gsps"]).GraphicAnnotationSequence[0].GraphicObjectSequence
    middle = np.mean([np.reshape(graphic.GraphicData, (-1, 2)).mean(axis=0) for graphic in crosses], axis=0)
    assert middle == pytest.approx(list(child(groups_of(made["point"].sr)[0], "111030").GraphicData), abs=1e-3)


# ── structures that overlap ─────────────────────────────────────────────────


def test_structures_that_overlap_come_back_whole(made: Mapping[str, Made], tmp_path: Path) -> None:
    one = made["overlapping"]
    label_map = one.case.label_map
    truth = {number: label_map.mask(number) for number in (1, 2, 3)}
    assert (truth[1] & truth[2]).any()
    assert (truth[3] & ~truth[1]).any()
    assert pydicom.dcmread(one.paths["seg"]).SegmentsOverlap == "YES"
    for segment in decoded_segments(one.paths["seg"], tmp_path / "dcmqi"):
        assert segment.voxels.sum() == truth[segment.number].sum()
    contoured = masks_of(pydicom.dcmread(one.paths["rtstruct"]), label_map.source)
    assert all(np.array_equal(contoured[number], truth[number]) for number in truth)
    voxel_cm3 = 3.0 * label_map.source.row_spacing_mm * label_map.source.column_spacing_mm / 1000
    volumes = [segment.measurements[0].value for segment in one.case.result.segments]
    assert volumes == pytest.approx([truth[number].sum() * voxel_cm3 for number in truth], rel=1e-3)


def test_no_label_map_says_that_structures_overlap(made: Mapping[str, Made], tmp_path: Path) -> None:
    case = made["overlapping"].case
    with pytest.raises(EvidenceError, match="overlap"):
        encode_label_map(case.result, case.sources, CONTEXT)
    instead = encode_segmentation(case.result, case.sources, CONTEXT, "labelmap")
    assert instead.SOPInstanceUID != pydicom.dcmread(made["overlapping"].paths["seg"]).SOPInstanceUID
    report = encode_report(case.result, case.sources, instead, CONTEXT, "sr-labelmap")
    paths = [write(instead, tmp_path / "labelmap.dcm"), write(report, tmp_path / "sr.dcm")]
    assert [iod_faults(path) for path in paths] == [[], []]
    found = examine_set([pydicom.dcmread(path) for path in paths], case.sources)
    assert [str(fault) for _, fault in found if fault.severity is Severity.ERROR] == []


def test_structures_that_could_overlap_and_do_not_make_a_label_map(made: Mapping[str, Made], tmp_path: Path) -> None:
    case = made["overlapping"].case
    label_map = replace(case.label_map, labels=np.where(case.label_map.labels == 4, np.uint8(4), np.minimum(case.label_map.labels, 1)))
    result = replace(case.result, label_map=label_map, segments=tuple(
        replace(one, present=one.definition.label_value != 2) for one in case.result.segments
    ))  # fmt: skip
    made_map = encode_label_map(result, case.sources, CONTEXT)
    path = write(made_map, tmp_path / "labelmap.dcm")
    assert presence_faults(path) == []
    pixels = pydicom.dcmread(path).pixel_array
    assert [(pixels == number).sum() for number in (1, 2)] == [label_map.mask(1).sum(), label_map.mask(3).sum()]


# ── the pipeline ────────────────────────────────────────────────────────────


ROLES: Final[Mapping[str, frozenset[str]]] = {
    "classifier": frozenset({"sr", "sc", "pdf"}),
    "no box": frozenset({"sr", "sc", "pdf"}),
    "one box": frozenset({"sr", "sc", "pdf", "kos", "gsps"}),
    "radiographs": frozenset({"sr", "sc", "pdf", "kos", "gsps"}),
    "overlapping": frozenset({"sr", "sc", "pdf", "kos", "gsps", "seg", "rtstruct", "labelmap", "sr-labelmap"}),
}


@pytest.mark.parametrize("name", ROLES)
def test_every_result_gets_the_objects_that_make_sense_for_it(made: Mapping[str, Made], tmp_path: Path, name: str) -> None:
    case = made[name].case
    shown = shown_of(case)
    images = [shown] if isinstance(shown, Volume) else shown
    analysis = Analysis(case.result, images[0], case.sources, images=images)
    wanted = Wanted(frozenset(ResultObject))
    watch = Stopwatch(lambda _step, _share: None)
    evidence = {item.role: item for item in encode(analysis, CONTEXT, tmp_path, watch, wanted)}
    extra = frozenset() if name == "overlapping" else frozenset({"sr-labelmap"})
    assert evidence.keys() == ROLES[name] | extra
    if name == "overlapping":
        assert wanted.skipped == ["labelmap: structures overlap, which a label map cannot say; a binary segmentation goes in its place"]
        assert evidence["labelmap"].dataset.SegmentationType == "BINARY"
        cited = child(groups_of(evidence["sr-labelmap"].dataset)[0], "121191").ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert cited == evidence["labelmap"].dataset.SOPInstanceUID != evidence["seg"].dataset.SOPInstanceUID
    else:
        assert wanted.skipped == []
    paths = illustrate(analysis, list(evidence.values()), CONTEXT, tmp_path, {})
    assert {path.name for path in paths.values()} == {"key_image.png", "report.html"}


# ── seeded errors ───────────────────────────────────────────────────────────


def _first(sr: Dataset, value_type: str) -> Dataset:
    return next(item for group in groups_of(sr) for item in group.ContentSequence if item.ValueType == value_type)


def _too_probable(sr: Dataset) -> None:
    _shares(sr)[0].MeasuredValueSequence[0].NumericValue = "140"


def _no_sum(sr: Dataset) -> None:
    _shares(sr)[2].MeasuredValueSequence[0].NumericValue = "37"


def _less_probable_answer(sr: Dataset) -> None:
    item = next(item for item in conclusions_of(sr) if "ContentSequence" in item)
    item.ConceptCodeSequence = [item.ContentSequence[2].ContentSequence[0].ConceptCodeSequence[0]]


def _answer_without_probability(sr: Dataset) -> None:
    item = next(item for item in conclusions_of(sr) if "ContentSequence" in item)
    item.ContentSequence = item.ContentSequence[1:]


def _shares(sr: Dataset) -> list[Dataset]:
    item = next(item for item in conclusions_of(sr) if "ContentSequence" in item)
    return [child for child in item.ContentSequence if child.ValueType == "NUM"]


def _another_image(sr: Dataset) -> None:
    item = next(item for item in conclusions_of(sr) if "ContentSequence" in item)
    image = next(child for child in item.ContentSequence if child.ValueType == "IMAGE")
    image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3.4.99"
    evidence = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    evidence[0].ReferencedSOPInstanceUID = "1.2.3.4.99"


def _score_over_one(sr: Dataset) -> None:
    _first(sr, "NUM").MeasuredValueSequence[0].NumericValue = "-3"


def _another_space(sr: Dataset) -> None:
    _first(sr, "SCOORD3D").ReferencedFrameOfReferenceUID = "1.2.3"


def _no_space(sr: Dataset) -> None:
    del _first(sr, "SCOORD3D").ReferencedFrameOfReferenceUID


def _far_away(sr: Dataset) -> None:
    item = _first(sr, "SCOORD3D")
    item.GraphicData = [value + 900 for value in item.GraphicData]


def _half_a_point(sr: Dataset) -> None:
    item = _first(sr, "SCOORD3D")
    item.GraphicData = item.GraphicData[:-1]


def _open_face(sr: Dataset) -> None:
    item = _first(sr, "SCOORD3D")
    item.GraphicData = [*item.GraphicData[:-3], 0.0, 0.0, 0.0]


def _another_slice(sr: Dataset) -> None:
    reference = _first(sr, "SCOORD").ContentSequence[0].ReferencedSOPSequence[0]
    instances = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    uids = [instance.ReferencedSOPInstanceUID for instance in instances]
    reference.ReferencedSOPInstanceUID = uids[0] if uids.index(reference.ReferencedSOPInstanceUID) > len(uids) // 2 else uids[-1]


def _outside_the_image(sr: Dataset) -> None:
    item = _first(sr, "SCOORD")
    item.GraphicData = [*item.GraphicData[:-1], 9999.0]


def _another_finding(sr: Dataset) -> None:
    child(groups_of(sr)[1], "121071").ConceptCodeSequence[0].CodeValue = "39607008"
    child(groups_of(sr)[1], "121071").ConceptCodeSequence[0].CodeMeaning = "Lung"


SEEDS: Final[Mapping[str, tuple[str, Callable[[Dataset], None], str]]] = {
    "a probability over 1": ("classifier", _too_probable, "is no likelihood"),
    "probabilities that do not add up": ("classifier", _no_sum, "add up to"),
    "an answer that is not the most probable": ("classifier", _less_probable_answer, "another answer is more probable"),
    "an answer without its probability": ("classifier", _answer_without_probability, "none of its own"),
    "an answer about another image": ("radiographs", _another_image, "no source image"),
    "a score below 0": ("three boxes", _score_over_one, "is no likelihood"),
    "another frame of reference": ("three boxes", _another_space, "frame of reference is not that"),
    "no frame of reference": ("point", _no_space, "name no frame of reference"),
    "a box beside the images": ("three boxes", _far_away, "lie beside the source images"),
    "coordinates that are no points": ("three boxes", _half_a_point, "that is no POLYGON"),
    "a face that is not closed": ("three boxes", _open_face, "does not end where it began"),
    "a box on another slice": ("three boxes", _another_slice, "elsewhere on its image than in space"),
    "a point on another slice": ("point", _another_slice, "elsewhere on its image than in space"),
    "a box outside of its image": ("three boxes", _outside_the_image, "lies outside the image"),
    "two findings under one Tracking UID": ("three boxes", _another_finding, "another finding"),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gate_catches_every_error_that_is_seeded(made: Mapping[str, Made], seed: str) -> None:
    name, spoil, told = SEEDS[seed]
    sr = pydicom.dcmread(BytesIO(made[name].paths["sr"].read_bytes()))
    spoil(sr)
    again = pydicom.dcmread(BytesIO(part10_bytes(sr)))
    faults = [str(fault) for _, fault in examine_set([again], made[name].case.sources) if fault.severity is Severity.ERROR]
    assert any(told in fault for fault in faults), faults


# ── reading ─────────────────────────────────────────────────────────────────


def name_of(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def unit_of(number: Dataset) -> str:
    return str(number.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue)


def child(parent: Dataset, code: str) -> Any:
    return next((item for item in parent.ContentSequence if name_of(item) == code), None)


def groups_of(sr: Dataset) -> list[Dataset]:
    measurements = child(sr, "126010")
    return list(measurements.ContentSequence) if measurements else []


def conclusions_of(sr: Dataset) -> list[Dataset]:
    return list(child(sr, "C0034375").ContentSequence)
