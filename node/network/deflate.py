"""Deflated data sets (PS3.5 A.5): a few kB can stand for gigabytes, so that none is inflated without a limit."""

import struct
import zlib
from typing import BinaryIO, Final

DEFLATED: Final = frozenset(
    {
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    }
)

LONGEST_INFLATED_BYTES: Final = 1 << 29
"""Some 1000 images of 512 x 512; whoever reads one holds it in memory whole."""

_PIECE_BYTES: Final = 1 << 20
_META_HEAD: Final = struct.Struct("<128s4sHH2sHI")
"""Preamble, prefix, and the first element: File Meta Information Group Length (PS3.10 7.1)."""
_LONGEST_META_BYTES: Final = 1 << 16


def deflated_from(stream: BinaryIO) -> int | None:
    """Answers where the deflated data set of a Part 10 file begins, None where it is not deflated.

    The stream stands at its beginning, before and after.
    """
    head = stream.read(_META_HEAD.size)
    if len(head) < _META_HEAD.size:
        stream.seek(0)
        return None
    *_, length = _META_HEAD.unpack(head)
    meta = stream.read(min(length, _LONGEST_META_BYTES))
    stream.seek(0)
    return _META_HEAD.size + length if any(uid.encode() in meta for uid in DEFLATED) else None


def inflate_head(stream: BinaryIO, longest_bytes: int) -> bytes:
    """Answers the beginning of what the rest of a stream inflates to; raises zlib.error where that is not deflated."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(longest_bytes), longest_bytes)


def inflates_beyond(stream: BinaryIO, limit_bytes: int) -> bool:
    """Answers whether the rest of a stream inflates to more than a limit, without keeping it; raises zlib.error."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size_bytes = 0
    while not inflater.eof:
        piece = inflater.unconsumed_tail or stream.read(_PIECE_BYTES)
        if not piece:
            return False  # it is cut off: whoever reads it will say so
        size_bytes += len(inflater.decompress(piece, _PIECE_BYTES))
        if size_bytes > limit_bytes:
            return True
    return False
