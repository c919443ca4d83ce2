"""A connection that carries PDUs: whole ones in, fragments out (PS3.8 9.3). One thread reads and writes it."""

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from node.network import COMMAND_FRAGMENT, LAST_FRAGMENT, PduType, acknowledge_at_once, limit_waits, prepare_socket
from node.network.scatter import FRAGMENT_PDU_HEAD, Expectation, new_heads, sort, views_for
from node.network.tls import words_of_tls

_PDU_HEAD: Final = struct.Struct(">BBI")
_FRAGMENT_HEAD: Final = struct.Struct(">IBB")
_DATA: Final = int(PduType.DATA)  # as plain numbers: members of an enumeration are looked up in Python

PDU_HEAD_BYTES: Final = 6
PDV_HEAD_BYTES: Final = 6
SMALLEST_BUFFER_BYTES: Final = 1 << 16

SLOWEST_BYTES_PER_S: Final = 1024
"""A PDU that arrives more slowly than this, when it has had the time of one silence besides, is given up."""

BULK_BYTES: Final = 1 << 19
"""The buffer of a connection over which data sets come: larger ones fall out of the cache of the CPU."""

FIRST_PIECE_BYTES: Final = 1 << 20
"""What is announced is not believed: the buffer grows beyond this as the bytes arrive."""

LAST_WORD_S: Final = 2.0
"""How long an A-ABORT waits for a peer that does not read."""


class Received(NamedTuple):
    """Pieces of a data set."""

    pieces: list[memoryview]
    is_last: bool
    """Whether the data set has ended with them."""
    in_room: bool = False
    """Whether they lie where they belong already."""


class LinkBroken(Exception):
    """The connection is over, or what came over it is no DICOM; the text says which, from the peer's side: `closed the connection`."""


class Link:
    """A connection to a peer, plain or TLS. It is closed when a call has raised LinkBroken.

    No wait is without end: the peer may be silent for `timeout_s`; a PDU that has begun must be whole in that time and as much
    more as its length takes at SLOWEST_BYTES_PER_S; and nothing is waited for beyond `deadline_s`, where that is set.
    """

    def __init__(self, connection: socket.socket, *, timeout_s: float, longest_pdu_bytes: int) -> None:
        self._socket = connection
        self._timeout_s = timeout_s
        self.longest_pdu_bytes = longest_pdu_bytes
        self.deadline_s: float | None = None
        """On the monotonic clock: when whatever is under way must have ended."""
        self._buffer = bytearray(SMALLEST_BUFFER_BYTES)
        self._start = self._end = 0
        self._pdu_left = 0
        """Of a P-DATA PDU that `receive_data` has begun: what follows the fragment under way."""
        self._fragment_left = 0
        self._fragment_bytes = 0
        """Of the fragment under way, or the one before it: the next one is likely to be as long."""
        self._fragment_is_last = False
        self._scatters = not isinstance(connection, ssl.SSLSocket)
        self._heads = new_heads()
        self.gulp_bytes = BULK_BYTES
        """How much is received at once of what is not a data set: little, where the rest has a better place than the buffer."""
        self.is_open = True
        prepare_socket(connection, timeout_s)

    @property
    def socket(self) -> socket.socket:
        """The connection itself."""
        return self._socket

    def limit_waits(self, timeout_s: float) -> None:
        """Sets how long the peer may be silent."""
        self._timeout_s = timeout_s
        limit_waits(self._socket, timeout_s)

    def shake_hands(self) -> None:
        """Agrees with the peer on keys, where the connection is TLS.

        Raises
        ------
        LinkBroken
            When they do not come to terms; the connection is left for the caller to close, so that the alert arrives.
        """
        if not isinstance(self._socket, ssl.SSLSocket):
            return
        try:
            self._limit_wait(None)
            self._socket.do_handshake()
        except OSError as error:
            raise LinkBroken(f"does not come to terms on TLS: {words_of(error)}") from error
        limit_waits(self._socket, self._timeout_s)

    def has_more(self, timeout_s: float) -> bool:
        """Waits for a first byte of the next PDU; answers whether there is one. Silence is no fault here."""
        if self._end > self._start:
            return True
        self._start = self._end = 0
        limit_waits(self._socket, timeout_s)
        try:
            self._receive()
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            raise self.broken(f"does not answer: {words_of(error)}") from error
        finally:
            if self.is_open:
                limit_waits(self._socket, self._timeout_s)
        return True

    def receive_pdu(self) -> tuple[int, memoryview]:
        """Answers kind and body of the next PDU, or what `receive_data` has left of one; the body is valid until the next call.

        Raises
        ------
        LinkBroken
            When the peer closes, is silent or slow for too long, or sends a PDU of a length that nobody means.
        """
        if self._pdu_left:
            return PduType.DATA, self._rest_of_pdu()
        if self._end == self._start:
            self._start = self._end = 0
            self._fill(1, None, self.gulp_bytes)
        begun_s = time.monotonic()
        self._fill(PDU_HEAD_BYTES, begun_s + self._timeout_s)
        kind, _reserved, length = _PDU_HEAD.unpack_from(self._buffer, self._start)
        if length > self.longest_pdu_bytes:
            raise self.broken("does not speak DICOM")
        self._fill(PDU_HEAD_BYTES + length, begun_s + self._timeout_s + length / SLOWEST_BYTES_PER_S)
        body = memoryview(self._buffer)[self._start + PDU_HEAD_BYTES : self._start + PDU_HEAD_BYTES + length]
        self._start += PDU_HEAD_BYTES + length
        return kind, body

    def _rest_of_pdu(self) -> memoryview:
        length, self._pdu_left = self._pdu_left, 0
        self._fill(length, time.monotonic() + self._timeout_s + length / SLOWEST_BYTES_PER_S)
        self._start += length
        return memoryview(self._buffer)[self._start - length : self._start]

    def receive_data(self, context_id: int, until_s: float, room: memoryview | None = None) -> Received | None:
        """Answers the next pieces of a data set, as they come; they are valid until the next call.

        This is where the bytes are: a fragment need not be whole, and nothing is copied. `room` is where the next bytes belong, should
        that be known: they may be put there at once. None: what follows is no plain fragment of the context, and `receive_pdu` is to take it.

        Raises
        ------
        LinkBroken
            When the peer closes, is silent for too long, or `until_s` on the monotonic clock has passed.
        """
        if room is not None and self._end == self._start and self._scatters:
            placed = self._receive_in_place(room, context_id, until_s)
            is_last = self._takes_end()  # also behind an empty last fragment, which brings nothing
            if placed or is_last:
                return Received([room[:placed]], is_last, in_room=True)
        if len(self._buffer) < BULK_BYTES and self._end == self._start:
            self._buffer = bytearray(BULK_BYTES)
        pieces: list[memoryview] = []
        while True:
            if not self._fragment_left:
                known = self._begin_fragment(context_id, until_s, may_wait=not pieces)
                if not known:
                    return Received(pieces, is_last=False) if pieces or known is None else None
            elif self._end == self._start:
                if pieces:
                    return Received(pieces, is_last=False)
                self._start = self._end = 0
                self._fill(1, until_s)
            size = min(self._fragment_left, self._end - self._start)
            if size:
                pieces.append(memoryview(self._buffer)[self._start : self._start + size])
                self._start += size
                self._fragment_left -= size
            if self._takes_end():
                return Received(pieces, is_last=True)

    def _takes_end(self) -> bool:
        """Answers whether the last fragment of the data set has come, once."""
        if self._fragment_left or not self._fragment_is_last:
            return False
        self._fragment_is_last = False
        self._fragment_bytes = 0
        return True

    def _receive_in_place(self, room: memoryview, context_id: int, until_s: float) -> int:
        """Receives the rest of a fragment, and those that are likely to follow, into `room`; answers how many bytes lie there in order.

        What comes otherwise than foreseen goes into the buffer, as if it had been received there.
        """
        is_foreseen = not self._pdu_left and not self._fragment_is_last
        expected = Expectation(context_id, self._fragment_left, self._fragment_bytes if is_foreseen else 0)
        views = views_for(room, self._heads, expected)
        if not views:
            return 0
        shortened = self._limit_wait(until_s)
        try:
            received = self._socket.recvmsg_into(views)[0]
        except OSError as error:
            raise self.broken(f"does not answer: {words_of(error)}") from error
        if not received:
            raise self.broken("closed the connection")
        if shortened:
            limit_waits(self._socket, self._timeout_s)
        found = sort(views, received, self._heads if is_foreseen else (), expected)
        self._fragment_left = found.left_bytes
        self._fragment_is_last = self._fragment_is_last or found.is_last
        if found.rest:
            self._hold(found.rest)
        return found.placed_bytes

    def _hold(self, rest: bytes) -> None:
        """Takes bytes into the buffer, which is empty."""
        if len(rest) > len(self._buffer):
            self._buffer = bytearray(max(len(rest), BULK_BYTES))
        self._buffer[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def _begin_fragment(self, context_id: int, until_s: float, *, may_wait: bool) -> bool | None:
        """Takes the heads of the next fragment; answers False where it is none of a data set, None where that is not known yet."""
        heads_bytes = PDV_HEAD_BYTES if self._pdu_left else PDU_HEAD_BYTES
        while True:
            if self._end - self._start < heads_bytes:
                if not may_wait:
                    return None
                self._fill(heads_bytes, until_s)
            place, pdu_left = self._start, self._pdu_left
            if not pdu_left:
                kind, _reserved, pdu_left = _PDU_HEAD.unpack_from(self._buffer, place)
                if kind != _DATA or not PDV_HEAD_BYTES <= pdu_left <= self.longest_pdu_bytes:
                    return False
                place += PDU_HEAD_BYTES
                if heads_bytes == PDU_HEAD_BYTES:
                    heads_bytes += PDV_HEAD_BYTES
                    continue
            length, fragment_context_id, flags = _FRAGMENT_HEAD.unpack_from(self._buffer, place)
            if fragment_context_id != context_id or flags & COMMAND_FRAGMENT or not 2 <= length <= pdu_left - 4:
                return False
            self._start = place + PDV_HEAD_BYTES
            self._pdu_left = pdu_left - 4 - length
            self._fragment_left = self._fragment_bytes = length - 2
            self._fragment_is_last = bool(flags & LAST_FRAGMENT)
            return True

    def _fill(self, wanted: int, until_s: float | None, most: int = BULK_BYTES) -> None:
        """Receives until `wanted` bytes lie in the buffer, or more if they are there already; no longer than `until_s`."""
        while self._end - self._start < wanted:
            if not self.is_open:
                raise LinkBroken("closed the connection")
            self._make_room(wanted)
            shortened = self._limit_wait(until_s)
            acknowledge_at_once(self._socket)
            try:
                self._receive(most)
            except OSError as error:
                raise self.broken(f"does not answer: {words_of(error)}") from error
            if shortened:
                limit_waits(self._socket, self._timeout_s)

    def _receive(self, most: int = BULK_BYTES) -> None:
        received = self._socket.recv_into(memoryview(self._buffer)[self._end : self._end + most])
        if not received:
            raise self.broken("closed the connection")
        self._end += received

    def _make_room(self, wanted: int) -> None:
        """Makes room behind what is held, for `wanted` bytes or for a part of them; views of an older buffer stay valid."""
        held = self._end - self._start
        if self._start + wanted <= len(self._buffer) or (self._start == 0 and held < len(self._buffer)):
            return
        rest = self._buffer[self._start : self._end]
        size = min(2 * wanted, wanted + FIRST_PIECE_BYTES, max(FIRST_PIECE_BYTES, 2 * held))  # two PDUs, so that few are moved
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        self._buffer[:held] = rest
        self._start, self._end = 0, held

    def _limit_wait(self, until_s: float | None) -> bool:
        """Shortens the next wait where less time is left than a silence may take; answers whether it did."""
        ends_s = until_s if self.deadline_s is None or (until_s is not None and until_s < self.deadline_s) else self.deadline_s
        if ends_s is None:
            return False
        left_s = ends_s - time.monotonic()
        if left_s >= self._timeout_s:
            return False
        if left_s <= 0:
            raise self.broken("does not answer: it is too slow")
        limit_waits(self._socket, left_s)
        return True

    def fragments_in(self, body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Answers context ID, control bits and bytes of every fragment in the body of a P-DATA PDU."""
        place = 0
        while place < len(body):
            if len(body) - place < PDV_HEAD_BYTES:
                raise self.broken("sent a PDU that is cut off")
            length, context_id, flags = _FRAGMENT_HEAD.unpack_from(body, place)
            if length < 2 or place + 4 + length > len(body):
                raise self.broken("sent a PDU that is cut off")
            yield context_id, flags, body[place + PDV_HEAD_BYTES : place + 4 + length]
            place += 4 + length

    def send(self, data: bytes | memoryview) -> None:
        """Sends bytes; a peer that takes them more slowly than SLOWEST_BYTES_PER_S, when it has had the time of one silence, breaks it.

        Raises
        ------
        LinkBroken
            When not all could be sent. What the peer has said before can still be received.
        """
        try:
            sent = self._socket.send(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:])
        except OSError as error:
            self._keep_last_words()
            self.close()
            raise LinkBroken(f"broke the connection: {words_of(error)}") from error

    def _send_rest(self, rest: memoryview) -> None:
        ends_s = time.monotonic() + self._timeout_s + len(rest) / SLOWEST_BYTES_PER_S
        while rest:
            if time.monotonic() > ends_s:
                raise TimeoutError
            rest = rest[self._socket.send(rest) :]

    def _keep_last_words(self) -> None:
        """Takes in what has arrived on a connection that breaks: an answer, or why there will be none."""
        received = 1
        with contextlib.suppress(OSError, ValueError):  # ValueError: there was no handshake
            self._socket.settimeout(0)
            while received and self._end - self._start < SMALLEST_BUFFER_BYTES:
                self._make_room(self._end - self._start + 1)
                received = self._socket.recv_into(memoryview(self._buffer)[self._end :])
                self._end += received

    def send_fragments(self, context_id: int, kind: int, fragments: Iterable[bytes]) -> None:
        """Sends a command (`kind` COMMAND_FRAGMENT) or data set (0), a PDU for each fragment."""
        remaining = iter(fragments)
        fragment = next(remaining, b"")
        while True:
            following = next(remaining, None)
            fragment += b"\x00" * (len(fragment) % 2)  # only a last one can be odd: of a deflated data set (PS3.5 A.5)
            flags = kind | (LAST_FRAGMENT if following is None else 0)
            self.send(FRAGMENT_PDU_HEAD.pack(_DATA, 0, len(fragment) + 6, len(fragment) + 2, context_id, flags) + fragment)
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
                limit_waits(self._socket, min(self._timeout_s, LAST_WORD_S))
                self.send(pdu(PduType.ABORT, bytes([0, 0, source, reason])))
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        if self.is_open and isinstance(self._socket, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):  # ValueError: the handshake never began
                self._socket.settimeout(0)
                self._socket.unwrap()  # says that nothing follows (close_notify), and does not wait for the same
        self.is_open = False
        self._socket.close()


def pdu(kind: PduType, body: bytes) -> bytes:
    """Answers a PDU."""
    return _PDU_HEAD.pack(kind, 0, len(body)) + body


def words_of(error: Exception) -> str:
    """Answers an error of the network in a few words."""
    if isinstance(error, TimeoutError | BlockingIOError):
        return "no answer in time"
    if isinstance(error, UnicodeError):
        return "no such host name"
    if isinstance(error, ssl.SSLError):
        return words_of_tls(error)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
