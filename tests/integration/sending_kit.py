"""A storage SCP made by hand: it says how long a PDU may be and how many operations may be open, looks at every PDU, answers as told."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext

from node.delivery.query import STUDY_ROOT_FIND
from node.network import CommandElement, CommandField
from node.network.command import decode_command, encode_command
from tests.peers import HOST

SILENCE_S = 20.0


@dataclass
class Stored:
    """A C-STORE request and its data set, as they came."""

    message_id: int
    context_id: int
    sop_instance_uid: str
    data_set: bytes


@dataclass
class Conversation:
    """One association, from the side of the peer."""

    link: socket.socket
    peer: "Acceptor"
    proposed_window: tuple[int, int] | None = None
    unanswered: list[Stored] = field(default_factory=list)

    def respond(self, stored: Stored, status: int = 0) -> None:
        answer = encode_command(
            {
                CommandElement.COMMAND_FIELD: CommandField.C_STORE_RSP,
                CommandElement.MESSAGE_ID_RESPONDED_TO: stored.message_id,
                CommandElement.DATA_SET_TYPE: 0x0101,
                CommandElement.STATUS: status,
            }
        )
        head = struct.pack(">BBIIBB", 4, 0, len(answer) + 6, len(answer) + 2, stored.context_id, 3)
        self.link.sendall(head + answer)
        self.unanswered = [one for one in self.unanswered if one.message_id != stored.message_id]

    def abort(self) -> None:
        self.link.sendall(struct.pack(">BBIHBB", 7, 0, 4, 0, 0, 0))
        self.link.close()


OnStored = Callable[[Conversation, Stored], None]
OnFragment = Callable[[Conversation, Stored, int], None]


@dataclass
class Acceptor:
    """What the peer does, and what it saw."""

    max_pdu_bytes: int = 16384
    window: tuple[int, int] | None = None
    """Its answer to the asynchronous operations window, where one is proposed."""
    on_stored: OnStored = lambda conversation, stored: conversation.respond(stored)
    """Called with every whole message."""
    on_fragment: OnFragment = lambda _conversation, _stored, _size: None
    """Called with every fragment of a data set, and how much there is of it so far."""
    most_associations: int = 1000
    """A further one is rejected: local limit exceeded."""
    stored: list[Stored] = field(default_factory=list)
    windows: list[tuple[int, int] | None] = field(default_factory=list)
    """What was proposed."""
    faults: list[str] = field(default_factory=list)
    rejected: int = 0
    most_unanswered: int = 0
    open_now: int = 0
    most_open: int = 0
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def uids(self) -> list[str]:
        return [one.sop_instance_uid for one in self.stored]

    def data_sets(self) -> dict[str, bytes]:
        return {one.sop_instance_uid: one.data_set for one in self.stored}

    def serve(self, link: socket.socket) -> None:
        with link, suppress(OSError):
            link.settimeout(SILENCE_S)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.open_now += 1
                refused = self.open_now > self.most_associations
                self.most_open = max(self.most_open, self.open_now)
            try:
                self._accept(link) if not refused else self._reject(link)
            finally:
                with self.lock:
                    self.open_now -= 1

    def _reject(self, link: socket.socket) -> None:
        self.rejected += 1
        read_pdu(link)
        link.sendall(struct.pack(">BBIBBBB", 3, 0, 4, 0, 2, 3, 2))
        link.recv(1)

    def _accept(self, link: socket.socket) -> None:
        conversation = Conversation(link, self)
        link.sendall(self._answer(read_pdu(link), conversation))
        command, data_set = bytearray(), bytearray()
        now = Stored(0, 0, "", b"")
        while pdu := read_pdu(link):
            if pdu[0] == 5:
                link.sendall(struct.pack(">BBII", 6, 0, 4, 0))
                return
            if pdu[0] != 4:
                return
            if self.max_pdu_bytes and len(pdu) - 6 > self.max_pdu_bytes:
                self.faults.append(f"a PDU of {len(pdu) - 6} bytes")
            for context_id, flags, fragment in values_in(pdu):
                if len(fragment) % 2:
                    self.faults.append("an odd fragment")
                if flags & 1:
                    command += fragment
                    if flags & 2:
                        said = decode_command(bytes(command))
                        now = Stored(int(said[0x0110]), context_id, str(said[0x1000]), b"")
                        command, data_set = bytearray(), bytearray()
                    continue
                data_set += fragment
                self.on_fragment(conversation, now, len(data_set))
                if flags & 2:
                    now.data_set = bytes(data_set)
                    conversation.unanswered.append(now)
                    with self.lock:
                        self.stored.append(now)
                        self.most_unanswered = max(self.most_unanswered, len(conversation.unanswered))
                    self.on_stored(conversation, now)

    def _answer(self, encoded: bytes, conversation: Conversation) -> bytes:
        request = A_ASSOCIATE_RQ()
        request.decode(encoded)
        asked = request.to_primitive()
        window = next((one for one in asked.user_information if isinstance(one, AsynchronousOperationsWindowNegotiation)), None)
        if window is not None:
            conversation.proposed_window = (window.maximum_number_operations_invoked, window.maximum_number_operations_performed)
        self.windows.append(conversation.proposed_window)
        results = []
        for proposed in asked.presentation_context_definition_list:
            context = PresentationContext()
            context.context_id = proposed.context_id
            context.abstract_syntax = proposed.abstract_syntax
            context.transfer_syntax = proposed.transfer_syntax[:1]
            context.result = 3 if proposed.abstract_syntax == STUDY_ROOT_FIND else 0
            results.append(context)
        answer = A_ASSOCIATE()
        answer.application_context_name = asked.application_context_name
        answer.calling_ae_title, answer.called_ae_title = asked.calling_ae_title, asked.called_ae_title
        answer.result, answer.result_source = 0, 1
        answer.presentation_context_definition_results_list = results
        length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
        length.maximum_length_received = self.max_pdu_bytes
        implementation.implementation_class_uid = "1.2.3.4"
        answer.user_information = [length, implementation]
        if window is not None and self.window is not None:
            granted = AsynchronousOperationsWindowNegotiation()
            granted.maximum_number_operations_invoked, granted.maximum_number_operations_performed = self.window
            answer.user_information.append(granted)
        return bytes(A_ASSOCIATE_AC(answer).encode())


@contextmanager
def accepting(acceptor: Acceptor) -> Iterator[Acceptor]:
    """Runs it while the block runs, for any number of associations."""
    server = socket.create_server((HOST, 0))
    acceptor.port = server.getsockname()[1]

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=acceptor.serve, args=(server.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield acceptor
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def read_pdu(link: socket.socket) -> bytes:
    """Answers a whole PDU, b'' at the end."""
    head = link.recv(6, socket.MSG_WAITALL)
    if len(head) < 6:
        return b""
    (length,) = struct.unpack(">I", head[2:])
    body = bytearray()
    while len(body) < length:
        piece = link.recv(length - len(body))
        if not piece:
            return b""
        body += piece
    return head + bytes(body)


def values_in(pdu: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Answers the presentation data values of a P-DATA PDU."""
    place = 6
    while place < len(pdu):
        length, context_id, flags = struct.unpack_from(">IBB", pdu, place)
        yield context_id, flags, pdu[place + 6 : place + 4 + length]
        place += 4 + length
