"""Values of elements as hospitals write them: padded, with stray blanks, with a decimal comma. None where nothing readable stands.

Reads raw bytes, so that one malformed element never hinders another, and pydicom neither warns nor raises.
"""

import math
import re
from typing import Final

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException

_DECIMAL: Final = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_SEPARATOR: Final = re.compile(r"[,;]\s+|;|\s+|(?<=\d),(?=[+-]?\d*\.)")
"""A comma separates two numbers only where a blank or a number with a decimal point follows."""
_THOUSANDS: Final = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
_TEXT_VRS: Final = frozenset({"AE", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UI", "UT"})
_CONVERSION_ERRORS: Final = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError, BytesLengthException)


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Answers the values of an element as stripped ASCII texts, () where it is absent or empty."""
    tag = tag_for_keyword(keyword)
    element = dataset.get_item(tag) if tag is not None else None
    if element is None or element.value is None:
        return ()
    if isinstance(element, RawDataElement) and _vr(element) in _TEXT_VRS and isinstance(element.value, bytes):
        joined = element.value.decode("ascii", errors="replace")
        values = joined.split("\\")
    else:
        values = _converted(dataset, keyword)
    stripped = tuple(value.strip(" \0\t\r\n") for value in values)
    return stripped if any(stripped) else ()


def text(dataset: Dataset, keyword: str) -> str:
    """Answers the first value of an element, '' where it is absent or empty."""
    values = texts(dataset, keyword)
    return values[0] if values else ""


def decimals(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    r"""Answers exactly `count` finite numbers, None where the element holds anything else.

    `0,5\0,5` has decimal commas, `0.5,0.5` or `0.5 0.5` lacks its backslash: understood. `0,5,0,5` can mean anything: None.
    """
    values = texts(dataset, keyword)
    if len(values) == 1 < count:
        values = tuple(_SEPARATOR.split(values[0]))
    numbers = [_number(value) for value in values]
    if len(numbers) != count or any(number is None for number in numbers):
        return None
    return tuple(number for number in numbers if number is not None)


def decimal(dataset: Dataset, keyword: str) -> float | None:
    """Answers one number, None where the element holds none.

    `1,024` is none: nobody knows whether that comma parts the decimals or the thousands.
    """
    if _THOUSANDS.fullmatch(text(dataset, keyword)):
        return None
    numbers = decimals(dataset, keyword, 1)
    return numbers[0] if numbers else None


def integer(dataset: Dataset, keyword: str) -> int | None:
    """Answers one whole number (IS, US, ...), None where the element holds none."""
    number = decimal(dataset, keyword)
    return int(number) if number is not None and number == int(number) else None


def item(dataset: Dataset | None, keyword: str) -> Dataset | None:
    """Answers the first item of a sequence, None where there is none."""
    if dataset is None:
        return None
    try:
        sequence = dataset.get(keyword)
        return sequence[0] if sequence else None
    except _CONVERSION_ERRORS:
        return None


def _vr(element: RawDataElement) -> str:
    """Answers the value representation; the dictionary's where the file has none (implicit) or does not know it (UN)."""
    if element.VR in (None, "UN") and dictionary_has_tag(element.tag):
        return dictionary_VR(element.tag)
    return element.VR or ""


def _converted(dataset: Dataset, keyword: str) -> list[str]:
    """Answers what pydicom makes of a binary or an already converted element."""
    try:
        value = dataset.get(keyword)
    except _CONVERSION_ERRORS:
        return []
    if value is None:
        return []
    if isinstance(value, list | tuple) or (hasattr(value, "__iter__") and not isinstance(value, str | bytes)):
        return [str(part) for part in value]
    return [str(value)]


def _number(value: str) -> float | None:
    if not _DECIMAL.fullmatch(value):
        return None
    number = float(value.replace(",", "."))
    return number if math.isfinite(number) else None
