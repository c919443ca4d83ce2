"""A connection that carries HTTP/1.1 requests, one after the other. h11 judges heads and chunks; a body of known length passes it by.

No wait is without end, and no sender may be slower than SLOWEST_BYTES_PER_S: what the node itself needs meanwhile does not count.
"""

import contextlib
import email.utils
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import h11

from node.intake.conversation import ARTIM_S
from node.network import acknowledge_at_once, limit_waits, prepare_socket
from node.network.link import SLOWEST_BYTES_PER_S, words_of

LONGEST_HEAD_BYTES: Final = 1 << 15
"""Request line and headers; real ones have some 500."""

PIECE_BYTES: Final = 1 << 16
LINGER_S: Final = 5.0
LINGER_BYTES: Final = 1 << 28
"""How long, and how much, is read of a body that was answered before it was whole: senders that do not listen meanwhile, as most
do not, would lose the answer otherwise."""


class ConnectionBroken(Exception):
    """The connection is over, from the sender's side: `closed the connection`."""


class BadRequest(Exception):
    """What came is no HTTP request, or one that is not taken: to be answered with this status, then the connection ends."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request."""

    method: str
    target: str
    headers: Sequence[tuple[bytes, bytes]]

    def header(self, name: str) -> str:
        """Answers the value of a header, several joined as a list, '' where there is none."""
        wanted = name.lower().encode()
        return ", ".join(value.decode("latin-1") for key, value in self.headers if key == wanted)


@dataclass(frozen=True, slots=True)
class Reply:
    """A response and its body."""

    status: HTTPStatus
    body: bytes
    media_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = field(default=())


class HttpConnection:
    """A connection, plain or TLS, as server. One thread reads and writes it."""

    def __init__(self, connection: socket.socket, *, timeout_s: float, max_body_bytes: int = 0) -> None:
        self.socket = connection
        self._timeout_s = timeout_s
        self._max_body_bytes = max_body_bytes
        self._head_s = min(ARTIM_S, timeout_s)
        self._pending = b""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD_BYTES)
        self._method = ""
        self._receive_body: Callable[[memoryview], int] = _nothing
        self._left_bytes = 0
        self._chunk = memoryview(b"")
        self._over = True
        self.body_bytes = 0
        """Of the request at hand, as far as it has arrived."""
        self.waited_s = 0.0
        prepare_socket(connection, timeout_s)

    def shake_hands(self) -> None:
        """Agrees with the sender on keys, where the connection is TLS; raises ConnectionBroken."""
        if not isinstance(self.socket, ssl.SSLSocket):
            return
        try:
            limit_waits(self.socket, self._head_s)
            self.socket.do_handshake()
        except (OSError, ValueError) as error:  # ValueError: the peer is gone already
            raise ConnectionBroken(f"does not come to terms on TLS: {words_of(error)}") from error

    # ── head ────────────────────────────────────────────────────────────────

    def next_request(self) -> Request | None:
        """Waits for a request; answers its head, None where the sender has no more.

        Raises
        ------
        BadRequest
            When the head is no head, or too long.
        ConnectionBroken
            When the sender goes in the middle of it, or takes too long.
        """
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD_BYTES)
        self._over, self._method = False, ""
        begun_s = time.monotonic() if self._pending else None
        if self._pending:
            self._http.receive_data(self._pending)
            self._pending = b""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise BadRequest(HTTPStatus(error.error_status_hint), f"no request of HTTP/1.1: {error}") from error
            if isinstance(event, h11.Request):
                return self._begin(event)
            if event is not h11.NEED_DATA:
                return None
            received = self._receive_head(begun_s)
            if not received and begun_s is None:
                return None
            begun_s = begun_s or time.monotonic()
            self._http.receive_data(received)

    def has_more(self, timeout_s: float) -> bool:
        """Waits for the beginning of another request; answers whether there is one. Silence is no fault here."""
        if self._pending:
            return True
        try:
            limit_waits(self.socket, timeout_s)
            self._pending = self.socket.recv(PIECE_BYTES)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            raise ConnectionBroken(f"does not answer: {words_of(error)}") from error
        return bool(self._pending)

    def _receive_head(self, begun_s: float | None) -> bytes:
        """Answers the next bytes of a head, none where the sender has closed, or has kept silent before it began."""
        wait_s = self._timeout_s if begun_s is None else begun_s + self._head_s - time.monotonic()
        if wait_s <= 0:
            raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, "the head of the request comes too slowly")
        try:
            limit_waits(self.socket, wait_s)
            acknowledge_at_once(self.socket)
            return self.socket.recv(PIECE_BYTES)
        except (TimeoutError, BlockingIOError) as error:
            if begun_s is None:
                return b""
            raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, "the head of the request comes too slowly") from error
        except OSError as error:
            raise ConnectionBroken(f"does not answer: {words_of(error)}") from error

    def _begin(self, event: h11.Request) -> Request:
        limit_waits(self.socket, self._timeout_s)
        self.body_bytes, self.waited_s, self._chunk = 0, 0.0, memoryview(b"")
        self._method = event.method.decode("ascii")
        request = Request(self._method, event.target.decode("ascii"), list(event.headers))
        if request.header("transfer-encoding"):
            self._receive_body = self._receive_chunked
            return request
        self._left_bytes = int(request.header("content-length") or 0)
        self._over = not self._left_bytes
        if 0 < self._max_body_bytes < self._left_bytes:
            self._receive_body = _nothing
            raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {self._max_body_bytes} bytes")
        come, _ = self._http.trailing_data
        self._chunk, self._pending = memoryview(come[: self._left_bytes]), come[self._left_bytes :]
        self._receive_body = self._receive_counted
        return request

    # ── body ────────────────────────────────────────────────────────────────

    def receive_into(self, view: memoryview) -> int:
        """Puts the next bytes of the body into a view; answers how many, 0 where it is over.

        Raises
        ------
        BadRequest
            When it is longer than it may be, too slow, or not chunked as it should be.
        ConnectionBroken
            When the sender goes.
        """
        if self._over:
            return 0
        if self._http.they_are_waiting_for_100_continue:
            self._send(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        received = self._receive_body(view)
        self._over = not received
        self.body_bytes += received
        if 0 < self._max_body_bytes < self.body_bytes:
            raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {self._max_body_bytes} bytes")
        return received

    def _receive_counted(self, view: memoryview) -> int:
        if self._left_bytes and not self._chunk:
            received = self._wait_for(lambda: self.socket.recv_into(view[: self._left_bytes]))
        else:
            received = self._take_chunk(view)
        self._left_bytes -= received
        return received

    def _receive_chunked(self, view: memoryview) -> int:
        while not self._chunk:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise BadRequest(HTTPStatus.BAD_REQUEST, f"the body is not chunked as it should be: {error}") from error
            if isinstance(event, h11.Data):
                self._chunk = memoryview(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._pending, _ = self._http.trailing_data
                return 0
            else:
                # through the view: the most that fits there, and no buffer more
                received = self._wait_for(lambda: self.socket.recv_into(view))
                self._http.receive_data(bytes(view[:received]))
        return self._take_chunk(view)

    def _take_chunk(self, view: memoryview) -> int:
        taken = min(len(view), len(self._chunk))
        view[:taken] = self._chunk[:taken]
        self._chunk = self._chunk[taken:]
        return taken

    def _wait_for(self, receive: Callable[[], int]) -> int:
        begun_s = time.monotonic()
        acknowledge_at_once(self.socket)
        try:
            received = receive()
        except (TimeoutError, BlockingIOError) as error:
            raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, "the body does not arrive") from error
        except OSError as error:
            raise ConnectionBroken(f"does not answer: {words_of(error)}") from error
        if not received:
            raise ConnectionBroken("closed the connection in the middle of a request")
        self.waited_s += time.monotonic() - begun_s
        if self.waited_s > self._timeout_s + (self.body_bytes + received) / SLOWEST_BYTES_PER_S:
            raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, "the body arrives too slowly")
        return received

    # ── response ────────────────────────────────────────────────────────────

    def reply(self, reply: Reply) -> bool:
        """Answers the request at hand; answers whether another may follow on this connection.

        Raises
        ------
        ConnectionBroken
            When the sender is not there to hear it.
        """
        headers = [("Date", email.utils.formatdate(usegmt=True)), ("Content-Length", str(len(reply.body))), *reply.headers]
        if reply.body:
            headers.append(("Content-Type", reply.media_type))
        if not self._over:
            headers.append(("Connection", "close"))
        message = self._http.send(h11.Response(status_code=reply.status, reason=reply.status.phrase, headers=headers)) or b""
        if self._method != "HEAD":
            message += self._http.send(h11.Data(data=reply.body)) or b""
        message += self._http.send(h11.EndOfMessage()) or b""
        self._send(message)
        return self._over and self._http.our_state is h11.DONE

    def _send(self, message: bytes | None) -> None:
        rest = memoryview(message or b"")
        until_s = time.monotonic() + self._timeout_s + len(rest) / SLOWEST_BYTES_PER_S
        try:
            while rest:
                if time.monotonic() > until_s:
                    raise TimeoutError
                rest = rest[self.socket.send(rest) :]
        except OSError as error:
            raise ConnectionBroken(f"broke the connection: {words_of(error)}") from error

    def close(self) -> None:
        """Ends the connection when the sender has heard the last answer, or after a while."""
        with contextlib.suppress(OSError, ValueError):  # it may be gone already
            if isinstance(self.socket, ssl.SSLSocket):
                self.socket.settimeout(0)
                with contextlib.suppress(OSError):
                    self.socket.unwrap()  # says that nothing follows, and does not wait for the same
            socket.socket.shutdown(self.socket, socket.SHUT_WR)
            self._drop_the_rest()
        self.socket.close()

    def _drop_the_rest(self) -> None:
        """Reads, below TLS, until the sender closes."""
        until_s = time.monotonic() + LINGER_S
        dropped = 0
        scratch = bytearray(PIECE_BYTES)
        while dropped < LINGER_BYTES and (left_s := until_s - time.monotonic()) > 0:
            socket.socket.settimeout(self.socket, left_s)
            received = socket.socket.recv_into(self.socket, scratch)
            if not received:
                return
            dropped += received


def _nothing(_view: memoryview) -> int:
    return 0
