"""Whether a measurement report is whole in itself, and agrees with its Segmentation (PS3.3 C.17, PS3.16 TID 1500; IHE AIR)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.segmentation import property_of, segment_of
from node.evidence.gate.terms import code_of, unit_faults
from node.evidence.gate.view import View

IMAGING_MEASUREMENT_REPORT: Final = ("DCM", "126000")
MEASUREMENT_GROUP: Final = ("DCM", "125007")
TRACKING_IDENTIFIER: Final = ("DCM", "112039")
TRACKING_UID: Final = ("DCM", "112040")
REFERENCED_SEGMENT: Final = ("DCM", "121191")
REFERENCED_FRAME: Final = ("DCM", "121214")
SOURCE_IMAGE: Final = ("DCM", "121233")
SOURCE_SERIES: Final = ("DCM", "121232")
OBSERVER_TYPE: Final = ("DCM", "121005")
DEVICE: Final = ("DCM", "121007")
DEVICE_UID: Final = ("DCM", "121012")
FINDING: Final = ("DCM", "121071")
ALGORITHM_NAME: Final = ("DCM", "111001")
ALGORITHM_VERSION: Final = ("DCM", "111003")
VOLUME: Final = ("SCT", "118565006")

_NOT_IN: Final[Mapping[str, frozenset[str]]] = {
    "1.2.840.10008.5.1.4.1.1.88.11": frozenset({"NUM", "SCOORD", "SCOORD3D", "TCOORD", "WAVEFORM"}),
    "1.2.840.10008.5.1.4.1.1.88.22": frozenset({"SCOORD3D"}),
    "1.2.840.10008.5.1.4.1.1.88.33": frozenset({"SCOORD3D"}),
}
"""SOP class → value types that it cannot hold (PS3.3 A.35)."""

_MM3_OF: Final = {"mm3": 1.0, "cm3": 1000.0, "ml": 1000.0, "mL": 1000.0, "dm3": 1e6, "l": 1e6, "L": 1e6}
VOLUME_TOLERANCE: Final = 0.005


@dataclass(frozen=True, slots=True)
class Item:
    """A content item and where it stands: `1.3.2`."""

    path: str
    node: View

    @property
    def concept(self) -> tuple[str, str]:
        """Its concept name."""
        names = self.node.get("ConceptNameCodeSequence") or []
        return code_of(names[0] if names else None)

    @property
    def value_type(self) -> str:
        """CONTAINER, NUM, ..."""
        return str(self.node.get("ValueType") or "")

    @property
    def where(self) -> str:
        """For a person."""
        return f"content item {self.path}"

    def children(self) -> Iterator["Item"]:
        """Answers the content items directly below."""
        for number, node in enumerate(self.node.get("ContentSequence") or [], 1):
            yield Item(f"{self.path}.{number}", node)

    def all(self) -> Iterator["Item"]:
        """Answers this item and everything below it."""
        yield self
        for child in self.children():
            yield from child.all()

    def child(self, concept: tuple[str, str]) -> "Item | None":
        """Answers the first item of a concept directly below."""
        return next((one for one in self.children() if one.concept == concept), None)

    def text(self) -> str:
        """Answers the value of a text, UID or code."""
        if self.value_type == "CODE":
            codes = self.node.get("ConceptCodeSequence") or []
            return code_of(codes[0])[1] if codes else ""
        return str(self.node.get("TextValue") or self.node.get("UID") or "")

    def references(self) -> Iterator[View]:
        """Answers the objects that it refers to."""
        yield from self.node.get("ReferencedSOPSequence") or []


def report_faults(report: View) -> Iterator[Fault]:
    """Answers what is wrong with a structured report by itself."""
    root = Item("1", report)
    yield from _document_faults(report)
    forbidden = _NOT_IN.get(str(report.get("SOPClassUID")), frozenset())
    evidence, series = _evidence_of(report)
    for item in root.all():
        yield from _item_faults(item, forbidden)
        for reference in item.references():
            uid = str(reference.get("ReferencedSOPInstanceUID") or "")
            if uid not in evidence:
                yield Fault(item.where, f"it refers to {uid or 'nothing'}, which no Evidence Sequence lists", "PS3.3 C.17.2")
        if item.value_type == "UIDREF" and item.concept == SOURCE_SERIES and item.text() not in series:
            yield Fault(item.where, f"the source series {item.text()} is in no Evidence Sequence", "PS3.3 C.17.2")
    if root.concept == IMAGING_MEASUREMENT_REPORT:
        yield from _observer_faults(root)
        for group in groups_of(root):
            yield from _group_faults(group)


def _document_faults(report: View) -> Iterator[Fault]:
    if str(report.get("CompletionFlag") or "") not in {"COMPLETE", "PARTIAL"}:
        yield Fault("header", f"Completion Flag is {report.get('CompletionFlag') or 'absent'}", "PS3.3 C.17.2")
    verification = str(report.get("VerificationFlag") or "")
    if verification not in {"VERIFIED", "UNVERIFIED"}:
        yield Fault("header", f"Verification Flag is {verification or 'absent'}", "PS3.3 C.17.2")
    if verification == "VERIFIED" and not report.get("VerifyingObserverSequence"):
        yield Fault("header", "it is VERIFIED, and nobody is named who has verified it", "PS3.3 C.17.2")
    templates = report.get("ContentTemplateSequence") or []
    if not templates or not templates[0].get("TemplateIdentifier"):
        yield Fault("content item 1", "it names no template", "PS3.3 C.18.8", Severity.WARNING)
    if not report.get("CurrentRequestedProcedureEvidenceSequence"):
        yield Fault(
            "header", "Current Requested Procedure Evidence Sequence is absent: nobody can tell which images it is about", "PS3.3 C.17.2"
        )


def _evidence_of(report: View) -> tuple[set[str], set[str]]:
    """Answers the SOP Instance UIDs and the Series Instance UIDs of all evidence."""
    instances: set[str] = set()
    all_series: set[str] = set()
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in report.get(keyword) or []:
            for series in study.get("ReferencedSeriesSequence") or []:
                all_series.add(str(series.get("SeriesInstanceUID") or ""))
                instances.update(str(one.get("ReferencedSOPInstanceUID") or "") for one in series.get("ReferencedSOPSequence") or [])
    return instances, all_series


def _item_faults(item: Item, forbidden: frozenset[str]) -> Iterator[Fault]:
    node = item.node
    if not item.value_type:
        yield Fault(item.where, "it has no Value Type", "PS3.3 C.17.3")
    if item.value_type in forbidden:
        yield Fault(item.where, f"{item.value_type} is not allowed in this SOP class", "PS3.3 A.35")
    if item.path != "1" and not node.get("RelationshipType"):
        yield Fault(item.where, "it has no Relationship Type", "PS3.3 C.17.3")
    if item.value_type == "NUM":
        yield from _number_faults(item)
    elif item.value_type == "CODE" and not node.get("ConceptCodeSequence"):
        yield Fault(item.where, "it has no code", "PS3.3 C.17.3")
    if item.value_type not in {"IMAGE", "COMPOSITE", "WAVEFORM", "CONTAINER", "SCOORD", "SCOORD3D"} and item.concept == ("", ""):
        yield Fault(item.where, "it has no concept name", "PS3.3 C.17.3")


def _number_faults(item: Item) -> Iterator[Fault]:
    values = item.node.get("MeasuredValueSequence") or []
    if not values:
        if not item.node.get("NumericValueQualifierCodeSequence"):
            yield Fault(item.where, "it has neither a value nor a reason for having none", "PS3.3 C.18.1")
        return
    units = values[0].get("MeasurementUnitsCodeSequence") or []
    if not units:
        yield Fault(item.where, "its value has no unit", "PS3.3 C.18.1")
        return
    names = item.node.get("ConceptNameCodeSequence") or []
    yield from unit_faults(names[0] if names else None, units[0], item.where)
    if number_of(item) is None:
        yield Fault(item.where, "its value is no number", "PS3.3 C.18.1")


def number_of(item: Item) -> float | None:
    """Answers the value of a NUM."""
    values = item.node.get("MeasuredValueSequence") or []
    try:
        return float(str(values[0].get("NumericValue"))) if values else None
    except ValueError:
        return None


def unit_of(item: Item) -> str:
    """Answers the code of the unit of a NUM, '' where it has none."""
    values = item.node.get("MeasuredValueSequence") or []
    units = (values[0].get("MeasurementUnitsCodeSequence") or []) if values else []
    return code_of(units[0] if units else None)[1]


def _observer_faults(root: Item) -> Iterator[Fault]:
    observer = root.child(OBSERVER_TYPE)
    if observer is None:
        yield Fault("content item 1", "it does not say who observed (observer context)", "PS3.16 TID 1001")
    elif observer.text() == DEVICE[1] and root.child(DEVICE_UID) is None:
        yield Fault("content item 1", "its observer is a device without a UID", "PS3.16 TID 1004")


def groups_of(root: Item) -> Iterator[Item]:
    """Answers the measurement groups."""
    return (item for item in root.all() if item.concept == MEASUREMENT_GROUP and item.value_type == "CONTAINER")


def _group_faults(group: Item) -> Iterator[Fault]:
    for concept, name in ((TRACKING_IDENTIFIER, "Tracking Identifier"), (TRACKING_UID, "Tracking Unique Identifier")):
        item = group.child(concept)
        if item is None:
            yield Fault(group.where, f"the group has no {name}", "PS3.16 TID 1411")
        elif item.node.get("RelationshipType") != "HAS OBS CONTEXT":
            yield Fault(item.where, f"{name} is related by {item.node.get('RelationshipType')}, not HAS OBS CONTEXT", "PS3.16 TID 1411")
    templates = group.node.get("ContentTemplateSequence") or []
    template = str(templates[0].get("TemplateIdentifier") or "") if templates else ""
    segment = group.child(REFERENCED_SEGMENT)
    if template == "1411" and segment is None and not any(one.value_type.startswith("SCOORD") for one in group.children()):
        yield Fault(group.where, "it is a volume (TID 1411) without a Referenced Segment or coordinates", "PS3.16 TID 1411")
    if segment is not None:
        yield from _segment_reference_faults(group, segment)


def _segment_reference_faults(group: Item, segment: Item) -> Iterator[Fault]:
    for reference in segment.references():
        if not reference.get("ReferencedSegmentNumber"):
            yield Fault(segment.where, "it refers to a Segmentation, and does not say to which segment", "PS3.16 TID 1411")
    if group.child(SOURCE_IMAGE) is None and group.child(SOURCE_SERIES) is None:
        yield Fault(group.where, "a Referenced Segment needs its source images or source series beside it", "PS3.16 TID 1411")


def agreement_faults(report: View, seg: View, volumes_mm3: Mapping[int, float]) -> Iterator[Fault]:
    """Answers where a report and its Segmentation disagree; `volumes_mm3` are recomputed from the pixels, by Segment Number."""
    root = Item("1", report)
    of_this = [group for group in groups_of(root) if _refers_to(group, str(seg.get("SOPInstanceUID")))]
    if not of_this:
        yield Fault("content item 1", "no group refers to the Segmentation beside it", "IHE AIR 6.5.3", Severity.WARNING)
    for group in of_this:
        segment = group.child(REFERENCED_SEGMENT)
        assert segment is not None  # noqa: S101 - `_refers_to` has found it
        for reference in segment.references():
            number = reference.get("ReferencedSegmentNumber")
            described = segment_of(seg, int(number)) if number is not None else None
            if described is None:
                yield Fault(segment.where, f"the Segmentation has no segment {number}", "PS3.16 TID 1411")
                continue
            yield from _one_finding(group, described, volumes_mm3.get(int(number)))


def _refers_to(group: Item, uid: str) -> bool:
    segment = group.child(REFERENCED_SEGMENT)
    return segment is not None and any(str(one.get("ReferencedSOPInstanceUID")) == uid for one in segment.references())


def _one_finding(group: Item, described: View, volume_mm3: float | None) -> Iterator[Fault]:
    number = described.get("SegmentNumber")
    pairs = (
        (TRACKING_UID, str(described.get("TrackingUID") or ""), "Tracking UID"),
        (TRACKING_IDENTIFIER, str(described.get("TrackingID") or ""), "Tracking ID"),
    )
    for concept, in_seg, name in pairs:
        item = group.child(concept)
        if item is not None and in_seg and item.text() != in_seg:
            yield Fault(item.where, f"{name} is not that of segment {number}", "IHE AIR 6.5.3")
    finding = group.child(FINDING)
    if finding is not None and finding.text() != property_of(described)[1]:
        yield Fault(finding.where, f"the finding is not what segment {number} shows", "IHE AIR 6.5.3")
    yield from _algorithm_faults(group, described)
    measured = group.child(VOLUME)
    stated = number_of(measured) if measured is not None else None
    if measured is None or stated is None or volume_mm3 is None:
        return
    unit = unit_of(measured)
    if unit not in _MM3_OF:
        return  # told where the units are judged
    in_mm3 = stated * _MM3_OF[unit]
    if not abs(in_mm3 - volume_mm3) <= VOLUME_TOLERANCE * max(volume_mm3, 1e-9):
        told = f"the volume is {stated:g} {unit}, the pixels of segment {number} make {volume_mm3 / 1000:g} cm3"
        yield Fault(measured.where, told, "IHE AIR 6.5.3")


def _algorithm_faults(group: Item, described: View) -> Iterator[Fault]:
    for algorithm in described.get("SegmentationAlgorithmIdentificationSequence") or []:
        for concept, keyword in ((ALGORITHM_NAME, "AlgorithmName"), (ALGORITHM_VERSION, "AlgorithmVersion")):
            item = group.child(concept)
            if item is not None and item.text() != str(algorithm.get(keyword) or ""):
                yield Fault(item.where, f"{keyword} is not that of segment {described.get('SegmentNumber')}", "IHE AIR 6.5.3.1")


def observer_uid(report: View) -> str:
    """Answers the UID of the device that observed, '' where there is none."""
    item = Item("1", report).child(DEVICE_UID)
    return item.text() if item is not None else ""


def presence_conflicts(report: View, absent: str = "272519000") -> Iterator[Fault]:
    """Answers groups that say Absent of something that they outline or measure."""
    for group in groups_of(Item("1", report)):
        says_absent = any(one.value_type == "CODE" and one.text() == absent for one in group.children())
        has_segment = group.child(REFERENCED_SEGMENT) is not None
        if says_absent and (has_segment or any(one.value_type == "NUM" for one in group.children())):
            yield Fault(group.where, "it says Absent of something that it outlines or measures", "IHE AIR 6.5.3")


def referenced_segmentations(report: View) -> Sequence[str]:
    """Answers the SOP Instance UIDs of the Segmentations that groups refer to."""
    found: dict[str, None] = {}
    for group in groups_of(Item("1", report)):
        segment = group.child(REFERENCED_SEGMENT)
        for reference in segment.references() if segment is not None else ():
            found[str(reference.get("ReferencedSOPInstanceUID") or "")] = None
    return tuple(found)
