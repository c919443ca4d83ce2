"""What else a result can be sent as: a report in an older SOP class, a segmentation deflated, a label map run-length encoded.

A destination gets the richest that it accepts. A report in another class is another object: it has a UID of its own there, which
derives from that of the report, so that sending twice stores once; the delivery notes as what it was sent. Compressed without loss
an object stays the same, under its UID (PS3.3 C.7.6.1.1.2).
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from node.delivery.upper_layer import Context
from node.domain.delivery import archived_as
from node.errors import StoreRefused
from node.network import RLE_LOSSLESS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXPLICIT: Final = "1.2.840.10008.1.2.1"
IMPLICIT: Final = "1.2.840.10008.1.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"

_SR: Final = "1.2.840.10008.5.1.4.1.1.88."
OLDER_CLASSES: Final = {f"{_SR}34": (f"{_SR}33", f"{_SR}22"), f"{_SR}33": (f"{_SR}22",)}
"""SOP class of a report → those with less in them, the richest first: Comprehensive 3D, Comprehensive, Enhanced SR (PS3.3 A.35)."""

_SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.4"
_LABEL_MAP: Final = "1.2.840.10008.5.1.4.1.1.66.7"
_PIXEL_DATA: Final = b"\xe0\x7f\x10\x00OB\x00\x00"
_PIECE_BYTES: Final = 1 << 20


def older_contexts(sop_class_uid: str) -> tuple[Context, ...]:
    """Answers what to propose for a report besides its own class, the best first."""
    return tuple(Context(one, syntax) for one in OLDER_CLASSES.get(sop_class_uid, ()) for syntax in (EXPLICIT, IMPLICIT))


@dataclass(frozen=True, slots=True)
class Compression:
    """Which compressed forms a destination is offered, where it takes them."""

    deflate: bool = False
    rle: bool = False


EVERY_COMPRESSION: Final = Compression(deflate=True, rle=True)


def compressed_contexts(sop_class_uid: str, transfer_syntax_uid: str, offered: Compression) -> tuple[Context, ...]:
    """Answers the contexts in which a segmentation is a hundredth of its size, where it can be had of its bytes; the smallest first.

    Bits of a BINARY segmentation can be run-length encoded too (CP 2301), but hardly anybody reads that: DCMTK does not.
    """
    if transfer_syntax_uid != EXPLICIT or sop_class_uid not in {_SEGMENTATION, _LABEL_MAP}:
        return ()
    deflated = (Context(sop_class_uid, DEFLATED),) if offered.deflate else ()
    run_length = (Context(sop_class_uid, RLE_LOSSLESS),) if offered.rle and sop_class_uid == _LABEL_MAP else ()
    return (*deflated, *run_length)


def older_report(path: Path, sop_class_uid: str, transfer_syntax_uid: str) -> bytes:
    """Answers the data set of a report in an older class, under the UID that belongs to it there (`archived_as`).

    Raises
    ------
    StoreRefused
        When the report cannot be read, or holds what the class cannot.
    """
    from pydicom import dcmread
    from pydicom.uid import UID
    from pynetdicom.dsutils import encode

    from node.delivery.older_report import leave_out_space, value_types

    syntax = UID(transfer_syntax_uid)
    try:
        report = dcmread(path)
        leave_out_space(report)
        forbidden = "SCOORD3D" in value_types(report)
        report.SOPInstanceUID = archived_as(str(report.SOPClassUID), str(report.SOPInstanceUID), sop_class_uid)[1]
        report.SOPClassUID = sop_class_uid
        encoded = encode(report, syntax.is_implicit_VR, syntax.is_little_endian)
    except Exception as error:  # pydicom raises whatever its parsers meet in a malformed file
        raise StoreRefused(f"the report cannot be written in an older class ({type(error).__name__})") from error
    if forbidden or encoded is None:
        raise StoreRefused("the peer takes no Comprehensive 3D SR, and coordinates in space fit no older class")
    return bytes(encoded)


class Pieces:
    """A stream that is made piece by piece as it is read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
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


def deflated(stream: BinaryIO) -> Pieces:
    """Answers the rest of a stream, deflated (PS3.5 A.5)."""
    return Pieces(_deflate(stream))


def _deflate(stream: BinaryIO) -> Iterator[bytes]:
    deflater = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)
    while piece := stream.read(_PIECE_BYTES):
        yield deflater.compress(piece)
    yield deflater.flush()


def run_length_label_map(stream: BinaryIO) -> Pieces:
    """Answers the data set of a label map in RLE Lossless, from the file with it in Explicit VR Little Endian.

    `stream` stands where the data set begins. All but the pixels is copied byte for byte.

    Raises
    ------
    StoreRefused
        When it is no label map with a byte a pixel.
    """
    from pydicom import dcmread

    begin = stream.tell()
    stream.seek(0)
    try:
        header = dcmread(stream, stop_before_pixels=True)
        shape = (int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns))
        form = (int(header.BitsAllocated), int(header.SamplesPerPixel))
    except Exception as error:  # pydicom raises whatever its parsers meet in a malformed file
        raise StoreRefused(f"the label map cannot be read ({type(error).__name__})") from error
    head_bytes = stream.tell() - begin
    element, length = stream.read(len(_PIXEL_DATA)), int.from_bytes(stream.read(4), "little")
    pixels = shape[0] * shape[1] * shape[2]
    if element != _PIXEL_DATA or form != (8, 1) or length != pixels + pixels % 2:
        raise StoreRefused("the label map has not a byte for each pixel")
    stream.seek(begin)
    return Pieces(_run_length(stream, head_bytes, shape))


def _run_length(stream: BinaryIO, head_bytes: int, shape: tuple[int, int, int]) -> Iterator[bytes]:
    import numpy as np

    from node.network.rle import encapsulated, run_length_encoded

    yield stream.read(head_bytes)
    stream.read(len(_PIXEL_DATA) + 4)
    frames, rows, columns = shape
    size = rows * columns

    def frame() -> "NDArray[np.uint8]":
        pixels = stream.read(size)
        if len(pixels) < size:
            raise StoreRefused("the label map became shorter while it was sent")
        return np.frombuffer(pixels, dtype=np.uint8).reshape(rows, columns)

    yield from encapsulated([run_length_encoded(frame()) for _ in range(frames)])
    stream.read(frames * size % 2)
    while piece := stream.read(_PIECE_BYTES):
        yield piece
