"""What the further objects of a result must say: Secondary Capture, Key Objects, Presentation State, RT Structure Set, PDF, Parametric Map."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)

from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.frames import FrameFacts, read_frames, shared_facts
from node.evidence.gate.segmentation import numbers_in, source_faults
from node.evidence.gate.terms import code_of, unit_faults

PLANE_TOLERANCE_MM: Final = 0.01
_CONTOUR_TYPES: Final = frozenset({"POINT", "OPEN_PLANAR", "OPEN_NONPLANAR", "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
_CONTOUR_DATA: Final = Tag("ContourData")
_FEW: Final = 3
_Plane = tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float], tuple[int, int]]
"""Position, orientation (2, 3), pixel spacing, rows and columns."""


def other_faults(dataset: Dataset) -> Iterator[Fault]:
    """Answers what is wrong with one of these objects by itself; nothing for all others."""
    check = _CHECKS.get(str(dataset.get("SOPClassUID") or ""))
    if check is not None:
        yield from check(dataset)


def other_source_faults(dataset: Dataset, sources: Mapping[str, Dataset]) -> Iterator[Fault]:
    """Answers where one of these objects is about other images than the sources, or lies beside them.

    `sources` are the headers of the images that were analysed, by SOP Instance UID.
    """
    sop_class_uid = str(dataset.get("SOPClassUID") or "")
    if sop_class_uid not in _CHECKS:
        return
    strange = sorted(_cited(dataset) - set(sources))
    if strange:
        more = f" and {len(strange) - 1} others" if len(strange) > 1 else ""
        yield Fault("header", f"it refers to {strange[0]}{more}, no source image", "PS3.3 10.8")
    if sop_class_uid == RTStructureSetStorage:
        yield from _contour_places(dataset, sources)
    elif sop_class_uid == ParametricMapStorage:
        yield from source_faults(dataset, sources)
    elif sop_class_uid == GrayscaleSoftcopyPresentationStateStorage:
        yield from _graphic_places(dataset, sources)


def _cited(dataset: Dataset) -> set[str]:
    """Answers every instance that an object refers to, but for studies and other documents."""
    found: set[str] = set()
    for tag in dataset.keys():  # noqa: SIM118 - a Dataset iterates over converted elements, a million coordinates among them
        if dataset.get_item(tag).VR not in {"SQ", "UN", None}:
            continue
        element = dataset[tag]
        if element.VR != "SQ" or element.keyword in {"ReferencedStudySequence", "PredecessorDocumentsSequence"}:
            continue
        is_study = element.keyword == "RTReferencedStudySequence"
        for item in element.value:
            if "ReferencedSOPInstanceUID" in item and not is_study:
                found.add(str(item.ReferencedSOPInstanceUID))
            found |= _cited(item)
    return found


# ── Secondary Capture, PDF ──────────────────────────────────────────────────


def _capture_faults(image: Dataset) -> Iterator[Fault]:
    yield from _burned_in_faults(image)
    if [str(one) for one in image.get("ImageType") or []][:2] != ["DERIVED", "SECONDARY"]:
        yield Fault("header", "Image Type does not begin with DERIVED\\SECONDARY: it could pass for an acquired image", "PS3.3 C.7.6.1.1.2")
    if not image.get("SourceImageSequence"):
        yield Fault("header", "Source Image Sequence is absent: of which images it is nobody can tell", "PS3.3 C.7.6.1", Severity.WARNING)
    pixels = int(image.get("Rows") or 0) * int(image.get("Columns") or 0) * int(image.get("SamplesPerPixel") or 0)
    wanted = pixels * int(image.get("BitsAllocated") or 0) // 8
    syntax = getattr(getattr(image, "file_meta", None), "TransferSyntaxUID", None)
    size = len(image.get("PixelData") or b"")
    if not size or (not (syntax and syntax.is_encapsulated) and size != wanted + wanted % 2):
        yield Fault("header", f"Pixel Data has {size} bytes, the image needs {wanted + wanted % 2}", "PS3.3 C.7.6.3")


def _burned_in_faults(dataset: Dataset) -> Iterator[Fault]:
    """Answers when an object with text in its pixels or pages does not say so."""
    if str(dataset.get("BurnedInAnnotation") or "") != "YES":
        yield Fault("header", "Burned In Annotation is not YES, though words stand in the picture", "PS3.3 C.7.6.1")
    if str(dataset.get("ConversionType") or "") != "WSD":
        yield Fault("header", "Conversion Type is not WSD: a workstation made it", "PS3.3 C.8.6.1", Severity.WARNING)


def _pdf_faults(document: Dataset) -> Iterator[Fault]:
    yield from _burned_in_faults(document)
    content = document.get("EncapsulatedDocument") or b""
    length = int(document.get("EncapsulatedDocumentLength") or len(content))
    if str(document.get("MIMETypeOfEncapsulatedDocument") or "") != "application/pdf":
        yield Fault("header", "MIME Type of Encapsulated Document is not application/pdf", "PS3.3 C.24.2")
    if not content.startswith(b"%PDF-"):
        yield Fault("header", "the Encapsulated Document does not begin with %PDF-", "PS3.3 A.45.1")
    elif b"%%EOF" not in content[-1024:]:
        yield Fault("header", "the Encapsulated Document has no end: it was cut off", "PS3.3 A.45.1")
    if not len(content) - 1 <= length <= len(content):
        yield Fault("header", f"Encapsulated Document Length is {length}, the document has {len(content)} bytes", "PS3.3 C.24.2")
    if not document.get("SourceInstanceSequence"):
        yield Fault("header", "Source Instance Sequence is absent, though it was derived from images", "PS3.3 C.24.2")
    if not document.get("ConceptNameCodeSequence"):
        text = "no coded title says what kind of document it is"
        yield Fault("header", text, "PS3.3 C.24.2", Severity.WARNING)


# ── Key Objects ─────────────────────────────────────────────────────────────


def _key_object_faults(document: Dataset) -> Iterator[Fault]:
    evidence = {
        str(instance.get("ReferencedSOPInstanceUID"))
        for study in document.get("CurrentRequestedProcedureEvidenceSequence") or []
        for series in study.get("ReferencedSeriesSequence") or []
        for instance in series.get("ReferencedSOPSequence") or []
    }
    titles = document.get("ConceptNameCodeSequence") or []
    scheme, value = code_of(titles[0] if titles else None)
    if scheme != "DCM" or not value.startswith("113"):
        yield Fault("content item 1", f"the title ({value}, {scheme}) is not of CID 7010", "PS3.16 TID 2010")
    images = 0
    for number, item in enumerate(document.get("ContentSequence") or [], 1):
        for referenced in item.get("ReferencedSOPSequence") or []:
            images += 1
            if str(referenced.get("ReferencedSOPInstanceUID")) not in evidence:
                yield Fault(f"content item 1.{number}", "its image is not in the evidence sequence", "PS3.3 C.17.6.2")
    if not images:
        yield Fault("content item 1", "no image is selected", "PS3.16 TID 2010")


# ── Presentation State ──────────────────────────────────────────────────────


def _presentation_faults(state: Dataset) -> Iterator[Fault]:
    layers = {str(layer.get("GraphicLayer")) for layer in state.get("GraphicLayerSequence") or []}
    shown = {
        str(image.get("ReferencedSOPInstanceUID"))
        for series in state.get("ReferencedSeriesSequence") or []
        for image in series.get("ReferencedImageSequence") or []
    }
    for number, annotation in enumerate(state.get("GraphicAnnotationSequence") or [], 1):
        where = f"annotation {number}"
        if str(annotation.get("GraphicLayer")) not in layers:
            yield Fault(where, f"its layer {annotation.get('GraphicLayer')} is not described", "PS3.3 C.10.7")
        cited = {str(image.get("ReferencedSOPInstanceUID")) for image in annotation.get("ReferencedImageSequence") or []}
        if cited - shown:
            yield Fault(where, "it is of an image that the presentation state does not refer to", "PS3.3 C.10.5")
        for graphic in annotation.get("GraphicObjectSequence") or []:
            values = len(graphic.get("GraphicData") or [])
            if values != 2 * int(graphic.get("NumberOfGraphicPoints") or 0):
                yield Fault(where, f"a graphic has {values} values for {graphic.get('NumberOfGraphicPoints')} points", "PS3.3 C.10.5")


def _graphic_places(state: Dataset, sources: Mapping[str, Dataset]) -> Iterator[Fault]:
    for number, annotation in enumerate(state.get("GraphicAnnotationSequence") or [], 1):
        images = [sources.get(str(one.get("ReferencedSOPInstanceUID"))) for one in annotation.get("ReferencedImageSequence") or []]
        for image in images:
            if image is not None and _is_outside(annotation, int(image.get("Rows") or 0), int(image.get("Columns") or 0)):
                yield Fault(f"annotation {number}", "a graphic lies outside its image", "PS3.3 C.10.5")


def _is_outside(annotation: Dataset, rows: int, columns: int) -> bool:
    for graphic in annotation.get("GraphicObjectSequence") or []:
        if str(graphic.get("GraphicAnnotationUnits")) == "PIXEL":
            points = np.asarray(graphic.get("GraphicData") or [], dtype=np.float64)
            if len(points) and (points.min() < 0 or points[0::2].max() > columns or points[1::2].max() > rows):
                return True
    return False


# ── RT Structure Set ────────────────────────────────────────────────────────


def _structure_faults(structures: Dataset) -> Iterator[Fault]:
    rois = structures.get("StructureSetROISequence") or []
    numbers = [roi.get("ROINumber") for roi in rois]
    known_frames = {str(one.get("FrameOfReferenceUID")) for one in structures.get("ReferencedFrameOfReferenceSequence") or []}
    if len(set(numbers)) != len(numbers):
        yield Fault("header", "two structures have one ROI Number", "PS3.3 C.8.8.5")
    for roi in rois:
        where = f"ROI {roi.get('ROINumber')}"
        if str(roi.get("ROIGenerationAlgorithm") or "") not in {"AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"}:
            yield Fault(where, "how it was made is not said (AUTOMATIC, ...)", "PS3.3 C.8.8.5", Severity.WARNING)
        if str(roi.get("ReferencedFrameOfReferenceUID") or "") not in known_frames:
            yield Fault(where, "its frame of reference is not among those of the structure set", "PS3.3 C.8.8.5")
    for keyword in ("ROIContourSequence", "RTROIObservationsSequence"):
        named = [item.get("ReferencedROINumber") for item in structures.get(keyword) or []]
        for number in sorted({str(one) for one in named} ^ {str(one) for one in numbers}):
            yield Fault(f"ROI {number}", f"it is in one of Structure Set ROI Sequence and {keyword}, not in both", "PS3.3 C.8.8.6")
    for roi in structures.get("ROIContourSequence") or []:
        for place, contour in enumerate(roi.get("ContourSequence") or [], 1):
            yield from _contour_faults(contour, f"ROI {roi.get('ReferencedROINumber')} contour {place}")


def _contour_faults(contour: Dataset, where: str) -> Iterator[Fault]:
    kind, points = str(contour.get("ContourGeometricType") or ""), _points_of(contour)
    if kind not in _CONTOUR_TYPES:
        yield Fault(where, f"Contour Geometric Type is {kind or 'absent'}", "PS3.3 C.8.8.6.1")
    if points is None or len(points) != int(contour.get("NumberOfContourPoints") or 0):
        yield Fault(where, "Contour Data has not the points that are stated", "PS3.3 C.8.8.6")
    elif kind.startswith("CLOSED") and len(points) < 3:
        yield Fault(where, f"a closed contour of {len(points)} points holds nothing", "PS3.3 C.8.8.6.1")


def _points_of(contour: Dataset) -> NDArray[np.float64] | None:
    """Answers the points, straight from the bytes where pydicom has not read them: it takes a microsecond for each number."""
    element = contour.get_item(_CONTOUR_DATA) if _CONTOUR_DATA in contour else None
    if isinstance(element, RawDataElement):
        values = np.array((element.value or b"").split(b"\\"), dtype=np.float64)
    else:
        values = np.asarray(contour.get("ContourData") or [], dtype=np.float64)
    return values.reshape(-1, 3) if len(values) and len(values) % 3 == 0 else None


def _contour_places(structures: Dataset, sources: Mapping[str, Dataset]) -> Iterator[Fault]:
    """Answers contours that do not lie on the plane, or not within the pixels, of the image that they name."""
    frames_of_reference = {str(source.get("FrameOfReferenceUID") or "") for source in sources.values()}
    for item in structures.get("ReferencedFrameOfReferenceSequence") or []:
        if str(item.get("FrameOfReferenceUID") or "") not in frames_of_reference:
            yield Fault("header", "the frame of reference is not that of the source images", "PS3.3 C.8.8.5")
    planes = {uid: _planes_of(source) for uid, source in sources.items()}
    told = 0
    for roi in structures.get("ROIContourSequence") or []:
        for place, contour in enumerate(roi.get("ContourSequence") or [], 1):
            text = _misplaced(contour, planes)
            if text and told < _FEW:
                told += 1
                yield Fault(f"ROI {roi.get('ReferencedROINumber')} contour {place}", text, "PS3.3 C.8.8.6")


def _misplaced(contour: Dataset, planes: Mapping[str, Mapping[int, _Plane]]) -> str:
    points = _points_of(contour)
    for image in contour.get("ContourImageSequence") or []:
        plane = planes.get(str(image.get("ReferencedSOPInstanceUID")), {}).get(int(image.get("ReferencedFrameNumber") or 1))
        if plane is None or points is None:
            continue  # told elsewhere
        position, cosines, spacing, (rows, columns) = plane
        offset = points - position
        if np.abs(offset @ np.cross(cosines[0], cosines[1])).max() > PLANE_TOLERANCE_MM:
            return "it does not lie on the plane of its image"
        across, down = offset @ cosines[0] / spacing[1], offset @ cosines[1] / spacing[0]
        if min(across.min(), down.min()) < -0.51 or across.max() > columns - 0.49 or down.max() > rows - 0.49:
            return "it reaches beyond the pixels of its image"
    return ""


def _planes_of(image: Dataset) -> dict[int, _Plane]:
    frames, shared = read_frames(image), shared_facts(image)
    if not frames:
        plain = (numbers_in(image, "ImagePositionPatient"), numbers_in(image, "ImageOrientationPatient"), numbers_in(image, "PixelSpacing"))
        plane = _plane(image, *plain)
        return {1: plane} if plane else {}
    found = {number: _plane(image, *_facts_of(frame, shared)) for number, frame in enumerate(frames, 1)}
    return {number: plane for number, plane in found.items() if plane is not None}


def _facts_of(frame: FrameFacts, shared: FrameFacts) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    return (
        frame.position_mm or shared.position_mm,
        frame.orientation or shared.orientation,
        frame.pixel_spacing_mm or shared.pixel_spacing_mm,
    )


def _plane(image: Dataset, position: Sequence[float], orientation: Sequence[float], spacing: Sequence[float]) -> _Plane | None:
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        return None
    size = (int(image.get("Rows") or 0), int(image.get("Columns") or 0))
    return np.array(position), np.array(orientation).reshape(2, 3), (spacing[0], spacing[1]), size


# ── Parametric Map ──────────────────────────────────────────────────────────


def _map_faults(parametric_map: Dataset) -> Iterator[Fault]:
    frames = read_frames(parametric_map)
    if int(parametric_map.get("NumberOfFrames") or 0) != len(frames):
        stated = parametric_map.get("NumberOfFrames")
        yield Fault("header", f"Number of Frames is {stated}, functional groups are of {len(frames)}", "PS3.3 C.7.6.16")
    shared = (parametric_map.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    mappings = shared.get("RealWorldValueMappingSequence") or []
    per_frame = parametric_map.get("PerFrameFunctionalGroupsSequence") or [Dataset()]
    mappings = mappings or per_frame[0].get("RealWorldValueMappingSequence") or []
    if not mappings:
        yield Fault("header", "no Real World Value Mapping says what the pixels mean", "PS3.3 A.75.4")
    for mapping in mappings:
        quantities = mapping.get("QuantityDefinitionSequence") or []
        concepts = quantities[0].get("ConceptCodeSequence") if quantities else None
        for unit in mapping.get("MeasurementUnitsCodeSequence") or [Dataset()]:
            yield from unit_faults(concepts[0] if concepts else None, unit, "real world value mapping")
    size = int(parametric_map.get("Rows") or 0) * int(parametric_map.get("Columns") or 0) * len(frames)
    wanted = size * int(parametric_map.get("BitsAllocated") or 0) // 8
    keywords = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    lengths = [len(parametric_map[keyword].value or b"") for keyword in keywords if keyword in parametric_map]
    syntax = getattr(getattr(parametric_map, "file_meta", None), "TransferSyntaxUID", None)
    if len(lengths) != 1 or (not (syntax and syntax.is_encapsulated) and lengths[0] != wanted + wanted % 2):
        yield Fault("header", f"the pixels have {sum(lengths)} bytes, the frames need {wanted + wanted % 2}", "PS3.3 C.7.6.3")


_CHECKS: Final[Mapping[str, Callable[[Dataset], Iterator[Fault]]]] = {
    SecondaryCaptureImageStorage: _capture_faults,
    KeyObjectSelectionDocumentStorage: _key_object_faults,
    GrayscaleSoftcopyPresentationStateStorage: _presentation_faults,
    RTStructureSetStorage: _structure_faults,
    EncapsulatedPDFStorage: _pdf_faults,
    ParametricMapStorage: _map_faults,
}
