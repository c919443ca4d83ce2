"""Answers that bring data sets, and requests of the peer on our own association: what C-FIND and storage commitment need."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from node.delivery.upper_layer import LONGEST_DATA_SET_BYTES, Context, Message, RequestedAssociation, Timeouts
from node.domain.commitment import CommitmentReport
from node.errors import PeerUnreachable
from node.intake.negotiation import accept_request, read_request
from node.network import (
    DATA_SET_FOLLOWS,
    LAST_FRAGMENT,
    NO_DATA_SET,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    VERIFICATION,
    CommandElement,
    CommandField,
    PduType,
)
from node.network.command import encode_command, number_in
from node.network.commitment import decode_commitment_report, encode_commitment_request
from node.network.link import Link, LinkBroken, pdu
from tests.integration.intake_kit import p_data, peer_of
from tests.peers import HOST

IMPLICIT = str(ImplicitVRLittleEndian)
FIND = Context(str(StudyRootQueryRetrieveInformationModelFind), IMPLICIT)
PUSH = Context(STORAGE_COMMITMENT, IMPLICIT)
ECHO = Context(VERIFICATION, IMPLICIT)
PENDING, SUCCESS = 0xFF00, 0x0000
WHOLE = 3


@contextmanager
def ae_of_pynetdicom(*handlers: Any) -> Iterator[int]:
    """A peer that is not ours."""
    ae = AE("PEER")
    ae.add_supported_context(FIND.sop_class_uid)
    ae.add_supported_context(STORAGE_COMMITMENT)
    server = ae.start_server((HOST, 0), block=False, evt_handlers=list(handlers))
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def test_every_pending_answer_brings_its_data_set() -> None:
    def find(event: Any) -> Any:
        for number in range(3):
            match = Dataset()
            match.QueryRetrieveLevel = "IMAGE"
            match.SOPInstanceUID = f"{event.identifier.StudyInstanceUID}.{number}"
            yield PENDING, match

    wanted = Dataset()
    wanted.QueryRetrieveLevel = "IMAGE"
    wanted.StudyInstanceUID = "1.2.3"
    wanted.SOPInstanceUID = ""
    identifier = encode(wanted, is_implicit_vr=True, is_little_endian=True)
    assert identifier is not None
    request: dict[int, int | str] = {
        CommandElement.AFFECTED_SOP_CLASS_UID: FIND.sop_class_uid,
        CommandElement.COMMAND_FIELD: CommandField.C_FIND_RQ,
        CommandElement.MESSAGE_ID: 5,
        CommandElement.PRIORITY: 0,
        CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
    }
    with ae_of_pynetdicom((evt.EVT_C_FIND, find)) as port, RequestedAssociation(peer_of(port), [FIND], Timeouts(5, 5)) as association:
        association.send_message(association.accepted[FIND], request, identifier)
        found = []
        while (message := association.receive_message(5)) is not None:
            assert message.command[CommandElement.COMMAND_FIELD] == CommandField.C_FIND_RSP
            assert message.command[CommandElement.MESSAGE_ID_RESPONDED_TO] == 5
            if number_in(message.command, CommandElement.STATUS) == SUCCESS:
                break
            match = read_dataset(BytesIO(message.data_set), is_implicit_VR=True, is_little_endian=True)
            found.append(str(match.SOPInstanceUID))
        assert found == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]
        assert association.receive_message(0.05) is None
        assert association.is_open


def test_a_report_may_come_on_the_association_that_asked() -> None:
    answered: list[int] = []

    def act(event: Any) -> Any:
        def report() -> None:
            time.sleep(0.1)  # the response to the request goes first
            said = Dataset()
            said.TransactionUID = event.action_information.TransactionUID
            said.ReferencedSOPSequence = event.action_information.ReferencedSOPSequence
            status, _ = event.assoc.send_n_event_report(said, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
            answered.append(status.Status)

        threading.Thread(target=report, daemon=True).start()
        return SUCCESS, None

    request: dict[int, int | str] = {
        CommandElement.REQUESTED_SOP_CLASS_UID: STORAGE_COMMITMENT,
        CommandElement.COMMAND_FIELD: CommandField.N_ACTION_RQ,
        CommandElement.MESSAGE_ID: 1,
        CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
        CommandElement.REQUESTED_SOP_INSTANCE_UID: STORAGE_COMMITMENT_INSTANCE,
        CommandElement.ACTION_TYPE_ID: 1,
    }
    with ae_of_pynetdicom((evt.EVT_N_ACTION, act)) as port, RequestedAssociation(peer_of(port), [PUSH], Timeouts(5, 5)) as association:
        context_id = association.accepted[PUSH]
        association.send_message(context_id, request, encode_commitment_request("2.25.7", [("1.2", "1.2.3")]))
        answer = association.receive_message(5)
        assert answer is not None
        assert answer.command[CommandElement.COMMAND_FIELD] == CommandField.N_ACTION_RSP
        message = association.receive_message(5)
        assert message is not None
        assert message.command[CommandElement.COMMAND_FIELD] == CommandField.N_EVENT_REPORT_RQ
        assert decode_commitment_report(message.data_set, IMPLICIT) == CommitmentReport("2.25.7", frozenset({"1.2.3"}))
        response: dict[int, int | str] = {
            CommandElement.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT,
            CommandElement.COMMAND_FIELD: CommandField.N_EVENT_REPORT_RSP,
            CommandElement.MESSAGE_ID_RESPONDED_TO: message.command[CommandElement.MESSAGE_ID],
            CommandElement.DATA_SET_TYPE: NO_DATA_SET,
            CommandElement.STATUS: SUCCESS,
            CommandElement.AFFECTED_SOP_INSTANCE_UID: STORAGE_COMMITMENT_INSTANCE,
            CommandElement.EVENT_TYPE_ID: 1,
        }
        association.send_message(context_id, response)
        assert association.receive_message(0.3) is None
    assert answered == [SUCCESS]


def test_roles_of_our_own_are_not_asked_for() -> None:
    """The requestor is SCU by default: nothing need be negotiated to ask for a commitment, nor to be told on the same association."""
    assert build_role(STORAGE_COMMITMENT, scu_role=True).scu_role
    proposals: list[Any] = []

    def requested(event: Any) -> None:
        proposals.append(dict(event.assoc.requestor.role_selection))

    with ae_of_pynetdicom((evt.EVT_REQUESTED, requested)) as port, RequestedAssociation(peer_of(port), [PUSH], Timeouts(5, 5)):
        assert proposals == [{}]


# ── a peer that says what the test wants ────────────────────────────────────


@contextmanager
def peer_that(says: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accepts one association, and then says what it likes."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            link = Link(connection, timeout_s=5, longest_pdu_bytes=1 << 20)
            try:
                kind, body = link.receive_pdu()
                link.send(accept_request(read_request(kind, bytes(body)), 16384).encoded)
                says(link.socket)
                while link.receive_pdu()[0] != PduType.RELEASE_RQ:
                    pass
                link.send(pdu(PduType.RELEASE_RP, bytes(4)))
                link.close()
            except (LinkBroken, OSError):
                link.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()


def response(data_set: bool = False) -> bytes:
    return encode_command(
        {
            CommandElement.COMMAND_FIELD: CommandField.C_FIND_RSP,
            CommandElement.MESSAGE_ID_RESPONDED_TO: 1,
            CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS if data_set else NO_DATA_SET,
            CommandElement.STATUS: PENDING if data_set else SUCCESS,
        }
    )


def test_messages_that_share_a_pdu_are_all_received() -> None:
    """PS3.8 Annex E leaves open how fragments are laid into PDUs."""
    command = response(data_set=True)
    words = p_data((1, 1, command[:10]), (1, WHOLE, command[10:]), (1, 0, b"ab"), (1, LAST_FRAGMENT, b"cd"), (1, WHOLE, response()))
    with peer_that(lambda link: link.sendall(words)) as port, RequestedAssociation(peer_of(port), [ECHO], Timeouts(5, 5)) as association:
        first, second = association.receive_message(5), association.receive_message(5)
        assert isinstance(first, Message)
        assert first.data_set == b"abcd"
        assert isinstance(second, Message)
        assert second.data_set == b""
        assert second.command[CommandElement.STATUS] == SUCCESS


def test_a_message_that_has_begun_is_waited_for_and_one_that_has_not_is_not() -> None:
    def slowly(link: socket.socket) -> None:
        words = p_data((1, WHOLE, response()))
        for place in range(0, len(words), 20):
            time.sleep(0.1)
            link.sendall(words[place : place + 20])

    with peer_that(slowly) as port, RequestedAssociation(peer_of(port), [ECHO], Timeouts(5, 5)) as association:
        assert association.receive_message(0.001) is None
        assert association.receive_message(2) is not None
        assert association.receive_message(0.01) is None


@pytest.mark.parametrize(
    "words",
    [
        p_data((1, WHOLE, response(data_set=True)), (1, WHOLE, response())),
        p_data((1, LAST_FRAGMENT, b"data")),
        p_data((1, WHOLE, response(data_set=True)), *[(1, 0, bytes(1 << 15))] * 16) + p_data(*[(1, 0, bytes(1 << 15))] * 16) * 8,
        p_data(*[(1, 1, bytes(1 << 12))] * 20),
        p_data(),
        struct.pack(">BBI", 4, 0, 1 << 30),
        struct.pack(">BBI", 9, 0, 0),
        struct.pack(">BBI4x", 7, 0, 4),
    ],
    ids=["two commands", "no command", "a data set without end", "a command without end", "nothing", "a long PDU", "no PDU", "an abort"],
)
def test_what_is_no_message_ends_the_association(words: bytes) -> None:
    assert LONGEST_DATA_SET_BYTES == 1 << 22
    with peer_that(lambda link: link.sendall(words)) as port:
        association = RequestedAssociation(peer_of(port), [ECHO], Timeouts(5, 5))
        with pytest.raises(PeerUnreachable):
            association.receive_message(5)
        assert not association.is_open


def test_an_answer_of_one_byte_a_second_is_given_up() -> None:
    def drip(link: socket.socket) -> None:
        for byte in p_data((1, WHOLE, response())):
            link.sendall(bytes([byte]))
            time.sleep(0.1)

    started_s = time.monotonic()
    with peer_that(drip) as port:
        association = RequestedAssociation(peer_of(port), [ECHO], Timeouts(5, 0.5))
        with pytest.raises(PeerUnreachable, match=r"in time|too slow"):
            association.receive_message(5)
    assert time.monotonic() - started_s < 10
