"""An association as requestor on a blocking socket: one thread, no polling, and every wait has an end.

PDUs of negotiation are parsed and encoded by pynetdicom's codecs; commands and P-DATA are ours (PS3.7 6.3, PS3.8 9.3). Stock
pynetdicom is not used to send: under load its reactor thread can take a response away from the caller, which then waits for a
timeout and takes a stored object for a lost one.
"""

import contextlib
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Final, Self

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from node.codes import IMPLEMENTATION_CLASS_UID
from node.errors import AssociationRejected, AssociationRejectedTransient, PeerUnreachable
from node.network import IMPLEMENTATION_VERSION_NAME, REJECTED_TRANSIENT, acknowledge_at_once, prepare_socket

MAX_CONTEXTS: Final = 128
"""Presentation context IDs are the odd numbers 1 to 255 (PS3.8 9.3.2.2)."""

LONGEST_FRAGMENT_BYTES: Final = 1 << 20
OUR_MAX_PDU_BYTES: Final = 1 << 14
LONGEST_PDU_BYTES: Final = 1 << 20
"""We receive answers only: a longer PDU is no DICOM."""

RELEASE_TIMEOUT_S: Final = 5.0
CONTEXT_ACCEPTED: Final = 0
"""Result of a presentation context (PS3.8 Table 9-18)."""

_APPLICATION_CONTEXT: Final = UID("1.2.840.10008.3.1.1.1")
_PDV_HEAD_BYTES: Final = 6


class PduType(IntEnum):
    """The first byte of a PDU (PS3.8 9.3.1)."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class CommandField(IntEnum):
    """The kind of a command (PS3.7 E.1)."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030


class CommandElement(IntEnum):
    """Elements of group 0000 (PS3.7 E.1)."""

    GROUP_LENGTH = 0x0000
    AFFECTED_SOP_CLASS_UID = 0x0002
    COMMAND_FIELD = 0x0100
    MESSAGE_ID = 0x0110
    MESSAGE_ID_RESPONDED_TO = 0x0120
    PRIORITY = 0x0700
    DATA_SET_TYPE = 0x0800
    STATUS = 0x0900
    ERROR_COMMENT = 0x0902
    AFFECTED_SOP_INSTANCE_UID = 0x1000


NO_DATA_SET: Final = 0x0101
DATA_SET_FOLLOWS: Final = 0x0001

_COMMAND: Final = 1
_LAST: Final = 2

Command = Mapping[int, int | str]
"""Elements of a command set: numbers are US, texts UI."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where an application entity listens, and by which names the two of us go."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str

    def __str__(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a peer may take."""

    connect_s: float = 10.0
    answer_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Context:
    """A presentation context with one transfer syntax, so that its acceptance needs no interpretation."""

    sop_class_uid: str
    transfer_syntax_uid: str


class RequestedAssociation:
    """An association with a peer, open until `release` or `abort`. One object serves one thread."""

    def __init__(self, peer: Peer, contexts: Sequence[Context], timeouts: Timeouts) -> None:
        """Connects and negotiates.

        Raises
        ------
        PeerUnreachable, AssociationRejected, AssociationRejectedTransient
            Why there is no association.
        """
        self._peer = peer
        try:
            self._link = socket.create_connection((peer.host, peer.port), timeout=timeouts.connect_s)
        except (OSError, UnicodeError) as error:
            raise PeerUnreachable(f"{peer} cannot be reached: {_words(error)}") from error
        self.is_open = True
        self.accepted: dict[Context, int] = {}
        self._max_fragment = LONGEST_FRAGMENT_BYTES
        try:
            prepare_socket(self._link, timeouts.answer_s)
            self._negotiate(contexts)
        except BaseException:
            self.abort()
            raise

    def _negotiate(self, contexts: Sequence[Context]) -> None:
        self._send(_associate_request(self._peer, contexts))
        kind, pdu = self._receive_pdu()
        if kind == PduType.ASSOCIATE_RJ:
            rejection = A_ASSOCIATE_RJ()
            rejection.decode(pdu)
            why = f"{self._peer} rejects the association: {rejection.reason_str} ({rejection.source_str})"
            raise AssociationRejectedTransient(why) if rejection.result == REJECTED_TRANSIENT else AssociationRejected(why)
        if kind != PduType.ASSOCIATE_AC:
            raise self._broken(f"answered the association request with PDU {kind}")
        try:
            acceptance = A_ASSOCIATE_AC()
            acceptance.decode(pdu)
            answer = acceptance.to_primitive()
            results = {
                context.context_id: str(context.transfer_syntax[0])
                for context in answer.presentation_context_definition_results_list
                if context.result == CONTEXT_ACCEPTED
            }
            limit = answer.maximum_length_received or LONGEST_FRAGMENT_BYTES
        except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, struct.error) as error:
            raise self._broken(f"sent an acceptance that cannot be read ({type(error).__name__})") from error
        self.accepted = {context: number for number, context in _numbered(contexts) if results.get(number) == context.transfer_syntax_uid}
        self._max_fragment = max(2, (min(limit, LONGEST_FRAGMENT_BYTES) - _PDV_HEAD_BYTES) & ~1)

    def send_command(self, context_id: int, command: Command) -> None:
        """Sends a command set."""
        self._send_fragments(context_id, _COMMAND, [encode_command(command)])

    def send_data_set(self, context_id: int, stream: BinaryIO) -> None:
        """Sends the rest of a stream as data set, fragment by fragment."""
        self._send_fragments(context_id, 0, iter(lambda: stream.read(self._max_fragment), b""))

    def receive_response(self, field: CommandField, message_id: int) -> Command:
        """Answers the response to a request of ours.

        Raises
        ------
        PeerUnreachable
            When the peer answers anything else or nothing: what became of the request is unknown.
        """
        command = decode_command(self._receive_command())
        if command.get(CommandElement.COMMAND_FIELD) != field or command.get(CommandElement.MESSAGE_ID_RESPONDED_TO) != message_id:
            raise self._broken("sent what is no answer to our request")
        return command

    def release(self) -> None:
        """Ends the association in good order; a peer that breaks it now changes nothing any more."""
        with contextlib.suppress(PeerUnreachable):
            if self.is_open:
                self._link.settimeout(RELEASE_TIMEOUT_S)
                self._send(_pdu(PduType.RELEASE_RQ, bytes(4)))
                self._receive_pdu()
        self._close()

    def abort(self) -> None:
        """Ends the association at once."""
        with contextlib.suppress(PeerUnreachable):
            if self.is_open:
                self._send(_pdu(PduType.ABORT, bytes(4)))
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    def _close(self) -> None:
        self.is_open = False
        self._link.close()

    def _broken(self, what: str) -> PeerUnreachable:
        self.abort()
        return PeerUnreachable(f"{self._peer} {what}")

    def _send(self, data: bytes) -> None:
        try:
            self._link.sendall(data)
        except OSError as error:
            self._close()
            raise PeerUnreachable(f"{self._peer} broke the connection: {_words(error)}") from error

    def _send_fragments(self, context_id: int, kind: int, fragments: Iterable[bytes]) -> None:
        remaining = iter(fragments)
        fragment = next(remaining, b"")
        while True:
            following = next(remaining, None)
            flags = kind | (_LAST if following is None else 0)
            fragment += b"\x00" * (len(fragment) % 2)  # only a last one can be odd: of a deflated data set (PS3.5 A.5)
            head = struct.pack(">BBIIBB", PduType.DATA, 0, len(fragment) + 6, len(fragment) + 2, context_id, flags)
            self._send(head + fragment)
            if following is None:
                return
            fragment = following

    def _receive_command(self) -> bytes:
        command = b""
        while True:
            kind, pdu = self._receive_pdu()
            if kind != PduType.DATA:
                raise self._broken("aborted the association" if kind == PduType.ABORT else f"sent PDU {kind} instead of an answer")
            for flags, fragment in self._fragments(pdu):
                if not flags & _COMMAND:
                    raise self._broken("sent a data set instead of an answer")
                command += fragment
                if flags & _LAST:
                    return command
            if len(command) > LONGEST_PDU_BYTES:
                raise self._broken("sends an answer without end")

    def _fragments(self, pdu: bytes) -> Iterable[tuple[int, bytes]]:
        place = 6
        while place < len(pdu):
            if len(pdu) - place < _PDV_HEAD_BYTES:
                raise self._broken("sent a PDU that is cut off")
            length, _context_id, flags = struct.unpack_from(">IBB", pdu, place)
            if length < 2 or place + 4 + length > len(pdu):
                raise self._broken("sent a PDU that is cut off")
            yield flags, pdu[place + 6 : place + 4 + length]
            place += 4 + length

    def _receive_pdu(self) -> tuple[int, bytes]:
        head = self._receive_exactly(6)
        kind, _reserved, length = struct.unpack(">BBI", head)
        if length > LONGEST_PDU_BYTES:
            raise self._broken("does not speak DICOM")
        return kind, head + self._receive_exactly(length)

    def _receive_exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            acknowledge_at_once(self._link)
            try:
                some = self._link.recv(size - len(received))
            except OSError as error:
                raise self._broken(f"does not answer: {_words(error)}") from error
            if not some:
                raise self._broken("closed the connection")
            received += some
        return bytes(received)


def encode_command(command: Command) -> bytes:
    """Answers a command set in Implicit VR Little Endian with its group length (PS3.7 6.3.1)."""
    elements = b"".join(_command_element(number, value) for number, value in sorted(command.items()))
    return _element(CommandElement.GROUP_LENGTH, struct.pack("<I", len(elements))) + elements


def decode_command(encoded: bytes) -> dict[int, int | str]:
    """Answers the elements of group 0000: those of two bytes as numbers, all others as texts."""
    command: dict[int, int | str] = {}
    place = 0
    while place + 8 <= len(encoded):
        group, number, length = struct.unpack_from("<HHI", encoded, place)
        value = encoded[place + 8 : place + 8 + length]
        if group == 0:
            command[number] = struct.unpack("<H", value)[0] if len(value) == 2 else value.decode("ascii", "replace").strip("\x00 ")
        place += 8 + length
    return command


def _command_element(number: int, value: int | str) -> bytes:
    if isinstance(value, int):
        return _element(number, struct.pack("<H", value))
    encoded = value.encode("ascii", "replace")
    return _element(number, encoded + b"\x00" * (len(encoded) % 2))


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _pdu(kind: PduType, body: bytes) -> bytes:
    return struct.pack(">BBI", kind, 0, len(body)) + body


def _numbered(contexts: Sequence[Context]) -> Iterable[tuple[int, Context]]:
    return ((2 * place + 1, context) for place, context in enumerate(contexts))


def _associate_request(peer: Peer, contexts: Sequence[Context]) -> bytes:
    request = A_ASSOCIATE()
    request.application_context_name = _APPLICATION_CONTEXT
    request.calling_ae_title = peer.calling_ae_title
    request.called_ae_title = peer.ae_title
    proposed = []
    for number, context in _numbered(contexts):
        one = build_context(context.sop_class_uid, context.transfer_syntax_uid)
        one.context_id = number
        proposed.append(one)
    request.presentation_context_definition_list = proposed
    length, implementation, version = MaximumLengthNotification(), ImplementationClassUIDNotification(), ImplementationVersionNameNotification()
    length.maximum_length_received = OUR_MAX_PDU_BYTES
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    request.user_information = [length, implementation, version]
    return bytes(A_ASSOCIATE_RQ(request).encode())


def _words(error: OSError | UnicodeError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, UnicodeError):
        return "no such host name"
    return error.strerror or type(error).__name__
