"""The imaging procedure that was analyzed, and the request it answers, as far as the source headers tell."""

from collections.abc import Iterable
from typing import Final

from pydicom.dataset import Dataset

from node.codes import Code
from node.evidence.exact import copy_exactly, exact_item, new_item
from node.evidence.header import is_usable_code
from node.evidence.sop_common import code_item

_OF_HEAD: Final = Code("303653007", "SCT", "CT of head")
_OF_BRAIN: Final = Code("24590-2", "LN", "MR Brain")
_PROCEDURES_OF_BODY_PARTS: Final = {
    ("CT", "HEAD"): _OF_HEAD,
    ("CT", "BRAIN"): _OF_HEAD,
    ("MR", "BRAIN"): _OF_BRAIN,
}
_PROCEDURES_OF_MODALITIES: Final = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
    "NM": Code("49118-3", "LN", "NM unspecified body region"),
    "CR": Code("43468-8", "LN", "XR unspecified body region"),
    "DX": Code("43468-8", "LN", "XR unspecified body region"),
}
_ANY_PROCEDURE: Final = Code("363679005", "SCT", "Imaging procedure")
"""The codes of PS3.16 CID 100 Quantitative Diagnostic Imaging Procedures, and two that say more."""

_REQUEST_TEXTS: Final = (
    "AccessionNumber", "RequestedProcedureID", "RequestedProcedureDescription",
    "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest",
)  # fmt: skip
_REQUEST_SEQUENCES: Final = ("ReferencedStudySequence", "RequestedProcedureCodeSequence")
_REQUEST_OPTIONS: Final = ("IssuerOfAccessionNumberSequence", "OrderPlacerIdentifierSequence", "OrderFillerIdentifierSequence")


def procedure_reported(source: Dataset) -> Dataset:
    """Answers the code of the imaging procedure: the scanner's own, else what modality and body part tell."""
    for item in _stated_procedures(source):
        if is_usable_code(item):
            return exact_item(item, source.get("SpecificCharacterSet"))
    modality = str(source.get("Modality") or "")
    body_part = str(source.get("BodyPartExamined") or "").strip().upper()
    generic = _PROCEDURES_OF_MODALITIES.get(modality, _ANY_PROCEDURE)
    return code_item(_PROCEDURES_OF_BODY_PARTS.get((modality, body_part), generic))


def referenced_requests(source: Dataset) -> list[Dataset]:
    """Answers the items of the Referenced Request Sequence (PS3.3 C.17.2): one for each request the source names."""
    character_set = source.get("SpecificCharacterSet")
    requests = []
    for attributes in source.get("RequestAttributesSequence") or []:
        request = new_item(character_set)
        if not copy_exactly(request, attributes, "StudyInstanceUID"):
            copy_exactly(request, source, "StudyInstanceUID")
        for keyword in _REQUEST_TEXTS:
            if not (copy_exactly(request, attributes, keyword) or copy_exactly(request, source, keyword)):
                setattr(request, keyword, "")
        for keyword in _REQUEST_SEQUENCES:
            items = _whole_items(attributes.get(keyword) or source.get(keyword) or [], keyword)
            setattr(request, keyword, [exact_item(item, character_set) for item in items])
        for keyword in _REQUEST_OPTIONS:
            if attributes.get(keyword) or source.get(keyword):
                copy_exactly(request, attributes if attributes.get(keyword) else source, keyword)
        requests.append(request)
    return requests


def _stated_procedures(source: Dataset) -> Iterable[Dataset]:
    yield from source.get("ProcedureCodeSequence") or []
    yield from source.get("RequestedProcedureCodeSequence") or []
    for attributes in source.get("RequestAttributesSequence") or []:
        yield from attributes.get("RequestedProcedureCodeSequence") or []


def _whole_items(items: Iterable[Dataset], keyword: str) -> list[Dataset]:
    if keyword == "ReferencedStudySequence":
        return [item for item in items if item.get("ReferencedSOPClassUID") and item.get("ReferencedSOPInstanceUID")]
    return [item for item in items if is_usable_code(item)]
