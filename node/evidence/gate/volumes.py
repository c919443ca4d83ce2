"""Volumes of segments, measured again from the pixels and positions that stand in a Segmentation."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from node.evidence.gate.frames import FrameFacts, bits_set, planes_of, read_frames, shared_facts, values_held
from node.evidence.gate.view import View


def segment_volumes_mm3(seg: View, sources: Iterable[View] = ()) -> dict[int, float]:
    """Answers the volume of every segment, from the pixels and positions of a Segmentation; empty where it cannot be told.

    A frame is as thick as the slab between the middles of the gaps to its neighbours, among the source images where they are
    given: where they are not, planes must be evenly spaced and say so.
    """
    frames, spacing = read_frames(seg), shared_facts(seg).pixel_spacing_mm
    slabs = _slabs_of_positions(seg, _of_referenced_series(seg, sources))
    if len(spacing) != 2 or slabs is None or seg.is_encapsulated:
        return {}
    volumes: dict[int, float] = {}
    for number, place, pixels in _areas(seg):
        slab_mm = slabs.thickness_mm(frames[place])
        if number is None or slab_mm is None:
            return {}
        volumes[number] = volumes.get(number, 0.0) + pixels * spacing[0] * spacing[1] * slab_mm
    return volumes


def _areas(seg: View) -> Iterator[tuple[int | None, int, int]]:
    """Answers (Segment Number, frame from 0, pixels) of every segment on every frame."""
    kind = str(seg.get("SegmentationType"))
    if kind == "BINARY":
        shared = shared_facts(seg).segment
        for place, (frame, pixels) in enumerate(zip(read_frames(seg), bits_set(seg), strict=False)):
            yield (frame.segment if frame.segment is not None else shared), place, pixels
    elif kind == "LABELMAP":
        for place, counts in enumerate(values_held(seg)):
            yield from ((int(number), place, int(counts[number])) for number in np.flatnonzero(counts) if number)


class _Slabs:
    """How thick the slab of a plane is, by its place along the normal."""

    def __init__(self, normal: NDArray[np.float64], places_mm: NDArray[np.float64], even_mm: float | None) -> None:
        self._normal, self._places_mm, self._even_mm = normal, places_mm, even_mm
        self._known: dict[tuple[float, ...], float | None] = {}

    def thickness_mm(self, frame: FrameFacts) -> float | None:
        """Answers the thickness at a frame; None where nothing tells it."""
        position = frame.position_mm
        if position not in self._known:
            self._known[position] = self._thickness_mm(position)
        return self._known[position]

    def _thickness_mm(self, position: tuple[float, ...]) -> float | None:
        if self._even_mm is not None:
            return self._even_mm
        if len(position) != 3 or len(self._places_mm) < 2:
            return None
        place = int(np.argmin(np.abs(self._places_mm - np.array(position) @ self._normal)))
        gaps = np.diff(self._places_mm)
        before, after = gaps[max(place - 1, 0)], gaps[min(place, len(gaps) - 1)]
        return float(before + after) / 2


def _of_referenced_series(seg: View, sources: Iterable[View]) -> list[View]:
    """Answers the images of the series that were outlined: those of other inputs of a network lie between their slices."""
    named = {str(item.get("SeriesInstanceUID")) for item in seg.items("ReferencedSeriesSequence")}
    return [source for source in sources if not named or str(source.get("SeriesInstanceUID")) in named]


def _slabs_of_positions(seg: View, sources: Iterable[View]) -> _Slabs | None:
    orientation = shared_facts(seg).orientation
    if len(orientation) != 6:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    positions = [plane.position_mm for source in sources for plane in planes_of(source).values()]
    places = np.unique(np.round([np.array(one) @ normal for one in positions if len(one) == 3], 4))
    if len(places) >= 2:
        return _Slabs(normal, places, None)
    measures = [
        measure for groups in seg.items("SharedFunctionalGroupsSequence")[:1] for measure in groups.items("PixelMeasuresSequence")[:1]
    ]
    even = measures[0].get("SpacingBetweenSlices") if measures else None
    return _Slabs(normal, places, float(even)) if even else None
