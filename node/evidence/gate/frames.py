"""The per-frame functional groups of a multi-frame object, read straight from their bytes.

Independent of what wrote them, and fast: a Segmentation of a hundred structures has ten thousand frames, whose parts repeat.
What is in another form than Explicit VR Little Endian with stated lengths goes through pydicom.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

_PER_FRAME: Final = Tag("PerFrameFunctionalGroupsSequence")
_LONG: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_ITEM: Final = 0xE000FFFE
_UNDEFINED: Final = 0xFFFFFFFF
_HEAD: Final = struct.Struct("<HH2s")


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What a frame says of itself; None and empty where it says nothing."""

    segment: int | None
    position_mm: tuple[float, ...]
    source_instances: tuple[str, ...]
    source_frames: tuple[int, ...]
    dimension_index_values: tuple[int, ...]
    orientation: tuple[float, ...]
    pixel_spacing_mm: tuple[float, ...]
    has_purpose: bool


_TAGS: Final = {
    (0x0062, 0x000B): "segment",
    (0x0020, 0x0032): "position",
    (0x0008, 0x1155): "instances",
    (0x0008, 0x1160): "frames",
    (0x0020, 0x9157): "dimensions",
    (0x0020, 0x0037): "orientation",
    (0x0028, 0x0030): "spacing",
    (0x0040, 0xA170): "purpose",
}


class _Unusual(Exception):
    """Bytes in another form than this reader knows."""


def read_frames(dataset: Dataset) -> tuple[FrameFacts, ...]:
    """Answers what each frame says of itself, in order; nothing where there are no per-frame functional groups."""
    if _PER_FRAME not in dataset:
        return ()
    element = dataset.get_item(_PER_FRAME)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes) and not element.is_implicit_VR and element.is_little_endian:
        try:
            return tuple(_read_raw(element.value))
        except (_Unusual, struct.error, ValueError):
            return tuple(_facts(_collected(item)) for item in dataset.PerFrameFunctionalGroupsSequence)
    return tuple(_facts(_collected(item)) for item in dataset.PerFrameFunctionalGroupsSequence)


def shared_facts(dataset: Dataset) -> FrameFacts:
    """Answers what all frames share."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    return _facts(_collected(shared[0]) if shared else {})


def _read_raw(value: bytes) -> Iterator[FrameFacts]:
    known: dict[bytes, dict[str, list[bytes]]] = {}
    for start, end in _items(value, 0, len(value)):
        found: dict[str, list[bytes]] = {}
        for first, _tag, _vr, _place, last in _elements(value, start, end):
            part = value[first:last]
            facts = known.get(part)
            if facts is None:
                facts = known[part] = {}
                _walk(part, 0, len(part), facts)
            for name, values in facts.items():
                found.setdefault(name, []).extend(values)
        yield _facts(found)


def _walk(value: bytes, start: int, end: int, found: dict[str, list[bytes]]) -> None:
    for _first, tag, vr, place, last in _elements(value, start, end):
        name = _TAGS.get(tag)
        if name is not None:
            found.setdefault(name, []).append(value[place:last])
        if vr == b"SQ":
            for inner_start, inner_end in _items(value, place, last):
                _walk(value, inner_start, inner_end, found)


def _elements(value: bytes, start: int, end: int) -> Iterator[tuple[int, tuple[int, int], bytes, int, int]]:
    """Answers (first byte, tag, VR, first byte of the value, end) of every element."""
    place = start
    while place < end:
        group, number, vr = _HEAD.unpack_from(value, place)
        if vr in _LONG:
            length = struct.unpack_from("<I", value, place + 8)[0]
            body = place + 12
        else:
            length = struct.unpack_from("<H", value, place + 6)[0]
            body = place + 8
        if length == _UNDEFINED or body + length > end:
            raise _Unusual
        yield place, (group, number), vr, body, body + length
        place = body + length


def _items(value: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    place = start
    while place < end:
        tag, length = struct.unpack_from("<II", value, place)
        if tag != _ITEM or length == _UNDEFINED or place + 8 + length > end:
            raise _Unusual
        yield place + 8, place + 8 + length
        place += 8 + length


def _collected(item: Dataset) -> dict[str, list[bytes]]:
    """Answers the same of a data set that pydicom has parsed."""
    found: dict[str, list[bytes]] = {}
    for element in item:
        name = _TAGS.get((element.tag.group, element.tag.element))
        if name is not None:
            found.setdefault(name, []).append(_as_bytes(name, element.value))
        if element.VR == "SQ":
            for inner in element.value or []:
                for key, values in _collected(inner).items():
                    found.setdefault(key, []).extend(values)
    return found


def _as_bytes(name: str, value: object) -> bytes:
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    if name == "segment":
        return struct.pack("<H", int(str(values[0])))
    if name == "dimensions":
        return struct.pack(f"<{len(values)}I", *(int(str(one)) for one in values))
    if name == "purpose":
        return b""
    return "\\".join(str(one) for one in values).encode("ascii", "replace")


def _facts(found: dict[str, list[bytes]]) -> FrameFacts:
    segment = found.get("segment")
    dimensions = b"".join(found.get("dimensions", ()))
    return FrameFacts(
        segment=struct.unpack("<H", segment[0])[0] if segment and len(segment[0]) == 2 else None,
        position_mm=_numbers(found.get("position")),
        source_instances=tuple(value.decode("ascii", "replace").strip("\x00 ") for value in found.get("instances", ())),
        source_frames=tuple(int(number) for value in found.get("frames", ()) for number in value.decode("ascii", "replace").split("\\")),
        dimension_index_values=struct.unpack(f"<{len(dimensions) // 4}I", dimensions),
        orientation=_numbers(found.get("orientation")),
        pixel_spacing_mm=_numbers(found.get("spacing")),
        has_purpose="purpose" in found,
    )


def _numbers(values: list[bytes] | None) -> tuple[float, ...]:
    """Answers a Decimal String as numbers, empty where it is absent or none."""
    if not values:
        return ()
    try:
        return tuple(float(number) for number in values[0].decode("ascii", "replace").strip("\x00 ").split("\\"))
    except ValueError:
        return ()
