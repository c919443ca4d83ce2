"""`python -m benchmarks.sink MAX_PDU_BYTES WINDOW [--digests]`: a storage SCP that keeps nothing and answers at once.

It accepts whatever is proposed, in its first transfer syntax, and WINDOW operations at once where that is proposed. The first line of
stdout is its port, then comes a JSON object for each association that was released: seconds from its first byte to its last, bytes of
data sets, objects; with `--digests` the sha256 of each data set by SOP Instance UID.
"""

import hashlib
import json
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Final

from node.network import APPLICATION_CONTEXT, CommandElement, CommandField, PduType
from node.network.command import decode_command, encode_command
from node.network.link import pdu

BUFFER_BYTES: Final = 1 << 20
_ASSOCIATION_ITEMS: Final = 74
"""Where the items of an A-ASSOCIATE-RQ begin, with the head of the PDU."""


class Association:
    """One association, until it is released or broken."""

    def __init__(self, link: socket.socket, max_pdu_bytes: int, window: int, *, digests: bool) -> None:
        self._link = link
        self._max_pdu_bytes, self._window = max_pdu_bytes, window
        self._view = memoryview(bytearray(BUFFER_BYTES))
        self._held = 0
        self._skip = 0
        self._is_last = False
        self._response = b""
        self._digest = hashlib.sha256() if digests else None
        self._uid = ""
        self._size_bytes = self._objects = 0
        self._digests: dict[str, str] = {}

    def run(self) -> None:
        """Answers until the release, and prints what came."""
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun_s = time.perf_counter()
        while received := self._link.recv_into(self._view[self._held :]):
            self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if self._take(self._held + received):
                seconds = time.perf_counter() - begun_s
                told = {"seconds": seconds, "bytes": self._size_bytes, "objects": self._objects, "digests": self._digests}
                print(json.dumps(told), flush=True)
                return

    def _take(self, end: int) -> bool:
        """Takes what lies in the buffer; answers whether the association is released."""
        place = 0
        while True:
            if self._skip:
                size = min(self._skip, end - place)
                if self._digest is not None:
                    self._digest.update(self._view[place : place + size])
                place, self._skip = place + size, self._skip - size
                if self._skip:
                    break
                self._answer_last()
            if end - place < 6:
                break
            kind, _, length = struct.unpack_from(">BBI", self._view, place)
            if kind == PduType.DATA and end - place >= 12 and not self._view[place + 11] & 1:
                value_length, _, flags = struct.unpack_from(">IBB", self._view, place + 6)
                assert value_length + 4 == length, "one value a PDU"
                self._skip, self._is_last = length - 6, bool(flags & 2)
                self._size_bytes += self._skip
                place += 12
                if not self._skip:
                    self._answer_last()
                continue
            if end - place < 6 + length or (kind == PduType.DATA and end - place < 12):
                break
            if self._take_small(kind, bytes(self._view[place : place + 6 + length])):
                return True
            place += 6 + length
        self._held = end - place
        self._view[: self._held] = self._view[place:end]
        return False

    def _take_small(self, kind: int, whole: bytes) -> bool:
        if kind == PduType.ASSOCIATE_RQ:
            self._link.sendall(self._acceptance(whole))
        elif kind == PduType.DATA:
            command = decode_command(whole[12:])
            answer = encode_command(
                {
                    CommandElement.COMMAND_FIELD: CommandField.C_STORE_RSP,
                    CommandElement.MESSAGE_ID_RESPONDED_TO: command[CommandElement.MESSAGE_ID],
                    CommandElement.DATA_SET_TYPE: 0x0101,
                    CommandElement.STATUS: 0,
                    CommandElement.AFFECTED_SOP_CLASS_UID: command[CommandElement.AFFECTED_SOP_CLASS_UID],
                    CommandElement.AFFECTED_SOP_INSTANCE_UID: command[CommandElement.AFFECTED_SOP_INSTANCE_UID],
                }
            )
            self._uid = str(command[CommandElement.AFFECTED_SOP_INSTANCE_UID])
            self._response = pdu(PduType.DATA, struct.pack(">IBB", len(answer) + 2, whole[10], 3) + answer)
        elif kind == PduType.ABORT:
            raise ConnectionAbortedError
        else:
            self._link.sendall(pdu(PduType.RELEASE_RP, bytes(4)))
            return True
        return False

    def _answer_last(self) -> None:
        if not self._is_last:
            return
        self._is_last = False
        self._objects += 1
        if self._digest is not None:
            self._digests[self._uid] = self._digest.hexdigest()
            self._digest = hashlib.sha256()
        self._link.sendall(self._response)

    def _acceptance(self, request: bytes) -> bytes:
        contexts, proposed_window = b"", False
        for kind, value in _items(request, _ASSOCIATION_ITEMS):
            if kind == 0x20:
                syntax = next(inner for number, inner in _items(value, 4) if number == 0x40)
                contexts += _item(0x21, bytes([value[0], 0, 0, 0]) + _item(0x40, syntax))
            elif kind == 0x50:
                proposed_window = any(number == 0x53 for number, _ in _items(value, 0))
        user = _item(0x51, struct.pack(">I", self._max_pdu_bytes)) + _item(0x52, b"1.2.3.4.5")
        if proposed_window and self._window != 1:
            user += _item(0x53, struct.pack(">HH", self._window, 1))
        body = request[6:_ASSOCIATION_ITEMS] + _item(0x10, APPLICATION_CONTEXT.encode()) + contexts + _item(0x50, user)
        return pdu(PduType.ASSOCIATE_AC, body)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _items(body: bytes, place: int) -> list[tuple[int, bytes]]:
    found = []
    while place + 4 <= len(body):
        kind, _, length = struct.unpack_from(">BBH", body, place)
        found.append((kind, body[place + 4 : place + 4 + length]))
        place += 4 + length
    return found


def main() -> None:
    """Serves for ever."""
    max_pdu_bytes, window, digests = int(sys.argv[1]), int(sys.argv[2]), "--digests" in sys.argv
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            link, _ = server.accept()
            association = Association(link, max_pdu_bytes, window, digests=digests)
            threading.Thread(target=_run, args=(association,), daemon=True).start()


def _run(association: Association) -> None:
    with suppress(ConnectionError):  # a sender that gives up: nothing is told
        association.run()


if __name__ == "__main__":
    main()
