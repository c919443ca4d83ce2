"""Fragments that are put where they belong while they are received: the system is told beforehand where each will have its place.

Nearly every sender cuts a data set into fragments of one length, each in a PDU of its own, the last one shorter (PS3.8 9.3.5). So after
the first one it is known where in the stream the heads of the others will be, and the bytes between them can go to their place at once.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from node.network import COMMAND_FRAGMENT, LAST_FRAGMENT, PduType

FRAGMENT_PDU_HEAD: Final = struct.Struct(">BBIIBB")
"""Of a P-DATA PDU with one fragment: kind, reserved, length of the PDU, length of the fragment, context ID, control bits (PS3.8 E.2)."""

MOST_FRAGMENTS: Final = 64
MOST_BYTES: Final = 1 << 20
"""How many fragments, and how much of them, is foreseen at the most."""

_DATA: Final = int(PduType.DATA)  # as a plain number: members of an enumeration are looked up in Python


class Expectation(NamedTuple):
    """What is likely to come next."""

    context_id: int
    begun_bytes: int
    """How much of the fragment under way is still to come."""
    size_bytes: int
    """Of each fragment behind it; 0: nothing is known of them."""


class Sorted(NamedTuple):
    """What has come."""

    placed_bytes: int
    """So much lies in the room, in order and without gaps."""
    left_bytes: int
    """So much is still to come of the fragment under way."""
    is_last: bool
    """Whether the data set ends with the fragment that came last; False as well where none has begun."""
    rest: bytes
    """What came behind, and is for others to understand: heads that were not foreseen, and everything after them."""


def new_heads() -> list[memoryview]:
    """Answers the places for the heads of fragments."""
    return [memoryview(bytearray(FRAGMENT_PDU_HEAD.size)) for _ in range(MOST_FRAGMENTS)]


def views_for(room: memoryview, heads: Iterable[memoryview], expected: Expectation) -> list[memoryview]:
    """Answers where the next bytes of the stream are to be put, in their order; none where nothing is known."""
    place, end = expected.begun_bytes, min(len(room), MOST_BYTES)
    views = [room[:place]] if place else []
    if expected.size_bytes:
        for head in heads:
            if place >= end:
                break
            views += (head, room[place : place + expected.size_bytes])  # the last one may be shorter: nothing follows that could go astray
            place += expected.size_bytes
    return views


def sort(views: Sequence[memoryview], received_bytes: int, heads: Iterable[memoryview], expected: Expectation) -> Sorted:
    """Answers what came into `views`, by the heads that stand between the fragments."""
    placed = place = min(expected.begun_bytes, received_bytes)
    left, is_last = expected.begun_bytes - placed, False
    for head in heads:
        if left or is_last or received_bytes - place < FRAGMENT_PDU_HEAD.size:
            break
        kind, _, pdu_bytes, fragment_bytes, context_id, flags = FRAGMENT_PDU_HEAD.unpack(head)
        size = fragment_bytes - 2
        if kind != _DATA or pdu_bytes != fragment_bytes + 4 or context_id != expected.context_id or flags & COMMAND_FRAGMENT:
            break
        if not 0 <= size <= expected.size_bytes:
            break
        place += FRAGMENT_PDU_HEAD.size
        taken = min(size, received_bytes - place)
        place, placed = place + taken, placed + taken
        left, is_last = size - taken, bool(flags & LAST_FRAGMENT)
        if size < expected.size_bytes:  # shorter than foreseen: what is behind it is not where it belongs
            break
    return Sorted(placed, left, is_last, _between(views, place, received_bytes))


def _between(views: Iterable[memoryview], begin: int, end: int) -> bytes:
    """Answers the bytes from `begin` to `end` of what lies in several views, one behind the other."""
    if begin >= end:
        return b""
    at, found = 0, []
    for view in views:
        found.append(view[max(0, begin - at) : max(0, end - at)])
        at += len(view)
    return b"".join(found)
