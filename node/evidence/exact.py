"""Elements copied byte for byte, whatever their character set and however malformed, and our own texts fitted beside them.

pydicom keeps an element as raw bytes until someone asks for its value, and writes raw bytes as they are: so nothing is
decoded here that need not be.
"""

import unicodedata
from collections.abc import MutableSequence
from copy import deepcopy
from typing import Final

from pydicom.charset import convert_encodings, default_encoding, python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import PersonName

TEXT_VRS: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})
"""Value representations whose bytes are the same in every transfer syntax."""

CHARACTER_SET_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""Value representations that Specific Character Set governs (PS3.5 6.1.2.2)."""

CharacterSet = str | MutableSequence[str] | None

_IMPLICIT_HEADER_LENGTH: Final = 8
_SPECIFIC_CHARACTER_SET: Final = Tag("SpecificCharacterSet")
_PER_FRAME_FUNCTIONAL_GROUPS: Final = Tag("PerFrameFunctionalGroupsSequence")
_PLAIN: Final = str.maketrans({
    "–": "-", "—": "-", "−": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "×": "x", "→": "->", "≥": ">=", "≤": "<=", "·": ".",
    "ß": "ss", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "ł": "l", "Ł": "L", "đ": "d",
})  # fmt: skip


def copy_exactly(target: Dataset, source: Dataset, keyword: str) -> bool:
    """Puts the element of `source` into `target`, byte for byte. Answers whether `source` has it."""
    tag = Tag(keyword)
    if tag not in source:
        return False
    target[tag] = _exact_element(source, tag, None)
    return True


def exact_bytes(source: Dataset, keyword: str) -> bytes | None:
    """Answers the bytes that `copy_exactly` would copy; None where the element is absent or no text."""
    tag = Tag(keyword)
    if tag not in source or dictionary_VR(tag) not in TEXT_VRS:
        return None
    return bytes(_exact_element(source, tag, None).value or b"")


def exact_item(item: Dataset, character_set: CharacterSet = None) -> Dataset:
    """Answers a copy of a sequence item whose texts are byte for byte those of `item`.

    `character_set` is that of the data set around the item.
    """
    copy = new_item(character_set)
    for tag in list(item.keys()):
        if tag.element != 0:  # group lengths would be wrong in a copy
            copy[tag] = _exact_element(item, tag, character_set)
    keep_bytes(copy)
    return copy


def new_item(character_set: CharacterSet) -> Dataset:
    """Answers an empty sequence item that elements can be copied into exactly: see `keep_bytes`."""
    item = Dataset(parent_encoding=convert_encodings(character_set)) if character_set else Dataset()
    keep_bytes(item)
    return item


def keep_bytes(dataset: Dataset) -> None:
    """Tells pydicom that raw elements are in the form in which they will be written: else it decodes and encodes them."""
    dataset.set_original_encoding(
        is_implicit_vr=False,
        is_little_endian=True,
        character_encoding=dataset._character_set,  # noqa: SLF001 - what pydicom compares it with, on writing
    )


def _exact_element(source: Dataset, tag: BaseTag, character_set: CharacterSet) -> DataElement | RawDataElement:
    element: DataElement | RawDataElement = source.get_item(tag)
    vr = dictionary_VR(tag) if dictionary_has_tag(tag) else element.VR
    if vr == "SQ":
        inherited = source.get("SpecificCharacterSet", character_set)
        return DataElement(tag, "SQ", [exact_item(item, inherited) for item in source[tag].value])
    if vr not in TEXT_VRS:
        return deepcopy(source[tag])
    value = element.value if isinstance(element, RawDataElement) else _encoded_value(element, source, character_set)
    value = value or b""
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    return RawDataElement(tag, vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)


def _encoded_value(element: DataElement, source: Dataset, character_set: CharacterSet) -> bytes:
    """Answers the bytes of an element that someone has decoded before us: of names the true ones, of texts equal letters."""
    if isinstance(element.value, PersonName) and element.value.original_string:
        return bytes(element.value.original_string)
    encodings = default_encoding
    if element.tag != _SPECIFIC_CHARACTER_SET:
        encodings = source.get("SpecificCharacterSet", character_set) or default_encoding
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = True
    write_data_element(buffer, element, encodings)
    return buffer.getvalue()[_IMPLICIT_HEADER_LENGTH:]


def fit_texts(dataset: Dataset, character_set: CharacterSet) -> None:
    """Rewrites, in place, every text of ours that `character_set` cannot express: accents go, strange letters become `?`.

    Elements copied exactly stay as they are.
    """
    for tag in list(dataset.keys()):
        element: DataElement | RawDataElement = dataset.get_item(tag)
        if isinstance(element, RawDataElement) or tag == _PER_FRAME_FUNCTIONAL_GROUPS:
            continue
        if element.VR == "SQ":
            for item in element.value:
                fit_texts(item, character_set)
        elif element.VR in CHARACTER_SET_VRS and not element.is_empty:
            if element.VM > 1:
                element.value = [fitted(str(value), character_set) for value in element.value]
            else:
                element.value = fitted(str(element.value), character_set)


def fitted(text: str, character_set: CharacterSet) -> str:
    """Answers `text` in letters that `character_set` has; ASCII where it is unknown or switches by escape sequences."""
    if text.isascii():
        return text
    encoding = python_encoding.get(character_set) if isinstance(character_set, str) else None
    if encoding is not None and encoding != default_encoding:
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            pass
        else:
            return text
    plain = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    without_accents = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return without_accents.encode("ascii", "replace").decode("ascii")
