"""Results as small as can be, encoded by the code that encodes all of them: what the annexes on objects are read off.

Each specimen differs from the first in one respect: whatever differs in the object then comes from there.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, MRImageStorage

from node.codes import UCUM_HOUNSFIELD, Code
from node.domain.findings import Detection, Evaluation, Landmark
from node.domain.identifiers import derive_uid
from node.domain.measurement import measure
from node.domain.modelcard import (
    MEASURABLE,
    AnswerDefinition,
    DetectionDefinition,
    EvaluationDefinition,
    InputRequirement,
    LandmarkDefinition,
    ModelCard,
    SegmentDefinition,
    WeightsFile,
)
from node.domain.result import PredecessorDocument, Provenance, Result
from node.domain.states import Outcome
from node.domain.volume import LabelMap, Plane, QualityNote, SourceGrid, Volume, VolumeGeometry
from node.evidence.context import EvidenceContext
from node.evidence.encapsulated_pdf import encode_pdf_report
from node.evidence.header import DESCRIPTION, IDENTITY
from node.evidence.key_objects import encode_key_objects
from node.evidence.measurement_report import encode_report
from node.evidence.parametric_map import encode_parametric_map
from node.evidence.presentation_state import encode_presentation_state
from node.evidence.secondary_capture import encode_secondary_capture
from node.evidence.segmentation import encode_label_map, encode_segmentation
from node.evidence.structure_set import encode_structure_set

ROWS: Final = 16
STEP_MM: Final = 3.0
BARE: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "FrameOfReferenceUID")
"""All that a source image must have."""

_SAMPLES: Final = {
    "AS": "04{n}Y", "CS": "CHOICE_{n}", "DA": "2020010{n}", "DS": "{n}.5", "LO": "Text {n}", "LT": "Text {n}", "PN": "Name{n}^Given",
    "SH": "Text {n}", "ST": "Text {n}", "TM": "10150{n}", "UC": "Text {n}", "UI": "2.25.{n}", "UT": "Text {n}",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Specimen:
    """A result with everything it is encoded from."""

    result: Result
    sources: tuple[Dataset, ...]
    context: EvidenceContext

    @property
    def source(self) -> Dataset:
        """The first source image."""
        return self.sources[0]


Made = Mapping[str, Dataset]
"""Objects of a result, by their role."""


@dataclass(frozen=True, slots=True)
class ResultObject:
    """A kind of object that radnode makes. To describe another one, add it to RESULT_OBJECTS."""

    role: str
    title: str
    when: str
    encode: Callable[[Specimen, Made], Dataset | None]
    """None where a result has no such object. What stands before it in the table is made already."""


def _segmentation(specimen: Specimen, _made: Made) -> Dataset | None:
    if specimen.result.outcome is not Outcome.FOUND:
        return None
    return encode_segmentation(specimen.result, specimen.sources, specimen.context)


def _report(specimen: Specimen, made: Made) -> Dataset:
    return encode_report(specimen.result, specimen.sources, made.get("seg"), specimen.context)


def _secondary_capture(specimen: Specimen, _made: Made) -> Dataset | None:
    label_map = specimen.result.label_map
    if label_map is None:
        return None
    return encode_secondary_capture(specimen.result, specimen.sources, _volume(label_map.source), specimen.context)


def _parametric_map(specimen: Specimen, _made: Made) -> Dataset | None:
    label_map, structure = specimen.result.label_map, specimen.result.card.segments[0]
    if label_map is None:
        return None
    probabilities = np.full(label_map.source.shape, 0.5, dtype=np.float32)
    return encode_parametric_map(specimen.result, specimen.sources, probabilities, label_map.source, structure, specimen.context)


def _pdf(specimen: Specimen, _made: Made) -> Dataset | None:
    return encode_pdf_report(specimen.result, specimen.sources, specimen.context)


def _where_outlined(
    encode: Callable[[Result, tuple[Dataset, ...], EvidenceContext], Dataset],
) -> Callable[[Specimen, Made], Dataset | None]:
    def make(specimen: Specimen, _made: Made) -> Dataset | None:
        if specimen.result.outcome is not Outcome.FOUND:
            return None
        return encode(specimen.result, specimen.sources, specimen.context)

    return make


_ASKED: Final = "where a destination asks for it (`objects`)"
_PLACED: Final = "a structure was outlined, or a box or a point found"
RESULT_OBJECTS: Final = (
    ResultObject("seg", "Segmentation", "when a structure was outlined", _segmentation),
    ResultObject("sr", "Comprehensive 3D SR", "for every job, whatever its outcome", _report),
    ResultObject("labelmap", "Label Map Segmentation", f"{_ASKED}, and a structure was outlined", _where_outlined(encode_label_map)),
    ResultObject("sc", "Secondary Capture Image", f"{_ASKED}, and images were analysed", _secondary_capture),
    ResultObject("kos", "Key Object Selection Document", f"{_ASKED}, and {_PLACED}", _where_outlined(encode_key_objects)),
    ResultObject("gsps", "Grayscale Softcopy Presentation State", f"{_ASKED}, and {_PLACED}", _where_outlined(encode_presentation_state)),
    ResultObject("rtstruct", "RT Structure Set", f"{_ASKED}, and a structure was outlined", _where_outlined(encode_structure_set)),
    ResultObject("pdf", "Encapsulated PDF", _ASKED, _pdf),
    ResultObject("pm", "Parametric Map", f"{_ASKED}, and the model gives one probability", _parametric_map),
)


def objects_of(specimen: Specimen) -> dict[str, Dataset]:
    """Answers the objects of a specimen, by their role."""
    made: dict[str, Dataset] = {}
    for kind in RESULT_OBJECTS:
        dataset = kind.encode(specimen, made)
        if dataset is not None:
            made[kind.role] = dataset
    return made


def specimens() -> Mapping[str, Specimen]:
    """Answers the first specimen as `first`, and by the name of what is different in them, the others."""
    first = _specimen(_card(), _sources(1), _labels())
    card = _card("b")
    other_provenance = Provenance(engine="another engine", weights_sha256=("cd" * 32,), device_uid=card.device_uid)
    other_model = _specimen(card, first.sources, _labels())
    notes = (QualityNote("Note", "A slice is missing.", degraded=True),)
    earlier = PredecessorDocument(*(derive_uid("earlier", name) for name in ("study", "series", "class", "instance")))
    return {
        "first": first,
        "source": _specimen(_card(), _sources(2), _labels(rows=ROWS + 2)),
        "model": replace(other_model, result=replace(other_model.result, provenance=other_provenance)),
        "result": _specimen(_card(), first.sources, _labels(structures=3, moved=1)),
        "one structure": _specimen(_card(), first.sources, _labels(structures=1)),
        "job": replace(first, context=replace(first.context, job_key="other", encoded_at=datetime(2021, 2, 3, 4, 5, 6, tzinfo=UTC))),
        "configuration": replace(first, context=replace(first.context, ae_title="OTHER", device_serial_number="other")),
        "bare source": _specimen(_card(), _bare(first.sources), _labels()),
        "multi-frame source": _multi_frame(first),
        "lossy tilted source": _specimen(_card(), _lossy_and_tilted(first.sources), _labels()),
        "findings": replace(first, result=_with_findings(first.result)),
        "degraded": replace(first, result=replace(first.result, notes=notes)),
        "late image": replace(first, context=replace(first.context, predecessor=earlier)),
        "nothing found": _specimen(_card(), first.sources, _labels(structures=0)),
        "not attempted, with a prior": replace(_ended(first, Outcome.NOT_ATTEMPTED), sources=(*first.sources, _prior(first.source))),
        "failed": _ended(first, Outcome.FAILED),
    }


def _specimen(card: ModelCard, sources: tuple[Dataset, ...], labels: NDArray[np.uint8], grid: SourceGrid | None = None) -> Specimen:
    grid = grid or _grid(sources)
    label_map = LabelMap(labels=labels, source=grid)
    segments = measure(label_map, card, _volume(grid))
    outcome = Outcome.FOUND if any(segment.present for segment in segments) else Outcome.NOTHING_FOUND
    provenance = Provenance(engine="engine", weights_sha256=("ab" * 32,), device_uid=card.device_uid)
    context = EvidenceContext("job", datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), "RADNODE", "serial")
    return Specimen(Result(card, outcome, segments, label_map, provenance=provenance), sources, context)


def _with_findings(result: Result) -> Result:
    """Answers a result that answers a question besides, and has found a box and a point."""
    assert result.label_map is not None  # noqa: S101 - the caller has asked
    question = EvaluationDefinition(
        Code("1386000", "SCT", "Intracranial hemorrhage"), (AnswerDefinition(0, "-", Code("1386000", "SCT", "Intracranial hemorrhage")),)
    )
    box = DetectionDefinition(0, "Box", Code("49755003", "SCT", "Morphologically Abnormal Structure"), Code("4147007", "SCT", "Mass"))
    point = LandmarkDefinition(0, "Point", Code("28700002", "SCT", "Carina"))
    grid = result.label_map.source
    x, y, z = grid.planes[0].image_position_patient
    middle = (x + 8.0, y + 8.0, z)
    return replace(
        result,
        card=replace(result.card, evaluations=(question,), detections=(box,), landmarks=(point,)),
        evaluations=(Evaluation(question, (0.9,), grid.planes[0]),),
        detections=(Detection(box, 0.8, middle, ((2.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 4.0))),),
        landmarks=(Landmark(point, 0.7, middle),),
        grids=(grid,),
    )


def _ended(specimen: Specimen, outcome: Outcome) -> Specimen:
    return replace(specimen, result=Result(specimen.result.card, outcome, reason="a reason"))


def _card(letter: str = "a") -> ModelCard:
    """Answers a card of three structures."""
    scheme = "99OTHER" if letter == "b" else "SCT"
    side = Code("7771000", "SCT", "Left") if letter == "a" else Code("24028007", "SCT", "Right")
    kinds = [
        SegmentDefinition(
            label_value=number,
            label=f"Structure {number}{letter}",
            category=Code("91723000", "SCT", "Anatomical Structure") if letter == "a" else Code("1", scheme, "Category"),
            type=Code("42695009", "SCT", "Thalamus") if letter == "a" else Code("2", scheme, "Type"),
            anatomic_region=None if number == 2 else Code("12738006", "SCT", "Brain") if letter == "a" else Code("3", scheme, "Region"),
            laterality=side,
            rgb=(10, 20, 30) if letter == "a" else (40, 50, 60),
            measure=MEASURABLE if number == 1 else MEASURABLE[:1],
        )
        for number in (1, 2, 3)
    ]
    return ModelCard(
        name=f"model-{letter}",
        version=f"1{letter}",
        title=f"Model {letter}",
        manufacturer=f"Maker {letter}",
        intended_use="-",
        training_data="-",
        performance="-",
        licence="-",
        weights=(WeightsFile("file", "safetensors", f"{letter}b" * 32, "-"),),
        inputs=(InputRequirement(modality=("CT",)),),
        segments=tuple(kinds),
        family=Code("123110", "DCM", "Artificial Intelligence") if letter == "a" else Code("123109", "DCM", "Machine Learning"),
    )


def _labels(*, structures: int = 2, moved: int = 0, rows: int = ROWS) -> NDArray[np.uint8]:
    """Answers the first of three structures on both planes, the others on one of them."""
    labels = np.zeros((2, rows, rows), np.uint8)
    labels[:, 2 : 6 + moved, 2:6] = 1
    labels[:1, 9 : 12 + moved, 9:12] = 2
    labels[:1, 14, 14] = 3
    labels[labels > structures] = 0
    return labels


# ── sources ─────────────────────────────────────────────────────────────────


def _sources(number: int) -> tuple[Dataset, ...]:
    """Answers the headers of two images that have everything a result can take over."""
    images = []
    for place in range(2):
        image = Dataset()
        for keyword in (*IDENTITY, *DESCRIPTION):
            setattr(image, keyword, _sample(keyword, number))
        image.SpecificCharacterSet = "ISO_IR 100" if number == 1 else "ISO_IR 192"
        image.TimezoneOffsetFromUTC = "+0000" if number == 1 else "+0100"
        image.SOPClassUID = CTImageStorage if number == 1 else MRImageStorage
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(image, keyword, derive_uid("specimen", keyword, str(number)))
        image.SOPInstanceUID = derive_uid("specimen", str(number), str(place))
        image.Modality = "CT" if number == 1 else "MR"
        image.SeriesNumber = number
        image.BodyPartExamined = "HEAD" if number == 1 else "BRAIN"
        image.Manufacturer, image.ManufacturerModelName, image.StationName = f"Scanners {number}", f"Scanner {number}", f"CT{number}"
        image.DeviceSerialNumber, image.SoftwareVersions = f"S{number}", f"V{number}"
        image.PositionReferenceIndicator = f"XY{number}"
        image.RequestAttributesSequence = [_request(number)]
        image.ImagePositionPatient = [10 * number, 0, STEP_MM * number * place]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0] if number == 1 else [-1, 0, 0, 0, -1, 0]
        image.PixelSpacing = [number, number]
        image.Rows = image.Columns = ROWS if number == 1 else ROWS + 2
        image.SliceThickness = STEP_MM * number
        images.append(image)
    return tuple(images)


def _request(number: int) -> Dataset:
    request = Dataset()
    for keyword in (
        "RequestedProcedureID", "RequestedProcedureDescription", "AccessionNumber", "PlacerOrderNumberImagingServiceRequest",
        "FillerOrderNumberImagingServiceRequest", "RequestedProcedureCodeSequence", "OrderPlacerIdentifierSequence",
        "OrderFillerIdentifierSequence",
    ):  # fmt: skip
        setattr(request, keyword, _sample(keyword, number))
    return request


def _sample(keyword: str, number: int) -> object:
    """Answers a value for an element, another one for each number."""
    vr = dictionary_VR(keyword)
    if vr == "US":
        return number
    if vr != "SQ":
        return _SAMPLES[vr].format(n=number)
    item = Dataset()
    if keyword.endswith("CodeSequence"):
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = f"C{number}", "99SCANNER", f"Code {number}"
    elif keyword == "ReferencedStudySequence":
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = f"2.25.{number}", f"2.25.{number + 5}"
    else:
        item.LocalNamespaceEntityID = f"Text {number}"
    return [item]


def _bare(images: tuple[Dataset, ...]) -> tuple[Dataset, ...]:
    geometry = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    bare = []
    for image in images:
        copy = Dataset()
        for keyword in (*BARE, *geometry):
            setattr(copy, keyword, image[keyword].value)
        bare.append(copy)
    return tuple(bare)


def _lossy_and_tilted(images: tuple[Dataset, ...]) -> tuple[Dataset, ...]:
    """Answers the images as they come out of lossy compression, from a tilted gantry."""
    changed = tuple(deepcopy(image) for image in images)
    for place, image in enumerate(changed):
        image.LossyImageCompression = "01"
        image.LossyImageCompressionRatio, image.LossyImageCompressionMethod = "10", "ISO_10918_1"
        image.ImagePositionPatient = [10, place, STEP_MM * place]
    return changed


def _multi_frame(first: Specimen) -> Specimen:
    image = deepcopy(first.source)
    image.SOPClassUID, image.NumberOfFrames = EnhancedCTImageStorage, len(first.sources)
    grid = _grid(first.sources)
    frames = [
        Plane(EnhancedCTImageStorage, str(image.SOPInstanceUID), plane.image_position_patient, number)
        for number, plane in enumerate(grid.planes, 1)
    ]
    return _specimen(first.result.card, (image,), _labels(), replace(grid, planes=tuple(frames)))


def _prior(image: Dataset) -> Dataset:
    copy = deepcopy(image)
    copy.StudyInstanceUID, copy.SOPInstanceUID = derive_uid("specimen", "prior"), derive_uid("specimen", "prior", "image")
    return copy


def _grid(images: tuple[Dataset, ...]) -> SourceGrid:
    first = images[0]
    spacing = float(first.PixelSpacing[0])
    planes = [
        Plane(str(image.SOPClassUID), str(image.SOPInstanceUID), (float(x), float(y), float(z)))
        for image in images
        for x, y, z in [image.ImagePositionPatient]
    ]
    x, y, z, u, v, w = (float(value) for value in first.ImageOrientationPatient)
    rows = int(first.Rows)
    return SourceGrid(rows, rows, spacing, spacing, (x, y, z, u, v, w), tuple(planes), str(first.FrameOfReferenceUID))


def _volume(grid: SourceGrid) -> Volume:
    """Answers images whose values are Hounsfield units, other ones at other places."""
    patient_from_voxel = np.eye(4)
    patient_from_voxel[:3, 0] = grid.positions_mm[1] - grid.positions_mm[0]
    patient_from_voxel[:3, 1] = grid.column_cosine * grid.row_spacing_mm
    patient_from_voxel[:3, 2] = grid.row_cosine * grid.column_spacing_mm
    patient_from_voxel[:3, 3] = grid.positions_mm[0]
    voxels = np.arange(np.prod(grid.shape), dtype=np.float32).reshape(grid.shape)
    return Volume(voxels, VolumeGeometry(grid.shape, patient_from_voxel), grid, "CT", UCUM_HOUNSFIELD)
