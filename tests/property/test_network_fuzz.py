"""Bytes from the network, as they are and mutated: accepted, or a typed refusal; never anything else."""

import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)

from node.delivery.store_scu import StoreScu, contexts_for, read_part10
from node.delivery.upper_layer import Context, Peer, RequestedAssociation, Timeouts, _associate_request
from node.domain.commitment import CommitmentReport
from node.domain.instance import InstanceHeader
from node.errors import CannotUnderstand, DataSetMismatch, DeliveryError, IntakeError, OutOfResources
from node.intake.conversation import Conversation, Services
from node.intake.headers import read_header
from node.intake.incoming import FileIdentity, IncomingFile
from node.intake.negotiation import MalformedRequest, accept_request, read_request, rejection_pdu
from node.intake.slots import Place
from node.intake.spool import Spool
from node.intake.uids import InstanceUids, StoreRequest, read_uids
from node.network import (
    COMMAND_FRAGMENT,
    DATA_SET_FOLLOWS,
    LAST_FRAGMENT,
    NO_DATA_SET,
    STORAGE_COMMITMENT,
    VERIFICATION,
    CommandElement,
    CommandField,
    PduType,
    Rejection,
)
from node.network.command import decode_command, encode_command
from node.network.commitment import MalformedReport, decode_commitment_report, encode_commitment_request
from node.network.link import Link, LinkBroken
from tests.factories import make_ct_series
from tests.integration.intake_kit import data_set_of, p_data
from tests.peers import HOST

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian)
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
WHOLE = COMMAND_FRAGMENT | LAST_FRAGMENT
RELEASE = struct.pack(">BBI", PduType.RELEASE_RQ, 0, 4) + bytes(4)

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""An example takes milliseconds; `--hypothesis-seed` repeats a run."""


@dataclass(frozen=True)
class Edit:
    """A change of bytes: `taken` of them at a place, in millionths of the whole, give way to others."""

    place: int
    taken: int
    given: bytes


LENGTHS = [struct.pack(form, number) for form in ("<H", ">H", "<I", ">I") for number in (0, 1, 2, 0x7FFF, 0xFFFF)]
LENGTHS += [struct.pack(form, number) for form in ("<I", ">I") for number in (0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 20)]
edits = st.lists(
    st.builds(
        Edit,
        st.integers(0, 999_999) | st.integers(0, 60_000),  # heads and lengths stand at the beginning
        st.sampled_from([0, 1, 1, 2, 2, 4, 4, 8, 40, 1 << 30]),
        st.sampled_from(LENGTHS)
        | st.binary(max_size=8)
        | st.sampled_from([b"", b"\x00" * 64, b"\xff" * 64, b"SQ", b"UN\x00\x00", b"../", b"\\"]),
    ),
    max_size=6,
)


def mutated(original: bytes, changes: list[Edit]) -> bytes:
    words = bytearray(original)
    for change in changes:
        place = len(words) * change.place // 1_000_000
        words[place : place + change.taken] = change.given
    return bytes(words)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection."""
    with socket.create_server((HOST, 0)) as server:
        near = socket.create_connection(server.getsockname(), timeout=5)
        far, _ = server.accept()
    far.settimeout(5)
    return near, far


def saying(words: bytes) -> tuple[Link, socket.socket]:
    """A link over which a peer has said all that it will say."""
    near, far = pair()

    def say() -> None:
        with suppress(OSError):
            near.sendall(words)
            near.shutdown(socket.SHUT_WR)

    threading.Thread(target=say, daemon=True).start()
    return Link(far, timeout_s=5.0, longest_pdu_bytes=1 << 20), near


def generous_request() -> bytes:
    """An A-ASSOCIATE-RQ with everything that may be negotiated."""
    ae = AE("TESTER")
    for sop_class in (VERIFICATION, CT, STORAGE_COMMITMENT):
        ae.add_requested_context(sop_class, [IMPLICIT, EXPLICIT])
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "TESTER", "RADNODE"
    contexts = ae.requested_contexts
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = contexts
    window, extended, identity = AsynchronousOperationsWindowNegotiation(), SOPClassExtendedNegotiation(), UserIdentityNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    extended.sop_class_uid, extended.service_class_application_information = CT, b"\x01\x00"
    identity.user_identity_type, identity.primary_field, identity.secondary_field = 2, b"name", b"word"
    from pynetdicom.pdu_primitives import ImplementationClassUIDNotification, MaximumLengthNotification

    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16384, "1.2.3"
    role = build_role(STORAGE_COMMITMENT, scp_role=True)
    request.user_information = [length, implementation, window, role, extended, identity]
    return bytes(A_ASSOCIATE_RQ(request).encode())


REQUESTS = (
    generous_request(),
    _associate_request(Peer(HOST, 0, "RADNODE", "TESTER"), [Context(CT, EXPLICIT), Context(VERIFICATION, IMPLICIT)]),
)


# ── PDUs ────────────────────────────────────────────────────────────────────


@given(st.sampled_from(REQUESTS), edits, edits)
@quick
def test_pdus_are_taken_apart_or_refused(request: bytes, of_request: list[Edit], of_data: list[Edit]) -> None:
    data = p_data((1, WHOLE, bytes(60)), (3, 0, bytes(300)), (3, LAST_FRAGMENT, bytes(77)))
    link, near = saying(mutated(request, of_request) + mutated(data, of_data))
    with near, suppress(LinkBroken):
        for _ in range(1000):
            kind, body = link.receive_pdu()
            if kind == PduType.DATA:
                for context_id, flags, fragment in link.fragments_in(body):
                    assert 0 <= context_id <= 255
                    assert 0 <= flags <= 255
                    assert len(fragment) <= len(body)
            else:
                answer_or_refuse(kind, bytes(body))
    link.close()


@given(st.integers(0, 8), st.binary(max_size=300))
@quick
def test_noise_in_a_pdu_is_a_malformed_request(kind: int, body: bytes) -> None:
    answer_or_refuse(kind, body)


@given(st.sampled_from(REQUESTS), edits)
@quick
def test_a_request_is_answered_or_refused_whatever_its_items_say(request: bytes, changes: list[Edit]) -> None:
    answer_or_refuse(PduType.ASSOCIATE_RQ, mutated(request[6:], changes))


def answer_or_refuse(kind: int, body: bytes) -> None:
    """What is accepted must be an answer that the other side can read, with contexts that it proposed."""
    try:
        request = read_request(kind, body)
        assert isinstance(request.reports_only, bool)
        acceptance = accept_request(request, 16384, reports=True)
    except MalformedRequest:
        return
    answer = A_ASSOCIATE_AC()
    answer.decode(acceptance.encoded)
    proposed = {context.context_id for context in request.primitive.presentation_context_definition_list}
    assert acceptance.transfer_syntaxes.keys() <= proposed


# ── commands ────────────────────────────────────────────────────────────────

COMMANDS = (
    encode_command(
        {
            CommandElement.AFFECTED_SOP_CLASS_UID: CT,
            CommandElement.COMMAND_FIELD: CommandField.C_STORE_RQ,
            CommandElement.MESSAGE_ID: 1,
            CommandElement.PRIORITY: 0,
            CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
            CommandElement.AFFECTED_SOP_INSTANCE_UID: "1.2.3",
        }
    ),
    encode_command(
        {
            CommandElement.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT,
            CommandElement.COMMAND_FIELD: CommandField.N_EVENT_REPORT_RQ,
            CommandElement.MESSAGE_ID: 2,
            CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
            CommandElement.AFFECTED_SOP_INSTANCE_UID: "1.2.840.10008.1.20.1.1",
            CommandElement.EVENT_TYPE_ID: 2,
        }
    ),
    encode_command(
        {
            CommandElement.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            CommandElement.COMMAND_FIELD: CommandField.C_ECHO_RQ,
            CommandElement.MESSAGE_ID: 3,
            CommandElement.DATA_SET_TYPE: NO_DATA_SET,
        }
    ),
)


@given(st.sampled_from(COMMANDS), edits)
@quick
def test_a_command_is_numbers_and_texts(command: bytes, changes: list[Edit]) -> None:
    decoded = decode_command(mutated(command, changes))
    assert all(isinstance(number, int) and isinstance(value, int | str) for number, value in decoded.items())
    assert len(encode_command({key: value for key, value in decoded.items() if key})) >= 12, "whatever was said can be echoed"


@dataclass
class Reception:
    """What a conversation hands its instances to: they are scanned as ever, and thrown away; surprises are kept."""

    surprises: list[BaseException] = field(default_factory=list)

    def accept(self, incoming: IncomingFile, request: StoreRequest) -> None:
        try:
            incoming.flush()
            incoming.check()
            read_uids(incoming, request)
        except IntakeError as error:
            if isinstance(error, OutOfResources):
                self.surprises.append(error)
            raise
        except BaseException as error:
            self.surprises.append(error)
            raise
        finally:
            incoming.discard()

    def on_report(self, report: CommitmentReport) -> bool:
        return bool(report.committed)


@given(
    request=st.sampled_from(REQUESTS),
    messages=st.lists(st.tuples(st.sampled_from(COMMANDS), edits, st.sampled_from([1, 1, 3, 5, 7]), edits), min_size=1, max_size=3),
    sizes=st.integers(1, 400),
)
@quick
def test_a_conversation_ends_in_good_order_or_is_broken(
    tmp_path: Path, request: bytes, messages: list[tuple[bytes, list[Edit], int, list[Edit]]], sizes: int
) -> None:
    spool = Spool(tmp_path / "spool")
    (tmp_path / "spool" / "incoming").mkdir(parents=True, exist_ok=True)
    data_set = encode_commitment_request("1.2.3", [(CT, "1.2.3.4")])
    said = request
    for command, of_command, context_id, of_data in messages:
        said += p_data((context_id, WHOLE, mutated(command, of_command)))
        words = mutated(data_set, of_data)
        pieces = [words[place : place + sizes] for place in range(0, len(words), sizes)] or [b""]
        said += p_data(*[(context_id, LAST_FRAGMENT if number == len(pieces) else 0, piece) for number, piece in enumerate(pieces, 1)])
    link, near = saying(said + RELEASE)
    reception = Reception()
    services = Services(spool, reception.accept, lambda *_: None, lambda: None, 5.0, 16384, reception.on_report)
    conversation = Conversation(link, HOST, services)
    with near, suppress(LinkBroken):
        conversation.run()
    link.close()
    assert not reception.surprises
    assert not any(path.stat().st_size for path in (tmp_path / "spool" / "incoming").iterdir())


# ── data sets ───────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=SYNTAXES, ids=lambda uid: uid.name)
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real file in a transfer syntax."""
    return make_ct_series(tmp_path_factory.mktemp("ct"), slices=2, rows=8, columns=8, transfer_syntax=request.param).paths[0]


@given(changes=edits, inside=st.booleans())
@quick
def test_a_data_set_is_filed_or_refused(tmp_path: Path, instance: Path, changes: list[Edit], inside: bool) -> None:
    file = read_part10(instance)
    data = data_set_of(instance)
    if file.transfer_syntax_uid == DeflatedExplicitVRLittleEndian and inside:  # what lies under the compression
        deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        data = deflate.compress(mutated(zlib.decompress(data, -zlib.MAX_WBITS), changes)) + deflate.flush()
    else:
        data = mutated(data, changes)
    identity = FileIdentity(file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid)
    path = tmp_path / "one.part"
    incoming = IncomingFile(Place(str(path)), identity)
    try:
        incoming.write(data)
        incoming.flush()
        uids = read_uids(incoming, StoreRequest(file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid, "TESTER", "1"))
        assert isinstance(uids, InstanceUids)
        assert (uids.sop_class, uids.sop_instance) == (file.sop_class_uid, file.sop_instance_uid)
    except (CannotUnderstand, DataSetMismatch):
        pass
    finally:
        with suppress(CannotUnderstand):
            assert isinstance(read_header(path), InstanceHeader)
        incoming.discard()


@given(changes=edits)
@quick
def test_a_file_has_a_header_or_is_refused(tmp_path: Path, instance: Path, changes: list[Edit]) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(mutated(instance.read_bytes(), changes))
    with suppress(CannotUnderstand):
        assert isinstance(read_header(path), InstanceHeader)


@given(st.sampled_from([IMPLICIT, EXPLICIT]), st.integers(0, 3), edits)
@quick
def test_a_report_is_read_or_refused(syntax: str, count: int, changes: list[Edit]) -> None:
    data = encode_commitment_request("1.2.3", [(CT, f"1.2.{number}") for number in range(count)])
    with suppress(MalformedReport):
        report = decode_commitment_report(mutated(data, changes), syntax)
        assert isinstance(report, CommitmentReport)
        assert not report.committed & report.failed.keys()


# ── what answers us ─────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def answers() -> Iterator[bytes]:
    """What a peer says to a store: acceptance, response, release."""
    request = read_request(PduType.ASSOCIATE_RQ, REQUESTS[1][6:])
    response = encode_command(
        {
            CommandElement.COMMAND_FIELD: CommandField.C_STORE_RSP,
            CommandElement.MESSAGE_ID_RESPONDED_TO: 1,
            CommandElement.DATA_SET_TYPE: NO_DATA_SET,
            CommandElement.STATUS: 0,
        }
    )
    return accept_request(request, 16384).encoded + p_data((1, WHOLE, response)) + struct.pack(">BBI", PduType.RELEASE_RP, 0, 4) + bytes(4)


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that needs no other transfer syntax."""
    return make_ct_series(tmp_path_factory.mktemp("ct"), slices=2, rows=8, columns=8, transfer_syntax=ExplicitVRLittleEndian).paths[0]


@given(changes=edits, rejected=st.booleans())
@quick
def test_whatever_a_peer_answers_is_an_outcome(answers: bytes, explicit: Path, changes: list[Edit], rejected: bool) -> None:
    said = mutated(rejection_pdu(Rejection.LOCAL_LIMIT) if rejected else answers, changes)
    with socket.create_server((HOST, 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                for _ in range(2):
                    link, _ = server.accept()
                    with link:
                        link.settimeout(5)
                        link.sendall(said)
                        link.shutdown(socket.SHUT_WR)
                        while link.recv(1 << 16):
                            pass

        peer = threading.Thread(target=answer, daemon=True)
        peer.start()
        file = read_part10(explicit)
        address = Peer(HOST, server.getsockname()[1], "RADNODE", "TESTER")
        with suppress(DeliveryError), StoreScu(address, contexts_for([file]), Timeouts(5, 5)) as scu:
            assert isinstance(scu.store(file), str)
        with suppress(DeliveryError), RequestedAssociation(address, [Context(CT, EXPLICIT)], Timeouts(5, 5)) as association:
            message = association.receive_message(5)
            assert message is not None
            assert isinstance(message.data_set, bytes)
        peer.join(5)
        assert not peer.is_alive()
