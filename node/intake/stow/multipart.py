"""The body of a multipart message as its parts, none of which is ever held (RFC 2046 5.1, PS3.18 8.7.1).

Pure: the bytes come from a callable. What it answers are views of one buffer, so that nothing is copied on the way to the file.
"""

import email.policy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from functools import lru_cache
from typing import Final

Receive = Callable[[memoryview], int]
"""Puts the next bytes of the body into a view; answers how many, 0 where the body is over."""

LONGEST_BOUNDARY: Final = 200
"""RFC 2046 allows 70; some senders take more."""

LONGEST_PART_HEAD_BYTES: Final = 1 << 13
SMALLEST_BUFFER_BYTES: Final = LONGEST_PART_HEAD_BYTES + 2 * LONGEST_BOUNDARY

_END_OF_HEAD: Final = b"\r\n\r\n"


class MalformedMultipart(Exception):
    """The body is no multipart body, or ends too early; the text says how."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part whose body is still arriving; a piece is valid until the next one is asked for."""

    media_type: str
    """Without parameters; '' where the part does not say."""
    transfer_encoding: str
    pieces: Iterator[memoryview]


class MultipartReader:
    """Reads one body through one buffer."""

    def __init__(self, boundary: bytes, receive: Receive, buffer: bytearray) -> None:
        if not 0 < len(boundary) <= LONGEST_BOUNDARY or len(buffer) < SMALLEST_BUFFER_BYTES:
            raise ValueError("a boundary has 1 to 200 characters, and the buffer must hold the head of a part")
        self._delimiter = b"\r\n--" + boundary
        self._receive = receive
        self._buffer = buffer
        self._view = memoryview(buffer)
        # The first delimiter may stand at the very beginning: as if a line had ended before it.
        buffer[:2] = b"\r\n"
        self._start, self._end = 0, 2

    def parts(self) -> Iterator[Part]:
        """Answers the parts in their order; what is not taken of one is dropped when the next is asked for.

        Raises
        ------
        MalformedMultipart
            When there is no such boundary, a head is no head, or the body ends before the last boundary.
        """
        self._drop(self._pieces())  # the preamble
        while not self._is_last():
            media_type, transfer_encoding = self._head()
            pieces = self._pieces()
            yield Part(media_type, transfer_encoding, pieces)
            self._drop(pieces)
        while self._receive(self._view):  # the epilogue
            pass

    @staticmethod
    def _drop(pieces: Iterator[memoryview]) -> None:
        for _ in pieces:
            pass

    def _pieces(self) -> Iterator[memoryview]:
        """Answers what lies before the next delimiter, which is taken too."""
        while True:
            place = self._buffer.find(self._delimiter, self._start, self._end)
            if place >= 0:
                begin, self._start = self._start, place + len(self._delimiter)
                if place > begin:
                    yield self._view[begin:place]
                return
            begin, self._start = self._start, self._kept_from()
            if self._start > begin:
                yield self._view[begin : self._start]
            self._fill()

    def _kept_from(self) -> int:
        """Answers from where on the buffer may hold the beginning of a delimiter: it has one carriage return, its first character."""
        tail = max(self._start, self._end - len(self._delimiter) + 1)
        place = self._buffer.rfind(b"\r", tail, self._end)
        return place if place >= 0 and self._delimiter.startswith(self._view[place : self._end]) else self._end

    def _is_last(self) -> bool:
        while self._end - self._start < 2:
            self._fill()
        return self._buffer.startswith(b"--", self._start, self._end)

    def _head(self) -> tuple[str, str]:
        """Answers media type and transfer encoding of a part; the delimiter's own line ends where its head begins."""
        while (place := self._buffer.find(_END_OF_HEAD, self._start, self._end)) < 0:
            if self._end - self._start > LONGEST_PART_HEAD_BYTES:
                raise MalformedMultipart("the head of a part does not end")
            self._fill()
        padding, _, lines = bytes(self._view[self._start : place]).partition(b"\r\n")
        if padding.strip(b" \t"):
            raise MalformedMultipart("a boundary does not stand alone in its line")
        self._start = place + len(_END_OF_HEAD)
        return _understand(lines)

    def _fill(self) -> None:
        """Receives behind what is held, which is little: the beginning of a delimiter, or of a head."""
        held = self._end - self._start
        if self._start:
            self._buffer[:held] = self._buffer[self._start : self._end]
        received = self._receive(self._view[held:])
        self._start, self._end = 0, held + received
        if not received:
            raise MalformedMultipart("the body ends before its last boundary")


@lru_cache(maxsize=32)
def _understand(lines: bytes) -> tuple[str, str]:
    """Answers what the head of a part says; those of one sender are all alike."""
    head = BytesHeaderParser(policy=email.policy.compat32).parsebytes(lines + _END_OF_HEAD)
    media_type = head.get_content_type() if "Content-Type" in head else ""
    return media_type, str(head.get("Content-Transfer-Encoding", "")).strip().lower()
