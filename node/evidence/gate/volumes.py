"""Volumes of segments, measured again from the pixels and positions that stand in a Segmentation."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.evidence.gate.frames import FrameFacts, read_frames, shared_facts
from node.evidence.gate.segmentation import numbers_in


def segment_volumes_mm3(seg: Dataset, sources: Iterable[Dataset] = ()) -> dict[int, float]:
    """Answers the volume of every segment, from the pixels and positions of a BINARY Segmentation; empty where it cannot be told.

    A frame is as thick as the slab between the middles of the gaps to its neighbours, among the source images where they are
    given: where they are not, planes must be evenly spaced and say so.
    """
    kind = str(seg.get("SegmentationType"))
    if kind not in {"BINARY", "LABELMAP"} or not isinstance(seg.get("PixelData"), bytes):
        return {}
    frames, shared = read_frames(seg), shared_facts(seg)
    spacing = shared.pixel_spacing_mm
    thickness = _thickness_of_positions(seg, shared, list(sources))
    pixels = int(seg.Rows) * int(seg.Columns)
    if kind == "LABELMAP":
        return _label_map_volumes(seg, frames, spacing, thickness)
    if len(spacing) != 2 or thickness is None or len(seg.PixelData) * 8 < pixels * len(frames):
        return {}
    volumes: dict[int, float] = {}
    for frame, count in zip(frames, _counts(seg, len(frames), pixels), strict=True):
        number = frame.segment if frame.segment is not None else shared.segment
        slab_mm = thickness(frame)
        if number is None or slab_mm is None:
            return {}
        volumes[number] = volumes.get(number, 0.0) + count * spacing[0] * spacing[1] * slab_mm
    return volumes


def _label_map_volumes(
    seg: Dataset, frames: tuple[FrameFacts, ...], spacing: tuple[float, ...], thickness: "_Slabs | None"
) -> dict[int, float]:
    pixels = int(seg.Rows) * int(seg.Columns)
    data = np.frombuffer(seg.PixelData, dtype=np.uint8)
    if seg.get("BitsAllocated") != 8 or len(spacing) != 2 or thickness is None or len(data) < pixels * len(frames):
        return {}
    volumes: dict[int, float] = {}
    for place, frame in enumerate(frames):
        slab_mm = thickness(frame)
        if slab_mm is None:
            return {}
        for number, count in enumerate(np.bincount(data[place * pixels : (place + 1) * pixels]).tolist()):
            if number and count:
                volumes[number] = volumes.get(number, 0.0) + count * spacing[0] * spacing[1] * slab_mm
    return volumes


def _counts(seg: Dataset, frames: int, pixels: int) -> list[int]:
    """Answers how many pixels are set in each frame."""
    data = np.frombuffer(seg.PixelData, dtype=np.uint8)
    if pixels % 8:
        bits = np.unpackbits(data, bitorder="little")[: frames * pixels]
        return [int(one) for one in bits.reshape(frames, pixels).sum(axis=1, dtype=np.int64)]
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
    size = pixels // 8
    return [int(ones[data[place * size : (place + 1) * size]].sum(dtype=np.int64)) for place in range(frames)]


class _Slabs:
    """How thick the slab of a plane is, by its place along the normal."""

    def __init__(self, normal: NDArray[np.float64], places_mm: NDArray[np.float64], even_mm: float | None) -> None:
        self._normal, self._places_mm, self._even_mm = normal, places_mm, even_mm

    def __call__(self, frame: FrameFacts) -> float | None:
        if self._even_mm is not None:
            return self._even_mm
        if len(frame.position_mm) != 3 or len(self._places_mm) < 2:
            return None
        place = int(np.argmin(np.abs(self._places_mm - np.array(frame.position_mm) @ self._normal)))
        gaps = np.diff(self._places_mm)
        before, after = gaps[max(place - 1, 0)], gaps[min(place, len(gaps) - 1)]
        return float(before + after) / 2


def _thickness_of_positions(seg: Dataset, shared: FrameFacts, sources: list[Dataset]) -> _Slabs | None:
    if len(shared.orientation) != 6:
        return None
    normal = np.cross(shared.orientation[:3], shared.orientation[3:])
    positions = []
    for source in sources:
        frames = read_frames(source)
        if frames:
            common = shared_facts(source).position_mm
            positions += [frame.position_mm or common for frame in frames]
        else:
            positions.append(numbers_in(source, "ImagePositionPatient"))
    places = np.unique(np.round([np.array(one) @ normal for one in positions if len(one) == 3], 4))
    if len(places) >= 2:
        return _Slabs(normal, places, None)
    measures = (seg.get("SharedFunctionalGroupsSequence") or [Dataset()])[0].get("PixelMeasuresSequence") or [Dataset()]
    even = measures[0].get("SpacingBetweenSlices")
    return _Slabs(normal, places, float(even)) if even else None
