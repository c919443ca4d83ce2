"""What a Part 10 file says of itself before its data set: preamble and file meta information, of which nothing is believed (PS3.10 7.1)."""

import struct
from dataclasses import dataclass
from typing import Final

from node.domain.identifiers import is_usable_uid
from node.errors import CannotUnderstand

LONGEST_META_BYTES: Final = 1 << 16
"""Preamble included. Real ones have some 350; private information of the file (0002,0102) may take more."""

_PREAMBLE_BYTES: Final = 132
_GROUP: Final = 0x0002
_GROUP_LENGTH: Final = 0x0000
_NAMES: Final = {
    0x0002: "Media Storage SOP Class UID",
    0x0003: "Media Storage SOP Instance UID",
    0x0010: "Transfer Syntax UID",
}
_LONG_VRS: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})


@dataclass(frozen=True, slots=True)
class FileMeta:
    """The file meta information of an instance, as far as it is needed."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_from: int
    """Where the data set begins."""


def read_file_meta(head: bytes | bytearray) -> FileMeta | None:
    """Answers what the beginning of a file says; None where more of it is needed.

    It ends where its group length says; one that is wrong or absent does not matter, for the data set begins with another group.

    Raises
    ------
    CannotUnderstand
        When it is no Part 10 file, is longer than anybody means, or lacks a UID.
    """
    if head[128:_PREAMBLE_BYTES] != b"DICM"[: max(0, len(head) - 128)]:
        raise CannotUnderstand("no DICOM file: DICM does not follow a preamble of 128 bytes")
    place, end = _PREAMBLE_BYTES, -1
    values: dict[int, str] = {}
    while place != end:
        if len(head) < place + 8:
            return None
        group, number, vr, length = struct.unpack_from("<HH2sH", head, place)
        if group != _GROUP:
            break
        value_from = place + 8
        if vr in _LONG_VRS:
            if len(head) < place + 12:
                return None
            length, value_from = struct.unpack_from("<I", head, place + 8)[0], place + 12
        elif not (vr.isalpha() and vr.isupper()):
            raise CannotUnderstand("its file meta information is not in Explicit VR Little Endian")
        place = value_from + length
        if place + 12 > LONGEST_META_BYTES:
            raise CannotUnderstand(f"its file meta information is longer than {LONGEST_META_BYTES >> 10} KiB")
        if len(head) < place:
            return None
        value = bytes(head[value_from:place])
        if number == _GROUP_LENGTH and len(value) == 4:
            end = place + int.from_bytes(value, "little")
        elif number in _NAMES:
            values[number] = value.decode("ascii", "replace").strip("\x00 ")
    sop_class_uid, sop_instance_uid, transfer_syntax_uid = (_uid(number, values) for number in _NAMES)
    return FileMeta(sop_class_uid, sop_instance_uid, transfer_syntax_uid, data_set_from=place)


def _uid(number: int, values: dict[int, str]) -> str:
    found = values.get(number, "")
    if not is_usable_uid(found):
        raise CannotUnderstand(f"{_NAMES[number]} is {'no UID' if found else 'absent'}")
    return found
