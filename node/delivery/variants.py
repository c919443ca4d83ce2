"""What else a result can be sent as: a report in an older SOP class, a segmentation deflated.

A destination gets the richest that it accepts. A report in another class is another object: it has a UID of its own there, which
derives from that of the report, so that sending twice stores once; the delivery notes as what it was sent.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from node.delivery.upper_layer import Context
from node.domain.delivery import archived_as
from node.errors import StoreRefused

EXPLICIT: Final = "1.2.840.10008.1.2.1"
IMPLICIT: Final = "1.2.840.10008.1.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"

_SR: Final = "1.2.840.10008.5.1.4.1.1.88."
OLDER_CLASSES: Final = {f"{_SR}34": (f"{_SR}33", f"{_SR}22"), f"{_SR}33": (f"{_SR}22",)}
"""SOP class of a report → those with less in them, the richest first: Comprehensive 3D, Comprehensive, Enhanced SR (PS3.3 A.35)."""

_SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.4"
_PIECE_BYTES: Final = 1 << 20


def older_contexts(sop_class_uid: str) -> tuple[Context, ...]:
    """Answers what to propose for a report besides its own class, the best first."""
    return tuple(Context(one, syntax) for one in OLDER_CLASSES.get(sop_class_uid, ()) for syntax in (EXPLICIT, IMPLICIT))


def deflated_context(sop_class_uid: str, transfer_syntax_uid: str) -> tuple[Context, ...]:
    """Answers the context in which a segmentation is a hundredth of its size, where it can be had by deflating its bytes."""
    return (Context(sop_class_uid, DEFLATED),) if (sop_class_uid, transfer_syntax_uid) == (_SEGMENTATION, EXPLICIT) else ()


def older_report(path: Path, sop_class_uid: str, transfer_syntax_uid: str) -> bytes:
    """Answers the data set of a report in an older class, under the UID that belongs to it there (`archived_as`).

    Raises
    ------
    StoreRefused
        When the report cannot be read, or holds what the class cannot.
    """
    syntax = UID(transfer_syntax_uid)
    try:
        report = dcmread(path)
        forbidden = _value_types(report) & {"SCOORD3D"}
        report.SOPInstanceUID = archived_as(str(report.SOPClassUID), str(report.SOPInstanceUID), sop_class_uid)[1]
        report.SOPClassUID = sop_class_uid
        encoded = encode(report, syntax.is_implicit_VR, syntax.is_little_endian)
    except Exception as error:  # pydicom raises whatever its parsers meet in a malformed file
        raise StoreRefused(f"the report cannot be written in an older class ({type(error).__name__})") from error
    if forbidden or encoded is None:
        raise StoreRefused("the peer takes no Comprehensive 3D SR, and coordinates in space fit no older class")
    return bytes(encoded)


def _value_types(report: Dataset) -> set[str]:
    found = {str(report.get("ValueType") or "")}
    for item in report.get("ContentSequence") or []:
        found |= _value_types(item)
    return found


class Deflated:
    """A stream that deflates another as it is read (PS3.5 A.5)."""

    def __init__(self, stream: BinaryIO) -> None:
        self._pieces = _deflate(stream)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Answers the next `size` bytes, fewer at the end."""
        while len(self._rest) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest += piece
        answer, self._rest = self._rest[:size], self._rest[size:]
        return answer


def _deflate(stream: BinaryIO) -> Iterator[bytes]:
    deflater = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)
    while piece := stream.read(_PIECE_BYTES):
        yield deflater.compress(piece)
    yield deflater.flush()
