"""RLE Lossless for pixels of one byte (PS3.5 Annex G, A.4.2), as label maps have them: long runs of one value.

A run is written as two bytes, also one of a single pixel: every step is then one of numpy, and a frame of 512 x 512 takes a
millisecond. Of noise that makes twice its size; of a label map a fiftieth.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

_LONGEST_RUN: Final = 128
_HEADER: Final = struct.pack("<16I", 1, 64, *[0] * 14)
"""One segment, which begins behind the header (G.5)."""

_ITEM: Final = struct.Struct("<HHI")
_ITEM_TAG: Final = (0xFFFE, 0xE000)
_END_TAG: Final = (0xFFFE, 0xE0DD)
_PIXEL_DATA: Final = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)


def run_length_encoded(frame: NDArray[np.uint8]) -> bytes:
    """Answers a frame, shape (rows, columns), as one fragment of an even number of bytes; no run crosses the end of a row."""
    begins = np.ones(frame.shape, dtype=bool)
    begins[:, 1:] = frame[:, 1:] != frame[:, :-1]
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=frame.size)
    pieces = -(-lengths // _LONGEST_RUN)
    coded = np.empty((int(pieces.sum()), 2), dtype=np.uint8)
    coded[:, 0] = (257 - _LONGEST_RUN) & 0xFF
    coded[np.cumsum(pieces) - 1, 0] = (257 - (lengths - (pieces - 1) * _LONGEST_RUN)) & 0xFF  # of a run of 128 or less; 0: one pixel
    coded[:, 1] = np.repeat(frame.reshape(-1)[starts], pieces)
    return _HEADER + coded.tobytes()


def encapsulated(fragments: Iterable[bytes]) -> Iterator[bytes]:
    """Answers Pixel Data of these frames, a fragment each, behind a Basic Offset Table (PS3.5 A.4)."""
    held = list(fragments)
    sizes = np.array([_ITEM.size + len(fragment) for fragment in held], dtype=np.int64)
    offsets = np.cumsum(sizes) - sizes
    table = b"" if len(offsets) and offsets[-1] > 0xFFFFFFFF else offsets.astype("<u4").tobytes()
    yield _PIXEL_DATA + _ITEM.pack(*_ITEM_TAG, len(table)) + table
    for fragment in held:
        yield _ITEM.pack(*_ITEM_TAG, len(fragment)) + fragment
    yield _ITEM.pack(*_END_TAG, 0)
