"""The quick ways of the receive path say what the thorough ones say: pieces of data sets, and UIDs in plain sight."""

import socket
import struct
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from node.errors import CannotUnderstand, DataSetMismatch
from node.intake.uids import StoreRequest, read_uids, scan_uids
from node.network import LAST_FRAGMENT, NO_DATA_SET, CommandElement, CommandField, PduType
from node.network.command import encode_command, encode_store_response
from node.network.link import Link, LinkBroken
from tests.property.test_network_fuzz import EXPLICIT, IMPLICIT, Edit, edits, mutated, pair

RELEASE = struct.pack(">BBI", PduType.RELEASE_RQ, 0, 4) + bytes(4)
LONGEST = 1 << 16


def fragment(data: bytes, flags: int = 0, context_id: int = 1) -> bytes:
    return struct.pack(">IBB", len(data) + 2, context_id, flags) + data


def data_pdu(*fragments: bytes) -> bytes:
    return struct.pack(">BBI", PduType.DATA, 0, sum(map(len, fragments))) + b"".join(fragments)


def saying(words: bytes, cuts: list[int]) -> tuple[Link, socket.socket]:
    """A link over which a peer says some words, in pieces."""
    near, far = pair()

    def say() -> None:
        place = 0
        with suppress(OSError):  # the link has heard enough
            for cut in [*cuts, len(words)]:
                near.sendall(words[place : place + cut])
                place += cut
            near.shutdown(socket.SHUT_WR)

    threading.Thread(target=say, daemon=True).start()
    return Link(far, timeout_s=5.0, longest_pdu_bytes=LONGEST), near


def heard(link: Link, *, quickly: bool, room_bytes: int = 0) -> list[tuple[int, int, int, bytes]]:
    """Kind of PDU, context, flags and bytes of all that comes: by whole PDUs, or by the quick way wherever it will.

    Where there is room, every data set may be put in its place: as much of it as there is room for.
    """
    found: list[tuple[int, int, int, bytes]] = []
    link.gulp_bytes = 20 if room_bytes else link.gulp_bytes  # the rest has a better place than the buffer
    room, place = memoryview(bytearray(room_bytes)), 0
    try:
        while True:
            received = link.receive_data(1, 1e18, room[place:] if place < room_bytes else None) if quickly else None
            if received is not None:
                pieces, is_last, in_room = received
                assert pieces or is_last
                if in_room:
                    (piece,) = pieces
                    assert piece == room[place : place + len(piece)]
                place = 0 if is_last else place + sum(map(len, pieces))
                found.append((PduType.DATA, 1, LAST_FRAGMENT if is_last else 0, b"".join(pieces)))
                continue
            kind, body = link.receive_pdu()
            if kind != PduType.DATA:
                found.append((kind, 0, 0, bytes(body)))
                continue
            for context_id, flags, data in link.fragments_in(body):
                found.append((kind, context_id, flags & 3, bytes(data)))  # the other bits are reserved (PS3.8 E.2)
    except LinkBroken as error:
        found.append((-1, 0, 0, str(error).encode()))
    return found


def joined(found: list[tuple[int, int, int, bytes]]) -> list[tuple[int, int, int, bytes]]:
    """Runs of fragments of one data set as one: where they were cut says nothing."""
    result: list[tuple[int, int, int, bytes]] = []
    for kind, context_id, flags, data in found:
        if result and kind == PduType.DATA and result[-1][:3] == (kind, context_id, 0) and not flags & 1:
            result[-1] = (kind, context_id, flags, result[-1][3] + data)
        else:
            result.append((kind, context_id, flags, data))
    return [one for one in result if one[0] != PduType.DATA or one[2] or one[3]]


def unfinished(found: list[tuple[int, int, int, bytes]]) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """What came, and apart from it the beginning of a data set that a broken connection has cut off."""
    if len(found) > 1 and found[-1][0] == -1 and found[-2][:3] == (PduType.DATA, 1, 0):
        return [*found[:-2], found[-1]], found[-2][3]
    return found, b""


fragments = st.builds(fragment, st.binary(max_size=3000), st.sampled_from([0, 0, 0, 2, 2, 1, 3]), st.sampled_from([1, 1, 1, 1, 3]))
pdus = st.builds(lambda some: data_pdu(*some), st.lists(fragments, min_size=1, max_size=4))

alike = st.builds(
    lambda size, count, last: b"".join(data_pdu(fragment(bytes([n]) * size)) for n in range(count)) + data_pdu(fragment(b"l" * last, 2)),
    st.integers(1, 700),
    st.integers(0, 9),
    st.integers(0, 800),
)
"""A data set as nearly everybody sends it: fragments of one length, each in a PDU of its own, the last one shorter."""


@settings(max_examples=400, deadline=None)
@given(
    st.lists(pdus | alike | st.just(RELEASE), max_size=8),
    st.lists(st.integers(1, 5000), max_size=6),
    edits,
    st.sampled_from([0, 0, 100, 5000, 1 << 16]),
)
@example([data_pdu(fragment(b"ab"), fragment(b"", 2), fragment(b"c", 3)), RELEASE], [1, 1, 1, 1, 1, 1], [], 0)
@example([data_pdu(fragment(b"x" * 70_000, 2))], [], [], 0)
@example([data_pdu(fragment(b"abc")), data_pdu(fragment(b"")), data_pdu(fragment(b"", 2))], [17], [Edit(0, 0, b"")], 0)
@example([data_pdu(fragment(b"abcd")), data_pdu(fragment(b"ef")), data_pdu(fragment(b"ghij")), data_pdu(fragment(b"k", 2))], [14], [], 100)
@example([data_pdu(fragment(b"ab")), data_pdu(fragment(b"c", 2)), data_pdu(fragment(b"d", 3)), RELEASE], [], [], 100)
@example([data_pdu(fragment(b"x" * 99)), data_pdu(fragment(b"y" * 99)), data_pdu(fragment(b"z" * 99, 2))], [20, 90, 100], [], 100)
@example([data_pdu(fragment(b"ab")), data_pdu(fragment(b"cd"), fragment(b"ef", 2))], [14], [], 100)
def test_pieces_as_they_come_are_the_fragments_of_whole_pdus(
    words: list[bytes], cuts: list[int], changes: list[Edit], room_bytes: int
) -> None:
    said = mutated(b"".join(words), changes)
    answers = []
    for quickly in (False, True):
        link, near = saying(said, cuts)
        with closing(near), closing(link):
            answers.append(joined(heard(link, quickly=quickly, room_bytes=room_bytes)))
    thorough, quick = answers
    if thorough[-1] == quick[-1]:
        (whole, begun), (whole_quickly, begun_quickly) = unfinished(thorough), unfinished(quick)
        assert whole_quickly == whole
        assert begun_quickly.startswith(begun), "the quick way passes on what a whole PDU would have waited for"
    else:  # a PDU that is cut off or a lie: the quick way may have passed on the beginning of it before it is known
        assert thorough[-1][0] == quick[-1][0] == -1
        shorter = min(len(thorough), len(quick)) - 1
        assert quick[: shorter - 1] == thorough[: shorter - 1]


@dataclass(frozen=True)
class Held:
    """A data set, as a file that is arriving holds it."""

    path: Path
    beginning: bytes
    head_bytes: int = 0

    def flush(self) -> None:
        """It lies there already."""


def encoded(syntax: str, uids: list[str], extra: list[tuple[int, str, str]]) -> bytes:
    dataset = Dataset()
    for tag, uid in zip((0x00080016, 0x00080018, 0x0020000D, 0x0020000E), uids, strict=True):
        if uid:
            dataset.add_new(Tag(tag), "UI", uid)
    for tag, vr, value in extra:
        dataset.add_new(Tag(tag), vr, value)
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = syntax == IMPLICIT, True
    write_dataset(stream, dataset)
    return bytes(stream.getvalue())


uids = st.sampled_from(["1.2.3", "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5.6.7", "2.25.123456", ""])
extras = st.lists(
    st.sampled_from([(0x00080005, "CS", "ISO_IR 100"), (0x00080060, "CS", "CT"), (0x00091001, "LO", "x"), (0x00100010, "PN", "A^B"),
                     (0x00180050, "DS", "1.5"), (0x00190010, "UN", b"1234"), (0x00200010, "SH", "7"), (0x00280010, "US", 4)]),
    max_size=4,
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([IMPLICIT, EXPLICIT]), st.lists(uids, min_size=4, max_size=4), extras, edits)
def test_uids_in_plain_sight_are_those_that_the_parser_finds(
    tmp_path: Path, syntax: str, said: list[str], extra: list[tuple[int, str, str]], changes: list[Edit]
) -> None:
    path = tmp_path / "data set"
    content = mutated(encoded(syntax, said, extra), changes)
    request = StoreRequest(said[0] or "1.2", said[1] or "1.3", syntax, "TESTER", "a")
    path.write_bytes(content)
    answers: list[object] = []
    for beginning in (content, b""):
        try:
            answers.append(read_uids(Held(path, beginning), request))
        except (CannotUnderstand, DataSetMismatch) as error:
            answers.append(type(error))
    if scan_uids(content, implicit=syntax == IMPLICIT) is not None:
        assert answers[0] == answers[1]


@given(uids.filter(bool), uids.filter(bool), st.integers(0, 65535), st.sampled_from([0, 0xA700, 0xC000, 0xB007]))
def test_a_store_response_is_encoded_as_every_other_command(sop_class: str, instance: str, message_id: int, status: int) -> None:
    assert encode_store_response(sop_class, instance, message_id, status) == encode_command(
        {
            CommandElement.AFFECTED_SOP_CLASS_UID: sop_class,
            CommandElement.COMMAND_FIELD: CommandField.C_STORE_RSP,
            CommandElement.MESSAGE_ID_RESPONDED_TO: message_id,
            CommandElement.DATA_SET_TYPE: NO_DATA_SET,
            CommandElement.STATUS: status,
            CommandElement.AFFECTED_SOP_INSTANCE_UID: instance,
        }
    )


def test_data_sets_that_are_built_alike_are_told_apart_from_those_that_are_not() -> None:
    """The third of a kind is recognised by its build, whatever its values; one byte more somewhere, and it is walked through again."""
    for instance, modality in (("1.3.1", "CT"), ("1.3.2", "CT"), ("1.3.3", "MR"), ("1.3.4", "CT"), ("1.3.55", "CT"), ("1.3.6", "CT")):
        found = scan_uids(encoded(EXPLICIT, ["1.2", instance, "1.4", "1.5"], [(0x00080060, "CS", modality)]), implicit=False)
        assert found is not None
        assert found[0x00080018] == instance
    cut_off = encoded(EXPLICIT, ["1.2", "1.3.7", "1.4", "1.5"], [(0x00080060, "CS", "CT")])[:-1]
    assert scan_uids(cut_off, implicit=False) is None


def test_an_empty_last_fragment_that_comes_alone_ends_the_data_set_in_its_place() -> None:
    near, far = pair()
    with closing(near), closing(Link(far, timeout_s=5.0, longest_pdu_bytes=LONGEST)) as link:
        link.gulp_bytes = 20
        near.sendall(data_pdu(fragment(b"a" * 50)))
        near.sendall(data_pdu(fragment(b"b" * 50)))
        room, place = memoryview(bytearray(400)), 0
        while place < 100:
            received = link.receive_data(1, 1e18, room[place:])
            assert received is not None
            assert not received.is_last
            size = sum(map(len, received.pieces))
            if not received.in_room:
                room[place : place + size] = b"".join(received.pieces)
            place += size
        near.sendall(data_pdu(fragment(b"", 2)))
        ended = link.receive_data(1, 1e18, room[place:])
        assert ended is not None
        assert ended.is_last
        assert not b"".join(ended.pieces)
        assert bytes(room[:100]) == b"a" * 50 + b"b" * 50


def test_the_scan_sees_what_nearly_every_data_set_says() -> None:
    for syntax in (IMPLICIT, EXPLICIT):
        content = encoded(syntax, ["1.2", "1.3", "1.4", "1.5"], [(0x00080060, "CS", "CT"), (0x00280010, "US", 4)])  # type: ignore[list-item]
        assert scan_uids(content, implicit=syntax == IMPLICIT) == {
            0x00080016: "1.2",
            0x00080018: "1.3",
            0x0020000D: "1.4",
            0x0020000E: "1.5",
        }
