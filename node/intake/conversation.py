"""One association from its first byte to its last, in a thread of its own: data sets go straight from the network into files."""

import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from node.codes import StoreStatus
from node.intake.admission import Caller, Refusal
from node.intake.handlers import Accept, OnReport, nothing, on_c_echo, on_c_store, on_n_event_report
from node.intake.incoming import BEGINNING_BYTES, FileIdentity, IncomingFile
from node.intake.negotiation import MalformedRequest, accept_request, read_request, rejection_pdu
from node.intake.spool import Spool
from node.intake.uids import StoreRequest
from node.network import (
    COMMAND_FRAGMENT,
    LAST_FRAGMENT,
    NO_DATA_SET,
    AbortReason,
    CommandElement,
    CommandField,
    GeneralStatus,
    PduType,
)
from node.network.command import Command, decode_command, encode_command, encode_store_response, number_in, text_in
from node.network.commitment import LONGEST_REPORT_BYTES
from node.network.link import BULK_BYTES, SLOWEST_BYTES_PER_S, Link, pdu

ARTIM_S: Final = 30.0
"""How long a new connection may take to say what it wants, the handshake of TLS included (PS3.8 9.1.4)."""

LONGEST_REQUEST_BYTES: Final = 1 << 18
"""Of the first PDU: 128 presentation contexts with every transfer syntax that there is take 207 kB."""

LONGEST_COMMAND_BYTES: Final = 1 << 16
SHORT_GULP_BYTES: Final = BEGINNING_BYTES + 512
"""The next command, and as much of the data set behind it as has to be looked at."""

SERVICE_PROVIDER: Final = 2
"""Source of an A-ABORT (PS3.8 Table 9-26)."""

log = structlog.get_logger("radnode")


@dataclass(frozen=True, slots=True)
class Services:
    """What a conversation needs from the listener."""

    spool: Spool
    accept: Accept
    admit: Callable[[Caller], Refusal | None]
    """Answers why an association is not admitted; where it is, it counts until `leave`."""
    leave: Callable[[], None]
    network_timeout_s: float
    max_pdu_bytes: int
    on_report: OnReport | None = None


@dataclass(slots=True)
class Message:
    """A request that is arriving: its command is whole, its data set may be on the way: into a file, or a short one into memory."""

    context_id: int
    command: Command
    kind: int
    """Command Field: what kind of request it is."""
    store: StoreRequest | None = None
    """What it says where it is a C-STORE request with a data set."""
    incoming: IncomingFile | None = None
    report: bytearray | None = None
    begun_s: float = field(default_factory=time.monotonic)
    size_bytes: int = 0


@dataclass(eq=False)
class Conversation:
    """An association as acceptor. `run` ends when it ends; LinkBroken says that it did not end in good order."""

    link: Link
    address: str
    services: Services
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Unlike that of every other association that this node ever had."""
    calling_ae_title: str = ""
    admitted: bool = False
    released: bool = False
    has_left: bool = False
    """Set when nothing more will be done for it but to wait for the peer to close: it does not count any more."""
    leaving: bool = False
    """Set by another thread: it was hung up on, to make place for a newer one."""
    begun_s: float = field(default_factory=time.monotonic)
    stopping: bool = False
    """Set by another thread: the association is to end at the next opportunity."""
    instances: int = 0
    size_bytes: int = 0

    def __post_init__(self) -> None:
        """Nothing has arrived yet."""
        self._transfer_syntaxes: dict[int, str] = {}
        self._command = bytearray()
        self._message: Message | None = None
        self._last_size_bytes: int | None = None
        """Of an instance: the next one is likely to be as long."""
        self._ahead: IncomingFile | None = None
        """The file of the next one, opened while nobody waited."""

    @property
    def socket(self) -> socket.socket:
        """Its connection."""
        return self.link.socket

    @property
    def idle_since_s(self) -> float | None:
        """Since when it has said nothing of use; None while it counts against the limit of associations."""
        return None if self.admitted and not self.has_left else self.begun_s

    def leave(self) -> None:
        """Counts against the limit of associations no more; said once or more often."""
        if self.admitted and not self.has_left:
            self.services.leave()
        self.has_left = True

    def run(self) -> None:
        """Negotiates, then answers requests until the association ends."""
        longest_pdu_bytes = self.link.longest_pdu_bytes
        artim_s = min(ARTIM_S, self.services.network_timeout_s)
        self.link.limit_waits(artim_s)
        self.link.deadline_s = self.begun_s + artim_s
        self.link.longest_pdu_bytes = min(longest_pdu_bytes, LONGEST_REQUEST_BYTES)
        try:
            self.link.shake_hands()
            if not self._negotiate():
                return
            self.link.limit_waits(self.services.network_timeout_s)
            self.link.deadline_s = None
            self.link.longest_pdu_bytes = longest_pdu_bytes
            while self._serve():
                if self.stopping:
                    self.link.abort()
                    return
        finally:
            if self._message is not None and self._message.incoming is not None:
                self._message.incoming.discard()
            if self._ahead is not None:
                self._ahead.discard()

    def _negotiate(self) -> bool:
        kind, body = self.link.receive_pdu()
        try:
            request = read_request(kind, bytes(body))
            self.calling_ae_title = request.calling_ae_title
            caller = Caller(request.calling_ae_title, request.called_ae_title, self.address, request.reports_only)
            refusal = self.services.admit(caller)
            self.admitted = refusal is None
            if refusal is not None:
                log.warning("association.rejected", reason=refusal.reason, calling_ae_title=self.calling_ae_title, address=self.address)
                self.link.send(rejection_pdu(refusal.rejection))
                return False
            acceptance = accept_request(request, self.services.max_pdu_bytes, reports=self.services.on_report is not None)
        except MalformedRequest as error:
            log.warning("association.malformed", address=self.address, reason=str(error))
            self.link.abort(SERVICE_PROVIDER, AbortReason.INVALID_PARAMETER)
            return False
        self._transfer_syntaxes = acceptance.transfer_syntaxes
        self.link.send(acceptance.encoded)
        return True

    def _serve(self) -> bool:
        """Takes what comes next; answers whether there may be more."""
        message = self._message
        if message is None or message.incoming is None:
            return self._serve_pdu()
        incoming = message.incoming
        until_s = message.begun_s + self.services.network_timeout_s + message.size_bytes / SLOWEST_BYTES_PER_S
        received = self.link.receive_data(message.context_id, until_s + 1.0, incoming.room())  # at least a second for the next piece
        if received is None:
            return self._serve_pdu()
        pieces, is_last, in_room = received
        self._count(message, pieces)
        if in_room:
            incoming.note_placed(pieces[0])
        elif is_last:
            incoming.conclude(*pieces)
        else:
            incoming.write(*pieces)
        if is_last:
            self._answer()
        return True

    def _serve_pdu(self) -> bool:
        """Takes the next PDU; answers whether there may be another."""
        kind, body = self.link.receive_pdu()
        if kind == PduType.DATA:
            for context_id, flags, fragment in self.link.fragments_in(body):
                self._take(context_id, flags, fragment)
            return True
        if kind == PduType.RELEASE_RQ:
            self.released = True
            self.leave()  # first: the peer may open its next association before we go on
            self.link.send(pdu(PduType.RELEASE_RP, bytes(4)))
        elif kind != PduType.ABORT:
            self.link.abort(SERVICE_PROVIDER, AbortReason.UNEXPECTED_PDU)
        return False

    def _take(self, context_id: int, flags: int, fragment: memoryview) -> None:
        if flags & COMMAND_FRAGMENT:
            self._give_up_message()
            self._command += fragment
            if len(self._command) > LONGEST_COMMAND_BYTES:
                raise self.link.broken("sends a command without end")
            if flags & LAST_FRAGMENT:
                self._begin(context_id)
            return
        if self._message is None:
            raise self.link.broken("sent a data set without a command")
        self._take_data(self._message, fragment)
        if flags & LAST_FRAGMENT:
            self._answer()

    def _give_up_message(self) -> None:
        """Forgets a data set that goes on with the next command: toolkits do that whose parser breaks in a file they send.

        It was never whole and gets no answer; what else comes over the association is not its fault.
        """
        message, self._message = self._message, None
        if message is None:
            return
        if message.incoming is not None:
            message.incoming.discard()
        log.warning(
            "message.broken_off", calling_ae_title=self.calling_ae_title, reason="the next command came in the middle of its data set"
        )

    def _take_data(self, message: Message, fragment: memoryview) -> None:
        self._count(message, [fragment])
        if message.incoming is not None:
            message.incoming.write(fragment)
        elif message.report is not None:
            if message.size_bytes > LONGEST_REPORT_BYTES:
                raise self.link.broken("sends a report without end")
            message.report += fragment

    def _count(self, message: Message, pieces: list[memoryview]) -> None:
        message.size_bytes += sum(map(len, pieces))
        if time.monotonic() - message.begun_s > self.services.network_timeout_s + message.size_bytes / SLOWEST_BYTES_PER_S:
            raise self.link.broken("sends a data set too slowly")

    def _begin(self, context_id: int) -> None:
        if context_id not in self._transfer_syntaxes:
            raise self.link.broken("used a presentation context that was not accepted")
        command = decode_command(bytes(self._command))
        self._command.clear()
        message = self._message = Message(context_id, command, number_in(command, CommandElement.COMMAND_FIELD) or 0)
        if number_in(command, CommandElement.DATA_SET_TYPE) == NO_DATA_SET:
            self._answer()
        elif message.kind == CommandField.C_STORE_RQ:
            request = message.store = self._store_request(message)
            identity = FileIdentity(request.sop_class_uid, request.sop_instance_uid, request.transfer_syntax_uid, request.calling_ae_title)
            incoming = message.incoming = self._open(identity)
            self.link.gulp_bytes = SHORT_GULP_BYTES if incoming.is_mapped else BULK_BYTES
        elif message.kind == CommandField.N_EVENT_REPORT_RQ and self.services.on_report is not None:
            message.report = bytearray()

    def _open(self, identity: FileIdentity) -> IncomingFile:
        incoming, self._ahead = self._ahead, None
        if incoming is None:
            return self.services.spool.open_incoming(identity, self._last_size_bytes)
        incoming.begin(identity)
        return incoming

    def _answer(self) -> None:
        message = self._message
        if message is None:
            return
        rest = nothing
        if message.kind == CommandField.C_STORE_RQ:
            status: int
            status, rest = on_c_store(message.store or self._store_request(message), message.incoming, self.services.accept)
            self.instances += 1
            if message.incoming is not None:
                self.size_bytes += message.incoming.size_bytes
                self._last_size_bytes = message.incoming.size_bytes
        elif message.kind == CommandField.C_ECHO_RQ:
            status = on_c_echo()
        elif message.kind == CommandField.N_EVENT_REPORT_RQ:
            syntax = self._transfer_syntaxes[message.context_id]
            status = on_n_event_report(message.command, bytes(message.report or b""), syntax, self.services.on_report)
        else:
            status = GeneralStatus.UNRECOGNIZED_OPERATION
        self._message = None
        if message.kind & CommandField.RESPONSE or message.kind == CommandField.C_CANCEL_RQ:
            return  # nothing of ours is under way that this could belong to
        try:
            self.link.send_fragments(message.context_id, COMMAND_FRAGMENT, [_response(message, status)])
        finally:
            rest()  # while the sender prepares its next message
        if message.incoming is not None and status == StoreStatus.SUCCESS and not self.stopping:
            self._ahead = self.services.spool.open_ahead(self._last_size_bytes)

    def _store_request(self, message: Message) -> StoreRequest:
        return StoreRequest(
            sop_class_uid=text_in(message.command, CommandElement.AFFECTED_SOP_CLASS_UID),
            sop_instance_uid=text_in(message.command, CommandElement.AFFECTED_SOP_INSTANCE_UID),
            transfer_syntax_uid=self._transfer_syntaxes[message.context_id],
            calling_ae_title=self.calling_ae_title,
            association=self.name,
        )


def _response(message: Message, status: int) -> bytes:
    """Answers the command set of the response to a request."""
    if (
        message.kind == CommandField.C_STORE_RQ
        and message.store is not None
        and message.store.sop_class_uid
        and message.store.sop_instance_uid
    ):
        message_id = number_in(message.command, CommandElement.MESSAGE_ID) or 0
        return encode_store_response(message.store.sop_class_uid, message.store.sop_instance_uid, message_id, status)
    response: dict[int, int | str] = {
        CommandElement.COMMAND_FIELD: message.kind | CommandField.RESPONSE,
        CommandElement.MESSAGE_ID_RESPONDED_TO: number_in(message.command, CommandElement.MESSAGE_ID) or 0,
        CommandElement.DATA_SET_TYPE: NO_DATA_SET,
        CommandElement.STATUS: status,
    }
    for element in (CommandElement.AFFECTED_SOP_CLASS_UID, CommandElement.AFFECTED_SOP_INSTANCE_UID, CommandElement.EVENT_TYPE_ID):
        if element in message.command:
            response[element] = message.command[element]
    return encode_command(response)
