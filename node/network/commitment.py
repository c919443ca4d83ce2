"""Data sets of the Storage Commitment Push Model: the request that we send, the report that comes back (PS3.4 J.3.2, J.3.3)."""

import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Final

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from node.domain.commitment import CommitmentReport, FailureReason
from node.domain.identifiers import is_usable_uid
from node.network.malformed import MALFORMED_DATA_SET

TRANSFER_SYNTAXES: Final = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
)
"""In which a report can be read, the best first."""

LONGEST_REPORT_BYTES: Final = 1 << 22
"""Some 30 000 objects: a report on more answers no request of ours."""

_TRANSACTION_UID: Final = Tag("TransactionUID")
_REFERENCED_SOP_SEQUENCE: Final = Tag("ReferencedSOPSequence")
_FAILED_SOP_SEQUENCE: Final = Tag("FailedSOPSequence")
_REFERENCED_SOP_CLASS_UID: Final = Tag("ReferencedSOPClassUID")
_REFERENCED_SOP_INSTANCE_UID: Final = Tag("ReferencedSOPInstanceUID")
_FAILURE_REASON: Final = Tag("FailureReason")


class MalformedReport(Exception):
    """The bytes are no report on a storage commitment; the text says why."""


def encode_commitment_request(transaction_uid: str, references: Sequence[tuple[str, str]]) -> bytes:
    """Answers the data set of an N-ACTION that asks for a commitment, in Implicit VR Little Endian.

    `references` are SOP Class and SOP Instance UIDs (PS3.4 Table J.3-1).
    """
    items = b"".join(
        _sequence_item(_uid_element(_REFERENCED_SOP_CLASS_UID, sop_class) + _uid_element(_REFERENCED_SOP_INSTANCE_UID, sop_instance))
        for sop_class, sop_instance in references
    )
    return _uid_element(_TRANSACTION_UID, transaction_uid) + _element(_REFERENCED_SOP_SEQUENCE, items)


def decode_commitment_report(data_set: bytes, transfer_syntax_uid: str) -> CommitmentReport:
    """Answers what the data set of an N-EVENT-REPORT says (PS3.4 Table J.3-2).

    An object that stands among the committed and the failed ones has failed; a failure without a reason is a processing failure.

    Raises
    ------
    MalformedReport
        When it is no data set, lacks the Transaction UID, or names an object by what is no UID.
    """
    if transfer_syntax_uid not in TRANSFER_SYNTAXES:
        raise MalformedReport(f"the report is in transfer syntax {UID(transfer_syntax_uid).name}, which was not negotiated")
    implicit = UID(transfer_syntax_uid).is_implicit_VR
    try:
        report = read_dataset(BytesIO(data_set), implicit, is_little_endian=True)
        transaction_uid = _text(report, _TRANSACTION_UID)
        failed = {_instance(item): _reason(item) for item in _items(report, _FAILED_SOP_SEQUENCE)}
        committed = {_instance(item) for item in _items(report, _REFERENCED_SOP_SEQUENCE)}
    except MALFORMED_DATA_SET as error:
        raise MalformedReport(f"the report is no data set ({type(error).__name__})") from error
    if not is_usable_uid(transaction_uid):
        raise MalformedReport(f"the Transaction UID of the report is {'no UID' if transaction_uid else 'absent'}")
    return CommitmentReport(transaction_uid, frozenset(committed - failed.keys()), failed)


def _items(report: Dataset, tag: BaseTag) -> Iterator[Dataset]:
    if tag in report:
        value = report[tag].value
        if report[tag].VR != "SQ":
            raise MalformedReport(f"element {tag} of the report is no sequence")
        yield from value or ()


def _instance(item: Dataset) -> str:
    uid = _text(item, _REFERENCED_SOP_INSTANCE_UID)
    if not is_usable_uid(uid):
        raise MalformedReport(f"the report names an object whose SOP Instance UID is {'no UID' if uid else 'absent'}")
    return uid


def _reason(item: Dataset) -> int:
    reason = item[_FAILURE_REASON].value if _FAILURE_REASON in item else None
    return reason if isinstance(reason, int) else FailureReason.PROCESSING_FAILURE


def _text(dataset: Dataset, tag: BaseTag) -> str:
    """Answers the value of a UID element without converting it: what is no UID is judged by us."""
    if tag not in dataset:
        return ""
    value = dataset.get_item(tag).value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return str(value).strip("\x00 ") if value is not None else ""


def _uid_element(tag: BaseTag, uid: str) -> bytes:
    encoded = uid.encode("ascii")
    return _element(tag, encoded + b"\x00" * (len(encoded) % 2))


def _sequence_item(content: bytes) -> bytes:
    return _element(Tag(0xFFFEE000), content)


def _element(tag: BaseTag, value: bytes) -> bytes:
    return struct.pack("<HHI", tag.group, tag.element, len(value)) + value
