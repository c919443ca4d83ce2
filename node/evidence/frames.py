"""The frames of a BINARY Segmentation: bits and functional groups, written by ourselves (PS3.3 C.8.20, C.7.6.16; PS3.5 8.1.1).

highdicom builds a data set a frame: at 100 structures that is ten thousand of them, most of the time of encoding. Here each part
of a functional group is encoded once (a plane, a segment) and put together as bytes. What comes out is byte for byte what
highdicom would have written; a test compares the two.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag
from pydicom.valuerep import DSfloat, format_number_as_ds

from node.domain.volume import LabelMap, SourceGrid
from node.errors import EvidenceError

PER_FRAME_FUNCTIONAL_GROUPS: Final = Tag("PerFrameFunctionalGroupsSequence")
_ITEM: Final = struct.Struct("<HHI")
_ITEM_TAG: Final = (0xFFFE, 0xE000)
_BITS: Final = 8
LABELS: Final = 256
"""Values that a label map can hold, with 0 for the background."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that is not empty: which segment on which plane."""

    segment: int
    """Segment Number, from 1."""
    label: int
    """The value of its voxels in the label map."""
    plane: int
    position: int
    """Its place in the order of the positions, from 1."""


def labels_of_planes(label_map: LabelMap) -> NDArray[np.bool_]:
    """Answers which structures each plane holds, by label value, shape (planes, 256); the background is not looked for."""
    found = values_of_planes(label_map.labels)
    if not label_map.members:
        return found
    of_structures = np.zeros_like(found)
    for value, members in enumerate(label_map.members):
        for label in members:
            of_structures[:, label] |= found[:, value]
    return of_structures


def values_of_planes(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Answers which values each plane holds, shape (planes, 256); 0 is not looked for."""
    found = np.zeros((len(labels), LABELS), dtype=bool)
    for plane, held in zip(labels, found, strict=True):
        rows = np.flatnonzero(plane.any(axis=1))
        if len(rows):
            held[:] = np.bincount(plane[rows[0] : rows[-1] + 1].reshape(-1), minlength=LABELS) > 0
    return found


def overlaps(label_map: LabelMap) -> bool:
    """Answers whether a pixel lies in two structures: no label map of DICOM can say that (PS3.3 C.8.20.2)."""
    shared = [value for value, members in enumerate(label_map.members) if len(members) > 1]
    return bool(shared) and bool(np.isin(label_map.labels, np.array(shared, dtype=np.uint8)).any())


def frames_of(found: NDArray[np.bool_], labels: Sequence[int]) -> list[Frame]:
    """Answers the frames of `labels`, which become Segment Numbers 1, 2, ..., in the order in which they are written.

    `found` tells which labels each plane holds. Segment by segment, against the normal of the planes; a segment's empty planes
    are left out (PS3.3 C.8.20.2.3).
    """
    filled = [plane for plane in reversed(range(len(found))) if found[plane, list(labels)].any()]
    position = {plane: place for place, plane in enumerate(filled, 1)}
    return [
        Frame(number, label, plane, position[plane]) for number, label in enumerate(labels, 1) for plane in filled if found[plane, label]
    ]


def pack_frames(label_map: LabelMap, frames: Sequence[Frame]) -> bytes:
    """Answers the bits of the frames, the first pixel in the lowest, without a gap between frames; an even number of bytes."""
    rows, columns = label_map.labels.shape[1:]
    pixels = rows * columns
    size = -(-len(frames) * pixels // _BITS)
    packed = np.zeros(size + size % 2, dtype=np.uint8)
    if pixels % _BITS:
        for first in range(0, len(frames), _BITS):  # eight frames end on a whole byte
            bits = np.concatenate([label_map.mask(one.label, one.plane).reshape(-1) for one in frames[first : first + _BITS]])
            piece = np.packbits(bits, bitorder="little")
            start = first * pixels // _BITS
            packed[start : start + len(piece)] = piece
        return packed.tobytes()
    step = _BITS // math.gcd(_BITS, columns)  # so many rows end on a whole byte
    for place, one in enumerate(frames):
        mask = label_map.mask(one.label, one.plane)
        filled = np.flatnonzero(mask.any(axis=1))
        first, last = int(filled[0]), int(filled[-1]) + 1
        first -= first % step
        last = min(rows, last + -last % step)
        piece = np.packbits(mask[first:last], bitorder="little")
        start = (place * pixels + first * columns) // _BITS
        packed[start : start + len(piece)] = piece
    return packed.tobytes()


def functional_groups(frames: Sequence[Frame], grid: SourceGrid, derivations: Sequence[Dataset]) -> RawDataElement:
    """Answers the Per-frame Functional Groups Sequence in Explicit VR Little Endian; pydicom parses it when somebody asks.

    `derivations` are the items of the Derivation Image Sequence, one a plane. Of a single segment the number is shared by all
    frames: it stands in the Shared Functional Groups Sequence, and must not stand here as well (PS3.3 C.7.6.16).
    """
    if len(derivations) != len(grid.planes):
        raise EvidenceError(f"{len(derivations)} derivations for {len(grid.planes)} planes")
    of_plane: dict[int, tuple[bytes, bytes]] = {}
    of_segment: dict[int, bytes] = {}
    items = []
    single = len({frame.segment for frame in frames}) == 1
    for frame in frames:
        if frame.plane not in of_plane:
            of_plane[frame.plane] = (_derivation(derivations[frame.plane]), _position(grid, frame.plane))
        if frame.segment not in of_segment:
            of_segment[frame.segment] = b"" if single else _identification(frame.segment)
        derivation, position = of_plane[frame.plane]
        body = derivation + _content(frame) + position + of_segment[frame.segment]
        items.append(_ITEM.pack(*_ITEM_TAG, len(body)) + body)
    value = b"".join(items)
    return RawDataElement(PER_FRAME_FUNCTIONAL_GROUPS, "SQ", len(value), value, 0, is_implicit_VR=False, is_little_endian=True)


def _derivation(item: Dataset) -> bytes:
    group = Dataset()
    group.DerivationImageSequence = [item]
    return _encoded(group)


def _position(grid: SourceGrid, plane: int) -> bytes:
    item, group = Dataset(), Dataset()
    item.ImagePositionPatient = [DSfloat(format_number_as_ds(float(value))) for value in grid.planes[plane].image_position_patient]
    group.PlanePositionSequence = [item]
    return _encoded(group)


def _identification(segment: int) -> bytes:
    item, group = Dataset(), Dataset()
    item.ReferencedSegmentNumber = segment
    group.SegmentIdentificationSequence = [item]
    return _encoded(group)


def _content(frame: Frame) -> bytes:
    """Frame Content Sequence with Dimension Index Values: the one part that no two frames share."""
    values = struct.pack("<HH2sHII", 0x0020, 0x9157, b"UL", 8, frame.segment, frame.position)
    item = _ITEM.pack(*_ITEM_TAG, len(values)) + values
    return struct.pack("<HH2sHI", 0x0020, 0x9111, b"SQ", 0, len(item)) + item


def _encoded(dataset: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = False
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())
