"""Secondary Capture, Key Objects, Presentation State, RT Structure Set, PDF and Parametric Map are true, whatever the source says."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage

from node.domain.states import Outcome
from node.domain.volume import LabelMap, Plane, QualityNote, SourceGrid
from node.errors import EvidenceError
from node.evidence.encapsulated_pdf import encode_pdf_report
from node.evidence.gate import Severity, examine_set
from node.evidence.key_objects import encode_key_objects
from node.evidence.parametric_map import CERTAIN, encode_parametric_map
from node.evidence.presentation_state import encode_presentation_state
from node.evidence.secondary_capture import encode_secondary_capture
from node.evidence.sop_common import part10_bytes
from node.evidence.structure_set import encode_structure_set
from tests.conformance.cases import CONTEXT, Case, found, make_card, make_case, points_of, read_headers, with_outcome, write
from tests.conformance.other_objects import (
    ROLES,
    WINDOW,
    encode,
    filled,
    masks_of,
    probabilities_of,
    radiograph,
    radiograph_result,
    volume_of,
)
from tests.conformance.test_identity import CHARACTER_SETS, HEADERS, _fill_with, _put_bytes
from tests.conformance.validators import consistency_faults, iod_faults, presence_faults, presentation_faults, tool

pytestmark = pytest.mark.peer

GEOMETRIES_AND_PARTS = [(name, parts) for name in ("axial", "sagittal", "oblique", "tilted", "enhanced") for parts in (1, 17)]
GEOMETRIES_AND_PARTS += [("uneven", 17), ("enhanced descending", 1)]


@pytest.fixture(params=GEOMETRIES_AND_PARTS, ids=lambda param: f"{param[0]}-{param[1]}", scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    geometry, parts = request.param
    return make_case(tmp_path_factory.mktemp("case"), geometry, parts)


@pytest.fixture(scope="module")
def paths(case: Case) -> Mapping[str, Path]:
    return {role: write(encode(role, case), case.series.folder.parent / f"{role}.dcm") for role in ROLES}


def errors(objects: list[Dataset], sources: list[Dataset]) -> list[str]:
    return [str(fault) for _, fault in examine_set(objects, sources)]


# ── odd sources (what validators say of usual ones: test_matrix.py) ──────────


@pytest.mark.parametrize("name", ["all type 2 absent", "dates that are none", "name with too many parts", "no equipment", "everything"])
def test_odd_headers_give_objects_with_the_same_identity(tmp_path: Path, name: str) -> None:
    made = make_case(tmp_path, parts=2, slices=6, rows=32, columns=32, headers=HEADERS[name])
    made_paths = [write(encode(role, made), tmp_path / f"{role}.dcm") for role in ROLES]
    faults = [str(f) for _, f in examine_set([pydicom.dcmread(path) for path in made_paths], made.sources) if f.severity is Severity.ERROR]
    assert faults == []
    for path in made_paths:
        faults = [fault for fault in iod_faults(path) if not any(f"{keyword}(" in fault for keyword in HEADERS[name])]
        assert [fault for fault in faults if not (name == "no equipment" and "permitted to be empty when actually unknown" in fault)] == []
    assert consistency_faults([*made.series.paths, *made_paths]) == consistency_faults(made.series.paths)


@pytest.mark.parametrize("name", CHARACTER_SETS)
def test_names_and_titles_in_every_character_set_make_whole_objects(tmp_path: Path, name: str) -> None:
    character_set, raw = CHARACTER_SETS[name]
    headers = {"SpecificCharacterSet": character_set}
    made = make_case(tmp_path, parts=2, slices=6, rows=32, columns=32, headers=headers, edit=_fill_with(raw))
    for path in made.series.paths:
        _put_bytes(path, raw)
    card = replace(made.result.card, title="Größe – µ 大", manufacturer="Ünïcode")
    made = replace(made, sources=read_headers(made.series), result=replace(made.result, card=card))
    for role in ROLES:
        path = write(encode(role, made), tmp_path / f"{role}.dcm")
        assert pydicom.dcmread(path).get_item("PatientName").value.rstrip(b" =") == raw.rstrip(b"=")
        if name not in {"none stated, Latin-1 sent", "stated wrongly"}:
            assert iod_faults(path) == []


def test_equal_input_gives_equal_bytes_and_other_jobs_other_uids(tmp_path: Path) -> None:
    made = make_case(tmp_path, "oblique", 3)
    again = make_case(tmp_path / "again", "oblique", 3)
    other = replace(made, context=replace(CONTEXT, job_key="7f" * 32))
    for role in ROLES:
        first = encode(role, made)
        assert part10_bytes(first) == part10_bytes(encode(role, again)), role
        assert encode(role, other).SOPInstanceUID != first.SOPInstanceUID
    assert len({encode(role, made).SeriesInstanceUID for role in ROLES}) == len(ROLES)


# ── RT Structure Set ────────────────────────────────────────────────────────


def test_contours_filled_again_are_the_mask(paths: Mapping[str, Path], case: Case) -> None:
    masks = masks_of(pydicom.dcmread(paths["rtstruct"]), case.label_map.source)
    present = [segment.definition.label_value for segment in case.result.segments if segment.present]
    assert sorted(masks) == list(range(1, len(present) + 1))
    for number, label in enumerate(present, 1):
        truth = case.label_map.labels == label
        assert dice(masks[number], truth) >= 0.98
        assert np.array_equal(masks[number], truth), "the outline runs between the pixels: not one may be on the wrong side"


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_ring_is_one_contour_with_one_hole(tmp_path: Path) -> None:
    made = make_case(tmp_path, "oblique", slices=6)
    labels = np.zeros_like(made.label_map.labels)
    distance = np.hypot(*np.mgrid[-30 : labels.shape[1] - 30, -32 : labels.shape[2] - 32])
    labels[2:4] = np.where((distance < 20) & (distance > 9), 2, 0)
    ring = replace(made, result=found(make_card(1), LabelMap(labels, made.label_map.source)))
    structures = encode("rtstruct", ring)
    assert len(structures.ROIContourSequence[0].ContourSequence) == 2
    mask = masks_of(structures, ring.label_map.source)[1]
    assert np.array_equal(mask, labels > 0)
    for plane in (2, 3):
        assert ndimage.label(mask[plane])[1] == 1
        assert ndimage.label(~mask[plane])[1] == 2
    assert errors([structures], ring.sources) == []
    assert dice(by_plastimatch(write(structures, tmp_path / "ring.dcm"), ring, tmp_path), labels > 0) >= 0.98


@pytest.mark.parametrize("geometry", ["axial descending", "sagittal", "oblique", "tilted"])
def test_plastimatch_fills_the_contours_to_the_same_mask(tmp_path: Path, geometry: str) -> None:
    made = make_case(tmp_path, geometry)
    path = write(encode("rtstruct", made), tmp_path / "rtstruct.dcm")
    assert dice(by_plastimatch(path, made, tmp_path), made.label_map.labels > 0) >= 0.98


def by_plastimatch(path: Path, made: Case, folder: Path) -> NDArray[np.bool_]:
    """Answers the first structure, as plastimatch fills its contours, on the pixels of the source."""
    command = [tool("plastimatch"), "convert", "--input", path, "--referenced-ct", made.series.folder]
    command += ["--output-prefix", folder / "masks", "--prefix-format", "nrrd"]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    image = SimpleITK.ReadImage(next((folder / "masks").glob("*.nrrd")))
    patient_from_index = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    indices = np.rint((points_of(made.label_map.source) - np.array(image.GetOrigin())) @ np.linalg.inv(patient_from_index).T).astype(int)
    inside = ((indices >= 0) & (indices < np.array(image.GetSize()))).all(axis=-1)
    i, j, k = np.moveaxis(np.clip(indices, 0, np.array(image.GetSize()) - 1), -1, 0)
    return inside & (SimpleITK.GetArrayFromImage(image)[k, j, i] > 0)


def test_a_contour_longer_than_a_decimal_string_is_cut(tmp_path: Path) -> None:
    """In Explicit VR a longer value would become one of unknown representation (PS3.5 6.2.2)."""
    rows, columns = 1200, 9
    labels = np.zeros((2, rows, columns), dtype=np.uint8)
    labels[0, ::2] = labels[0, :, :1] = 2  # a comb: one part with a line around 600 teeth
    planes = tuple(Plane("1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{k}", (-111.1234, -99.8765, 3.0 * k)) for k in (1, 2))
    grid = SourceGrid(rows, columns, 0.7123, 0.7123, (0.96, 0.28, 0.0, -0.28, 0.96, 0.0), planes, "1.2.9")
    sources = [header_of(plane, grid) for plane in planes]
    structures = encode_structure_set(found(make_card(1), LabelMap(labels, grid)), sources, CONTEXT)
    read = pydicom.dcmread(BytesIO(part10_bytes(structures)))
    contours = read.ROIContourSequence[0].ContourSequence
    assert len(contours) > 1
    assert {contour["ContourData"].VR for contour in contours} == {"DS"}
    assert np.array_equal(masks_of(read, grid)[1], labels > 0)


def header_of(plane: Plane, grid: SourceGrid) -> Dataset:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = plane.sop_class_uid, plane.sop_instance_uid
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.7", "1.2.8", grid.frame_of_reference_uid
    image.Modality = "CT"
    return image


# ── Key Objects, Presentation State ─────────────────────────────────────────


def test_key_slices_are_those_with_the_largest_area(paths: Mapping[str, Path], case: Case) -> None:
    places = {(plane.sop_instance_uid, plane.frame_number): index for index, plane in enumerate(case.label_map.source.planes)}
    images = [item.ReferencedSOPSequence[0] for item in pydicom.dcmread(paths["kos"]).ContentSequence if item.ValueType == "IMAGE"]
    shown = {places[(image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber"))] for image in images}
    needed = set()
    for segment in case.result.segments:
        areas = (case.label_map.labels == segment.definition.label_value).sum(axis=(1, 2))
        best = {int(k) for k in np.flatnonzero(areas == areas.max())}
        assert best & shown
        needed |= best
    assert shown <= needed


def test_graphics_follow_the_structures_on_their_slices(paths: Mapping[str, Path], case: Case) -> None:
    state = pydicom.dcmread(paths["gsps"])
    places = {(plane.sop_instance_uid, plane.frame_number): index for index, plane in enumerate(case.label_map.source.planes)}
    for annotation in state.GraphicAnnotationSequence:
        assert annotation.GraphicLayer == "AI"
        image = annotation.ReferencedImageSequence[0]
        labels = case.label_map.labels[places[(image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber"))]]
        rings = [np.asarray(graphic.GraphicData).reshape(-1, 2) - 0.5 for graphic in annotation.GraphicObjectSequence]
        assert all(np.array_equal(ring[0], ring[-1]) for ring in rings)
        drawn = np.zeros(labels.shape, dtype=bool)
        for ring in rings:
            drawn ^= filled([ring[:-1]], labels.shape)
        assert np.array_equal(drawn, labels > 0)
        assert "not verified" in annotation.TextObjectSequence[0].UnformattedTextValue
        texts = {text.UnformattedTextValue for text in annotation.TextObjectSequence[1:]}
        assert texts == {one.definition.label for one in case.result.segments if (labels == one.definition.label_value).any()}


def test_the_window_and_the_rescale_of_the_images_are_kept(tmp_path: Path) -> None:
    stated = make_case(tmp_path / "stated", parts=5, headers={"WindowCenter": ["30", "600"], "WindowWidth": ["80", "1600"]})
    state = encode("gsps", stated)
    assert (state.RescaleSlope, state.RescaleIntercept, state.RescaleType) == (1, -1024, "HU")
    assert [(one.WindowCenter, one.WindowWidth) for one in state.SoftcopyVOILUTSequence] == [(30, 80)]
    without = encode_presentation_state(stated.result, make_case(tmp_path / "without", parts=5).sources, CONTEXT, WINDOW)
    assert [(one.WindowCenter, one.WindowWidth) for one in without.SoftcopyVOILUTSequence] == [WINDOW]


def test_slices_of_different_rescale_get_windows_in_stored_values(tmp_path: Path) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = str(1 + index % 2), "0"

    made = make_case(tmp_path, parts=9, edit=edit)
    state = encode("gsps", made)
    assert "RescaleSlope" not in state
    assert {(float(one.WindowCenter), float(one.WindowWidth)) for one in state.SoftcopyVOILUTSequence} == {(40, 400), (20, 200)}
    path = write(state, tmp_path / "gsps.dcm")
    assert presentation_faults(path) == []
    assert iod_faults(path) == []


# ── PDF, Secondary Capture ──────────────────────────────────────────────────


def text_of(document: Dataset, folder: Path) -> str:
    pdf = folder / "report.pdf"
    pdf.write_bytes(document.EncapsulatedDocument[: document.EncapsulatedDocumentLength])
    return subprocess.run([tool("pdftotext"), "-layout", pdf, "-"], capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_report_names_patient_model_structures_and_notes(tmp_path: Path) -> None:
    made = make_case(tmp_path, parts=17, headers={"PatientName": "Doe^Jane"})
    result = replace(made.result, notes=(QualityNote("x", "2 slices were missing & <interpolated>."),))
    text = text_of(encode_pdf_report(result, made.sources, CONTEXT), tmp_path)
    for words in (
        "Doe Jane",
        "RADNODE-TEST",
        "AI result, not verified",
        "Parts of an organ",
        "test-parts 1.0.0",
        "& <interpolated>",
        "2026-03-04",
    ):
        assert words in text
    for segment in result.segments:
        assert f"{segment.definition.label} " in text


def test_the_chinese_report_is_chinese_and_shows_the_name_as_it_is_written(tmp_path: Path) -> None:
    made = make_case(tmp_path, parts=2, headers={"PatientName": "Wang^XiaoDong=王^小东"})
    document = encode_pdf_report(made.result, made.sources, CONTEXT, language="zh")
    text = text_of(document, tmp_path)
    for words in ("王 小东", "未经审核", "体积", "结构"):
        assert words in text
    assert iod_faults(write(document, tmp_path / "pdf.dcm")) == []


@pytest.mark.parametrize("outcome", [Outcome.NOTHING_FOUND, Outcome.NOT_ATTEMPTED, Outcome.FAILED])
def test_without_findings_there_are_words_and_no_outlines(tmp_path: Path, outcome: Outcome) -> None:
    made = with_outcome(make_case(tmp_path, slices=8, parts=2), outcome)
    full = make_case(tmp_path, slices=8, parts=2)
    documents = [
        encode_pdf_report(made.result, made.sources, CONTEXT),
        encode_secondary_capture(made.result, made.sources, volume_of(full), CONTEXT),
    ]
    assert errors(documents, made.sources) == []
    for number, document in enumerate(documents):
        assert iod_faults(write(document, tmp_path / f"{number}.dcm")) == []
    words = {Outcome.NOTHING_FOUND: "outlined none", Outcome.NOT_ATTEMPTED: "12 mm apart", Outcome.FAILED: "12 mm apart"}
    assert words[outcome] in text_of(documents[0], tmp_path)
    for encode_outlines in (encode_key_objects, encode_presentation_state, encode_structure_set):
        with pytest.raises(EvidenceError):
            encode_outlines(made.result, made.sources, CONTEXT)


def test_the_capture_shows_colours_on_gray_images(paths: Mapping[str, Path], case: Case) -> None:
    capture = pydicom.dcmread(paths["sc"])
    pixels = capture.pixel_array
    assert pixels.shape == (capture.Rows, capture.Columns, 3)
    largest = max(case.result.segments, key=lambda segment: segment.voxels)
    color = np.asarray(largest.definition.rgb)
    panels = pixels[84:-120]
    assert (panels == color).all(axis=2).sum() > 20, "no outline of the largest structure"
    gray = (panels[..., 0] == panels[..., 1]) & (panels[..., 1] == panels[..., 2]) & (panels[..., 0] > 60)
    assert gray.sum() > 500, "no image under the outlines"


# ── Parametric Map ──────────────────────────────────────────────────────────


def test_the_map_gives_the_probabilities_back(paths: Mapping[str, Path], case: Case) -> None:
    image = highdicom.imread(paths["pm"])
    volume_frames = image.get_frames(apply_real_world_transform=True)
    assert np.abs(volume_frames - probabilities_of(case.label_map)).max() <= 0.5 / CERTAIN + 1e-7
    positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in image.PerFrameFunctionalGroupsSequence]
    assert np.abs(np.asarray(positions, dtype=float) - case.label_map.source.positions_mm).max() < 1e-6


@pytest.mark.parametrize(
    "spoiled", [np.zeros((1, 2, 3), np.float32), np.full((24, 64, 64), 1.01, np.float32), np.full((24, 64, 64), np.nan, np.float32)]
)
def test_what_is_no_probability_makes_no_map(tmp_path: Path, spoiled: NDArray[np.float32]) -> None:
    made = make_case(tmp_path)
    with pytest.raises(EvidenceError):
        encode_parametric_map(made.result, made.sources, spoiled, made.label_map.source, made.result.card.segments[0], CONTEXT)


# ── radiographs ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outlined", [False, True])
def test_a_single_radiograph_gets_what_makes_sense_for_it(tmp_path: Path, outlined: bool) -> None:
    image, pixels = radiograph(tmp_path)
    result = radiograph_result(image, outlined=outlined)
    objects = {
        "sc": encode_secondary_capture(result, [image], pixels, CONTEXT),
        "kos": encode_key_objects(result, [image], CONTEXT),
        "pdf": encode_pdf_report(result, [image], CONTEXT),
    }
    if outlined:
        objects["gsps"] = encode_presentation_state(result, [image], CONTEXT)
        assert objects["gsps"].PresentationLUTShape == "INVERSE"
        assert len(objects["gsps"].GraphicAnnotationSequence[0].GraphicObjectSequence) == 2
    written = {role: write(one, tmp_path / f"{role}.dcm") for role, one in objects.items()}
    assert {role: iod_faults(path) for role, path in written.items()} == {role: [] for role in written}
    assert {role: presence_faults(path) for role, path in written.items()} == {role: [] for role in written}
    assert consistency_faults([tmp_path / "cr.dcm", *written.values()]) == []
    assert errors([pydicom.dcmread(path) for path in written.values()], [image]) == []


# ── the gate sees what is wrong ─────────────────────────────────────────────


def cut(keyword: str) -> Callable[[Dataset], None]:
    def spoil(dataset: Dataset) -> None:
        delattr(dataset, keyword)

    return spoil


def put(keyword: str, value: Any) -> Callable[[Dataset], None]:
    def spoil(dataset: Dataset) -> None:
        setattr(dataset, keyword, value)

    return spoil


def shift_contour(structures: Dataset) -> None:
    contour = structures.ROIContourSequence[0].ContourSequence[0]
    data = [float(value) for value in contour.ContourData]
    contour.ContourData = [f"{value + 0.5:.3f}" for value in data]


def miscount_contour(structures: Dataset) -> None:
    structures.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 5


def rename_roi(structures: Dataset) -> None:
    structures.ROIContourSequence[0].ReferencedROINumber = 77


def move_frame_of_reference(structures: Dataset) -> None:
    for item in (structures.ReferencedFrameOfReferenceSequence[0], structures):
        item.FrameOfReferenceUID = "1.2.3"


def refer_elsewhere(dataset: Dataset) -> None:
    for keyword in ("SourceImageSequence", "SourceInstanceSequence"):
        if keyword in dataset:
            dataset[keyword].value[0].ReferencedSOPInstanceUID = "1.2.3"


def refer_key_elsewhere(document: Dataset) -> None:
    document.ContentSequence[-1].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def unselect(document: Dataset) -> None:
    document.ContentSequence = [item for item in document.ContentSequence if item.ValueType != "IMAGE"]


def leave_image(state: Dataset) -> None:
    graphic = state.GraphicAnnotationSequence[0].GraphicObjectSequence[0]
    graphic.GraphicData = [value + 1000 for value in graphic.GraphicData]


def unlayer(state: Dataset) -> None:
    state.GraphicAnnotationSequence[0].GraphicLayer = "OTHER"


def miscount_graphic(state: Dataset) -> None:
    state.GraphicAnnotationSequence[0].GraphicObjectSequence[0].NumberOfGraphicPoints += 1


def unit_of_length(parametric_map: Dataset) -> None:
    mapping = parametric_map.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    mapping.MeasurementUnitsCodeSequence[0].CodeValue = "mm"


def unmapped(parametric_map: Dataset) -> None:
    del parametric_map.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence


def move_frame(parametric_map: Dataset) -> None:
    parametric_map.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient[2] += 1


SEEDS: dict[str, tuple[str, Callable[[Dataset], None]]] = {
    "capture without burned-in flag": ("sc", put("BurnedInAnnotation", "NO")),
    "capture that says original": ("sc", put("ImageType", ["ORIGINAL", "PRIMARY"])),
    "capture of short pixels": ("sc", put("PixelData", b"\0" * 100)),
    "capture of a strange image": ("sc", refer_elsewhere),
    "capture of another patient": ("sc", put("PatientID", "SOMEBODY")),
    "key object out of evidence": ("kos", refer_key_elsewhere),
    "key objects without an image": ("kos", unselect),
    "graphic beyond the image": ("gsps", leave_image),
    "graphic on no layer": ("gsps", unlayer),
    "graphic with wrong count": ("gsps", miscount_graphic),
    "contour off its plane": ("rtstruct", shift_contour),
    "contour with wrong count": ("rtstruct", miscount_contour),
    "contours of no structure": ("rtstruct", rename_roi),
    "another frame of reference": ("rtstruct", move_frame_of_reference),
    "no PDF": ("pdf", put("EncapsulatedDocument", b"PK\3\4 zip")),
    "PDF cut off": ("pdf", lambda document: put("EncapsulatedDocument", document.EncapsulatedDocument[:2000])(document)),
    "PDF of a strange image": ("pdf", refer_elsewhere),
    "PDF without a MIME type": ("pdf", cut("MIMETypeOfEncapsulatedDocument")),
    "map in millimetres": ("pm", unit_of_length),
    "map of nothing": ("pm", unmapped),
    "map with a moved frame": ("pm", move_frame),
    "map without qualification": ("pm", cut("ContentQualification")),
}


@pytest.mark.parametrize(("role", "spoil"), SEEDS.values(), ids=list(SEEDS))
def test_the_gate_stops_spoiled_objects(spoilable: tuple[Case, Mapping[str, bytes]], role: str, spoil: Callable[[Dataset], None]) -> None:
    made, contents = spoilable
    dataset = pydicom.dcmread(BytesIO(contents[role]))
    spoil(dataset)
    assert [str(fault) for _, fault in examine_set([dataset], made.sources) if fault.severity is Severity.ERROR]


@pytest.fixture(scope="module")
def spoilable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Mapping[str, bytes]]:
    made = make_case(tmp_path_factory.mktemp("spoilable"), "oblique", 3)
    return made, {role: part10_bytes(encode(role, made)) for role in ROLES}
