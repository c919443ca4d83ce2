"""What a Store request is answered with: an HTTP status and the Store Instances Response Module (PS3.18 10.5.3, Annex I)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, tostring

from node.codes import FailureReason, StoreStatus
from node.domain.identifiers import is_usable_uid

JSON: Final = "application/dicom+json"
XML: Final = "application/dicom+xml"
OFFERED: Final = (JSON, XML)
"""The media types of an answer, the preferred first (PS3.18 10.5.3.2)."""

DicomJson = dict[str, dict[str, Any]]

_NAMES: Final = {
    "00081150": ("UI", "ReferencedSOPClassUID"),
    "00081155": ("UI", "ReferencedSOPInstanceUID"),
    "00081190": ("UR", "RetrieveURL"),
    "00081197": ("US", "FailureReason"),
    "00081198": ("SQ", "FailedSOPSequence"),
    "00081199": ("SQ", "ReferencedSOPSequence"),
    "0008119A": ("SQ", "OtherFailuresSequence"),
}
_CLASS, _INSTANCE, _URL, _REASON, _FAILED, _STORED, _OTHER = _NAMES


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one part. UIDs are '' where it did not come to say them."""

    status: int
    sop_class_uid: str = ""
    sop_instance_uid: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the instance is safe."""
        return self.status == StoreStatus.SUCCESS


def http_status(outcomes: Sequence[Outcome], *, whole: bool) -> HTTPStatus:
    """Answers the status of a Store response (PS3.18 Table 10.5.3-1); `whole` where the body was read to its end without a fault."""
    stored = sum(one.is_stored for one in outcomes)
    if stored:
        return HTTPStatus.OK if whole and stored == len(outcomes) else HTTPStatus.ACCEPTED
    if not whole or not outcomes:
        return HTTPStatus.BAD_REQUEST
    reasons = {one.status for one in outcomes}
    if reasons == {StoreStatus.OUT_OF_RESOURCES}:
        return HTTPStatus.SERVICE_UNAVAILABLE
    if reasons == {FailureReason.PROCESSING_FAILURE}:
        return HTTPStatus.INTERNAL_SERVER_ERROR
    return HTTPStatus.CONFLICT


def store_instances_response(outcomes: Iterable[Outcome]) -> DicomJson:
    """Answers the Store Instances Response Module in the DICOM JSON Model. Nothing can be retrieved here: there are no URLs in it."""
    stored, failed, other = [], [], []
    for one in outcomes:
        names = {_CLASS: _of(_CLASS, one.sop_class_uid), _INSTANCE: _of(_INSTANCE, one.sop_instance_uid)}
        reason = {_REASON: _of(_REASON, one.status)}
        if one.is_stored:
            stored.append({**names, _URL: _of(_URL)})
        elif is_usable_uid(one.sop_class_uid) and is_usable_uid(one.sop_instance_uid):
            failed.append({**names, **reason})
        else:
            other.append(reason)
    sequences = {_FAILED: failed, _STORED: stored, _OTHER: other}
    return {_URL: _of(_URL), **{tag: _of(tag, *items) for tag, items in sequences.items() if items}}


def _of(tag: str, *values: object) -> dict[str, Any]:
    element: dict[str, Any] = {"vr": _NAMES[tag][0]}
    if values:
        element["Value"] = list(values)
    return element


def encode(response: DicomJson, media_type: str) -> bytes:
    """Answers a data set in one of the media types that are OFFERED."""
    if media_type == JSON:
        return json.dumps(response, separators=(",", ":")).encode()
    model = Element("NativeDicomModel", {"xmlns": "http://dicom.nema.org/PS3.19/models/NativeDICOM", "xml:space": "preserve"})
    _add_xml(model, response)
    encoded: bytes = tostring(model, encoding="utf-8", xml_declaration=True)
    return encoded


def _add_xml(parent: Element, dataset: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds elements in the Native DICOM Model (PS3.19 A.1)."""
    for tag, element in sorted(dataset.items()):
        vr, keyword = _NAMES[tag]
        attribute = SubElement(parent, "DicomAttribute", {"tag": tag, "vr": vr, "keyword": keyword})
        for number, value in enumerate(element.get("Value", ()), 1):
            if vr == "SQ":
                _add_xml(SubElement(attribute, "Item", {"number": str(number)}), value)
            else:
                SubElement(attribute, "Value", {"number": str(number)}).text = str(value)


def choose_media_type(accept: str) -> str:
    """Answers which of the OFFERED media types an Accept header likes best, '' where it likes none (PS3.18 8.7.4)."""
    if not accept.strip():
        return OFFERED[0]
    liking = dict.fromkeys(OFFERED, 0.0)
    for one in accept.split(","):
        asked = Message()
        asked["Content-Type"] = one.strip()
        wanted = one.partition(";")[0].strip().lower()
        for offered in OFFERED:
            if wanted in {offered, "*/*", "application/*"}:
                liking[offered] = max(liking[offered], _weight(asked.get_param("q", "1")))
    best = max(OFFERED, key=lambda offered: liking[offered])
    if liking[best] > 0:
        return best
    # not offered, but what a client means that speaks JSON or XML and no DICOM
    plain = {"application/json": JSON, "application/xml": XML, "text/xml": XML}
    return next((plain[one] for one in (part.partition(";")[0].strip().lower() for part in accept.split(",")) if one in plain), "")


def _weight(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return 0.0
