"""The frames of a multi-frame object: what each says of itself in its functional groups, and the bits of a BINARY Segmentation.

A Segmentation of a hundred structures has ten thousand frames, whose functional groups repeat: each group is read once.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from node.evidence.gate.view import UnusualBytes, View, item_spans, spans

_BITS: Final = 8
_WORD: Final = 8
_VALUES: Final = 256


class FrameFacts(NamedTuple):
    """What a frame says of itself; None and empty where it says nothing."""

    segment: int | None = None
    position_mm: tuple[float, ...] = ()
    source_instances: tuple[str, ...] = ()
    source_frames: tuple[int, ...] = ()
    dimension_index_values: tuple[int, ...] = ()
    orientation: tuple[float, ...] = ()
    pixel_spacing_mm: tuple[float, ...] = ()


def read_frames(view: View) -> tuple[FrameFacts, ...]:
    """Answers what each frame says of itself, in order; nothing where there are no per-frame functional groups."""
    return view.once(_read_frames)


def _read_frames(view: View) -> tuple[FrameFacts, ...]:
    raw = view.raw("PerFrameFunctionalGroupsSequence")
    if raw is not None:
        try:
            return tuple(_of_bytes(raw))
        except (UnusualBytes, struct.error):
            pass  # in another form: pydicom reads it
    return tuple(FrameFacts(**_facts_in(groups)) for groups in view.items("PerFrameFunctionalGroupsSequence"))


def shared_facts(view: View) -> FrameFacts:
    """Answers what all frames share."""
    return view.once(_shared_facts)


def _shared_facts(view: View) -> FrameFacts:
    groups = view.items("SharedFunctionalGroupsSequence")
    return FrameFacts(**_facts_in(groups[0])) if groups else FrameFacts()


def planes_of(image: View) -> Mapping[int, FrameFacts]:
    """Answers where each frame of a source image lies, by its number; a single image is frame 1."""
    return image.once(_planes_of)


def _planes_of(image: View) -> Mapping[int, FrameFacts]:
    frames, shared = read_frames(image), shared_facts(image)
    if not frames:
        position, orientation = numbers_in(image, "ImagePositionPatient"), numbers_in(image, "ImageOrientationPatient")
        return {1: FrameFacts(position_mm=position, orientation=orientation, pixel_spacing_mm=numbers_in(image, "PixelSpacing"))}
    return {number: within(frame, shared) for number, frame in enumerate(frames, 1)}


def within(frame: FrameFacts, shared: FrameFacts) -> FrameFacts:
    """Answers a frame with the place that it shares with all."""
    return frame._replace(
        position_mm=frame.position_mm or shared.position_mm,
        orientation=frame.orientation or shared.orientation,
        pixel_spacing_mm=frame.pixel_spacing_mm or shared.pixel_spacing_mm,
    )


# ── pixels ──────────────────────────────────────────────────────────────────


def pixels_of_a_frame(view: View) -> int:
    """Answers rows times columns."""
    return int(view.get("Rows") or 0) * int(view.get("Columns") or 0)


def bits_set(seg: View) -> tuple[int, ...]:
    """Answers how many pixels are set in each frame of a BINARY Segmentation; nothing where its pixels are too few."""
    return seg.once(_bits_set)


def _bits_set(seg: View) -> tuple[int, ...]:
    return tuple(int(np.bitwise_count(bitmap).sum(dtype=np.int64)) for bitmap in bitmaps(seg))


def bitmaps(seg: View) -> Iterator[NDArray[Any]]:
    """Answers the bits of each frame of a BINARY Segmentation, from its own first bit on; what pads the last word is zero."""
    pixels, frames = pixels_of_a_frame(seg), len(read_frames(seg))
    data = np.frombuffer(seg.raw("PixelData") or b"", dtype=np.uint8)
    if not pixels or len(data) * _BITS < pixels * frames:
        return
    if pixels % _BITS:
        yield from (_aligned(data, place * pixels, pixels) for place in range(frames))
        return
    size = pixels // _BITS
    whole = data[: frames * size].reshape(frames, size)
    yield from whole if size % _WORD else whole.view(np.uint64)


def _aligned(data: NDArray[np.uint8], first_bit: int, pixels: int) -> NDArray[np.uint8]:
    """Answers bits that begin within a byte, moved to begin with one (PS3.5 8.1.1)."""
    first, shift = divmod(first_bit, _BITS)
    size = -(-pixels // _BITS)
    piece = np.zeros(size + 1, dtype=np.uint8)
    held = data[first : first + size + 1]
    piece[: len(held)] = held
    bits = piece[:size].copy()
    if shift:
        bits = np.bitwise_or(bits >> np.uint8(shift), piece[1:] << np.uint8(_BITS - shift))
    bits[-1] &= np.uint8((1 << pixels % _BITS) - 1)
    return bits


def values_held(seg: View) -> NDArray[np.int64]:
    """Answers how many pixels of each value a frame of a LABELMAP of 8 bits has, shape (frames, 256); nothing where they are too few."""
    return seg.once(_values_held)


def _values_held(seg: View) -> NDArray[np.int64]:
    pixels, frames = pixels_of_a_frame(seg), len(read_frames(seg))
    data = np.frombuffer(seg.raw("PixelData") or b"", dtype=np.uint8)
    held = np.zeros((frames, _VALUES), dtype=np.int64)
    if seg.get("BitsAllocated") != _BITS or not pixels or len(data) < pixels * frames:
        return held[:0]
    for counts, frame in zip(held, data[: pixels * frames].reshape(frames, int(seg.get("Rows")), -1), strict=True):
        rows = np.flatnonzero(frame.any(axis=1))
        if len(rows):
            counts[:] = np.bincount(frame[rows[0] : rows[-1] + 1].reshape(-1), minlength=_VALUES)
        counts[0] = pixels - counts[1:].sum()
    return held


# ── functional groups ───────────────────────────────────────────────────────


def _of_bytes(value: bytes) -> Iterator[FrameFacts]:
    known: dict[bytes, dict[str, Any]] = {}
    for start, end in item_spans(value, 0, len(value)):
        found: dict[str, Any] = {}
        for tag, (vr, _, first, last) in spans(value, start, end).items():
            if tag in _READERS:
                group = value[first:last]
                facts = known.get(group)
                if facts is None:
                    facts = known[group] = _facts_of(tag, View({tag: (vr, group, 0, len(group))}))
                found.update(facts)
        yield FrameFacts(**found)


def _facts_in(groups: View) -> dict[str, Any]:
    """Answers what functional groups say, by the names of `FrameFacts`."""
    found: dict[str, Any] = {}
    for tag in _READERS:
        found.update(_facts_of(tag, groups))
    return found


def _facts_of(tag: int, groups: View) -> dict[str, Any]:
    items = groups.value(tag)
    return _READERS[tag](items) if items else {}


def _sources(items: list[View]) -> dict[str, Any]:
    sources = [source for item in items for source in item.items("SourceImageSequence")]
    if not sources:
        return {}
    return {
        "source_instances": tuple(str(one.get("ReferencedSOPInstanceUID") or "") for one in sources),
        "source_frames": tuple(int(number) for one in sources for number in _listed(one.get("ReferencedFrameNumber"))),
    }


_READERS: Final[Mapping[int, Callable[[list[View]], dict[str, Any]]]] = {
    0x0062000A: lambda items: {"segment": items[0].get("ReferencedSegmentNumber")},
    0x00209113: lambda items: {"position_mm": numbers_in(items[0], "ImagePositionPatient")},
    0x00209116: lambda items: {"orientation": numbers_in(items[0], "ImageOrientationPatient")},
    0x00289110: lambda items: {"pixel_spacing_mm": numbers_in(items[0], "PixelSpacing")},
    0x00209111: lambda items: {"dimension_index_values": tuple(_listed(items[0].get("DimensionIndexValues")))},
    0x00089124: _sources,
}
"""Segment Identification, Plane Position, Plane Orientation, Pixel Measures, Frame Content and Derivation Image Sequence."""


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, int | str) else list(value)


def numbers_in(view: View, keyword: str) -> tuple[float, ...]:
    """Answers a numeric attribute, empty where it is absent or malformed."""
    try:
        value = view.get(keyword)
        return tuple(float(one) for one in value) if value is not None else ()
    except (TypeError, ValueError):
        return ()
