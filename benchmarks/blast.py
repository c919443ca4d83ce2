"""`python -m benchmarks.blast PORT FOLDER`: a C-STORE sender that stays out of the way of the receiver that is measured.

Raw upper layer (PS3.8 9.3): every PDU is built before the clock starts, TCP_NODELAY is on, an association is a process of its own.
One JSON object on stdout says what happened, the clock running from the first byte of the first association to the last of the last.
"""

import argparse
import json
import mmap
import multiprocessing
import queue
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

from node.network import APPLICATION_CONTEXT, COMMAND_FRAGMENT, LAST_FRAGMENT, VERIFICATION, CommandElement, CommandField, PduType
from node.network.command import Command, decode_command, encode_command

HOST: Final = "127.0.0.1"
LONGEST_PDU_BYTES: Final = 131072
TIMEOUT_S: Final = 300
PREBUILT_BYTES: Final = 64 << 20
"""What is longer is not copied into one message: it goes from the file's pages, piece by piece."""

PIECES_A_CALL: Final = 64
SLOW_PIECES_A_S: Final = 10
IMPLICIT: Final = "1.2.840.10008.1.2"


@dataclass(frozen=True, slots=True)
class Part10:
    """A file: what its meta information says, and where its data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: memoryview


@dataclass(frozen=True, slots=True)
class Order:
    """Whom to send to, and how."""

    port: int
    called: str
    calling: str
    longest_pdu_bytes: int


def read_part10(content: memoryview) -> Part10:
    """Answers what is to be sent of a Part 10 file (PS3.10 7.1); its meta information is in Explicit VR Little Endian."""
    assert bytes(content[128:132]) == b"DICM"
    found: dict[int, str] = {}
    place = 132
    while True:
        group, number, vr, length = struct.unpack_from("<HH2sH", content, place)
        if group != 2:
            break
        place += 8
        if vr in {b"OB", b"UN"}:
            length = struct.unpack_from("<I", content, place)[0]
            place += 4
        found[number] = bytes(content[place : place + length]).decode("ascii", "replace").strip("\x00 ")
        place += length
    return Part10(found[2], found[3], found[0x10], content[place:])


def files_in(folder: Path) -> list[Part10]:
    """Answers the files of a folder, mapped."""
    mapped = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            mapped.append(read_part10(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))))
    return mapped


class Line:
    """An association as requestor, as bare as it can be."""

    def __init__(self, order: Order, contexts: Sequence[tuple[str, str]]) -> None:
        self._socket = socket.create_connection((HOST, order.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # the kernel's, so that a call is one system call
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", TIMEOUT_S, 0))
        self._socket.sendall(_associate_request(order, contexts))
        kind, body = self._receive()
        if kind != PduType.ASSOCIATE_AC:
            raise SystemExit(f"the association was not accepted: PDU {kind} {body.hex()}")
        accepted, longest = _read_acceptance(body)
        if len(accepted) != len(contexts):
            raise SystemExit(f"{len(contexts) - len(accepted)} of {len(contexts)} presentation contexts were not accepted")
        self.longest_pdu_bytes = min(longest or order.longest_pdu_bytes, order.longest_pdu_bytes)

    def _receive(self) -> tuple[int, bytes]:
        head = self._exactly(6)
        kind, _reserved, length = struct.unpack(">BBI", head)
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        received = bytearray(count)
        view, place = memoryview(received), 0
        while place < count:
            got = self._socket.recv_into(view[place:])
            if not got:
                raise SystemExit("the receiver closed the connection")
            place += got
        return bytes(received)

    def send(self, message: bytes | Sequence[bytes | memoryview]) -> None:
        """Sends a message."""
        if isinstance(message, bytes):
            self._socket.sendall(message)
            return
        for first in range(0, len(message), PIECES_A_CALL):
            pieces = message[first : first + PIECES_A_CALL]
            sent = self._socket.sendmsg(pieces)
            if sent < sum(map(len, pieces)):
                self._socket.sendall(b"".join(pieces)[sent:])

    def answer(self) -> int:
        """Answers the status that the receiver sends."""
        kind, body = self._receive()
        if kind != PduType.DATA:
            raise SystemExit(f"the receiver answered with PDU {kind} {body.hex()}")
        return int(decode_command(body[6:]).get(CommandElement.STATUS, -1))

    def drip(self, message: bytes, bytes_per_s: int, until: Event) -> None:
        """Sends so slowly, until all is sent or the event is set."""
        step = max(1, bytes_per_s // SLOW_PIECES_A_S)
        for place in range(0, len(message), step):
            self._socket.sendall(message[place : place + step])
            if until.wait(1 / SLOW_PIECES_A_S):
                return

    def release(self) -> None:
        """Ends in good order."""
        self._socket.sendall(struct.pack(">BBII", PduType.RELEASE_RQ, 0, 4, 0))
        self._receive()
        self._socket.close()

    def close(self) -> None:
        """Ends without a word."""
        self._socket.close()


def messages(files: Sequence[Part10], contexts: Sequence[tuple[str, str]], longest_pdu_bytes: int) -> Iterator[bytes | list[Any]]:
    """Answers the C-STORE request of every file: one buffer, or the pieces of what is too long for one."""
    for number, file in enumerate(files):
        context_id = 2 * contexts.index((file.sop_class_uid, file.transfer_syntax_uid)) + 1
        command: Command = {
            CommandElement.AFFECTED_SOP_CLASS_UID: file.sop_class_uid,
            CommandElement.COMMAND_FIELD: CommandField.C_STORE_RQ,
            CommandElement.MESSAGE_ID: number % 65535 + 1,
            CommandElement.PRIORITY: 0,
            CommandElement.DATA_SET_TYPE: 1,
            CommandElement.AFFECTED_SOP_INSTANCE_UID: file.sop_instance_uid,
        }
        pieces: list[Any] = [_command_pdu(context_id, command)]
        step = (longest_pdu_bytes - 6) & ~1
        for place in range(0, len(file.data_set), step):
            piece = file.data_set[place : place + step]
            flags = LAST_FRAGMENT if place + step >= len(file.data_set) else 0
            pieces += [struct.pack(">BBIIBB", PduType.DATA, 0, len(piece) + 6, len(piece) + 2, context_id, flags), piece]
        yield b"".join(pieces) if len(file.data_set) <= PREBUILT_BYTES else pieces


def contexts_of(files: Sequence[Part10]) -> list[tuple[str, str]]:
    """Answers the presentation contexts that files need."""
    return sorted({(file.sop_class_uid, file.transfer_syntax_uid) for file in files})


def send_all(order: Order, files: Sequence[Part10], share: Any, together: Any) -> None:
    """Sends files over one association; puts (began, ended, statuses that were no success, seconds of each) into `share`."""
    contexts = contexts_of(files)
    probe = Line(order, contexts)  # learns the longest PDU that the receiver takes
    probe.release()
    built = list(messages(files, contexts, probe.longest_pdu_bytes))
    together.wait(TIMEOUT_S)
    began = time.perf_counter()
    line, failed, took = Line(order, contexts), 0, []
    for message in built:
        started = time.perf_counter()
        line.send(message)
        failed += line.answer() != 0
        took.append(time.perf_counter() - started)
    line.release()
    share.put((began, time.perf_counter(), failed, took, probe.longest_pdu_bytes))


def send_slowly(order: Order, file: Part10, bytes_per_s: int, together: Any, until: Event) -> None:
    """Sends one file, over and over, at so many bytes a second."""
    contexts = contexts_of([file])
    line = Line(order, contexts)
    (message,) = messages([file], contexts, order.longest_pdu_bytes)
    together.wait(TIMEOUT_S)
    line.drip(message if isinstance(message, bytes) else b"".join(message), bytes_per_s, until)
    line.close()


def blast(order: Order, files: Sequence[Part10], associations: int, slow_bytes_per_s: int) -> dict[str, float]:
    """Sends files over so many associations at once; answers what happened."""
    fork = multiprocessing.get_context("fork")
    share, until = fork.Queue(), fork.Event()
    together = fork.Barrier(associations + bool(slow_bytes_per_s))
    fast = [fork.Process(target=send_all, args=(order, files[n::associations], share, together)) for n in range(associations)]
    slow = [fork.Process(target=send_slowly, args=(order, files[0], slow_bytes_per_s, together, until))] if slow_bytes_per_s else []
    for process in (*fast, *slow):
        process.start()
    found: list[tuple[float, float, int, list[float], int]] = []
    while len(found) < associations:
        try:
            found.append(share.get(timeout=1))
        except queue.Empty:
            if any(process.exitcode for process in (*fast, *slow)):
                for process in (*fast, *slow):
                    process.kill()
                raise SystemExit("a sender failed") from None
    until.set()
    for process in (*fast, *slow):
        process.join(TIMEOUT_S)
    took_ms = sorted(1000 * seconds for one in found for seconds in one[3])
    return {
        "wall_s": max(one[1] for one in found) - min(one[0] for one in found),
        "instances": len(took_ms),
        "megabytes": sum(len(file.data_set) for file in files) / 1e6,
        "failed": sum(one[2] for one in found),
        "p50_ms": took_ms[len(took_ms) // 2],
        "p99_ms": took_ms[int(len(took_ms) * 0.99)],
        "longest_ms": took_ms[-1],
        "pdu_bytes": found[0][4],
    }


def echo(order: Order, count: int) -> dict[str, float]:
    """Opens associations one after the other, asks C-ECHO over each and releases it; answers milliseconds."""
    request = _command_pdu(
        1,
        {
            CommandElement.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            CommandElement.COMMAND_FIELD: CommandField.C_ECHO_RQ,
            CommandElement.MESSAGE_ID: 1,
            CommandElement.DATA_SET_TYPE: 0x0101,
        },
    )
    took_ms, failed = [], 0
    began = time.perf_counter()
    for _ in range(count):
        started = time.perf_counter()
        line = Line(order, [(VERIFICATION, IMPLICIT)])
        line.send(request)
        failed += line.answer() != 0
        line.release()
        took_ms.append(1000 * (time.perf_counter() - started))
    wall_s = time.perf_counter() - began
    took_ms.sort()
    return {"wall_s": wall_s, "instances": count, "failed": failed, "p50_ms": took_ms[count // 2], "p99_ms": took_ms[int(count * 0.99)]}


def _command_pdu(context_id: int, command: Command) -> bytes:
    encoded = encode_command(command)
    flags = COMMAND_FRAGMENT | LAST_FRAGMENT
    return struct.pack(">BBIIBB", PduType.DATA, 0, len(encoded) + 6, len(encoded) + 2, context_id, flags) + encoded


def _associate_request(order: Order, contexts: Sequence[tuple[str, str]]) -> bytes:
    body = struct.pack(">HH16s16s32x", 1, 0, order.called.ljust(16).encode(), order.calling.ljust(16).encode())
    body += _item(0x10, APPLICATION_CONTEXT.encode())
    for number, (sop_class, syntax) in enumerate(contexts):
        body += _item(0x20, bytes([2 * number + 1, 0, 0, 0]) + _item(0x30, sop_class.encode()) + _item(0x40, syntax.encode()))
    body += _item(0x50, _item(0x51, struct.pack(">I", 1 << 14)) + _item(0x52, b"1.2.826.0.1.3680043.8.498.1") + _item(0x55, b"BLAST"))
    return struct.pack(">BBI", PduType.ASSOCIATE_RQ, 0, len(body)) + body


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _items(body: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 4 <= len(body):
        kind, _reserved, length = struct.unpack_from(">BBH", body, place)
        yield kind, body[place + 4 : place + 4 + length]
        place += 4 + length


def _read_acceptance(body: bytes) -> tuple[list[int], int]:
    """Answers the accepted contexts, and the longest PDU that the receiver takes (0: any)."""
    accepted, longest = [], 0
    for kind, value in _items(body[68:]):
        if kind == 0x21 and value[2] == 0:
            accepted.append(value[0])
        elif kind == 0x50:
            longest = next((struct.unpack(">I", found)[0] for inner, found in _items(value) if inner == 0x51), 0)
    return accepted, longest


def main() -> int:
    """Sends what the command line names; answers 0 when every answer was success."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blast", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path, help="of Part 10 files and nothing else")
    parser.add_argument("--associations", type=int, default=1)
    parser.add_argument("--called", default="ANY-SCP")
    parser.add_argument("--calling", default="BLAST")
    parser.add_argument("--longest-pdu", type=int, default=LONGEST_PDU_BYTES, help="what the receiver takes at most counts besides")
    parser.add_argument("--warm-up", type=Path, help="a folder of files to send before, over an association of their own")
    parser.add_argument("--slow", type=int, default=0, help="one more association that sends so many bytes a second, and is not counted")
    parser.add_argument("--echo", type=int, default=0, help="instead of storing: so many associations with a C-ECHO each")
    arguments = parser.parse_args()
    order = Order(arguments.port, arguments.called, arguments.calling, arguments.longest_pdu)
    if arguments.warm_up:
        blast(order, files_in(arguments.warm_up), 1, 0)
    if arguments.echo:
        echo(order, 3)
        said = echo(order, arguments.echo)
    else:
        said = blast(order, files_in(arguments.folder), arguments.associations, arguments.slow)
    print(json.dumps(said))
    return 1 if said["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
