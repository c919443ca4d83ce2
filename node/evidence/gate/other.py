"""What the further objects of a result must say: Secondary Capture, Key Objects, Presentation State, RT Structure Set, PDF, Parametric Map."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
from pydicom.uid import (
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)

from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.frames import read_frames
from node.evidence.gate.segmentation import source_faults
from node.evidence.gate.structures import contour_places, structure_faults
from node.evidence.gate.terms import code_of, unit_faults
from node.evidence.gate.view import View, keyword_of


def other_faults(dataset: View) -> Iterator[Fault]:
    """Answers what is wrong with one of these objects by itself; nothing for all others."""
    check = _CHECKS.get(str(dataset.get("SOPClassUID") or ""))
    if check is not None:
        yield from check(dataset)


def other_source_faults(dataset: View, sources: Mapping[str, View]) -> Iterator[Fault]:
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
        yield from contour_places(dataset, sources)
    elif sop_class_uid == ParametricMapStorage:
        yield from source_faults(dataset, sources)
    elif sop_class_uid == GrayscaleSoftcopyPresentationStateStorage:
        yield from _graphic_places(dataset, sources)


def _cited(view: View) -> set[str]:
    """Answers every instance that an object refers to, but for studies and other documents."""
    found: set[str] = set()
    for tag, vr in view.elements():
        if vr not in {"SQ", "UN", "None"} or keyword_of(tag) in {"ReferencedStudySequence", "PredecessorDocumentsSequence"}:
            continue
        is_study = keyword_of(tag) == "RTReferencedStudySequence"
        for item in view.value(tag) or []:
            if isinstance(item, View):
                if "ReferencedSOPInstanceUID" in item and not is_study:
                    found.add(str(item.get("ReferencedSOPInstanceUID")))
                found |= _cited(item)
    return found


# ── Secondary Capture, PDF ──────────────────────────────────────────────────


def _capture_faults(image: View) -> Iterator[Fault]:
    yield from _burned_in_faults(image)
    if [str(one) for one in image.get("ImageType") or []][:2] != ["DERIVED", "SECONDARY"]:
        yield Fault("header", "Image Type does not begin with DERIVED\\SECONDARY: it could pass for an acquired image", "PS3.3 C.7.6.1.1.2")
    if not image.get("SourceImageSequence"):
        yield Fault("header", "Source Image Sequence is absent: of which images it is nobody can tell", "PS3.3 C.7.6.1", Severity.WARNING)
    pixels = int(image.get("Rows") or 0) * int(image.get("Columns") or 0) * int(image.get("SamplesPerPixel") or 0)
    wanted = pixels * int(image.get("BitsAllocated") or 0) // 8
    size = len(image.get("PixelData") or b"")
    if not size or (not image.is_encapsulated and size != wanted + wanted % 2):
        yield Fault("header", f"Pixel Data has {size} bytes, the image needs {wanted + wanted % 2}", "PS3.3 C.7.6.3")


def _burned_in_faults(dataset: View) -> Iterator[Fault]:
    """Answers when an object with text in its pixels or pages does not say so."""
    if str(dataset.get("BurnedInAnnotation") or "") != "YES":
        yield Fault("header", "Burned In Annotation is not YES, though words stand in the picture", "PS3.3 C.7.6.1")
    if str(dataset.get("ConversionType") or "") != "WSD":
        yield Fault("header", "Conversion Type is not WSD: a workstation made it", "PS3.3 C.8.6.1", Severity.WARNING)


def _pdf_faults(document: View) -> Iterator[Fault]:
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


def _key_object_faults(document: View) -> Iterator[Fault]:
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


def _presentation_faults(state: View) -> Iterator[Fault]:
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


def _graphic_places(state: View, sources: Mapping[str, View]) -> Iterator[Fault]:
    for number, annotation in enumerate(state.get("GraphicAnnotationSequence") or [], 1):
        images = [sources.get(str(one.get("ReferencedSOPInstanceUID"))) for one in annotation.get("ReferencedImageSequence") or []]
        for image in images:
            if image is not None and _is_outside(annotation, int(image.get("Rows") or 0), int(image.get("Columns") or 0)):
                yield Fault(f"annotation {number}", "a graphic lies outside its image", "PS3.3 C.10.5")


def _is_outside(annotation: View, rows: int, columns: int) -> bool:
    for graphic in annotation.get("GraphicObjectSequence") or []:
        if str(graphic.get("GraphicAnnotationUnits")) == "PIXEL":
            points = np.asarray(graphic.get("GraphicData") or [], dtype=np.float64)
            if len(points) and (points.min() < 0 or points[0::2].max() > columns or points[1::2].max() > rows):
                return True
    return False


# ── Parametric Map ──────────────────────────────────────────────────────────


def _map_faults(parametric_map: View) -> Iterator[Fault]:
    frames = read_frames(parametric_map)
    if int(parametric_map.get("NumberOfFrames") or 0) != len(frames):
        stated = parametric_map.get("NumberOfFrames")
        yield Fault("header", f"Number of Frames is {stated}, functional groups are of {len(frames)}", "PS3.3 C.7.6.16")
    shared = (parametric_map.get("SharedFunctionalGroupsSequence") or [View({})])[0]
    mappings = shared.get("RealWorldValueMappingSequence") or []
    per_frame = parametric_map.get("PerFrameFunctionalGroupsSequence") or [View({})]
    mappings = mappings or per_frame[0].get("RealWorldValueMappingSequence") or []
    if not mappings:
        yield Fault("header", "no Real World Value Mapping says what the pixels mean", "PS3.3 A.75.4")
    for mapping in mappings:
        quantities = mapping.get("QuantityDefinitionSequence") or []
        concepts = quantities[0].get("ConceptCodeSequence") if quantities else None
        for unit in mapping.get("MeasurementUnitsCodeSequence") or [View({})]:
            yield from unit_faults(concepts[0] if concepts else None, unit, "real world value mapping")
    size = int(parametric_map.get("Rows") or 0) * int(parametric_map.get("Columns") or 0) * len(frames)
    wanted = size * int(parametric_map.get("BitsAllocated") or 0) // 8
    keywords = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    lengths = [len(parametric_map.get(keyword) or b"") for keyword in keywords if keyword in parametric_map]
    if len(lengths) != 1 or (not parametric_map.is_encapsulated and lengths[0] != wanted + wanted % 2):
        yield Fault("header", f"the pixels have {sum(lengths)} bytes, the frames need {wanted + wanted % 2}", "PS3.3 C.7.6.3")


_CHECKS: Final[Mapping[str, Callable[[View], Iterator[Fault]]]] = {
    SecondaryCaptureImageStorage: _capture_faults,
    KeyObjectSelectionDocumentStorage: _key_object_faults,
    GrayscaleSoftcopyPresentationStateStorage: _presentation_faults,
    RTStructureSetStorage: structure_faults,
    EncapsulatedPDFStorage: _pdf_faults,
    ParametricMapStorage: _map_faults,
}
