"""A connection that carries PDUs: whole ones in, fragments out (PS3.8 9.3). One thread reads and writes it."""

import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from node.network import LAST_FRAGMENT, PduType, acknowledge_at_once, limit_waits, prepare_socket

PDU_HEAD_BYTES: Final = 6
PDV_HEAD_BYTES: Final = 6
SMALLEST_BUFFER_BYTES: Final = 1 << 16

MALFORMED_PDU: Final = (
    ValueError, TypeError, LookupError, AttributeError, NotImplementedError, AssertionError, RuntimeError, struct.error,
)  # fmt: skip
"""What pynetdicom's codecs raise when they meet what is no PDU."""


class LinkBroken(Exception):
    """The connection is over, or what came over it is no DICOM; the text says which, from the peer's side: `closed the connection`."""


class Link:
    """A connection to a peer. It is closed when a call has raised LinkBroken."""

    def __init__(self, connection: socket.socket, *, timeout_s: float, longest_pdu_bytes: int) -> None:
        self._socket = connection
        self._longest_pdu_bytes = longest_pdu_bytes
        self._buffer = bytearray(SMALLEST_BUFFER_BYTES)
        self._start = self._end = 0
        self.is_open = True
        prepare_socket(connection, timeout_s)

    @property
    def socket(self) -> socket.socket:
        """The connection itself."""
        return self._socket

    def limit_waits(self, timeout_s: float) -> None:
        """Sets how long the peer may be silent."""
        limit_waits(self._socket, timeout_s)

    def receive_pdu(self) -> tuple[int, memoryview]:
        """Answers kind and body of the next PDU; the body is valid until the next call.

        Raises
        ------
        LinkBroken
            When the peer closes, is silent for too long, or sends a PDU of a length that nobody means.
        """
        self._fill(PDU_HEAD_BYTES)
        kind, _reserved, length = struct.unpack_from(">BBI", self._buffer, self._start)
        if length > self._longest_pdu_bytes:
            raise self.broken("does not speak DICOM")
        self._fill(PDU_HEAD_BYTES + length)
        body = memoryview(self._buffer)[self._start + PDU_HEAD_BYTES : self._start + PDU_HEAD_BYTES + length]
        self._start += PDU_HEAD_BYTES + length
        return kind, body

    def _fill(self, wanted: int) -> None:
        """Receives until `wanted` bytes lie in the buffer, or more if they are there already."""
        if self._start + wanted > len(self._buffer):
            rest = self._buffer[self._start : self._end]
            if wanted > len(self._buffer):
                self._buffer = bytearray(wanted * 2)  # views of the old one stay valid
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        while self._end - self._start < wanted:
            acknowledge_at_once(self._socket)
            try:
                received = self._socket.recv_into(memoryview(self._buffer)[self._end :])
            except OSError as error:
                raise self.broken(f"does not answer: {words_of(error)}") from error
            if not received:
                raise self.broken("closed the connection")
            self._end += received

    def fragments_in(self, body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Answers context ID, control bits and bytes of every fragment in the body of a P-DATA PDU."""
        place = 0
        while place < len(body):
            if len(body) - place < PDV_HEAD_BYTES:
                raise self.broken("sent a PDU that is cut off")
            length, context_id, flags = struct.unpack_from(">IBB", body, place)
            if length < 2 or place + 4 + length > len(body):
                raise self.broken("sent a PDU that is cut off")
            yield context_id, flags, body[place + PDV_HEAD_BYTES : place + 4 + length]
            place += 4 + length

    def send(self, data: bytes) -> None:
        """Sends bytes."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            self.close()
            raise LinkBroken(f"broke the connection: {words_of(error)}") from error

    def send_fragments(self, context_id: int, kind: int, fragments: Iterable[bytes]) -> None:
        """Sends a command (`kind` COMMAND_FRAGMENT) or data set (0), a PDU for each fragment."""
        remaining = iter(fragments)
        fragment = next(remaining, b"")
        while True:
            following = next(remaining, None)
            fragment += b"\x00" * (len(fragment) % 2)  # only a last one can be odd: of a deflated data set (PS3.5 A.5)
            flags = kind | (LAST_FRAGMENT if following is None else 0)
            self.send(struct.pack(">BBIIBB", PduType.DATA, 0, len(fragment) + 6, len(fragment) + 2, context_id, flags) + fragment)
            if following is None:
                return
            fragment = following

    def broken(self, what: str) -> LinkBroken:
        """Aborts the association and answers the error that says why."""
        self.abort()
        return LinkBroken(what)

    def abort(self, source: int = 0, reason: int = 0) -> None:
        """Sends A-ABORT, if the peer still listens, and closes."""
        if self.is_open:
            with contextlib.suppress(LinkBroken):
                self.send(pdu(PduType.ABORT, bytes([0, 0, source, reason])))
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self.is_open = False
        self._socket.close()


def pdu(kind: PduType, body: bytes) -> bytes:
    """Answers a PDU."""
    return struct.pack(">BBI", kind, 0, len(body)) + body


def words_of(error: OSError | UnicodeError) -> str:
    """Answers an error of the network in a few words."""
    if isinstance(error, TimeoutError | BlockingIOError):
        return "no answer in time"
    if isinstance(error, UnicodeError):
        return "no such host name"
    return error.strerror or type(error).__name__
