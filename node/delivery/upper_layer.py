"""An association as requestor on a blocking socket: one thread, no polling, and every wait has an end.

Negotiation is encoded and parsed by pynetdicom's codecs; commands and P-DATA are ours. Stock pynetdicom is not used to send:
under load its reactor thread can take a response away from the caller, which then waits for a timeout and takes a stored object
for a lost one.
"""

import contextlib
import io
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol, Self

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
    NO_DATA_SET,
    REJECTED_TRANSIENT,
    CommandElement,
    CommandField,
    PduType,
)
from node.network.command import Command, decode_command, encode_command
from node.network.link import PDV_HEAD_BYTES, Link, LinkBroken, pdu, words_of
from node.network.malformed import MALFORMED_PDU
from node.network.tls import ClientTls, TlsFilesUnusable, request_tls

MAX_CONTEXTS: Final = 128
"""Presentation context IDs are the odd numbers 1 to 255 (PS3.8 9.3.2.2)."""

LONGEST_FRAGMENT_BYTES: Final = 1 << 20
OUR_MAX_PDU_BYTES: Final = 1 << 14
LONGEST_PDU_BYTES: Final = 1 << 20
"""We receive answers only: a longer PDU is no DICOM."""

LONGEST_COMMAND_BYTES: Final = 1 << 16
LONGEST_DATA_SET_BYTES: Final = 1 << 22
"""Of an answer or a report: what a peer sends us on our own associations is small."""

RELEASE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Where an application entity listens, and by which names the two of us go."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str
    tls: ClientTls | None = None

    def __str__(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Message:
    """What a peer said: a command, and the data set that came with it."""

    context_id: int
    command: Command
    data_set: bytes = b""
    """Empty where none came."""


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


class Readable(Protocol):
    """Something that is read from its beginning to its end."""

    def read(self, size: int, /) -> bytes:
        """Answers the next `size` bytes, fewer only at the end."""


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
        self._link = Link(_connect(peer, timeouts), timeout_s=timeouts.answer_s, longest_pdu_bytes=LONGEST_PDU_BYTES)
        self._fragments: deque[tuple[int, int, bytes]] = deque()
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
            self._link.shake_hands()
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

    def send_data_set(self, context_id: int, stream: Readable) -> None:
        """Sends the rest of a stream as data set, fragment by fragment."""
        with self._peer_to_blame():
            self._link.send_fragments(context_id, 0, iter(lambda: stream.read(self._max_fragment), b""))

    def send_message(self, context_id: int, command: Command, data_set: bytes = b"") -> None:
        """Sends a command set, and a data set of a few kB if there is one."""
        self.send_command(context_id, command)
        if data_set:
            self.send_data_set(context_id, io.BytesIO(data_set))

    def receive_response(self, field: CommandField, message_id: int) -> Command:
        """Answers the response to a request of ours, where that brings no data set.

        Raises
        ------
        PeerUnreachable
            When the peer answers anything else or nothing: what became of the request is unknown.
        """
        with self._peer_to_blame():
            command = self._receive().command
            if command.get(CommandElement.COMMAND_FIELD) != field or command.get(CommandElement.MESSAGE_ID_RESPONDED_TO) != message_id:
                raise self._link.broken("sent what is no answer to our request")
        return command

    def receive_message(self, timeout_s: float) -> Message | None:
        """Answers what the peer says next, be it a response to us or a request of its own; None when it begins nothing in that time.

        What it has begun must be whole in the time of an answer. The association stays open over a None.

        Raises
        ------
        PeerUnreachable
            When the peer ends or breaks the association.
        """
        with self._peer_to_blame():
            if not self._fragments and not self._link.has_more(timeout_s):
                return None
            return self._receive(longest_data_set_bytes=LONGEST_DATA_SET_BYTES)

    def _receive(self, *, longest_data_set_bytes: int = 0) -> Message:
        """Answers the next message; one with a longer data set is no answer."""
        command, data_set = bytearray(), bytearray()
        decoded: Command | None = None
        while True:
            context_id, flags, fragment = self._next_fragment()
            if bool(flags & COMMAND_FRAGMENT) is not (decoded is None):
                raise self._link.broken("sent parts of a message that do not belong together")
            part = command if decoded is None else data_set
            part += fragment
            if len(command) > LONGEST_COMMAND_BYTES or len(data_set) > longest_data_set_bytes:
                raise self._link.broken("sends an answer without end")
            if not flags & LAST_FRAGMENT:
                continue
            if decoded is None:
                decoded = decode_command(bytes(command))
                if decoded.get(CommandElement.DATA_SET_TYPE, NO_DATA_SET) != NO_DATA_SET:
                    continue
            return Message(context_id, decoded, bytes(data_set))

    def _next_fragment(self) -> tuple[int, int, bytes]:
        while not self._fragments:
            kind, body = self._link.receive_pdu()
            if kind != PduType.DATA:
                raise self._link.broken("aborted the association" if kind == PduType.ABORT else f"sent PDU {kind} instead of an answer")
            if not body:
                raise self._link.broken("sends an answer without end")
            self._fragments.extend((context_id, flags, bytes(fragment)) for context_id, flags, fragment in self._link.fragments_in(body))
        return self._fragments.popleft()

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


def _connect(peer: Peer, timeouts: Timeouts) -> socket.socket:
    try:
        connection = socket.create_connection((peer.host, peer.port), timeout=timeouts.connect_s)
    except (OSError, UnicodeError) as error:
        raise PeerUnreachable(f"{peer} cannot be reached: {words_of(error)}") from error
    if peer.tls is None:
        return connection
    try:
        return request_tls(connection, peer.tls, peer.host)
    except (OSError, ValueError, TlsFilesUnusable) as error:
        connection.close()
        why = str(error) if isinstance(error, TlsFilesUnusable) else words_of(error)
        raise PeerUnreachable(f"{peer} cannot be reached by TLS: {why}") from error


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
