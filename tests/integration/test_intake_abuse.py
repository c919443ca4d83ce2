"""Abuse: whatever comes to the port, memory, threads, descriptors and time stay within limits, and the next good study goes through.

The listener is a process of its own, so that its figures are its own. `pytest -s` prints them (`docs/explanation/limits.md`).
"""

import contextlib
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from node.codes import StoreStatus
from node.delivery.store_scu import Part10File, read_part10, store_files
from node.delivery.upper_layer import Context, RequestedAssociation, Timeouts, _associate_request
from node.errors import BrokenPixelData, CannotUnderstand, DeliveryError, NodeError
from node.inference.series_reader import read_series
from node.intake.conversation import LONGEST_REQUEST_BYTES
from node.intake.door import LEAVING_CONNECTIONS, SPARE_CONNECTIONS
from node.intake.headers import LONGEST_HEADER_BYTES, MOST_ELEMENTS, read_header
from node.intake.incoming import FileIdentity, file_head
from node.network import COMMAND_FRAGMENT, DATA_SET_FOLLOWS, LAST_FRAGMENT, VERIFICATION, CommandElement, CommandField
from node.network.command import encode_command
from node.network.deflate import LONGEST_INFLATED_BYTES
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import RawSender, RunningListener, p_data, peer_of
from tests.peers import HOST, wait_until

MAX_ASSOCIATIONS = 16
TIMEOUT_S = 4.0
LATE_S = 40.0
"""After which a test gives up; the listener's own limits are a tenth of it."""

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
STORE = Context(CT, EXPLICIT)
MIB = 1 << 20

PROGRAM = """
import sys
from pathlib import Path
from node.app import stop_on_signals
from node.intake.listener import run_listener
from tests.integration.intake_kit import config_for
run_listener(config_for(Path(sys.argv[1]), max_associations=int(sys.argv[2]), network_timeout_s=float(sys.argv[3])), stop_on_signals())
"""


@dataclass
class Figures:
    """What an abuse cost the listener at its worst."""

    grown_mib: float = 0.0
    descriptors: int = 0
    threads: int = 0


@dataclass
class Victim(RunningListener):
    """A listener in a process of its own."""

    pid: int = 0
    figures: dict[str, Figures] = field(default_factory=dict)

    def status(self, name: str) -> int:
        """A number of /proc: kB of memory, or threads."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.partition(f"{name}:")[2].split()[0])

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - a number is all that is wanted

    @contextlib.contextmanager
    def watched(self, name: str) -> Iterator[Figures]:
        """Notes the peaks while the block runs."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak of the memory begins anew
        before_kb = self.status("VmRSS")
        found = self.figures[name] = Figures()
        over = threading.Event()

        def look() -> None:
            while True:
                found.descriptors = max(found.descriptors, self.descriptors())
                found.threads = max(found.threads, self.status("Threads"))
                if over.wait(0.01):
                    return

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield found
        finally:
            over.set()
            watcher.join(5)
            found.grown_mib = max(0, self.status("VmHWM") - before_kb) / 1024


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    state_dir = tmp_path_factory.mktemp("state")
    port_file = state_dir / "run" / "listener.port"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(state_dir), str(MAX_ASSOCIATIONS), str(TIMEOUT_S)], cwd=Path(__file__).parents[2]
    )
    try:
        wait_until(lambda: port_file.exists() or process.poll() is not None, "the listener")
        running = Victim(state_dir, int(port_file.read_text()), process.pid)
        yield running
        assert process.poll() is None, "the listener has died"
        print("\n| abuse | memory | descriptors | threads |")
        for name, found in running.figures.items():
            print(f"| {name} | +{found.grown_mib:.1f} MiB | {found.descriptors} | {found.threads} |")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, victim: Victim) -> list[Part10File]:
    """A good study, which was stored once: what the first one costs is no abuse."""
    ct: SyntheticSeries = make_ct_series(tmp_path_factory.mktemp("ct"), slices=3, rows=256, columns=256)
    files = [read_part10(path) for path in ct.paths]
    assert statuses(victim, files) == ["stored"] * 3
    return files


@pytest.fixture(autouse=True)
def nothing_is_left(victim: Victim, good: list[Part10File]) -> Iterator[None]:
    """After every abuse the good study goes through, and what the abuse held is free again."""
    yield
    wait_until(lambda: statuses(victim, good) == ["stored"] * 3, "the good study", LATE_S)
    wait_until(lambda: not victim.leftovers(), "the sweep", LATE_S)
    wait_until(lambda: victim.status("Threads") <= 4, "the ends of the threads", LATE_S)
    wait_until(lambda: victim.open_associations() == 0, "the ends of the associations", LATE_S)
    assert victim.descriptors() <= 16


def statuses(victim: Victim, files: list[Part10File]) -> list[str]:
    return [outcome.status for outcome in store_files(peer_of(victim.port), files, Timeouts(10, 60))]


def connect(victim: Victim) -> socket.socket:
    return socket.create_connection((HOST, victim.port), timeout=LATE_S)


def reads_until_closed(link: socket.socket) -> bool:
    """Answers whether the other side closes; a reset is a close, too."""
    try:
        while link.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def store_request(uid: str = "1.2.3", sop_class: str = CT, number: int = 1) -> tuple[int, int, bytes]:
    """The presentation data value of a C-STORE command in context 1."""
    command = encode_command(
        {
            CommandElement.AFFECTED_SOP_CLASS_UID: sop_class,
            CommandElement.COMMAND_FIELD: CommandField.C_STORE_RQ,
            CommandElement.MESSAGE_ID: number,
            CommandElement.PRIORITY: 0,
            CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
            CommandElement.AFFECTED_SOP_INSTANCE_UID: uid,
        }
    )
    return (1, COMMAND_FRAGMENT | LAST_FRAGMENT, command)


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element in Explicit VR Little Endian; its length may be a lie."""
    said = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<HI", 0, said) if vr in {b"OB", b"SQ", b"UN", b"UC"} else struct.pack("<H", said)) + value


def uids(sop: str = "1.2.3", series: str = "1.2", study: str = "1.1", sop_class: str = CT) -> tuple[bytes, bytes]:
    """The elements that file an instance: those of group 0008, those of group 0020."""

    def padded(uid: str) -> bytes:
        return uid.encode() + b"\x00" * (len(uid) % 2)

    identity = element(0x00080016, b"UI", padded(sop_class)) + element(0x00080018, b"UI", padded(sop))
    return identity, element(0x0020000D, b"UI", padded(study)) + element(0x0020000E, b"UI", padded(series))


def offer(victim: Victim, data_set: bytes, *, uid: str = "1.2.3", sop_class: str = CT, syntax: str = EXPLICIT) -> int:
    """Sends a data set by C-STORE; answers the status."""
    with RawSender(victim.port, [Context(CT, syntax)]) as sender:
        sender.send_values(store_request(uid, sop_class))
        piece = 1 << 17
        for place in range(0, len(data_set), piece):
            last = place + piece >= len(data_set)
            sender.send_values((1, LAST_FRAGMENT if last else 0, data_set[place : place + piece]))
        return int(sender.receive_response(CommandField.C_STORE_RSP, 1)[CommandElement.STATUS])


# ── connections ─────────────────────────────────────────────────────────────


def test_500_silent_connections_at_once_shut_nobody_out(victim: Victim, good: list[Part10File]) -> None:
    with victim.watched("500 silent connections at once") as found, contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(connect(victim))
        assert statuses(victim, good) == ["stored"] * 3, "while they all stand"
    bound = MAX_ASSOCIATIONS + SPARE_CONNECTIONS + LEAVING_CONNECTIONS
    assert found.threads <= bound + 4
    assert found.descriptors <= bound + 16
    assert found.grown_mib < 64


def test_500_associations_at_once_are_taken_or_told_to_come_later(victim: Victim, good: list[Part10File]) -> None:
    said: list[str] = []

    def knock() -> None:
        try:
            with RequestedAssociation(peer_of(victim.port), [STORE], Timeouts(10, 60)):
                said.append("taken")
                time.sleep(0.05)
        except DeliveryError as error:
            said.append(error.code)

    with victim.watched("500 associations at once") as found:
        knocking = [threading.Thread(target=knock) for _ in range(500)]
        for one in knocking:
            one.start()
        for one in knocking:
            one.join(60)
    assert len(said) == 500
    assert set(said) <= {"taken", "AssociationRejectedTransient", "PeerUnreachable"}
    assert said.count("taken") >= MAX_ASSOCIATIONS
    assert found.threads <= MAX_ASSOCIATIONS + SPARE_CONNECTIONS + LEAVING_CONNECTIONS + 4
    assert found.grown_mib < 96


def test_the_listener_claims_the_descriptors_that_its_associations_need() -> None:
    program = "import resource as r; from node.intake.listener import _claim_descriptors as claim;"
    program += "r.setrlimit(r.RLIMIT_NOFILE, (200, 3000)); claim(16); print(r.getrlimit(r.RLIMIT_NOFILE));"
    program += "claim(1024); print(r.getrlimit(r.RLIMIT_NOFILE)); claim(16); print(r.getrlimit(r.RLIMIT_NOFILE))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "(448, 3000)\n" in told.stdout
    assert told.stdout.count("(3000, 3000)\n") == 2
    assert "listener.few_descriptors" in told.stdout + told.stderr


def test_half_open_and_aborted_connections_leave_nothing(victim: Victim, good: list[Part10File]) -> None:
    request = _associate_request(peer_of(0), [STORE])
    with victim.watched("300 half-open and aborted connections") as found:
        kept = []
        for number in range(300):
            link = connect(victim)
            with contextlib.suppress(OSError):
                link.sendall(request[: number % len(request)])
                if number % 3 == 0:
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    link.close()
                elif number % 3 == 1:
                    link.shutdown(socket.SHUT_WR)
            kept.append(link)
        assert all(link.fileno() < 0 or reads_until_closed(link) for link in kept)
        for link in kept:
            link.close()
    assert found.threads <= MAX_ASSOCIATIONS + SPARE_CONNECTIONS + LEAVING_CONNECTIONS + 4


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600), b"\xff" * 100_000, b"\x00"],
    ids=["HTTP", "TLS", "noise", "a NULL"],
)
def test_what_is_no_dicom_is_hung_up_on(victim: Victim, words: bytes) -> None:
    with connect(victim) as link:
        with contextlib.suppress(OSError):
            link.sendall(words)
        assert reads_until_closed(link)


def test_a_real_tls_client_on_the_plain_port_is_hung_up_on(victim: Victim) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with connect(victim) as link, pytest.raises(OSError, match=r"(?i)ssl|reset|eof|closed|broken"):
        context.wrap_socket(link)


# ── slowness ────────────────────────────────────────────────────────────────


def drips(link: socket.socket, words: bytes, pause_s: float = 0.2) -> float:
    """Sends byte by byte until the other side has had enough; answers the seconds that took."""
    started_s = time.monotonic()
    link.settimeout(pause_s)
    for byte in words:
        try:
            link.sendall(bytes([byte]))
            if not link.recv(1 << 16):
                break
        except TimeoutError:
            pass
        except OSError:
            break
        assert time.monotonic() - started_s < LATE_S, "it is listened to without end"
    else:
        raise AssertionError("every byte was listened to")
    return time.monotonic() - started_s


def test_a_request_byte_by_byte_is_given_up_when_its_time_is_over(victim: Victim) -> None:
    with victim.watched("a request, one byte at a time"), connect(victim) as link:
        assert drips(link, _associate_request(peer_of(0), [STORE])) >= TIMEOUT_S / 2


def test_a_data_set_byte_by_byte_is_given_up_when_its_time_is_over(victim: Victim) -> None:
    with victim.watched("a data set, one byte at a time"):
        sender = RawSender(victim.port, [STORE])
        sender.send_values(store_request())
        assert drips(sender.link, p_data((1, 0, bytes(1000)))) >= TIMEOUT_S / 2
        sender.vanish()


def test_whole_pdus_of_one_byte_are_given_up_as_well(victim: Victim) -> None:
    sender = RawSender(victim.port, [STORE])
    sender.send_values(store_request())
    started_s = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - started_s < LATE_S:
            sender.send_values((1, 0, b"\x00"))
            time.sleep(0.1)
    assert time.monotonic() - started_s < LATE_S, "it is listened to without end"
    sender.vanish()


# ── sizes ───────────────────────────────────────────────────────────────────


def test_48_announced_pdus_of_4_mib_cost_what_has_arrived(victim: Victim) -> None:
    head = struct.pack(">BBI", 4, 0, 4 * MIB)
    with victim.watched("48 connections announce a PDU of 4 MiB") as found, contextlib.ExitStack() as stack:
        links = []
        for number in range(48):
            if number < MAX_ASSOCIATIONS:
                links.append(RawSender(victim.port, [STORE]).link)
            else:
                links.append(connect(victim))
        for link in links:
            stack.enter_context(link)
            link.sendall(head + bytes(1000))
        assert reads_until_closed(links[-1]), "before an association a PDU of 4 MiB is nothing that anybody means"
        time.sleep(0.2)
    assert found.grown_mib < 32


def test_pdus_of_4_mib_are_held_by_as_many_as_are_admitted(victim: Victim) -> None:
    almost = struct.pack(">BBI", 4, 0, 4 * MIB) + bytes(4 * MIB - 1)
    with victim.watched(f"{MAX_ASSOCIATIONS} associations send 4 MiB less a byte") as found, contextlib.ExitStack() as stack:
        for _ in range(MAX_ASSOCIATIONS):
            sender = RawSender(victim.port, [STORE])
            stack.enter_context(sender.link)
            sender.link.sendall(almost)
        time.sleep(0.2)
    assert found.grown_mib < MAX_ASSOCIATIONS * 8


@pytest.mark.parametrize("length", [LONGEST_REQUEST_BYTES + 1, 4 * MIB, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_first_pdu_that_nobody_means_is_not_waited_for(victim: Victim, length: int) -> None:
    with victim.watched(f"a first PDU of {length} bytes") as found, connect(victim) as link:
        link.sendall(struct.pack(">BBI", 1, 0, length))
        assert reads_until_closed(link)
    assert found.grown_mib < 8


def test_a_request_with_every_context_and_transfer_syntax_is_taken(victim: Victim) -> None:
    """What a generous sender asks for must fit into what is read before it is known."""
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts

    ae = AE("TESTER")
    for context in AllStoragePresentationContexts[:127]:
        ae.add_requested_context(context.abstract_syntax, list(ALL_TRANSFER_SYNTAXES))
    ae.add_requested_context(VERIFICATION)
    association = ae.associate(HOST, victim.port, ae_title="RADNODE")
    assert association.is_established
    assert len(association.accepted_contexts) == 128
    assert association.send_c_echo().Status == StoreStatus.SUCCESS
    association.release()


# ── data sets ───────────────────────────────────────────────────────────────


def part10(path: Path, data_set: bytes, syntax: str = EXPLICIT) -> Path:
    path.write_bytes(file_head(FileIdentity(CT, "1.2.3", syntax)) + data_set)
    return path


def is_read_or_refused(path: Path) -> None:
    """What comes behind the listener sees the same file."""
    with contextlib.suppress(CannotUnderstand):
        read_header(path)
    with contextlib.suppress(NodeError):
        read_series([path])


@pytest.mark.parametrize("length", [0x7FFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF])
@pytest.mark.parametrize(("tag", "vr"), [(0x00080005, b"OB"), (0x00080018, b"UC"), (0x0020000D, b"UN")])
def test_an_element_of_gigabytes_is_refused(victim: Victim, tmp_path: Path, length: int, tag: int, vr: bytes) -> None:
    identity, place = uids()
    data_set = element(tag, vr, bytes(1000), length)
    data_set = identity + data_set if tag > 0x00080018 else data_set + identity
    with victim.watched("an element of 2 GB") as found:
        assert offer(victim, data_set + place) == StoreStatus.CANNOT_UNDERSTAND
    assert found.grown_mib < 16
    is_read_or_refused(part10(tmp_path / "one.dcm", data_set + place))


def test_a_uid_that_is_really_50_mb_long_is_not_taken_into_memory(victim: Victim) -> None:
    identity, _ = uids()
    data_set = identity + element(0x0020000D, b"UC", bytes(50_000_000)) + element(0x0020000E, b"UI", b"1.2\x00")
    with victim.watched("a UID of 50 MB") as found:
        assert offer(victim, data_set) == StoreStatus.CANNOT_UNDERSTAND
    assert found.grown_mib < 16


@pytest.mark.parametrize("tag", [0x00081140, 0x00400275], ids=["before the UIDs", "behind the UIDs"])
def test_sequences_10_000_deep_end_in_an_answer(victim: Victim, tmp_path: Path, tag: int) -> None:
    identity, place = uids()
    head = element(tag, b"SQ", b"", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    tail = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    deep = head * 10_000 + tail * 10_000
    data_set = identity + deep + place if tag < 0x00200000 else identity + place + deep
    with victim.watched("sequences 10 000 deep") as found:
        status = offer(victim, data_set)
    assert status == (StoreStatus.CANNOT_UNDERSTAND if tag < 0x00200000 else StoreStatus.SUCCESS)
    assert found.grown_mib < 32
    is_read_or_refused(part10(tmp_path / "deep.dcm", data_set))


def test_millions_of_elements_in_front_of_the_uids_are_read_up_to_a_limit(victim: Victim) -> None:
    identity, place = uids()
    tiny = b"".join(struct.pack("<HH2sH", 0x0021 + 2 * (number >> 16), number & 0xFFFF, b"LO", 0) for number in range(2_000_000))
    wide = element(0x00081140, b"SQ", b"", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + tiny
    with victim.watched("a sequence of 2 million elements") as found:
        assert offer(victim, identity + wide + place) == StoreStatus.CANNOT_UNDERSTAND
    assert found.grown_mib < 320


def test_more_elements_than_anybody_means_are_no_header(tmp_path: Path) -> None:
    identity, place = uids()
    many = [struct.pack("<HH2sH", 0x0021 + 2 * (number >> 16), number & 0xFFFF, b"LO", 0) for number in range(MOST_ELEMENTS + 10)]
    data_set = identity + place + b"".join(many)
    with pytest.raises(CannotUnderstand):
        read_header(part10(tmp_path / "many.dcm", data_set))
    assert read_header(part10(tmp_path / "some.dcm", data_set[: len(data_set) - 8 * 1000])).sop_instance_uid == "1.2.3"


def bomb(size_bytes: int) -> bytes:
    """A deflated data set of a thousandth of the size: UIDs, and one element of zeros."""
    identity, place = uids()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [deflate.compress(identity + place + element(0x00420011, b"OB", b"", size_bytes))]
    pieces += [deflate.compress(bytes(MIB)) for _ in range(size_bytes // MIB)]
    return b"".join([*pieces, deflate.flush()])


def test_a_deflate_bomb_goes_off_nowhere(victim: Victim, tmp_path: Path) -> None:
    data = bomb(1000 * MIB)
    assert len(data) < 1.1 * MIB
    with victim.watched("1 MB that inflates to 1 GB") as found:
        assert offer(victim, data + b"\x00" * (len(data) % 2), syntax=DEFLATED) == StoreStatus.CANNOT_UNDERSTAND
    assert found.grown_mib < 32
    path = part10(tmp_path / "bomb.dcm", data, DEFLATED)
    with pytest.raises(BrokenPixelData, match=f"more than {LONGEST_INFLATED_BYTES >> 20} MiB"):
        read_series([path])


def test_a_header_without_end_is_refused_and_not_read(tmp_path: Path) -> None:
    identity, place = uids()
    long = identity + place + element(0x00420011, b"OB", bytes(LONGEST_HEADER_BYTES + MIB))
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = deflate.compress(long) + deflate.flush()
    for data_set, syntax in ((long, EXPLICIT), (deflated, DEFLATED)):
        with contextlib.suppress(CannotUnderstand):
            header = read_header(part10(tmp_path / "long.dcm", data_set, syntax))
            assert header.sop_instance_uid == "1.2.3"
            assert "EncapsulatedDocument" not in header.attributes


@pytest.mark.parametrize(
    "uid", ["../../../../etc/passwd", "/etc/passwd", "1.2/3", "1.2\\3", "..", ".", "1.2\n3", "1.2;rm -rf", "1" * 65, "%2e%2e"]
)
def test_path_characters_in_uids_reach_no_path(victim: Victim, uid: str) -> None:
    before = set(victim.state_dir.rglob("*.dcm"))
    outside = set(victim.state_dir.parent.iterdir())
    for data_set in (b"".join(uids(sop=uid)), b"".join(uids(series=uid)), b"".join(uids(study=uid)), b"".join(uids())):
        sop = uid if data_set == b"".join(uids(sop=uid)) else "1.2.3"
        if data_set == b"".join(uids()):
            sop = uid  # the request alone is wrong
        assert offer(victim, data_set, uid=sop) in {StoreStatus.CANNOT_UNDERSTAND, StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS}
    assert offer(victim, b"".join(uids(sop_class=uid)), sop_class=uid) == StoreStatus.CANNOT_UNDERSTAND
    assert set(victim.state_dir.rglob("*.dcm")) == before
    assert set(victim.state_dir.parent.iterdir()) == outside


def test_a_peer_that_never_reads_is_not_written_to_for_ever(victim: Victim) -> None:
    echo = encode_command(
        {
            CommandElement.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            CommandElement.COMMAND_FIELD: CommandField.C_ECHO_RQ,
            CommandElement.MESSAGE_ID: 1,
            CommandElement.DATA_SET_TYPE: 0x0101,
        }
    )
    many = p_data(*[(1, COMMAND_FRAGMENT | LAST_FRAGMENT, echo)] * 500)
    sender = RawSender(victim.port, [Context(VERIFICATION, IMPLICIT)])
    with victim.watched("requests whose answers nobody reads") as found:
        sender.link.settimeout(LATE_S)
        started_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started_s < LATE_S * 2:
                sender.link.sendall(many)
    assert time.monotonic() - started_s < LATE_S * 2
    assert found.grown_mib < 16
    sender.vanish()
