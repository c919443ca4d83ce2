"""Many Decimal Strings at once: contours have a million, and one by one each costs as long as checking it (PS3.5 6.2)."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_BACKSLASH, _ZERO, _MINUS, _POINT = b"\\0-."
_LONGEST: Final = 16
_AT_ONCE: Final = 1 << 15
_POWERS: Final = 10.0 ** np.arange(_LONGEST)


def decimals_in(text: bytes) -> NDArray[np.float64]:
    """Answers the numbers of a value with backslashes between them; raises ValueError where one is none."""
    letters = np.frombuffer(text, dtype=np.uint8)
    ends = np.append(np.flatnonzero(letters == _BACKSLASH), len(letters))
    lengths = np.diff(ends, prepend=-1) - 1
    numbers = np.empty(len(ends))
    for first in range(0, len(ends), _AT_ONCE):  # so many that the caches hold them
        last = min(first + _AT_ONCE, len(ends))
        found = _plain(letters, ends[first:last], lengths[first:last])
        if found is None:  # an exponent, a plus, a space
            found = np.array(text[ends[first] - lengths[first] : ends[last - 1]].split(b"\\"), dtype=np.float64)
        numbers[first:last] = found
    if not np.isfinite(numbers).all():
        raise ValueError("not a number")
    return numbers


def _plain(letters: NDArray[np.uint8], ends: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Answers numbers of digits with at most a minus before and a point between; None where one is written otherwise."""
    if lengths.min() < 1 or lengths.max() > _LONGEST:
        return None
    is_negative = letters[ends - lengths] == _MINUS
    whole, behind_point = np.zeros(len(ends), dtype=np.int64), np.zeros(len(ends), dtype=np.int64)
    digits, points = np.zeros(len(ends), dtype=np.uint8), np.zeros(len(ends), dtype=np.uint8)
    for from_end in range(int(lengths.max()), 0, -1):
        letter = letters[np.maximum(ends - from_end, 0)]
        is_inside = lengths >= from_end
        digit = letter - np.uint8(_ZERO)
        is_digit = (digit <= 9) & is_inside
        is_point = (letter == _POINT) & is_inside
        whole = np.where(is_digit, whole * 10 + digit, whole)
        behind_point[is_point] = from_end - 1
        digits += is_digit
        points += is_point
    if points.max() > 1 or digits.min() < 1 or (digits + points + is_negative != lengths).any():
        return None
    numbers: NDArray[np.float64] = np.where(is_negative, -whole, whole) / _POWERS[behind_point]
    return numbers
