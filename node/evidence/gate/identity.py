"""Whether an object is of the patient and the study of its source, byte for byte, and says which equipment made it."""

from collections.abc import Iterator, Sequence
from typing import Final

from pydicom.dataset import Dataset

from node.codes import PROCESSING_EQUIPMENT
from node.evidence.exact import exact_bytes
from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.terms import code_of
from node.evidence.gate.view import View
from node.evidence.header import is_lossy

SAME: Final = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "AccessionNumber", "StudyDescription", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes that are equal in all objects of a study (PS3.3 C.7.1.1, C.7.2.1)."""


def identity_faults(dataset: Dataset, source: Dataset) -> Iterator[Fault]:
    """Answers where an object is of another patient or study than its source. Values are not told: they are the patient's."""
    for keyword in SAME:
        ours, theirs = (exact_bytes(one, keyword) or b"" for one in (dataset, source))
        if ours.rstrip(b" \0") != theirs.rstrip(b" \0"):
            yield Fault("header", f"{keyword} is not that of the source images", "PS3.3 C.7.1.1")


def loss_faults(dataset: Dataset, sources: Sequence[Dataset]) -> Iterator[Fault]:
    """Answers when an image hides that its source had been compressed with loss."""
    was_lossy = any(is_lossy(source) for source in sources)
    if was_lossy and "LossyImageCompression" in dataset and str(dataset.LossyImageCompression) != "01":
        yield Fault("header", "Lossy Image Compression is not 01, though a source image was compressed with loss", "PS3.3 C.8.20.2.2")


def equipment_faults(view: View) -> Iterator[Fault]:
    """Answers what IHE AIR misses about who made the object."""
    if algorithm_device_uid(view) == "":
        text = "no Contributing Equipment item (109102, DCM) with a Device UID says which algorithm made it"
        yield Fault("header", text, "IHE AIR 6.5.3.1", Severity.WARNING)
    if not view.get("ContentQualification"):
        yield Fault("header", "Content Qualification is absent: product, research or service?", "PS3.3 C.12.1.1.13", Severity.WARNING)


def algorithm_device_uid(view: View) -> str:
    """Answers the Device UID of the algorithm in Contributing Equipment, '' where there is none."""
    for item in view.items("ContributingEquipmentSequence"):
        purposes = item.items("PurposeOfReferenceCodeSequence")
        if code_of(purposes[0] if purposes else None) == (PROCESSING_EQUIPMENT.scheme, PROCESSING_EQUIPMENT.value):
            return str(item.get("DeviceUID") or "")
    return ""
