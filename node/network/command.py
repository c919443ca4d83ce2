"""Command sets as mappings: elements of group 0000 in Implicit VR Little Endian (PS3.7 6.3.1)."""

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from node.network import NO_DATA_SET, CommandElement, CommandField

_HEAD: Final = struct.Struct("<HHI")
_NUMBER: Final = struct.Struct("<H")
_STORE_RSP: Final = _HEAD.pack(0, CommandElement.COMMAND_FIELD, 2) + _NUMBER.pack(CommandField.C_STORE_RSP)
LONGEST_REMEMBERED: Final = 64
"""As long as a UID may be (PS3.5 9.1)."""
_GROUP_LENGTH: Final = struct.Struct("<I")
_GROUP_LENGTH_ELEMENT: Final = struct.Struct("<HHII")
_STORE_RESPONSE: Final = struct.Struct("<" + 3 * "HHIH" + "HHI")
"""Three numbers, and the head of the Affected SOP Instance UID."""
_CLASS_UID, _RESPONDED_TO, _DATA_SET_TYPE, _STATUS, _INSTANCE_UID = map(
    int,
    (
        CommandElement.AFFECTED_SOP_CLASS_UID,
        CommandElement.MESSAGE_ID_RESPONDED_TO,
        CommandElement.DATA_SET_TYPE,
        CommandElement.STATUS,
        CommandElement.AFFECTED_SOP_INSTANCE_UID,
    ),
)

Command = Mapping[int, int | str]
"""Element number → value: numbers are US, texts UI (or another text)."""


def encode_command(command: Command) -> bytes:
    """Answers a command set with its group length."""
    elements = b"".join([_encode(number, value) for number, value in sorted(command.items())])
    return _element(0, _GROUP_LENGTH.pack(len(elements))) + elements


def decode_command(encoded: bytes) -> dict[int, int | str]:
    """Answers the elements of a command set: those of two bytes as numbers, all others as texts; what is cut off is left out."""
    command: dict[int, int | str] = {}
    place, end = 0, len(encoded)
    while place + 8 <= end:
        group, number, length = _HEAD.unpack_from(encoded, place)
        value = encoded[place + 8 : place + 8 + length]
        if group == 0 and len(value) == length:
            command[number] = _NUMBER.unpack(value)[0] if length == 2 else value.decode("ascii", "replace").strip("\x00 ")
        place += 8 + length
    return command


def encode_store_response(sop_class_uid: str, sop_instance_uid: str, message_id: int, status: int) -> bytes:
    """Answers the command set of a C-STORE response (PS3.7 Table 9.3-2): what `encode_command` would, at once."""
    uid = sop_instance_uid.encode("ascii", "replace")
    uid += b"\x00" * (len(uid) % 2)
    beginning = _encode(_CLASS_UID, sop_class_uid) + _STORE_RSP
    numbers = _STORE_RESPONSE.pack(
        0, _RESPONDED_TO, 2, message_id, 0, _DATA_SET_TYPE, 2, NO_DATA_SET, 0, _STATUS, 2, status, 0, _INSTANCE_UID, len(uid)
    )
    size = len(beginning) + len(numbers) + len(uid)
    return b"".join((_GROUP_LENGTH_ELEMENT.pack(0, 0, 4, size), beginning, numbers, uid))


def number_in(command: Command, element: CommandElement) -> int | None:
    """Answers the value of an element, None where it is absent or no number."""
    value = command.get(element)
    return value if isinstance(value, int) else None


def text_in(command: Command, element: CommandElement) -> str:
    """Answers the value of an element, '' where it is absent or no text."""
    value = command.get(element)
    return value if isinstance(value, str) else ""


def _encode(number: int, value: int | str) -> bytes:
    """Answers an element; those that come again and again are remembered, and nothing that only an odd peer says."""
    if isinstance(value, str) and len(value) > LONGEST_REMEMBERED:
        return _encoded(number, value)
    return _remembered(number, value)


@lru_cache(maxsize=1024)
def _remembered(number: int, value: int | str) -> bytes:
    return _encoded(number, value)


def _encoded(number: int, value: int | str) -> bytes:
    if isinstance(value, int):
        return _element(number, _NUMBER.pack(value))
    encoded = value.encode("ascii", "replace")
    return _element(number, encoded + b"\x00" * (len(encoded) % 2))


def _element(number: int, value: bytes) -> bytes:
    return _HEAD.pack(0, number, len(value)) + value
