"""An association as requestor on a blocking socket: one thread, no polling, and every wait has an end.

Negotiation is encoded and parsed by pynetdicom's codecs; commands and P-DATA are ours. Stock pynetdicom is not used to send:
under load its reactor thread can take a response away from the caller, which then waits for a timeout and takes a stored object
for a lost one.
"""

import contextlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from node.network import (
    APPLICATION_CONTEXT,
    COMMAND_FRAGMENT,
    CONTEXT_ACCEPTED,
    IMPLEMENTATION_VERSION_NAME,
    LAST_FRAGMENT,
    REJECTED_TRANSIENT,
    CommandElement,
    CommandField,
    PduType,
)
from node.network.command import Command, decode_command, encode_command
from node.network.link import MALFORMED_PDU, PDV_HEAD_BYTES, Link, LinkBroken, pdu, words_of

MAX_CONTEXTS: Final = 128
"""Presentation context IDs are the odd numbers 1 to 255 (PS3.8 9.3.2.2)."""

LONGEST_FRAGMENT_BYTES: Final = 1 << 20
OUR_MAX_PDU_BYTES: Final = 1 << 14
LONGEST_PDU_BYTES: Final = 1 << 20
"""We receive answers only: a longer PDU is no DICOM."""

RELEASE_TIMEOUT_S: Final = 5.0


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
            connection = socket.create_connection((peer.host, peer.port), timeout=timeouts.connect_s)
        except (OSError, UnicodeError) as error:
            raise PeerUnreachable(f"{peer} cannot be reached: {words_of(error)}") from error
        self._link = Link(connection, timeout_s=timeouts.answer_s, longest_pdu_bytes=LONGEST_PDU_BYTES)
        self.accepted: dict[Context, int] = {}
        self._max_fragment = LONGEST_FRAGMENT_BYTES
        try:
            self._negotiate(contexts)
        except BaseException:
            self._link.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether another request can be made."""
        return self._link.is_open

    def _negotiate(self, contexts: Sequence[Context]) -> None:
        with self._peer_to_blame():
            self._link.send(_associate_request(self._peer, contexts))
            kind, body = self._link.receive_pdu()
            if kind == PduType.ASSOCIATE_RJ:
                raise self._rejection(pdu(PduType.ASSOCIATE_RJ, bytes(body)))
            if kind != PduType.ASSOCIATE_AC:
                raise self._link.broken(
                    "aborted the association" if kind == PduType.ABORT else f"answered the association request with PDU {kind}"
                )
            try:
                acceptance = A_ASSOCIATE_AC()
                acceptance.decode(pdu(PduType.ASSOCIATE_AC, bytes(body)))
                answer = acceptance.to_primitive()
                syntaxes = {
                    context.context_id: str(context.transfer_syntax[0])
                    for context in answer.presentation_context_definition_results_list
                    if context.result == CONTEXT_ACCEPTED
                }
                limit = answer.maximum_length_received or LONGEST_FRAGMENT_BYTES
            except MALFORMED_PDU as error:
                raise self._link.broken(f"sent an acceptance that cannot be read ({type(error).__name__})") from error
        self.accepted = {context: number for number, context in _numbered(contexts) if syntaxes.get(number) == context.transfer_syntax_uid}
        self._max_fragment = max(2, (min(limit, LONGEST_FRAGMENT_BYTES) - PDV_HEAD_BYTES) & ~1)

    def _rejection(self, encoded: bytes) -> AssociationRejected | AssociationRejectedTransient:
        rejection = A_ASSOCIATE_RJ()
        try:
            rejection.decode(encoded)
            why = f"{self._peer} rejects the association: {rejection.reason_str} ({rejection.source_str})"
        except MALFORMED_PDU:
            why = f"{self._peer} rejects the association for a reason that the standard does not know"
        self._link.close()
        return AssociationRejectedTransient(why) if rejection.result == REJECTED_TRANSIENT else AssociationRejected(why)

    def send_command(self, context_id: int, command: Command) -> None:
        """Sends a command set."""
        with self._peer_to_blame():
            self._link.send_fragments(context_id, COMMAND_FRAGMENT, [encode_command(command)])

    def send_data_set(self, context_id: int, stream: BinaryIO) -> None:
        """Sends the rest of a stream as data set, fragment by fragment."""
        with self._peer_to_blame():
            self._link.send_fragments(context_id, 0, iter(lambda: stream.read(self._max_fragment), b""))

    def receive_response(self, field: CommandField, message_id: int) -> Command:
        """Answers the response to a request of ours.

        Raises
        ------
        PeerUnreachable
            When the peer answers anything else or nothing: what became of the request is unknown.
        """
        with self._peer_to_blame():
            command = decode_command(self._receive_command())
            if command.get(CommandElement.COMMAND_FIELD) != field or command.get(CommandElement.MESSAGE_ID_RESPONDED_TO) != message_id:
                raise self._link.broken("sent what is no answer to our request")
        return command

    def _receive_command(self) -> bytes:
        command = b""
        while True:
            kind, body = self._link.receive_pdu()
            if kind != PduType.DATA:
                raise self._link.broken("aborted the association" if kind == PduType.ABORT else f"sent PDU {kind} instead of an answer")
            for _context_id, flags, fragment in self._link.fragments_in(body):
                if not flags & COMMAND_FRAGMENT:
                    raise self._link.broken("sent a data set instead of an answer")
                command += fragment
                if flags & LAST_FRAGMENT:
                    return command
            if len(command) > LONGEST_PDU_BYTES or not body:
                raise self._link.broken("sends an answer without end")

    def release(self) -> None:
        """Ends the association in good order; a peer that breaks it now changes nothing any more."""
        if self._link.is_open:
            with contextlib.suppress(LinkBroken):
                self._link.limit_waits(RELEASE_TIMEOUT_S)
                self._link.send(pdu(PduType.RELEASE_RQ, bytes(4)))
                self._link.receive_pdu()
        self._link.close()

    def abort(self) -> None:
        """Ends the association at once."""
        self._link.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    @contextmanager
    def _peer_to_blame(self) -> Iterator[None]:
        try:
            yield
        except LinkBroken as error:
            raise PeerUnreachable(f"{self._peer} {error}") from error


def _numbered(contexts: Sequence[Context]) -> Iterable[tuple[int, Context]]:
    return ((2 * place + 1, context) for place, context in enumerate(contexts))


def _associate_request(peer: Peer, contexts: Sequence[Context]) -> bytes:
    request = A_ASSOCIATE()
    request.application_context_name = UID(APPLICATION_CONTEXT)
    request.calling_ae_title = peer.calling_ae_title
    request.called_ae_title = peer.ae_title
    proposed = []
    for number, context in _numbered(contexts):
        one = build_context(context.sop_class_uid, context.transfer_syntax_uid)
        one.context_id = number
        proposed.append(one)
    request.presentation_context_definition_list = proposed
    length, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = OUR_MAX_PDU_BYTES
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    request.user_information = [length, implementation, version]
    return bytes(A_ASSOCIATE_RQ(request).encode())
