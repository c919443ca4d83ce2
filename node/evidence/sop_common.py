"""What every evidence object carries, SEG or SR: the equipment that made it, the moment, and the form of its file."""

from datetime import datetime, timedelta, timezone
from io import BytesIO
from typing import Final, TypedDict

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import UID, ExplicitVRLittleEndian

from node import __version__
from node.codes import (
    IMPLEMENTATION_CLASS_UID,
    MANUFACTURER,
    MANUFACTURER_MODEL_NAME,
    PROCESSING_EQUIPMENT,
    Code,
)
from node.domain.modelcard import DetectionDefinition, ModelCard, SegmentDefinition
from node.domain.result import Result
from node.evidence.context import EvidenceContext
from node.evidence.exact import copy_exactly, new_item
from node.evidence.header import restore_identity
from node.network import IMPLEMENTATION_VERSION_NAME

LONG_STRING: Final = 64
"""Characters in a Long String (PS3.5 Table 6.2-1)."""

_DEVICE: Final = (
    "Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
)  # fmt: skip


class Equipment(TypedDict):
    """General Equipment (PS3.3 C.7.5.1), in the words of highdicom."""

    manufacturer: str
    manufacturer_model_name: str
    software_versions: str
    device_serial_number: str


def equipment(context: EvidenceContext) -> Equipment:
    """Answers the equipment that makes the evidence: the node."""
    return Equipment(
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER_MODEL_NAME,
        software_versions=__version__,
        device_serial_number=context.device_serial_number,
    )


def device_uid(result: Result) -> str:
    """Answers the Device UID of the algorithm (IHE AIR 6.5.3.1)."""
    return result.provenance.device_uid if result.provenance is not None else result.card.device_uid


def algorithm_parameters(result: Result) -> str:
    """Answers what, beside the model itself, made the result: engine, exact weights, the gate that was passed, what was done otherwise."""
    if result.provenance is None:
        return ""
    weights = ", ".join(result.provenance.weights_sha256)
    parity = f"; agreement: {result.provenance.parity}" if result.provenance.parity else ""
    notes = "".join(f"; note: {note}" for note in result.provenance.notes)
    return f"engine: {result.provenance.engine}; weights sha256: {weights}{parity}{notes}"


def series_description(card: ModelCard, modality: str) -> str:
    """Answers `AI <title> <version> <modality>`, at most 64 characters: a long title gives way."""
    room = LONG_STRING - len(f"AI  {card.version} {modality}".encode())
    title = card.title.encode()[: max(room, 8)].decode(errors="ignore").strip()
    return long_string(f"AI {title} {card.version} {modality}")


def series_number(source: Dataset, offset: int) -> int:
    """Answers a number that sorts behind the source series: source series 3 gives 301, 302."""
    try:
        number = int(str(source.get("SeriesNumber") or 0))
    except ValueError:
        number = 0
    return number * 100 + offset if 0 <= number < 10_000_000 else offset


def long_string(text: str) -> str:
    """Answers the beginning of `text` that fits a Long String: 64 bytes, for readers that count bytes where the standard counts letters."""
    return text.strip().encode()[:LONG_STRING].decode(errors="ignore").strip()


def coded(code: Code) -> PydicomCode:
    """Answers the code in the type that highdicom takes."""
    return PydicomCode(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def code_item(code: Code) -> Dataset:
    """Answers a code sequence item (PS3.3 Table 8.8-1)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = code.meaning
    return item


def finished(made: Dataset, source: Dataset, result: Result, context: EvidenceContext) -> Dataset:
    """Answers what highdicom `made` as a plain data set with our equipment, dates and file meta, and the source's identity."""
    evidence = Dataset()
    evidence.update(made)
    evidence.StationName = context.ae_title.strip()
    evidence.ContentQualification = context.content_qualification
    evidence.ContributingEquipmentSequence = _contributing_equipment(source, result, context)
    _add_private_coding_schemes(evidence, result.card)
    restore_identity(evidence, source)
    _stamp(evidence, context)
    evidence.file_meta = _file_meta(evidence, context)
    return evidence


def part10_bytes(evidence: Dataset) -> bytes:
    """Answers the bytes of the evidence as a file: Explicit VR Little Endian, PS3.10."""
    buffer = BytesIO()
    dcmwrite(buffer, evidence, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def _contributing_equipment(source: Dataset, result: Result, context: EvidenceContext) -> list[Dataset]:
    """Answers the scanner and the algorithm (IHE AIR 6.5.3.1: with purpose 109102 and Device UID)."""
    items = []
    if str(source.get("Manufacturer") or "").strip():
        scanner = new_item(source.get("SpecificCharacterSet"))
        for keyword in _DEVICE:
            if source.get(keyword):
                copy_exactly(scanner, source, keyword)
        acquisition = codes.DCM.AcquisitionEquipment
        scanner.PurposeOfReferenceCodeSequence = [code_item(Code(acquisition.value, "DCM", acquisition.meaning))]
        items.append(scanner)
    card = result.card
    algorithm = Dataset()
    algorithm.Manufacturer = long_string(card.manufacturer)
    algorithm.ManufacturerModelName = long_string(card.name)
    algorithm.SoftwareVersions = long_string(card.version)
    algorithm.DeviceUID = device_uid(result)
    algorithm.ContributionDateTime = _moment(source, context).strftime("%Y%m%d%H%M%S")
    algorithm.ContributionDescription = f"AI model: {card.title}"
    algorithm.PurposeOfReferenceCodeSequence = [code_item(PROCESSING_EQUIPMENT)]
    items.append(algorithm)
    return items


def _add_private_coding_schemes(evidence: Dataset, card: ModelCard) -> None:
    """Names the coding schemes of the model's own (99...), which no registry knows (PS3.3 C.12.1.1.5)."""
    items = []
    for scheme in sorted({code.scheme for code in codes_of(card) if code.scheme.startswith("99")}):
        item = Dataset()
        item.CodingSchemeDesignator = scheme
        item.CodingSchemeName = f"Private codes of {card.title}"
        item.CodingSchemeResponsibleOrganization = card.manufacturer
        items.append(item)
    if items:
        evidence.CodingSchemeIdentificationSequence = items


def codes_of(card: ModelCard) -> list[Code]:
    """Answers every code of what a model reports."""
    found: list[Code | None] = []
    kinds: list[SegmentDefinition | DetectionDefinition] = [*card.segments, *card.detections]
    for kind in kinds:
        found += [kind.category, kind.type, kind.anatomic_region, kind.laterality]
    for question in card.evaluations:
        found += [question.concept, *(answer.code for answer in question.answers)]
    found += [point.type for point in card.landmarks]
    return [code for code in found if code is not None]


def _stamp(evidence: Dataset, context: EvidenceContext) -> None:
    """Sets every date and time of ours to the moment of encoding."""
    moment = _moment(evidence, context)
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    evidence.InstanceCreationDate = evidence.SeriesDate = evidence.ContentDate = date
    evidence.InstanceCreationTime = evidence.SeriesTime = evidence.ContentTime = time


def _moment(dataset: Dataset, context: EvidenceContext) -> datetime:
    """Answers the moment of encoding on the clock of the source: Timezone Offset From UTC governs all times of an object."""
    offset = str(dataset.get("TimezoneOffsetFromUTC") or "").strip()
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit() and int(offset[1:3]) <= 14 and int(offset[3:]) < 60:
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        zone = timezone(timedelta(minutes=minutes if offset[0] == "+" else -minutes))
        return context.encoded_at.astimezone(zone)
    return context.encoded_at


def _file_meta(evidence: Dataset, context: EvidenceContext) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = evidence.SOPClassUID
    meta.MediaStorageSOPInstanceUID = evidence.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    meta.SourceApplicationEntityTitle = context.ae_title.strip()
    return meta
