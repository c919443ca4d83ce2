"""P-DATA from files: fragments are read into the places where they go over the wire, between heads that stand there already."""

import os
import struct
from typing import Final

from node.errors import NodeError
from node.network import COMMAND_FRAGMENT, LAST_FRAGMENT, PduType
from node.network.link import PDU_HEAD_BYTES, PDV_HEAD_BYTES, Link

BUFFER_BYTES: Final = 1 << 20
"""So much is read and sent at once: two system calls a megabyte, and no copy of ours between them.

A file is read and not mapped, although that costs a copy in the cache of the processor (0.03 s a GB): that it became shorter in the
meantime shows, and TLS needs the bytes in memory anyway.
"""

_HEAD: Final = struct.Struct(">BBIIBB")
_HEAD_BYTES: Final = PDU_HEAD_BYTES + PDV_HEAD_BYTES
_COMMAND_ROOM_BYTES: Final = 1024
LONGEST_COMMAND_BYTES: Final = _COMMAND_ROOM_BYTES - _HEAD_BYTES
"""A C-STORE request has 300: two UIDs of 64 characters, and numbers."""
_MOST_SLOTS: Final = 1000
"""What `preadv` takes at once (IOV_MAX is 1024)."""


class FileFailed(NodeError):
    """A file cannot be read to the end that it had when it was opened."""

    def __init__(self, why: str, *, begun: bool) -> None:
        super().__init__(why)
        self.begun = begun
        """Whether a part of it has gone over the wire: the association cannot go on then."""


class FragmentBuffer:
    """A part of a message as it goes over the wire. One object serves one association."""

    def __init__(self, max_fragment_bytes: int) -> None:
        """`max_fragment_bytes` is even: only the last fragment of a message may be padded."""
        step = max_fragment_bytes + _HEAD_BYTES
        count = max(1, min(_MOST_SLOTS, BUFFER_BYTES // step))
        self._fragment_bytes = max_fragment_bytes
        self._buffer = bytearray(_COMMAND_ROOM_BYTES + count * step)
        self._view = memoryview(self._buffer)
        self._heads = [_COMMAND_ROOM_BYTES + number * step for number in range(count)]
        self._slots = [self._view[head + _HEAD_BYTES : head + step] for head in self._heads]
        self._context_id = -1

    def send_file(self, link: Link, context_id: int, command: bytes, descriptor: int, offset: int) -> None:
        """Sends a command set, unless it went before, and as its data set the bytes of a file from `offset` on, as many as it has now.

        Raises
        ------
        FileFailed
            When it cannot be read to that end.
        LinkBroken
            When the connection ends.
        """
        self._prepare(context_id)
        begin = self._put_command(context_id, command)
        rest, begun = -1, False
        while rest:
            try:
                rest = max(0, os.fstat(descriptor).st_size - offset) if rest < 0 else rest
                size = min(rest, len(self._slots) * self._fragment_bytes)
                self._read(descriptor, offset, size)
            except OSError as error:
                raise FileFailed(f"the file cannot be read: {error.strerror or type(error).__name__}", begun=begun) from error
            except _Shorter as error:
                raise FileFailed("the file became shorter while it was sent", begun=begun) from error
            rest, offset = rest - size, offset + size
            if rest:
                link.send(self._view[begin:])
                begun, begin = True, _COMMAND_ROOM_BYTES
            else:
                self._send_last(link, begin, size)

    def _prepare(self, context_id: int) -> None:
        """Writes the heads of whole fragments, where they are not there from the file before."""
        if context_id != self._context_id:
            self._context_id = context_id
            for number in range(len(self._heads)):
                self._put_head(number, self._fragment_bytes, 0)

    def _put_head(self, number: int, size: int, flags: int) -> None:
        _HEAD.pack_into(self._buffer, self._heads[number], PduType.DATA, 0, size + 6, size + 2, self._context_id, flags)

    def _put_command(self, context_id: int, command: bytes) -> int:
        """Writes the PDU of a command, if there is one, before the first fragment; answers where it begins."""
        if not command:
            return _COMMAND_ROOM_BYTES
        begin = _COMMAND_ROOM_BYTES - _HEAD_BYTES - len(command)
        flags = COMMAND_FRAGMENT | LAST_FRAGMENT
        _HEAD.pack_into(self._buffer, begin, PduType.DATA, 0, len(command) + 6, len(command) + 2, context_id, flags)
        self._buffer[begin + _HEAD_BYTES : _COMMAND_ROOM_BYTES] = command
        return begin

    def _read(self, descriptor: int, offset: int, size: int) -> None:
        """Reads a part of the file to where its fragments lie."""
        whole, tail = divmod(size, self._fragment_bytes)
        places = self._slots[:whole]
        if tail:
            places.append(self._slots[whole][:tail])
        while size:
            count = os.preadv(descriptor, places, offset)
            if not count:
                raise _Shorter
            size, offset = size - count, offset + count
            places = _behind(places, count) if size else []

    def _send_last(self, link: Link, begin: int, size: int) -> None:
        """Sends what is left; the head of its last fragment says so, and is that of a whole one again afterwards."""
        number = max(0, (size - 1) // self._fragment_bytes)
        place = self._heads[number] + _HEAD_BYTES
        length = size - number * self._fragment_bytes
        if length % 2:  # only a last one can be odd: of a deflated data set (PS3.5 A.5)
            self._buffer[place + length] = 0
            length += 1
        self._put_head(number, length, LAST_FRAGMENT)
        link.send(self._view[begin : place + length])
        self._put_head(number, self._fragment_bytes, 0)


class _Shorter(Exception):
    """There is less to read than there was."""


def _behind(places: list[memoryview], count: int) -> list[memoryview]:
    """Answers what is left of places when the first `count` bytes are filled."""
    while count >= len(places[0]):
        count -= len(places[0])
        places = places[1:]
    return [places[0][count:], *places[1:]]
