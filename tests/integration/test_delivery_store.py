"""Sending: the bytes of the disk reach real peers, every answer of a peer has its meaning, a lost answer is never success."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from node.codes import IMPLEMENTATION_CLASS_UID, StoreStatus
from node.delivery.sender import find_files, send_paths
from node.delivery.store_scu import StoreOutcome, StoreScu, contexts_for, echo, judge_status, read_part10, store_files
from node.delivery.upper_layer import Context, Peer, Timeouts
from node.errors import (
    AssociationRejected,
    AssociationRejectedTransient,
    DeliveryError,
    PeerUnreachable,
    StoreOutOfResources,
    StoreRefused,
)
from node.network import IMPLEMENTATION_VERSION_NAME, CommandElement, CommandField
from node.network.command import decode_command, encode_command
from tests import realdata
from tests.factories import NATIVE, SyntheticSeries, make_ct_series, make_enhanced_ct
from tests.integration.intake_kit import config_for, data_set_of, listening, on_the_wire, open_scu, peer_of
from tests.peers import HOST, free_port, orthanc, storescp

QUICK = Timeouts(connect_s=2, answer_s=2)


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct", slices=4)


@contextmanager
def scripted_scp(answer: Callable[[int], int], *, syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian,), **entity: int) -> Iterator[int]:
    """A pynetdicom SCP that answers the n-th C-STORE as told; gives its port."""
    ae = AE("PEER")
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.2", list(syntaxes))
    for name, value in entity.items():
        setattr(ae, name, value)
    count = iter(range(10_000))
    server = ae.start_server((HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: answer(next(count)))])
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextmanager
def raw_peer(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A peer that takes one connection and does what the test says."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            link, _ = server.accept()
            with link:
                talk(link)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


# ── real peers ──────────────────────────────────────────────────────────────


@pytest.mark.peer
@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_dcmtk_gets_the_bytes_of_the_disk(tmp_path: Path, syntax: str) -> None:
    series = make_ct_series(tmp_path / "ct", slices=3, transfer_syntax=syntax)
    with storescp(tmp_path / "received", "+B") as port:
        summary = send_paths(peer_of(port, called="STORESCP"), [series.folder])
    assert summary.stored == 3, summary
    received = {str(dcmread(path).SOPInstanceUID): data_set_of(path) for path in (tmp_path / "received").iterdir()}
    assert received == {uid: data_set_of(path) for uid, path in zip(series.sop_instance_uids, series.paths, strict=True)}


@pytest.mark.peer
@pytest.mark.data
def test_dcmtk_gets_compressed_images_as_they_are(tmp_path: Path) -> None:
    paths = sorted(path for path in realdata.unpack("ts-matrix-cornerstone").rglob("*.dcm"))
    with storescp(tmp_path / "received", "+B") as port:
        summary = send_paths(peer_of(port, called="STORESCP"), paths)
    stored = {outcome.path for outcome in summary.outcomes if outcome.error is None}
    assert len(stored) >= 12, summary
    assert {type(outcome.error) for outcome in summary.failed} <= {StoreRefused}
    # storescp names files by SOP Instance UID: of the files that share one the last is left
    last = {read_part10(path).sop_instance_uid: path for path in paths if path in stored}
    received = {data_set_of(path) for path in (tmp_path / "received").iterdir()}
    assert received == {on_the_wire(path) for path in last.values()}


@pytest.mark.peer
def test_a_peer_that_takes_implicit_little_endian_only_gets_that(tmp_path: Path) -> None:
    """PS3.5 10.1: every peer must take it; our files are explicit."""
    for number, syntax in enumerate(NATIVE[:2] + NATIVE[3:]):
        series = make_enhanced_ct(tmp_path / f"ct{number}", slices=3, transfer_syntax=syntax)
        with storescp(tmp_path / f"received{number}", "+xi") as port:
            summary = send_paths(peer_of(port, called="STORESCP"), series.paths)
        assert summary.stored == 1, summary
        (path,) = (tmp_path / f"received{number}").iterdir()
        sent, received = dcmread(series.paths[0]), dcmread(path)
        assert received.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert {element.tag for element in received} == {element.tag for element in sent}
        assert received.PixelData == sent.PixelData


@pytest.mark.peer
def test_orthanc_keeps_what_we_send(tmp_path: Path, ct: SyntheticSeries) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        assert echo(HOST, archive.dicom_port, archive.ae_title, "RADNODE") < 5
        summary = send_paths(Peer(HOST, archive.dicom_port, archive.ae_title, "RADNODE"), [ct.folder])
        assert summary.statuses == {"stored": 4}
        assert archive.sop_instance_uids() == set(ct.sop_instance_uids)
        kept = {data_set_of(archive.download(name, tmp_path / "kept.dcm")) for name in archive.instances()}
        assert kept == {data_set_of(path) for path in ct.paths}
        again = send_paths(Peer(HOST, archive.dicom_port, archive.ae_title, "RADNODE"), [ct.folder])
        assert again.stored == 4, "a second time under one UID is harmless"
        assert len(archive.instances()) == 4


@pytest.mark.peer
def test_our_name_is_ours(ct: SyntheticSeries) -> None:
    seen = []
    ae = AE("PEER")
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.2")
    handlers = [(evt.EVT_ACCEPTED, lambda event: seen.append(event.assoc.requestor)), (evt.EVT_C_STORE, lambda _: 0)]
    server = ae.start_server((HOST, 0), block=False, evt_handlers=handlers)
    assert server is not None
    send_paths(Peer(HOST, server.server_address[1], "PEER", "RADNODE"), ct.paths)
    server.shutdown()
    (requestor,) = seen
    assert requestor.implementation_class_uid == IMPLEMENTATION_CLASS_UID
    assert requestor.implementation_version_name == IMPLEMENTATION_VERSION_NAME
    assert len(IMPLEMENTATION_VERSION_NAME) <= 16
    assert requestor.ae_title == "RADNODE"
    assert len(requestor.requested_contexts) == 2, "explicit as the files are, implicit for peers that take nothing else"


# ── answers ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        (0x0000, ""),
        (0xB000, "B000"),
        (0xB006, "B006"),
        (0xB007, "B007"),
        (0x0111, "0111"),
        (0xA700, StoreOutOfResources),
        (0xA7FF, StoreOutOfResources),
        (0x0110, StoreOutOfResources),
        (0xA900, StoreRefused),
        (0xC000, StoreRefused),
        (0xCFFF, StoreRefused),
        (0x0122, StoreRefused),
        (0x0124, StoreRefused),
        (0x0211, StoreRefused),
        (0x1234, PeerUnreachable),
        (0xFE00, PeerUnreachable),
    ],
    ids=lambda value: f"{value:04X}" if isinstance(value, int) else "",
)
def test_every_status_has_its_fate(ct: SyntheticSeries, status: int, fate: str | type[DeliveryError]) -> None:
    file = read_part10(ct.paths[0])
    with scripted_scp(lambda _: status) as port, StoreScu(peer_of(port, called="PEER"), contexts_for([file]), QUICK) as scu:
        if isinstance(fate, str):
            assert fate in scu.store(file)
        else:
            with pytest.raises(fate, match=f"{status:04X}"):
                scu.store(file)


def test_an_answer_without_status_is_no_success() -> None:
    for answer in ({}, {CommandElement.STATUS: "0"}, {CommandElement.ERROR_COMMENT: "all is well"}):
        with pytest.raises(PeerUnreachable):
            judge_status(answer)


def test_one_refused_file_does_not_stop_the_others(ct: SyntheticSeries) -> None:
    answers = [0, 0xA700, 0xC001, 0xB006]
    with scripted_scp(lambda number: answers[number]) as port:
        outcomes = list(store_files(peer_of(port, called="PEER"), [read_part10(path) for path in ct.paths], QUICK))
    assert [outcome.status for outcome in outcomes] == ["stored", "StoreOutOfResources", "StoreRefused", "stored"]
    assert outcomes[3].note == "B006"


def test_a_file_that_the_peer_has_no_context_for_is_refused_alone(tmp_path: Path, ct: SyntheticSeries) -> None:
    enhanced = make_enhanced_ct(tmp_path / "enhanced", slices=2)
    with scripted_scp(lambda _: 0) as port:
        summary = send_paths(peer_of(port, called="PEER"), [*enhanced.paths, *ct.paths], timeouts=QUICK)
    assert summary.statuses == {"StoreRefused": 1, "stored": 4}
    assert "no presentation context" in str(summary.failed[0].error)


def test_rejections_are_told_apart(ct: SyntheticSeries) -> None:
    file = read_part10(ct.paths[0])
    with scripted_scp(lambda _: 0, require_called_aet=True) as port, pytest.raises(AssociationRejected):
        open_scu(port, contexts_for([file]), called="OTHER")
    with (
        scripted_scp(lambda _: 0, maximum_associations=1) as port,
        open_scu(port, contexts_for([file]), called="PEER"),
        pytest.raises(AssociationRejectedTransient),
    ):
        open_scu(port, contexts_for([file]), called="PEER")
    assert AssociationRejectedTransient.retryable
    assert not AssociationRejected.retryable


def test_nobody_there(ct: SyntheticSeries) -> None:
    with pytest.raises(PeerUnreachable, match="refused"):
        echo(HOST, free_port(), "PEER", "RADNODE")
    with pytest.raises(PeerUnreachable):
        echo("no such host.invalid", 104, "PEER", "RADNODE")
    with pytest.raises(PeerUnreachable):
        echo("x" * 70 + ".invalid", 104, "PEER", "RADNODE")
    summary = send_paths(peer_of(free_port()), ct.paths)
    assert summary.statuses == {"PeerUnreachable": 4}


def test_a_peer_without_verification(ct: SyntheticSeries) -> None:
    with scripted_scp(lambda _: 0) as port, pytest.raises(StoreRefused, match="verification"):
        echo(HOST, port, "PEER", "RADNODE")


# ── peers that break ────────────────────────────────────────────────────────


def accept_first(link: socket.socket) -> bytes:
    """Reads an A-ASSOCIATE-RQ and accepts its first context in the syntax that was asked for."""
    request = read_pdu(link)
    ours = bytes.fromhex("10000015") + b"1.2.840.10008.3.1.1.1"
    context = bytes.fromhex("2100001b 01000000 40000013".replace(" ", "")) + b"1.2.840.10008.1.2.1"
    user = bytes.fromhex("50000008 5100000400004000".replace(" ", ""))
    body = struct.pack(">HH", 1, 0) + request[10:42] + bytes(32) + ours + context + user
    link.sendall(struct.pack(">BBI", 2, 0, len(body)) + body)
    return request


def read_pdu(link: socket.socket) -> bytes:
    head = link.recv(6, socket.MSG_WAITALL)
    return head + link.recv(struct.unpack(">I", head[2:])[0], socket.MSG_WAITALL) if len(head) == 6 else b""


def read_message(link: socket.socket) -> None:
    """Reads PDUs until the last fragment of a data set."""
    while pdu := read_pdu(link):
        if pdu[0] == 4 and pdu[11] == 2:
            return


def respond(link: socket.socket, **changes: int) -> None:
    command: dict[int, int | str] = {
        CommandElement.COMMAND_FIELD: changes.get("field", CommandField.C_STORE_RSP),
        CommandElement.MESSAGE_ID_RESPONDED_TO: changes.get("message_id", 1),
        CommandElement.DATA_SET_TYPE: 0x0101,
        CommandElement.STATUS: StoreStatus.SUCCESS,
    }
    data = encode_command(command)
    link.sendall(struct.pack(">BBIIBB", 4, 0, len(data) + 6, len(data) + 2, 1, 3) + data)


def silent(link: socket.socket) -> None:
    time.sleep(QUICK.answer_s + 1)


BREAKS: dict[str, Callable[[socket.socket], None]] = {
    "closes": lambda _link: None,
    "is silent": silent,
    "aborts": lambda link: link.sendall(struct.pack(">BBIHBB", 7, 0, 4, 0, 0, 0)),
    "releases": lambda link: link.sendall(struct.pack(">BBII", 5, 0, 4, 0)),
    "speaks HTTP": lambda link: link.sendall(b"HTTP/1.1 200 OK\r\n\r\nbody"),
    "answers another message": lambda link: respond(link, message_id=7),
    "answers another kind": lambda link: respond(link, field=CommandField.C_ECHO_RSP),
    "asks instead": lambda link: respond(link, field=CommandField.C_STORE_RQ),
    "sends a cut PDU": lambda link: link.sendall(struct.pack(">BBIIBB", 4, 0, 100, 90, 1, 3)),
    "lies about a length": lambda link: link.sendall(struct.pack(">BBIIBB", 4, 0, 10, 4000, 1, 3) + bytes(4)),
    "sends a data set": lambda link: link.sendall(struct.pack(">BBIIBB", 4, 0, 8, 4, 1, 2) + bytes(2)),
    "sends nothing in a PDU": lambda link: link.sendall(struct.pack(">BBI", 4, 0, 0)),
    "sends a PDU without end": lambda link: link.sendall(struct.pack(">BBI", 4, 0, 0xFFFFFFFF)),
}


@pytest.mark.parametrize("how", BREAKS)
def test_whatever_comes_instead_of_an_answer_the_outcome_is_unknown_and_retryable(ct: SyntheticSeries, how: str) -> None:
    file = read_part10(ct.paths[0])

    def talk(link: socket.socket) -> None:
        accept_first(link)
        read_message(link)
        BREAKS[how](link)

    with raw_peer(talk) as port:
        scu = StoreScu(peer_of(port), contexts_for([file]), QUICK)
        with pytest.raises(PeerUnreachable) as caught:
            scu.store(file)
        assert caught.value.retryable
        assert not scu.is_open
        scu.close()


@pytest.mark.parametrize("how", ["closes", "is silent", "aborts", "releases", "speaks HTTP", "sends a PDU without end"])
def test_whatever_comes_instead_of_an_acceptance_there_is_no_association(ct: SyntheticSeries, how: str) -> None:
    def talk(link: socket.socket) -> None:
        read_pdu(link)
        BREAKS[how](link)

    with raw_peer(talk) as port, pytest.raises(PeerUnreachable):
        StoreScu(peer_of(port), [Context("1.2.840.10008.5.1.4.1.1.2", ExplicitVRLittleEndian)], QUICK)


def test_a_peer_that_hangs_up_in_mid_transfer(tmp_path: Path) -> None:
    big = make_ct_series(tmp_path / "big", slices=2, rows=1500, columns=1500)

    def talk(link: socket.socket) -> None:
        accept_first(link)
        link.recv(1000)

    with raw_peer(talk) as port:
        (outcome,) = store_files(peer_of(port), [read_part10(big.paths[0])], QUICK)
    assert outcome.status == "PeerUnreachable"


def test_an_answer_in_pieces_is_put_together(ct: SyntheticSeries) -> None:
    """Command fragments over several PDUs, bytes one by one."""
    file = read_part10(ct.paths[0])
    answer = encode_command(
        {CommandElement.COMMAND_FIELD: CommandField.C_STORE_RSP, CommandElement.MESSAGE_ID_RESPONDED_TO: 1, CommandElement.STATUS: 0xB007}
    )

    def talk(link: socket.socket) -> None:
        accept_first(link)
        read_message(link)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place, flags in ((slice(0, 5), 1), (slice(5, 5), 1), (slice(5, None), 3)):
            part = answer[place]
            for byte in struct.pack(">BBIIBB", 4, 0, len(part) + 6, len(part) + 2, 1, flags) + part:
                link.sendall(bytes([byte]))
        read_pdu(link)
        link.sendall(struct.pack(">BBII", 6, 0, 4, 0))

    with raw_peer(talk) as port, StoreScu(peer_of(port), contexts_for([file]), QUICK) as scu:
        assert scu.store(file) == "B007"


@pytest.mark.parametrize("limit", [4096, 16384, 65536, 131072])
def test_fragments_fit_the_pdu_of_the_peer(tmp_path: Path, limit: int) -> None:
    series = make_ct_series(tmp_path / "ct", slices=2, rows=400, columns=400)
    with listening(config_for(tmp_path / "state", max_pdu_bytes=limit)) as listener:
        summary = send_paths(peer_of(listener.port), series.paths)
        assert summary.stored == 2
        assert set(listener.kept().values()) == {data_set_of(path) for path in series.paths}


def test_commands_survive_their_encoding() -> None:
    command: dict[int, int | str] = {0x0002: "1.2.840.10008.1.1", 0x0100: 0x30, 0x0110: 7, 0x0800: 0x0101}
    encoded = encode_command(command)
    assert len(encoded) % 2 == 0
    decoded = decode_command(encoded)
    assert decoded.items() >= command.items()


# ── folders ─────────────────────────────────────────────────────────────────


def test_what_is_no_dicom_is_skipped_with_a_reason(tmp_path: Path, ct: SyntheticSeries) -> None:
    (ct.folder / "sub").mkdir()
    (ct.folder / "sub" / "notes.txt").write_text("no DICOM")
    (ct.folder / "empty").write_bytes(b"")
    told: list[tuple[StoreOutcome, int, int]] = []
    with listening(config_for(tmp_path / "state")) as listener:
        summary = send_paths(peer_of(listener.port), [ct.folder, tmp_path / "gone"], on_outcome=lambda *seen: told.append(seen))
    assert summary.stored == 4
    assert {path.name for path, _ in summary.skipped} == {"notes.txt", "empty", "gone"}
    assert [(done, total) for _, done, total in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert summary.size_bytes == sum(path.stat().st_size for path in ct.paths)
    assert list(find_files(ct.paths)) == list(ct.paths)
