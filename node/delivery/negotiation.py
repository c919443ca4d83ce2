"""What an association is asked for and answered with, as bytes (PS3.8 9.3.2 to 9.3.4, PS3.7 D.3.3).

Our own codec: that of pynetdicom takes half a second to import, which is longer than it takes to send a study.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from node.codes import IMPLEMENTATION_CLASS_UID
from node.network import APPLICATION_CONTEXT, CONTEXT_ACCEPTED, IMPLEMENTATION_VERSION_NAME, PduType
from node.network.link import pdu

MAX_CONTEXTS: Final = 128
"""Presentation context IDs are the odd numbers 1 to 255 (PS3.8 9.3.2.2)."""

OUR_MAX_PDU_BYTES: Final = 1 << 14

_APPLICATION_CONTEXT = 0x10
_PROPOSED_CONTEXT, _ANSWERED_CONTEXT = 0x20, 0x21
_ABSTRACT_SYNTAX, _TRANSFER_SYNTAX = 0x30, 0x40
_USER_INFORMATION = 0x50
_MAXIMUM_LENGTH, _IMPLEMENTATION_CLASS_UID, _OPERATIONS_WINDOW, _IMPLEMENTATION_VERSION_NAME = 0x51, 0x52, 0x53, 0x55
_FIXED: Final = struct.Struct(">HH16s16s32s")
"""Protocol version, reserved, called and calling AE title, reserved: before the items of request and acceptance."""

_REASONS: Final = {
    (1, 1): "No reason given",
    (1, 2): "Application context name not supported",
    (1, 3): "Calling AE title not recognised",
    (1, 7): "Called AE title not recognised",
    (2, 1): "No reason given",
    (2, 2): "Protocol version not supported",
    (3, 1): "Temporary congestion",
    (3, 2): "Local limit exceeded",
}
_SOURCES: Final = {1: "DUL service-user", 2: "DUL service-provider (ACSE related)", 3: "DUL service-provider (presentation related)"}
"""Who rejects an association, and why (PS3.8 Table 9-21)."""


class MalformedAnswer(Exception):
    """The bytes are no answer to an association request."""


@dataclass(frozen=True, slots=True)
class Context:
    """A presentation context with one transfer syntax, so that its acceptance needs no interpretation."""

    sop_class_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What an acceptor grants."""

    contexts: dict[Context, int]
    """Those that it accepted as they were proposed, with their IDs."""
    max_pdu_bytes: int
    """How long a P-DATA PDU to it may be; 0: as long as we like."""
    operations: int
    """How many requests we may have open at once; 0: as many as we like."""


def associate_request(titles: tuple[str, str], contexts: Sequence[Context], operations: int = 1) -> bytes:
    """Answers an A-ASSOCIATE-RQ PDU; `titles` are those of the called and of the calling AE.

    With more than one of `operations` the asynchronous operations window is proposed: so many requests of ours at once; of the
    peer's, which has none to make, one (PS3.7 D.3.3.3).
    """
    called, calling = (title.encode("ascii", "replace").ljust(16)[:16] for title in titles)
    user = [
        _item(_MAXIMUM_LENGTH, struct.pack(">I", OUR_MAX_PDU_BYTES)),
        _item(_IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_CLASS_UID.encode()),
        _item(_OPERATIONS_WINDOW, struct.pack(">HH", operations, 1)) if operations != 1 else b"",
        _item(_IMPLEMENTATION_VERSION_NAME, IMPLEMENTATION_VERSION_NAME.encode()),
    ]
    items = [
        _item(_APPLICATION_CONTEXT, APPLICATION_CONTEXT.encode()),
        *(_proposed(number, context) for number, context in _numbered(contexts)),
        _item(_USER_INFORMATION, b"".join(user)),
    ]
    return pdu(PduType.ASSOCIATE_RQ, _FIXED.pack(1, 0, called, calling, bytes(32)) + b"".join(items))


def read_acceptance(body: bytes, contexts: Sequence[Context]) -> Acceptance:
    """Answers what the body of an A-ASSOCIATE-AC PDU grants of the contexts that were proposed; raises MalformedAnswer.

    A window that is not answered is one of one request.
    """
    if len(body) < _FIXED.size:
        raise MalformedAnswer("cut off")
    syntaxes: dict[int, str] = {}
    max_pdu_bytes, operations = 0, 1
    for kind, value in _items(body, _FIXED.size):
        if kind == _ANSWERED_CONTEXT:
            if len(value) < 4:
                raise MalformedAnswer("a context is cut off")
            if value[2] == CONTEXT_ACCEPTED:
                syntaxes[value[0]] = next((_uid(one) for inner, one in _items(value, 4) if inner == _TRANSFER_SYNTAX), "")
        elif kind == _USER_INFORMATION:
            for inner, one in _items(value, 0):
                if inner == _MAXIMUM_LENGTH:
                    (max_pdu_bytes,) = _numbers(">I", one)
                elif inner == _OPERATIONS_WINDOW:
                    operations, _ = _numbers(">HH", one)
    accepted = {context: number for number, context in _numbered(contexts) if syntaxes.get(number) == context.transfer_syntax_uid}
    return Acceptance(accepted, max_pdu_bytes, operations)


def read_rejection(body: bytes) -> tuple[int, str]:
    """Answers the result of an A-ASSOCIATE-RJ PDU, and its reason in words."""
    _, result, source, reason = body[:4].ljust(4, b"\x00")
    if (source, reason) not in _REASONS:
        return result, " for a reason that the standard does not know"
    return result, f": {_REASONS[source, reason]} ({_SOURCES[source]})"


def _numbered(contexts: Sequence[Context]) -> Iterable[tuple[int, Context]]:
    return ((2 * place + 1, context) for place, context in enumerate(contexts))


def _proposed(number: int, context: Context) -> bytes:
    syntaxes = _item(_ABSTRACT_SYNTAX, context.sop_class_uid.encode()) + _item(_TRANSFER_SYNTAX, context.transfer_syntax_uid.encode())
    return _item(_PROPOSED_CONTEXT, bytes([number, 0, 0, 0]) + syntaxes)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _items(body: bytes, place: int) -> Iterator[tuple[int, bytes]]:
    while place < len(body):
        if len(body) - place < 4:
            raise MalformedAnswer("an item is cut off")
        kind, _, length = struct.unpack_from(">BBH", body, place)
        place += 4
        if len(body) - place < length:
            raise MalformedAnswer("an item is cut off")
        yield kind, body[place : place + length]
        place += length


def _numbers(form: str, value: bytes) -> tuple[int, ...]:
    if len(value) != struct.calcsize(form):
        raise MalformedAnswer("an item has a wrong length")
    return struct.unpack(form, value)


def _uid(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\x00 ")
