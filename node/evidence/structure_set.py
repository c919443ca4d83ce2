"""The RT Structure Set: the outlines as closed planar contours on the planes of the source (PS3.3 A.19, C.8.8.5, C.8.8.6).

Each plane has its own place, so tilted and unevenly spaced stacks are no special case. How holes are drawn, and why so:
`node/evidence/contours.py`.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import RTStructureSetStorage

from node.domain.result import Result, SegmentResult
from node.domain.volume import LabelMap
from node.errors import EvidenceError
from node.evidence.base import NOT_VERIFIED, Role, begin, by_series, images_used, label_map_of, reference, reference_to_plane
from node.evidence.context import EvidenceContext
from node.evidence.contours import Polygon, outlines
from node.evidence.exact import new_item
from node.evidence.sop_common import algorithm_parameters, code_item, finished, long_string

STRUCTURE_SET: Final = Role("rtstruct", RTStructureSetStorage, "RTSTRUCT", 6)
STUDY_SOP_CLASS_UID: Final = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, retired: what RT Referenced Study Sequence refers to, by custom of all makers."""
_ANATOMY: Final = ("91723000", "SCT")
_FORMAT: Final = "%.4f"
"""A tenth of a micrometre: less than any scanner knows, and short enough for long contours."""
_CONTOUR_DATA: Final = Tag("ContourData")


def encode_structure_set(result: Result, sources: Sequence[Dataset], context: EvidenceContext) -> Dataset:
    """Answers the contours of a result: ROI Number n is Segment Number n.

    Raises
    ------
    EvidenceError
        If nothing is outlined (make none then), a source image is missing, or the images lie nowhere in the patient.
    """
    label_map = label_map_of(result)
    images = images_used(result, sources)
    if not label_map.source.frame_of_reference_uid:
        raise EvidenceError("contours need a frame of reference, and the images have none")
    found = [segment for segment in result.segments if segment.present]
    made = begin(STRUCTURE_SET, images[0], result, context)
    made.OperatorsName = None
    made.FrameOfReferenceUID = label_map.source.frame_of_reference_uid
    made.PositionReferenceIndicator = images[0].get("PositionReferenceIndicator")
    made.StructureSetLabel = "AI_STRUCTURES"
    made.StructureSetName = long_string(f"{result.card.title} {result.card.version}")
    made.StructureSetDescription = f"{NOT_VERIFIED}: {result.card.title} {result.card.version}"
    made.ReferencedFrameOfReferenceSequence = [_frame_of_reference(images, label_map)]
    made.StructureSetROISequence = [_roi(number, segment, result) for number, segment in enumerate(found, 1)]
    made.ROIContourSequence = [_contours(number, segment, label_map) for number, segment in enumerate(found, 1)]
    made.RTROIObservationsSequence = [_observation(number, segment) for number, segment in enumerate(found, 1)]
    made.ApprovalStatus = "UNAPPROVED"
    structures = finished(made, images[0], result, context)
    structures.StructureSetDate, structures.StructureSetTime = structures.ContentDate, structures.ContentTime
    del structures.ContentDate, structures.ContentTime  # an RT object has them under its own names
    return structures


def _frame_of_reference(images: Sequence[Dataset], label_map: LabelMap) -> Dataset:
    """Answers the images whose planes can hold contours."""
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_SOP_CLASS_UID, str(images[0].StudyInstanceUID)
    study.RTReferencedSeriesSequence = []
    for uid, found in by_series(images).items():
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ContourImageSequence = [reference(image.SOPClassUID, image.SOPInstanceUID) for image in found]
        study.RTReferencedSeriesSequence.append(series)
    item = Dataset()
    item.FrameOfReferenceUID = label_map.source.frame_of_reference_uid
    item.RTReferencedStudySequence = [study]
    return item


def _roi(number: int, segment: SegmentResult, result: Result) -> Dataset:
    """Answers what is outlined, and that a program did it."""
    assert result.label_map is not None  # noqa: S101 - the caller has asked
    card = result.card
    algorithm = Dataset()
    algorithm.AlgorithmFamilyCodeSequence = [code_item(card.family)]
    algorithm.AlgorithmName = long_string(card.name)
    algorithm.AlgorithmVersion = long_string(card.version)
    algorithm.AlgorithmSource = long_string(card.manufacturer)
    if parameters := algorithm_parameters(result):
        algorithm.AlgorithmParameters = parameters
    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = result.label_map.source.frame_of_reference_uid
    item.ROIName = long_string(segment.definition.label)
    item.ROIDescription = NOT_VERIFIED
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = long_string(f"{card.name} {card.version}")
    item.ROIDerivationAlgorithmIdentificationSequence = [algorithm]
    return item


def _contours(number: int, segment: SegmentResult, label_map: LabelMap) -> Dataset:
    """Answers the contours of a structure, plane by plane (PS3.3 Table C.8-42)."""
    item = Dataset()
    item.ROIDisplayColor = list(segment.definition.rgb)
    item.ReferencedROINumber = number
    contours: list[Dataset] = []
    for index, plane in enumerate(label_map.source.planes):
        polygons = outlines(label_map.mask(segment.definition.label_value, index))
        for points_mm in (_in_patient(polygon, label_map.source.patient_from_pixel(index)) for polygon in polygons):
            contour = new_item(None)
            contour.ContourImageSequence = [reference_to_plane(plane)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points_mm)
            contour.ContourNumber = len(contours) + 1
            contour[_CONTOUR_DATA] = _decimal_strings(points_mm)
            contours.append(contour)
    item.ContourSequence = contours
    return item


def _in_patient(polygon: Polygon, patient_from_pixel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answers the points (x, y, z) in mm; the centre of a pixel is where its plane says (PS3.3 C.7.6.2.1.1)."""
    pixels = np.column_stack([polygon[:, 1], polygon[:, 0], np.ones(len(polygon))])
    return np.asarray((pixels @ patient_from_pixel.T)[:, :3])


def _decimal_strings(points_mm: NDArray[np.float64]) -> RawDataElement:
    """Answers Contour Data as it is written: a value of pydicom's for each of a million numbers would take a minute."""
    text = "\\".join([_FORMAT] * points_mm.size) % tuple(points_mm.reshape(-1).tolist())
    value = text.encode() + b" " * (len(text) % 2)
    return RawDataElement(_CONTOUR_DATA, "DS", len(value), value, 0, is_implicit_VR=False, is_little_endian=True)


def _observation(number: int, segment: SegmentResult) -> Dataset:
    definition = segment.definition
    item = Dataset()
    item.ObservationNumber = number
    item.ReferencedROINumber = number
    item.ROIObservationLabel = long_string(definition.label)[:16].strip()
    kind = code_item(definition.type)
    if definition.laterality:
        kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(definition.laterality)]
    item.RTROIIdentificationCodeSequence = [kind]
    item.RTROIInterpretedType = "ORGAN" if (definition.category.value, definition.category.scheme) == _ANATOMY else None
    item.ROIInterpreter = None
    return item
