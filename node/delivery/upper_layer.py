"""An association as requestor on a blocking socket: one thread, no polling, and every wait has an end.

Stock pynetdicom is not used to send: under load its reactor thread can take a response away from the caller, which then waits for a
timeout and takes a stored object for a lost one; and it copies every byte five times.
"""

import contextlib
import io
import socket
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol, Self

from node.delivery.negotiation import (
    MAX_CONTEXTS,
    OUR_MAX_PDU_BYTES,
    Context,
    MalformedAnswer,
    associate_request,
    read_acceptance,
    read_rejection,
)
from node.delivery.p_data import BUFFER_BYTES, LONGEST_COMMAND_BYTES, FileFailed, FragmentBuffer
from node.errors import AssociationRejected, AssociationRejectedTransient, PeerUnreachable
from node.network import COMMAND_FRAGMENT, LAST_FRAGMENT, NO_DATA_SET, REJECTED_TRANSIENT, CommandElement, CommandField, PduType
from node.network.command import Command, decode_command, encode_command, number_in
from node.network.link import PDV_HEAD_BYTES, Link, LinkBroken, pdu, words_of
from node.network.tls import ClientTls, TlsFilesUnusable, request_tls

__all__ = ["MAX_CONTEXTS", "OUR_MAX_PDU_BYTES", "Context", "Message", "Peer", "Readable", "RequestedAssociation", "Timeouts"]

LONGEST_FRAGMENT_BYTES: Final = BUFFER_BYTES
LONGEST_PDU_BYTES: Final = 1 << 20
"""We receive answers only: a longer PDU is no DICOM."""

LONGEST_ANSWER_BYTES: Final = 1 << 16
LONGEST_DATA_SET_BYTES: Final = 1 << 22
"""Of an answer or a report: what a peer sends us on our own associations is small."""

RELEASE_TIMEOUT_S: Final = 5.0

DEFAULT_OPERATIONS: Final = 16
"""So many requests hide the time of an answer on any line; more would only be more to send again when it breaks."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where an application entity listens, and by which names the two of us go."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str
    tls: ClientTls | None = None
    async_operations: int = DEFAULT_OPERATIONS
    """How many stores we ask to have open at once; 1 asks for nothing. The peer decides."""

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


class Readable(Protocol):
    """Something that is read from its beginning to its end."""

    def read(self, size: int, /) -> bytes:
        """Answers the next `size` bytes, fewer only at the end."""


class RequestedAssociation:
    """An association with a peer, open until `release` or `abort`. One object serves one thread."""

    def __init__(self, peer: Peer, contexts: Sequence[Context], timeouts: Timeouts, *, operations: int = 1) -> None:
        """Connects and negotiates; `operations` is how many requests we ask to have open at once.

        Raises
        ------
        PeerUnreachable, AssociationRejected, AssociationRejectedTransient
            Why there is no association.
        """
        self._peer = peer
        self._link = Link(_connect(peer, timeouts), timeout_s=timeouts.answer_s, longest_pdu_bytes=LONGEST_PDU_BYTES)
        self._fragments: deque[tuple[int, int, bytes]] = deque()
        self._buffer: FragmentBuffer | None = None
        self.accepted: dict[Context, int] = {}
        self.operations = 1
        """How many requests the peer lets us have open at once."""
        self.was_aborted = False
        """Whether the peer has said A-ABORT."""
        self._max_fragment = LONGEST_FRAGMENT_BYTES
        try:
            self._negotiate(contexts, operations)
        except BaseException:
            self._link.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether another request can be made."""
        return self._link.is_open

    def _negotiate(self, contexts: Sequence[Context], operations: int) -> None:
        with self._peer_to_blame():
            self._link.shake_hands()
            self._link.send(_associate_request(self._peer, contexts, operations))
            kind, body = self._link.receive_pdu()
            if kind == PduType.ASSOCIATE_RJ:
                raise self._rejection(bytes(body))
            if kind != PduType.ASSOCIATE_AC:
                raise self._link.broken(
                    "aborted the association" if kind == PduType.ABORT else f"answered the association request with PDU {kind}"
                )
            try:
                answer = read_acceptance(bytes(body), contexts)
            except MalformedAnswer as error:
                raise self._link.broken(f"sent an acceptance that cannot be read: {error}") from error
        self.accepted = answer.contexts
        self.operations = min(operations, answer.operations or operations)
        limit = min(answer.max_pdu_bytes or LONGEST_FRAGMENT_BYTES, LONGEST_FRAGMENT_BYTES)
        self._max_fragment = max(2, (limit - PDV_HEAD_BYTES) & ~1)

    def _rejection(self, body: bytes) -> AssociationRejected | AssociationRejectedTransient:
        result, why = read_rejection(body)
        self._link.close()
        kind = AssociationRejectedTransient if result == REJECTED_TRANSIENT else AssociationRejected
        return kind(f"{self._peer} rejects the association{why}")

    def send_command(self, context_id: int, command: Command) -> None:
        """Sends a command set."""
        with self._peer_to_blame():
            self._send_fragments(context_id, COMMAND_FRAGMENT, io.BytesIO(encode_command(command)))

    def send_data_set(self, context_id: int, stream: Readable) -> None:
        """Sends the rest of a stream as data set, fragment by fragment."""
        with self._peer_to_blame():
            self._send_fragments(context_id, 0, stream)

    def _send_fragments(self, context_id: int, kind: int, stream: Readable) -> None:
        self._link.send_fragments(context_id, kind, iter(lambda: stream.read(self._max_fragment), b""))

    def send_file(self, context_id: int, command: Command, descriptor: int, offset: int) -> None:
        """Sends a command set, and the bytes of an open file from `offset` on as its data set.

        Raises
        ------
        FileFailed
            When the file cannot be read. If a part of it is on its way, the association is over.
        """
        encoded = encode_command(command)
        with self._peer_to_blame():
            if len(encoded) > min(LONGEST_COMMAND_BYTES, self._max_fragment):
                self._send_fragments(context_id, COMMAND_FRAGMENT, io.BytesIO(encoded))
                encoded = b""
            if self._buffer is None:
                self._buffer = FragmentBuffer(self._max_fragment)
            try:
                self._buffer.send_file(self._link, context_id, encoded, descriptor, offset)
            except FileFailed as error:
                if error.begun:
                    self._link.abort()
                raise

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
        return self.receive_any_response(field, (message_id,))[1]

    def receive_any_response(self, field: CommandField, message_ids: Collection[int]) -> tuple[int, Command]:
        """Answers the next response to one of several requests of ours, and to which.

        What the peer had answered before it broke the connection is still answered.

        Raises
        ------
        PeerUnreachable
            As `receive_response` does.
        """
        with self._peer_to_blame():
            command = self._receive().command
            message_id = number_in(command, CommandElement.MESSAGE_ID_RESPONDED_TO)
            if command.get(CommandElement.COMMAND_FIELD) != field or message_id is None or message_id not in message_ids:
                raise self._link.broken("sent what is no answer to our request")
        return message_id, command

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
            if len(command) > LONGEST_ANSWER_BYTES or len(data_set) > longest_data_set_bytes:
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
                self.was_aborted = kind == PduType.ABORT
                raise self._link.broken("aborted the association" if self.was_aborted else f"sent PDU {kind} instead of an answer")
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


def _associate_request(peer: Peer, contexts: Sequence[Context], operations: int = 1) -> bytes:
    return associate_request((peer.ae_title, peer.calling_ae_title), contexts, operations)
