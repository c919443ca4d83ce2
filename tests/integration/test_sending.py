"""Sending fast: bytes go from the file to the wire as they are, several operations and several associations at once lose no outcome."""

import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import UID

from node.delivery import p_data, upper_layer
from node.delivery.parallel import store_in_parallel
from node.delivery.part10 import Part10File, read_part10
from node.delivery.sender import send_paths
from node.delivery.store_scu import StoreOutcome, StoreScu, contexts_for, store_files
from node.delivery.upper_layer import Peer, Timeouts
from node.errors import PeerUnreachable, StoreOutOfResources
from node.network import link as link_module
from node.network.link import Link
from tests.certificates import Authority, tls_peer
from tests.integration.sending_kit import Acceptor, Conversation, Stored, accepting
from tests.peers import HOST, orthanc, storescp

QUICK = Timeouts(connect_s=2, answer_s=2)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
SYNTAXES = {
    "explicit": EXPLICIT,
    "implicit": "1.2.840.10008.1.2",
    "big endian": "1.2.840.10008.1.2.2",
    "deflated": DEFLATED,
    "JPEG baseline": "1.2.840.10008.1.2.4.50",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "HTJ2K": "1.2.840.10008.1.2.4.201",
    "RLE": "1.2.840.10008.1.2.5",
    "MPEG-4": "1.2.840.10008.1.2.4.102",
    "unknown to us": "1.2.3.4.5.6",
}


def peer_of(port: int, *, operations: int = 16) -> Peer:
    return Peer(HOST, port, "PEER", "RADNODE", async_operations=operations)


def write_file(path: Path, data_set: bytes, *, uid: str = "1.2.3", syntax: str = EXPLICIT) -> Part10File:
    """Writes a Part 10 file around bytes that need not be a data set: a sender does not look at them."""

    def element(number: int, vr: bytes, value: bytes) -> bytes:
        value += b"\x00" * (len(value) % 2)
        head = struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) if vr == b"OB" else struct.pack("<HH2sH", 2, number, vr, len(value))
        return head + value

    uids = ((2, SECONDARY_CAPTURE), (3, uid), (16, syntax), (18, "1.2.3.4"))
    meta = element(1, b"OB", b"\x00\x01") + b"".join(element(number, b"UI", value.encode()) for number, value in uids)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + element(0, b"UL", struct.pack("<I", len(meta))) + meta + data_set)
    return read_part10(path)


def many_files(folder: Path, count: int, size: int = 3000) -> list[Part10File]:
    noise = random.Random(7).randbytes(size)
    return [write_file(folder / f"{number}.dcm", noise, uid=f"1.2.3.{number}") for number in range(1, count + 1)]


def statuses(outcomes: list[StoreOutcome]) -> dict[str, str]:
    found = {outcome.sop_instance_uid: outcome.status for outcome in outcomes}
    assert len(found) == len(outcomes), "an outcome was told twice"
    return found


# ── bytes ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_goes_as_it_lies_on_the_disk_in_every_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    data_set = random.Random(syntax).randbytes(70_000)
    file = write_file(tmp_path / "a.dcm", data_set, syntax=SYNTAXES[syntax])
    with accepting(Acceptor()) as acceptor:
        (outcome,) = store_files(peer_of(acceptor.port), [file], QUICK)
    assert outcome.error is None
    assert acceptor.data_sets() == {"1.2.3": data_set}
    assert not acceptor.faults


@pytest.mark.parametrize("max_pdu_bytes", [8, 300, 4096, 16384, 131072, 0x7FFFFFFF, 0])
def test_every_length_fits_the_pdu_of_the_peer_and_arrives_whole(tmp_path: Path, max_pdu_bytes: int) -> None:
    """Around the ends of fragments and of what is read at once; odd ones get their NULL (PS3.8 9.3.5.1)."""
    fragment = min(max_pdu_bytes or p_data.BUFFER_BYTES, p_data.BUFFER_BYTES) - 6
    at_once = max(1, min(1000, p_data.BUFFER_BYTES // (fragment + 12))) * fragment
    lengths = {
        0,
        1,
        2,
        3,
        fragment - 1,
        fragment,
        fragment + 1,
        2 * fragment,
        at_once - 1,
        at_once,
        at_once + 1,
        at_once + fragment,
        2 * at_once + 3,
    }
    noise = random.Random(max_pdu_bytes).randbytes(max(lengths))
    files = [write_file(tmp_path / f"{length}.dcm", noise[:length], uid=f"1.2.{length}", syntax=DEFLATED) for length in sorted(lengths)]
    with accepting(Acceptor(max_pdu_bytes=max_pdu_bytes)) as acceptor:
        assert set(statuses(list(store_files(peer_of(acceptor.port), files, Timeouts(2, 10)))).values()) == {"stored"}
    assert acceptor.data_sets() == {f"1.2.{length}": noise[:length] + b"\x00" * (length % 2) for length in lengths}
    assert not acceptor.faults


def test_files_of_several_contexts_take_turns_on_one_association(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(200_001)
    files = [
        write_file(tmp_path / f"{number}.dcm", noise[: number * 9001], uid=f"1.2.{number}", syntax=syntax)
        for number, syntax in enumerate([*SYNTAXES.values(), *SYNTAXES.values()])
    ]
    with accepting(Acceptor()) as acceptor:
        outcomes = list(store_files(peer_of(acceptor.port), files, QUICK))
    assert set(statuses(outcomes).values()) == {"stored"}
    expected = {f"1.2.{number}": noise[: number * 9001] for number in range(len(files))}
    assert acceptor.data_sets() == {uid: data + b"\x00" * (len(data) % 2) for uid, data in expected.items()}


@pytest.mark.peer
def test_over_tls_large_and_odd_files_arrive_whole(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    ours, theirs = authority.issue("ours"), authority.issue("theirs")
    noise = random.Random(2).randbytes(2_500_001)
    files = [write_file(tmp_path / f"{size}.dcm", noise[:size], uid=f"1.2.{size}", syntax=DEFLATED) for size in (2_500_001, 7, 70_000)]
    with storescp(tmp_path / "received", "+B", *theirs.as_tool_options()) as port:
        outcomes = list(store_files(tls_peer(port, ours, called="STORESCP"), files, QUICK))
    assert set(statuses(outcomes).values()) == {"stored"}
    received = {one.sop_instance_uid: one.path.read_bytes()[one.offset :] for one in map(read_part10, (tmp_path / "received").iterdir())}
    assert received == {f"1.2.{size}": noise[:size] + b"\x00" * (size % 2) for size in (2_500_001, 7, 70_000)}


# ── files that change ───────────────────────────────────────────────────────


def change_after_first_part(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    send = Link.send

    def send_and_change(self: Link, data: Any) -> None:
        send(self, data)
        if len(data) > 500_000:
            change()

    monkeypatch.setattr(Link, "send", send_and_change)


def test_a_file_that_becomes_shorter_is_refused_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent of it must not become an object: the association ends, and another takes its place."""
    small = many_files(tmp_path, 3)
    big = write_file(tmp_path / "big.dcm", bytes(4_000_000), uid="1.2.9")
    change_after_first_part(monkeypatch, lambda: big.path.write_bytes(big.path.read_bytes()[:2000]))
    with accepting(Acceptor()) as acceptor:
        outcomes = list(store_files(peer_of(acceptor.port), [small[0], big, *small[1:]], QUICK))
    assert list(statuses(outcomes).values()) == ["stored", "StoreRefused", "stored", "stored"]
    assert "shorter" in str(outcomes[1].error)
    assert "1.2.9" not in acceptor.uids()
    assert len(acceptor.windows) == 2


def test_a_file_that_fails_in_the_middle_costs_no_other_its_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = many_files(tmp_path, 4)
    big = write_file(tmp_path / "big.dcm", bytes(4_000_000), uid="1.2.9")
    change_after_first_part(monkeypatch, lambda: big.path.write_bytes(b""))
    seen: list[str] = []

    def answer_those_sent_again(conversation: Conversation, stored: Stored) -> None:
        seen.append(stored.sop_instance_uid)
        if stored.sop_instance_uid == "1.2.3.4" or seen.count(stored.sop_instance_uid) == 2:
            conversation.respond(stored)

    with accepting(Acceptor(window=(8, 1), on_stored=answer_those_sent_again)) as acceptor:
        outcomes = list(store_files(peer_of(acceptor.port), [small[0], small[1], big, small[2], small[3]], Timeouts(2, 1)))
    told = statuses(outcomes)
    assert told.pop("1.2.9") == "StoreRefused"
    assert {told["1.2.3.1"], told["1.2.3.2"], told["1.2.3.4"]} == {"stored"}
    assert acceptor.uids().count("1.2.9") == 0


def test_a_file_that_grows_is_sent_as_long_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(3).randbytes(3_000_000)
    file = write_file(tmp_path / "a.dcm", noise)

    def grow() -> None:
        with file.path.open("ab") as stream:
            stream.write(b"more")

    change_after_first_part(monkeypatch, grow)
    with accepting(Acceptor()) as acceptor:
        (outcome,) = store_files(peer_of(acceptor.port), [file], QUICK)
    assert outcome.error is None
    assert acceptor.data_sets() == {"1.2.3": noise}


def test_a_file_that_is_gone_is_refused_without_harm_to_the_association(tmp_path: Path) -> None:
    files = many_files(tmp_path, 3)
    files[1].path.unlink()
    with accepting(Acceptor()) as acceptor:
        outcomes = list(store_files(peer_of(acceptor.port), files, QUICK))
    assert list(statuses(outcomes).values()) == ["stored", "StoreRefused", "stored"]
    assert len(acceptor.windows) == 1, "one association"


# ── peers that break, in the middle of a data set ───────────────────────────


def big_file(folder: Path) -> Part10File:
    """More than the buffers of both sockets hold."""
    return write_file(folder / "big.dcm", bytes(24_000_000))


def test_a_refusal_in_the_middle_of_a_data_set_is_believed_though_the_peer_hangs_up(tmp_path: Path) -> None:
    def refuse(conversation: Conversation, stored: Stored, size: int) -> None:
        if size > 100_000:
            conversation.respond(stored, 0xA700)
            conversation.link.close()

    with accepting(Acceptor(on_fragment=refuse)) as acceptor:
        (outcome,) = store_files(peer_of(acceptor.port), [big_file(tmp_path)], QUICK)
    assert isinstance(outcome.error, StoreOutOfResources), outcome


def test_success_in_the_middle_of_a_data_set_is_none_when_the_rest_cannot_be_sent(tmp_path: Path) -> None:
    def hail(conversation: Conversation, stored: Stored, size: int) -> None:
        if size > 100_000:
            conversation.respond(stored)
            conversation.link.close()

    with accepting(Acceptor(on_fragment=hail)) as acceptor:
        (outcome,) = store_files(peer_of(acceptor.port), [big_file(tmp_path)], QUICK)
    assert isinstance(outcome.error, PeerUnreachable)


def test_an_early_answer_of_a_peer_that_reads_on_counts(tmp_path: Path) -> None:
    """DCMTK refuses what it cannot keep when it sees the command, and reads the data set to its end."""
    answered: list[str] = []

    def refuse_once(conversation: Conversation, stored: Stored, _size: int) -> None:
        if stored.sop_instance_uid not in answered:
            answered.append(stored.sop_instance_uid)
            conversation.respond(stored, 0xA701)

    with accepting(Acceptor(on_fragment=refuse_once, on_stored=lambda *_: None)) as acceptor:
        outcomes = list(store_files(peer_of(acceptor.port), many_files(tmp_path, 3, 100_000), QUICK))
    assert set(statuses(outcomes).values()) == {"StoreOutOfResources"}
    assert len(acceptor.windows) == 1, "the association went on"


def test_an_abort_in_the_middle_of_a_data_set_is_told_as_such(tmp_path: Path) -> None:
    def abort(conversation: Conversation, _stored: Stored, size: int) -> None:
        if size > 100_000:
            conversation.abort()

    with accepting(Acceptor(on_fragment=abort)) as acceptor:
        (outcome,) = store_files(peer_of(acceptor.port), [big_file(tmp_path)], QUICK)
    assert isinstance(outcome.error, PeerUnreachable)
    assert "aborted the association" in str(outcome.error)


def test_a_peer_that_stops_reading_is_waited_for_no_longer_than_an_answer(tmp_path: Path) -> None:
    go_on = threading.Event()

    def stop_reading(*_: object) -> None:
        go_on.wait(15)

    with accepting(Acceptor(on_fragment=stop_reading)) as acceptor:
        begun = time.monotonic()
        (outcome,) = store_files(peer_of(acceptor.port), [big_file(tmp_path)], Timeouts(2, 1))
        go_on.set()
    assert isinstance(outcome.error, PeerUnreachable)
    assert "no answer in time" in str(outcome.error)
    assert time.monotonic() - begun < 12


def test_a_peer_that_takes_a_little_now_and_then_holds_nobody_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time it takes something the silence begins anew: it is the rate that counts."""
    monkeypatch.setattr(link_module, "SLOWEST_BYTES_PER_S", 1 << 24)
    with accepting(Acceptor(on_fragment=lambda *_: time.sleep(0.05))) as acceptor:
        begun = time.monotonic()
        (outcome,) = store_files(peer_of(acceptor.port), [big_file(tmp_path)], Timeouts(2, 1))
    assert isinstance(outcome.error, PeerUnreachable)
    assert time.monotonic() - begun < 30, "at 16 kB in 50 ms it would take 73 s"


# ── asynchronous operations ─────────────────────────────────────────────────


def test_the_window_is_proposed_and_one_operation_at_a_time_where_it_is_not_answered(tmp_path: Path) -> None:
    with accepting(Acceptor()) as acceptor:
        outcomes = list(store_files(peer_of(acceptor.port), many_files(tmp_path, 5), QUICK))
        assert set(statuses(outcomes).values()) == {"stored"}
        assert acceptor.most_unanswered == 1
        list(store_files(peer_of(acceptor.port, operations=1), many_files(tmp_path, 1), QUICK))
    assert acceptor.windows == [(16, 1), None]


@pytest.mark.parametrize(("granted", "window"), [((5, 1), 5), ((1, 1), 1), ((0, 1), 16), ((200, 200), 16)])
def test_as_many_are_open_as_the_peer_grants_and_answers_in_any_order_find_their_files(
    tmp_path: Path, granted: tuple[int, int], window: int
) -> None:
    """Status of a file is its number: B0xx for each, so that no answer can be taken for another's."""
    files = many_files(tmp_path, 40)

    def answer_when_full(conversation: Conversation, _stored: Stored) -> None:
        if len(conversation.unanswered) == min(window, len(files) - len(done)):
            for one in random.Random(len(done)).sample(conversation.unanswered, len(conversation.unanswered)):
                done.append(one.sop_instance_uid)
                conversation.respond(one, 0xB000 + int(one.sop_instance_uid.rpartition(".")[2]))

    done: list[str] = []
    with accepting(Acceptor(window=granted, on_stored=answer_when_full)) as acceptor:
        outcomes = list(store_files(peer_of(acceptor.port), files, QUICK))
    assert set(statuses(outcomes).values()) == {"stored"}
    assert {one.sop_instance_uid: one.note for one in outcomes} == {f"1.2.3.{number}": f"{0xB000 + number:04X}" for number in range(1, 41)}
    assert acceptor.most_unanswered == window


def test_files_that_were_open_when_the_association_broke_are_sent_again_alone(tmp_path: Path) -> None:
    """The peer dies over one of them, whenever it comes: that one has failed, all others are stored."""
    files = many_files(tmp_path, 30)

    def die_over_poison(conversation: Conversation, stored: Stored) -> None:
        if stored.sop_instance_uid == "1.2.3.7":
            conversation.abort()
        elif int(stored.sop_instance_uid.rpartition(".")[2]) % 2 or len(acceptor.windows) > 1:
            conversation.respond(stored)

    with accepting(Acceptor(window=(16, 1), on_stored=die_over_poison)) as acceptor:
        outcomes = list(store_files(peer_of(acceptor.port), files, QUICK))
    told = statuses(outcomes)
    assert told.pop("1.2.3.7") == "PeerUnreachable"
    assert set(told.values()) == {"stored"}
    assert len(told) == 29
    assert acceptor.uids().count("1.2.3.1") == 1, "answered before it broke"
    assert acceptor.uids().count("1.2.3.2") == 2, "sent again"
    assert acceptor.uids().count("1.2.3.7") == 2, "tried alone"
    assert acceptor.windows == [(16, 1)] * 3


@pytest.mark.parametrize("answered", [999, 2])
def test_an_answer_to_what_is_not_open_breaks_the_association(tmp_path: Path, answered: int) -> None:
    """Message ID 2 is answered twice, or one that was never sent is."""

    def answer_wrongly(conversation: Conversation, stored: Stored) -> None:
        if len(conversation.unanswered) == 3 and not wrong:
            wrong.append(answered)
            conversation.respond(conversation.unanswered[1])
            conversation.respond(Stored(answered, stored.context_id, "", b""))
        elif wrong:
            with suppress(OSError):
                conversation.respond(stored)

    wrong: list[int] = []
    with accepting(Acceptor(window=(3, 1), on_stored=answer_wrongly)) as acceptor:
        outcomes = list(store_files(peer_of(acceptor.port), many_files(tmp_path, 6), QUICK))
    assert set(statuses(outcomes).values()) == {"stored"}
    assert len(acceptor.windows) >= 2, "a new association"


def test_message_ids_go_round_past_those_that_are_open(tmp_path: Path) -> None:
    held: list[Stored] = []

    def hold_the_first(conversation: Conversation, stored: Stored) -> None:
        if not held:
            held.append(stored)
        else:
            conversation.respond(stored)
            if stored.sop_instance_uid == "1.2.3.6":
                conversation.respond(held[0])

    files = many_files(tmp_path, 6)
    with (
        accepting(Acceptor(window=(2, 1), on_stored=hold_the_first)) as acceptor,
        StoreScu(peer_of(acceptor.port), contexts_for(files), QUICK) as scu,
    ):
        first = scu.begin(files[0])
        scu._message_id = 0xFFFE
        rest = []
        for file in files[1:]:
            rest.append(scu.begin(file))
            if file is not files[-1]:
                assert scu.finish().message_id == rest[-1]
        assert (first, rest) == (1, [0xFFFF, 2, 3, 4, 5])
        assert {scu.finish().message_id, scu.finish().message_id} == {1, 5}


# ── several associations ────────────────────────────────────────────────────


@pytest.mark.parametrize("window", [None, (4, 1)])
def test_files_go_over_several_associations_each_once(tmp_path: Path, window: tuple[int, int] | None) -> None:
    files = many_files(tmp_path, 60)
    gate = threading.Barrier(4)

    def wait_for_the_others(conversation: Conversation, stored: Stored) -> None:
        if len(conversation.unanswered) == 1 and conversation not in met:
            met.append(conversation)
            gate.wait(10)
        conversation.respond(stored)

    met: list[Conversation] = []
    with accepting(Acceptor(window=window, on_stored=wait_for_the_others)) as acceptor:
        outcomes = list(store_in_parallel(peer_of(acceptor.port), files, associations=4, timeouts=Timeouts(5, 15)))
    assert set(statuses(outcomes).values()) == {"stored"}
    assert sorted(acceptor.uids()) == sorted(file.sop_instance_uid for file in files)
    assert acceptor.most_open == 4


def test_a_peer_that_takes_fewer_associations_gets_all_over_those(tmp_path: Path) -> None:
    with accepting(
        Acceptor(most_associations=2, on_stored=lambda conversation, stored: time.sleep(0.01) or conversation.respond(stored))
    ) as acceptor:
        outcomes = list(store_in_parallel(peer_of(acceptor.port), many_files(tmp_path, 40), associations=6, timeouts=QUICK))
    assert set(statuses(outcomes).values()) == {"stored"}
    assert len(acceptor.uids()) == 40


def test_when_the_peer_goes_away_every_file_has_an_outcome(tmp_path: Path) -> None:
    def go_away(conversation: Conversation, stored: Stored) -> None:
        if len(acceptor.stored) > 20:
            acceptor.most_associations = 0
            conversation.link.close()
        else:
            conversation.respond(stored)

    with accepting(Acceptor(window=(4, 1), on_stored=go_away)) as acceptor:
        outcomes = list(store_in_parallel(peer_of(acceptor.port), many_files(tmp_path, 60), associations=3, timeouts=QUICK))
    told = statuses(outcomes)
    assert len(told) == 60
    assert list(told.values()).count("stored") == 20
    assert set(told.values()) <= {"stored", "PeerUnreachable", "AssociationRejectedTransient"}


def test_who_wants_no_more_outcomes_ends_the_associations(tmp_path: Path) -> None:
    with accepting(Acceptor(on_stored=lambda conversation, stored: time.sleep(0.01) or conversation.respond(stored))) as acceptor:
        outcomes = store_in_parallel(peer_of(acceptor.port), many_files(tmp_path, 200), associations=3, timeouts=QUICK)
        next(iter(outcomes))
        outcomes.close()  # type: ignore[attr-defined]
        assert len(acceptor.uids()) < 30
        deadline = time.monotonic() + 5
        while acceptor.open_now and time.monotonic() < deadline:
            time.sleep(0.01)
        assert acceptor.open_now == 0


def test_a_fault_of_ours_in_a_thread_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(upper_layer, "encode_command", fail)
    with accepting(Acceptor()) as acceptor, pytest.raises(RuntimeError, match="ours"):
        list(store_in_parallel(peer_of(acceptor.port), many_files(tmp_path, 4), associations=2, timeouts=QUICK))


@pytest.mark.peer
def test_orthanc_and_dcmtk_take_a_study_over_several_associations(tmp_path: Path) -> None:
    noise = random.Random(5).randbytes(40_000)
    pixels = b"\xe0\x7f\x10\x00OW\x00\x00" + struct.pack("<I", len(noise)) + noise

    def instance(number: int) -> Part10File:
        uids = b"".join(
            struct.pack("<HH2sH", *tag, b"UI", len(value)) + value
            for tag, value in (
                ((8, 0x16), b"1.2.840.10008.5.1.4.1.1.7\x00"),
                ((8, 0x18), b"1.2.3.%03d\x00" % number),
                ((0x20, 0xD), b"1.2.30"),
                ((0x20, 0xE), b"1.2.31"),
            )
        )
        uids = uids.replace(b"1.2.3.%03d\x00" % number, b"1.2.3.%03d\x00" % number)
        return write_file(tmp_path / "study" / f"{number}.dcm", uids + pixels, uid=f"1.2.3.{number:03d}")

    files = [instance(number) for number in range(100, 140)]
    expected = {one.sop_instance_uid for one in files}
    with storescp(tmp_path / "received", "+B", "--fork") as port:
        summary = send_paths(Peer(HOST, port, "STORESCP", "RADNODE"), [tmp_path / "study"], associations=3)
        assert summary.statuses == {"stored": 40}, summary
    received = {one.sop_instance_uid: one for one in map(read_part10, (tmp_path / "received").iterdir())}
    assert received.keys() == expected
    assert all(received[one.sop_instance_uid].path.read_bytes().endswith(pixels) for one in files)
    with orthanc(tmp_path / "orthanc") as archive:
        summary = send_paths(Peer(HOST, archive.dicom_port, archive.ae_title, "RADNODE"), [tmp_path / "study"], associations=4)
        assert summary.statuses == {"stored": 40}, summary
        assert len(archive.instances()) == 40


def test_the_command_sends_over_as_many_associations_as_asked_for_and_needs_no_library_for_it(
    tmp_path: Path,
) -> None:
    """The libraries would take longer to import than a study takes to send."""
    many_files(tmp_path / "study", 12)
    all_open = threading.Barrier(3)
    met: set[int] = set()

    def wait_for_the_others(conversation: Conversation, stored: Stored) -> None:
        if id(conversation) not in met:
            met.add(id(conversation))
            all_open.wait(20)
        conversation.respond(stored)

    with accepting(Acceptor(on_stored=wait_for_the_others)) as acceptor:
        code = "import sys; from node.cli import main; status = main(sys.argv[1:]); print([one for one in sys.modules if one in ('pydicom', 'pynetdicom', 'numpy', 'pydantic', 'structlog')]); sys.exit(status)"
        command = [sys.executable, "-c", code, "send", f"{HOST}:{acceptor.port}", str(tmp_path / "study"), "--associations", "3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["12 stored", "[]"]
    assert len(set(acceptor.uids())) == 12
    assert acceptor.most_open == 3


# ── under load ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("window", [None, (16, 1)])
def test_under_load_every_answer_finds_its_request(tmp_path: Path, window: tuple[int, int] | None) -> None:
    """Four senders with three studies each, a peer that answers at once: what broke stock pynetdicom in two of 36 studies."""
    files = many_files(tmp_path, 100)
    problems: list[StoreOutcome] = []
    answered = 0
    lock = threading.Lock()

    def send() -> None:
        nonlocal answered
        for _ in range(3):
            outcomes = list(store_files(peer_of(acceptor.port), files, Timeouts(10, 10)))
            assert len(statuses(outcomes)) == 100
            with lock:
                answered += len(outcomes)
                problems.extend(one for one in outcomes if one.error is not None)

    with accepting(Acceptor(window=window)) as acceptor:
        senders = [threading.Thread(target=send) for _ in range(4)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
    assert not problems
    assert answered == 1200
    assert len(acceptor.stored) == 1200


def test_the_names_of_the_syntaxes_are_known_to_pydicom() -> None:
    """So that the list above is of real ones, all but the last."""
    assert all(UID(uid).is_transfer_syntax for name, uid in SYNTAXES.items() if name != "unknown to us")
