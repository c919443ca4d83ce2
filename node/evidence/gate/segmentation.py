"""Whether a Segmentation is whole in itself, and lies on its source (PS3.3 A.51, C.8.20; IHE AIR)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.frames import (
    FrameFacts,
    bitmaps,
    bits_set,
    pixels_of_a_frame,
    planes_of,
    read_frames,
    shared_facts,
    values_held,
    within,
)
from node.evidence.gate.terms import code_of
from node.evidence.gate.view import View

POSITION_TOLERANCE_MM: Final = 1e-3
DIRECTION_TOLERANCE: Final = 1e-4
_FEW: Final = 3
"""Frames with one fault that are told one by one."""


def segmentation_faults(seg: View) -> Iterator[Fault]:
    """Answers what is wrong with a Segmentation by itself."""
    frames = read_frames(seg)
    yield from _segment_faults(seg)
    yield from _frame_faults(seg, frames)
    yield from _reference_faults(seg, frames)
    yield from _geometry_faults(seg, frames)
    yield from _pixel_faults(seg, frames)


def _segment_faults(seg: View) -> Iterator[Fault]:
    segments = seg.get("SegmentSequence") or []
    if not segments:
        yield Fault("header", "there is no segment", "PS3.3 C.8.20.2")
    labels: set[str] = set()
    numbers = [item.get("SegmentNumber") for item in segments]
    if str(seg.get("SegmentationType")) == "LABELMAP":
        if len(set(numbers)) != len(numbers):
            yield Fault("header", f"segments are numbered {numbers}: one number stands for two", "PS3.3 C.8.20.2")
    elif numbers != list(range(1, len(numbers) + 1)):
        yield Fault("header", f"segments are numbered {numbers}, not 1, 2, ...", "PS3.3 C.8.20.2")
    for item in segments:
        where = f"segment {item.get('SegmentNumber', '?')}"
        label = str(item.get("SegmentLabel") or "")
        if not label:
            yield Fault(where, "it has no label", "PS3.3 Table C.8.20-4")
        elif label in labels:
            yield Fault(where, f"its label {label!r} is that of another segment", "PS3.3 Table C.8.20-4", Severity.WARNING)
        labels.add(label)
        if item.get("SegmentNumber") != 0:
            yield from _description_faults(item, where)


def _description_faults(item: View, where: str) -> Iterator[Fault]:
    algorithm_type = str(item.get("SegmentAlgorithmType") or "")
    if algorithm_type not in {"AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"}:
        yield Fault(where, f"Segment Algorithm Type is {algorithm_type or 'absent'}", "PS3.3 C.8.20.2")
    if algorithm_type != "MANUAL" and not item.get("SegmentAlgorithmName"):
        yield Fault(where, "Segment Algorithm Name is absent, though it was not made by hand", "PS3.3 C.8.20.2")
    for keyword in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
        if len(item.get(keyword) or []) != 1:
            yield Fault(where, f"{keyword} has {len(item.get(keyword) or [])} items, not one", "PS3.3 Table C.8.20-4")
    if bool(item.get("TrackingID")) != bool(item.get("TrackingUID")):
        yield Fault(where, "Tracking ID and Tracking UID come together or not at all", "PS3.3 Table C.8.20-4")
    elif not item.get("TrackingUID"):
        yield Fault(where, "it has no Tracking UID: nothing links it to a report", "IHE AIR 6.5.3", Severity.WARNING)
    if "RecommendedDisplayCIELabValue" not in item:
        yield Fault(where, "it has no recommended colour", "PS3.3 Table C.8.20-4", Severity.WARNING)
    for algorithm in item.get("SegmentationAlgorithmIdentificationSequence") or []:
        for keyword in ("AlgorithmFamilyCodeSequence", "AlgorithmName", "AlgorithmVersion"):
            if not algorithm.get(keyword):
                yield Fault(where, f"{keyword} is absent in the algorithm identification", "PS3.3 Table 10-19")


def _frame_faults(seg: View, frames: Sequence[FrameFacts]) -> Iterator[Fault]:
    stated = int(seg.get("NumberOfFrames") or 0)
    if stated != len(frames):
        yield Fault("header", f"Number of Frames is {stated}, functional groups are of {len(frames)}", "PS3.3 C.7.6.16")
    dimensions = seg.get("DimensionIndexSequence") or []
    if not dimensions:
        yield Fault("header", "Dimension Index Sequence is absent or empty", "PS3.3 C.7.6.17")
    numbers = {item.get("SegmentNumber") for item in seg.get("SegmentSequence") or []}
    shared = shared_facts(seg).segment
    used: set[int | None] = set()
    faults = _Counted()
    is_label_map = str(seg.get("SegmentationType")) == "LABELMAP"
    for place, frame in enumerate(frames, 1):
        number = frame.segment if frame.segment is not None else shared
        used.add(number)
        if not is_label_map and number not in numbers:
            faults.add(place, f"it belongs to segment {number}, which is not described", "PS3.3 C.8.20.3.1")
        if dimensions and len(frame.dimension_index_values) != len(dimensions):
            told = f"it has {len(frame.dimension_index_values)} Dimension Index Values, the index has {len(dimensions)} dimensions"
            faults.add(place, told, "PS3.3 C.7.6.17")
    yield from faults.told()
    if not is_label_map:
        for number in sorted(one for one in numbers - used if isinstance(one, int)):
            yield Fault(f"segment {number}", "no frame belongs to it", "PS3.3 C.8.20.2", Severity.WARNING)


def _reference_faults(seg: View, frames: Sequence[FrameFacts]) -> Iterator[Fault]:
    listed = {
        str(instance.get("ReferencedSOPInstanceUID"))
        for series in seg.get("ReferencedSeriesSequence") or []
        for instance in series.get("ReferencedInstanceSequence") or []
    }
    if not listed:
        yield Fault("header", "Referenced Series Sequence names no source image: viewers cannot find them", "PS3.3 C.12.2")
    shared = shared_facts(seg)
    faults = _Counted()
    for place, frame in enumerate(frames, 1):
        sources = frame.source_instances or shared.source_instances
        if not sources:
            faults.add(place, "Derivation Image names no source image", "PS3.3 C.7.6.16.2.6")
        for uid in sources:
            if listed and uid not in listed:
                faults.add(place, f"its source {uid} is not in Referenced Series Sequence", "PS3.3 C.12.2")
    yield from faults.told()


def _geometry_faults(seg: View, frames: Sequence[FrameFacts]) -> Iterator[Fault]:
    shared = shared_facts(seg)
    placed = [frame for frame in frames if frame.position_mm or shared.position_mm]
    if placed and not seg.get("FrameOfReferenceUID"):
        yield Fault("header", "its frames have positions, but there is no Frame of Reference UID", "PS3.3 C.7.4.1")
    faults = _Counted()
    for place, frame in enumerate(frames, 1):
        position, orientation = frame.position_mm or shared.position_mm, frame.orientation or shared.orientation
        if seg.get("FrameOfReferenceUID") and len(position) != 3:
            faults.add(place, "Image Position (Patient) is absent or malformed", "PS3.3 C.7.6.16.2.3")
        if orientation and not _is_orthonormal(orientation):
            faults.add(place, "Image Orientation (Patient) is no pair of perpendicular unit vectors", "PS3.3 C.7.6.2.1.1")
        elif position and not orientation:
            faults.add(place, "Image Orientation (Patient) is absent", "PS3.3 C.7.6.16.2.4")
        if position and len(frame.pixel_spacing_mm or shared.pixel_spacing_mm) != 2:
            faults.add(place, "Pixel Spacing is absent or malformed", "PS3.3 C.7.6.16.2.1")
    yield from faults.told()


@lru_cache(maxsize=256)
def _is_orthonormal(orientation: tuple[float, ...]) -> bool:
    if len(orientation) != 6:
        return False
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    gram = np.array([row @ row - 1, column @ column - 1, row @ column])
    return bool(np.abs(gram).max() <= DIRECTION_TOLERANCE)


def _pixel_faults(seg: View, frames: Sequence[FrameFacts]) -> Iterator[Fault]:
    if not seg.get("PixelData"):
        yield Fault("header", "there is no Pixel Data", "PS3.3 C.7.6.3")
        return
    if seg.is_encapsulated:
        return
    pixels = pixels_of_a_frame(seg) * int(seg.get("NumberOfFrames") or 0)
    wanted = -(-pixels * int(seg.get("BitsAllocated") or 0) // 8)
    wanted += wanted % 2
    size = len(seg.get("PixelData"))
    if size != wanted:
        yield Fault("header", f"Pixel Data has {size} bytes, its frames need {wanted}", "PS3.5 8.1.1")
        return
    if pixels * int(seg.get("BitsAllocated") or 0) <= 8 * (size - 1) and seg.get("PixelData")[-1:] != b"\0":
        yield Fault("header", "Pixel Data is padded with something else than a zero byte", "PS3.5 6.2", Severity.WARNING)
    kind = str(seg.get("SegmentationType"))
    if kind == "LABELMAP":
        yield from _label_faults(seg)
    if kind != "BINARY":
        return
    if pixels_of_a_frame(seg) % 8:
        text = "a frame does not end on a whole byte: Orthanc's DICOMweb and cornerstone cannot read that; a label map would be shown"
        yield Fault("header", text, "PS3.5 8.1.1", Severity.WARNING)
    if str(seg.get("SegmentsOverlap") or "") == "NO" and _overlap(seg, frames):
        yield Fault("header", "Segments Overlap says NO, but two segments share a pixel", "PS3.3 C.8.20.2")


def _label_faults(seg: View) -> Iterator[Fault]:
    """Answers pixels of a label map that belong to no segment."""
    described = {item.get("SegmentNumber") for item in seg.items("SegmentSequence")}
    held = [int(number) for number in np.flatnonzero(values_held(seg).any(axis=0)) if number]
    for number in held:
        if number not in described:
            yield Fault("header", f"pixels hold the value {number}, which no segment describes", "PS3.3 C.8.20.2")


def _overlap(seg: View, frames: Sequence[FrameFacts]) -> bool:
    """Answers whether frames at one place share a pixel: their union has fewer than they have together then."""
    union: dict[object, NDArray[Any]] = {}
    together: dict[object, int] = {}
    for frame, bitmap, count in zip(frames, bitmaps(seg), bits_set(seg), strict=False):
        place = frame.position_mm or (frame.source_instances, frame.source_frames)
        if place in union:
            np.bitwise_or(union[place], bitmap, out=union[place])
        else:
            union[place] = bitmap.copy()
        together[place] = together.get(place, 0) + count
    return any(int(np.bitwise_count(bitmap).sum(dtype=np.int64)) != together[place] for place, bitmap in union.items())


def source_faults(seg: View, sources: Mapping[str, View]) -> Iterator[Fault]:
    """Answers where a Segmentation does not lie on the images that it names; `sources` are their headers by SOP Instance UID."""
    frames_of_reference = {str(source.get("FrameOfReferenceUID") or "") for source in sources.values()}
    if str(seg.get("FrameOfReferenceUID") or "") not in frames_of_reference:
        yield Fault("header", "Frame of Reference UID is not that of the source images", "PS3.3 A.51.3")
    shared = shared_facts(seg)
    known: dict[FrameFacts, tuple[Fault, ...]] = {}
    faults = _Counted()
    for place, frame in enumerate(read_frames(seg), 1):
        alike = frame._replace(segment=None, dimension_index_values=())
        if alike not in known:
            known[alike] = tuple(_misplacements(seg, within(alike, shared), sources))
        for fault in known[alike]:
            faults.add(place, fault.text, fault.clause)
    yield from faults.told()


def _misplacements(seg: View, frame: FrameFacts, sources: Mapping[str, View]) -> Iterator[Fault]:
    """Answers in what a frame does not lie on the image that it names first."""
    if not frame.source_instances:
        return
    uid = frame.source_instances[0]
    number = frame.source_frames[0] if frame.source_frames else 1
    if uid not in sources:
        yield Fault("", f"its source image {uid} is not among the source images")
        return
    source, plane = sources[uid], planes_of(sources[uid]).get(number)
    if plane is None:
        yield Fault("", f"its source has no frame {number}")
        return
    size, its_size = ((one.get("Rows"), one.get("Columns")) for one in (seg, source))
    if size != its_size:
        yield Fault("", f"it has {size[0]}x{size[1]} pixels, its source {its_size[0]}x{its_size[1]}", "PS3.3 A.51.3")
    if _differ(frame.position_mm, plane.position_mm, POSITION_TOLERANCE_MM):
        yield Fault("", f"it lies at {_text(frame.position_mm)} mm, its source at {_text(plane.position_mm)}", "PS3.3 A.51.3")
    if _differ(frame.orientation, plane.orientation, DIRECTION_TOLERANCE):
        yield Fault("", "its orientation is not that of its source", "PS3.3 A.51.3")
    if _differ(frame.pixel_spacing_mm, plane.pixel_spacing_mm, POSITION_TOLERANCE_MM):
        yield Fault("", "its pixel spacing is not that of its source", "PS3.3 A.51.3")


def _differ(ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> bool:
    """Answers whether both say something, and not the same: what a source lacks cannot be compared."""
    if not ours or not theirs:
        return False
    return len(ours) != len(theirs) or max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > tolerance


def _text(position: Sequence[float]) -> str:
    return "\\".join(f"{one:g}" for one in position)


def segment_of(seg: View, number: int) -> View | None:
    """Answers the item of a Segment Number."""
    return next((item for item in seg.get("SegmentSequence") or [] if item.get("SegmentNumber") == number), None)


def property_of(item: View) -> tuple[str, str]:
    """Answers the code of what a segment shows."""
    types = item.get("SegmentedPropertyTypeCodeSequence") or []
    return code_of(types[0] if types else None)


class _Counted:
    """Faults of frames: the first few of a kind one by one, the others as a number."""

    def __init__(self) -> None:
        self._of_kind: dict[str, list[tuple[int, Fault]]] = {}

    def add(self, place: int, text: str, clause: str = "") -> None:
        """Notes a fault of a frame."""
        kind = re.sub(r"[-0-9.\\e]+", "#", text)
        self._of_kind.setdefault(kind, []).append((place, Fault(f"frame {place}", text, clause)))

    def told(self) -> Iterator[Fault]:
        """Answers them."""
        for faults in self._of_kind.values():
            yield from (fault for _, fault in faults[:_FEW])
            if len(faults) > _FEW:
                first, fault = faults[0]
                yield Fault("frames", f"{len(faults) - _FEW} further frames have the fault of frame {first}", fault.clause)
