"""A data set as its bytes say: what the gate reads objects with. Nothing is decoded that nobody asks for.

pydicom builds an object for every element and every item; of a structure set with ten thousand contours, or a report on a hundred
structures, that alone takes seconds. This reads Explicit VR Little Endian with stated lengths, which is what the node writes; what
is in any other form, and what a program has changed in memory, is read by pydicom and looks the same from here.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeVar

from pydicom.charset import convert_encodings, decode_bytes, default_encoding
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from node.evidence.exact import CHARACTER_SET_VRS, TEXT_VRS

_SHORT: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<I")
_ITEM: Final = struct.Struct("<II")
_ITEM_TAG: Final = 0xE000FFFE
_LONG_VRS: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS: Final = frozenset(vr.encode() for vr in TEXT_VRS | {"AT", "FD", "FL", "SL", "SS", "UL", "US"}) - _LONG_VRS
_NUMBERS: Final[Mapping[bytes, tuple[str, int]]] = {
    b"US": ("H", 2), b"SS": ("h", 2), b"UL": ("I", 4), b"SL": ("i", 4), b"UV": ("Q", 8), b"SV": ("q", 8), b"FL": ("f", 4), b"FD": ("d", 8),
}  # fmt: skip
_SINGLE: Final = frozenset({b"LT", b"ST", b"UR", b"UT"})
"""Text in which a backslash is a letter."""
_TEXTS: Final = frozenset(vr.encode() for vr in TEXT_VRS)
_ENCODED: Final = frozenset(vr.encode() for vr in CHARACTER_SET_VRS)
_BYTES: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW"})
_DELIMITERS: Final = {0x0D, 0x0A, 0x09, 0x0C}
_NAMES: Final = {vr: vr.decode("ascii") for vr in _LONG_VRS | _SHORT_VRS}
_PADDING: Final = " \0"
_CHARACTER_SET: Final = 0x00080005

Read = TypeVar("Read")
_Span = tuple[bytes, bytes, int, int]
"""Value Representation, bytes around the value, where it begins, where it ends."""


class UnusualBytes(Exception):
    """Bytes in another form than this reader knows."""


class View:
    """A data set or an item of a sequence; `get` and `in` take keywords, and an item is again one of these."""

    def __init__(self, content: Mapping[int, _Span] | Dataset, encodings: Sequence[str] = (default_encoding,)) -> None:
        self._content = content
        self._values: dict[int, Any] = {}
        self._read: dict[Callable[[View], Any], Any] = {}
        self._around = encodings

    def __contains__(self, keyword: str) -> bool:
        """Answers whether the attribute is there, be it empty."""
        return self._holds(_tag(keyword))

    def _holds(self, tag: int) -> bool:
        return tag >= 0 and tag in self._content

    def get(self, keyword: str, default: Any = None) -> Any:
        """Answers the value: views of the items, texts, numbers, bytes; a list where there are several; None where it is empty."""
        return self.value(_tag(keyword), default)

    def items(self, keyword: str) -> "list[View]":
        """Answers the items of a sequence, none where it is absent."""
        return self.value(_tag(keyword)) or []

    def value(self, tag: int, default: Any = None) -> Any:
        """Answers the value of a tag, as `get` does."""
        if tag in self._values:
            return self._values[tag]
        if not self._holds(tag):
            return default
        value = self._values[tag] = self._decoded(tag)
        return value

    def once(self, read: "Callable[[View], Read]") -> "Read":
        """Answers what `read` makes of it; asked again, the same."""
        if read not in self._read:
            self._read[read] = read(self)
        found: Read = self._read[read]
        return found

    @property
    def is_encapsulated(self) -> bool:
        """Whether its pixels are compressed; not, where nothing says so."""
        syntax = str(getattr(getattr(self._content, "file_meta", None), "TransferSyntaxUID", "") or "")
        return bool(syntax) and UID(syntax).is_encapsulated

    def elements(self) -> Iterator[tuple[int, str]]:
        """Answers tag and Value Representation of everything, in order."""
        if isinstance(self._content, Dataset):
            yield from ((int(tag), str(self._content.get_item(tag).VR)) for tag in sorted(self._content.keys()))
        else:
            yield from ((tag, _NAMES[span[0]]) for tag, span in self._content.items())

    def raw(self, keyword: str) -> bytes | None:
        """Answers the bytes of a value as they stand; None where it is absent, or somebody has decoded it."""
        tag = _tag(keyword)
        if not self._holds(tag):
            return None
        if not isinstance(self._content, Dataset):
            _, data, start, end = self._content[tag]
            return data[start:end]
        element = self._content.get_item(tag)
        is_plain = not isinstance(element, RawDataElement) or (element.is_little_endian and not element.is_implicit_VR)
        return element.value if is_plain and isinstance(element.value, bytes) else None

    def is_empty(self, keyword: str) -> bool:
        """Answers whether an attribute that is there has no value. Nothing is decoded for it: contours have millions of numbers."""
        tag = _tag(keyword)
        if isinstance(self._content, Dataset):
            element = self._content.get_item(tag)
            if not isinstance(element, RawDataElement):
                return bool(element.is_empty)
            value, is_text = element.value or b"", element.VR in TEXT_VRS
        else:
            vr, data, start, end = self._content[tag]
            if end - start > 2:
                return vr in _TEXTS and not data[start:end].strip(b" \0")
            value, is_text = data[start:end], vr in _TEXTS
        return not (value.strip(b" \0") if is_text else value)

    def _decoded(self, tag: int) -> Any:
        if not isinstance(self._content, Dataset):
            vr, data, start, end = self._content[tag]
            return self._of_bytes(tag, vr, data, start, end)
        element = self._content.get_item(tag)
        if (
            isinstance(element, RawDataElement)
            and isinstance(element.value, bytes)
            and element.is_little_endian
            and not element.is_implicit_VR
        ):
            return self._of_bytes(tag, str(element.VR).encode(), element.value, 0, len(element.value))
        return self._of_pydicom(self._content[tag])

    def _of_bytes(self, tag: int, vr: bytes, data: bytes, start: int, end: int) -> Any:
        if vr == b"SQ":
            try:
                return [View(spans(data, first, last), self._encodings) for first, last in item_spans(data, start, end)]
            except (UnusualBytes, struct.error):
                return self._by_pydicom(tag, vr, data[start:end])
        if vr in _BYTES:
            return data[start:end]
        if start == end:
            return None
        if vr in _NUMBERS:
            code, size = _NUMBERS[vr]
            numbers = struct.unpack(f"<{(end - start) // size}{code}", data[start:end])
            return numbers[0] if len(numbers) == 1 else list(numbers)
        if vr not in _TEXTS:
            return self._by_pydicom(tag, vr, data[start:end])
        text = self._text(vr, data[start:end])
        if "\\" not in text or vr in _SINGLE:
            return _CONVERSIONS[vr](text.rstrip(_PADDING)) if vr in _CONVERSIONS else text.rstrip(_PADDING) or None
        convert = _CONVERSIONS.get(vr, str)
        return [convert(part.rstrip(_PADDING)) for part in text.split("\\")]

    def _text(self, vr: bytes, value: bytes) -> str:
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii")
        encodings = self._encodings if vr in _ENCODED else (default_encoding,)
        return decode_bytes(value, encodings, _DELIMITERS)

    def _by_pydicom(self, tag: int, vr: bytes, value: bytes) -> Any:
        alone = Dataset(parent_encoding=list(self._encodings))
        alone[tag] = RawDataElement(Tag(tag), vr.decode("ascii"), len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
        return self._of_pydicom(alone[tag])

    def _of_pydicom(self, element: DataElement) -> Any:
        if element.VR == "SQ":
            return [View(item, self._encodings) for item in element.value or []]
        return None if element.is_empty else element.value

    @property
    def _encodings(self) -> Sequence[str]:
        """Answers the character sets of texts here and below: the own ones, or else those around (PS3.5 6.1.2.3)."""
        stated = self.value(_CHARACTER_SET) if _CHARACTER_SET in self._content else None
        return convert_encodings(stated if isinstance(stated, str) else list(stated)) if stated else self._around


def _integer(text: str) -> int | None:
    if not text.strip():
        return None
    try:
        return int(text)
    except ValueError:
        if float(text) != int(float(text)):
            raise
        return int(float(text))


def _decimal(text: str) -> float | None:
    return float(text) if text.strip() else None


_CONVERSIONS: Final[Mapping[bytes, Callable[[str], Any]]] = {b"IS": _integer, b"DS": _decimal}


def spans(data: bytes, start: int, end: int) -> dict[int, _Span]:
    """Answers where the value of each element lies, by tag.

    Raises
    ------
    UnusualBytes
        When it is not Explicit VR Little Endian with stated lengths.
    """
    found: dict[int, _Span] = {}
    place = start
    while place < end:
        group, number, vr, length = _SHORT.unpack_from(data, place)
        place += 8
        if vr in _LONG_VRS:
            (length,) = _LONG.unpack_from(data, place)
            place += 4
        elif vr not in _SHORT_VRS:
            raise UnusualBytes
        last = place + length
        if last > end:
            raise UnusualBytes  # also a length that is not stated
        found[group << 16 | number] = (vr, data, place, last)
        place = last
    return found


def item_spans(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Answers where each item of a sequence begins and ends; raises as `spans` does."""
    place = start
    while place < end:
        tag, length = _ITEM.unpack_from(data, place)
        place += 8
        if tag != _ITEM_TAG or place + length > end:
            raise UnusualBytes
        yield place, place + length
        place += length


@cache
def _tag(keyword: str) -> int:
    """Answers the tag of a keyword; none that occurs where the dictionary is older than the keyword."""
    tag = tag_for_keyword(keyword)
    return -1 if tag is None else int(tag)


@cache
def keyword_of(tag: int) -> str:
    """Answers the keyword of a tag, '' where the dictionary has none."""
    return keyword_for_tag(tag)


def is_private(tag: int) -> bool:
    """Answers whether a tag is a vendor's own (PS3.5 7.8)."""
    return bool(tag >> 16 & 1)
