"""Where boxes and points of the patient lie on the images: on which plane, and at which pixels.

Pixels are (column, row), 0 at the centre of the first pixel, as in `contours`; points are LPS millimetres.
"""

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.domain.findings import Detection, Landmark, Point
from node.domain.result import Result
from node.domain.volume import Plane, SourceGrid
from node.errors import EvidenceError

_CORNERS: Final = np.array(list(product((-1.0, 1.0), repeat=3)))
"""Of a box, in halves of its axes: a corner and the next along an axis differ in one sign."""
_FACES: Final = (
    (0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5),
)  # fmt: skip
_EDGES: Final = tuple((a, a | bit) for bit in (1, 2, 4) for a in range(8) if not a & bit)


@dataclass(frozen=True, slots=True)
class Place:
    """A plane of the source."""

    grid: SourceGrid
    plane_index: int

    @property
    def plane(self) -> Plane:
        """The image, or the frame of one."""
        return self.grid.planes[self.plane_index]

    def pixels_of(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Answers (column, row) of points of shape (n, 3), seen along the normal of the plane."""
        grid = self.grid
        offset = points_mm - np.asarray(self.plane.image_position_patient)
        return np.column_stack([offset @ grid.row_cosine / grid.column_spacing_mm, offset @ grid.column_cosine / grid.row_spacing_mm])


def ordered_detections(result: Result) -> tuple[Detection, ...]:
    """Answers the detections, the surest first; among equals the one that stands first in the patient: always the same order."""
    return tuple(sorted(result.detections, key=lambda one: (-one.score, one.definition.class_index, one.centre_mm, _uid(one))))


def place_of(result: Result, point_mm: Point, image: Plane | None) -> Place:
    """Answers the plane to show a point on: that of its own image, or the nearest one.

    Raises
    ------
    EvidenceError
        If the result does not know where the pixels of its images lie, or the image is none of them.
    """
    grids = grids_of(result)
    if image is not None:
        for grid in grids:
            for index, plane in enumerate(grid.planes):
                if (plane.sop_instance_uid, plane.frame_number) == (image.sop_instance_uid, image.frame_number):
                    return Place(grid, index)
        raise EvidenceError("a finding lies on an image that was not analysed")
    if not grids:
        raise EvidenceError("a finding has a place, and the result does not say where its images lie")
    grid = grids[0]
    return Place(grid, int(np.argmin(np.abs(grid.distances_mm - np.asarray(point_mm) @ grid.normal))))


def grids_of(result: Result) -> tuple[SourceGrid, ...]:
    """Answers where the pixels of the analysed images lie, that of the label map first."""
    outlined = () if result.label_map is None else (result.label_map.source,)
    return tuple(dict.fromkeys((*outlined, *result.grids)))


def place_of_finding(result: Result, finding: Detection | Landmark) -> Place:
    """Answers the plane to show a box (by its centre) or a point on."""
    return place_of(result, finding.centre_mm if isinstance(finding, Detection) else finding.position_mm, finding.image)


def corners_of(box: Detection) -> NDArray[np.float64]:
    """Answers the corners, shape (8, 3)."""
    return np.asarray(np.asarray(box.centre_mm) + _CORNERS @ np.asarray(box.half_axes_mm))


def faces_of(box: Detection) -> list[NDArray[np.float64]]:
    """Answers the six faces as closed polygons, each of shape (5, 3)."""
    corners = corners_of(box)
    return [corners[[*face, face[0]]] for face in _FACES]


def cut_by_plane(box: Detection, normal: NDArray[np.float64], distance_mm: float) -> NDArray[np.float64]:
    """Answers the convex polygon, shape (n, 3), in which a plane cuts a box, one point a corner; empty where it does not."""
    corners = corners_of(box)
    heights = corners @ normal - distance_mm
    points = []
    for first, second in _EDGES:
        if (heights[first] <= 0) != (heights[second] <= 0):
            share = heights[first] / (heights[first] - heights[second])
            points.append(corners[first] + share * (corners[second] - corners[first]))
    if len(points) < 3:
        return np.empty((0, 3))
    found = np.array(points)
    return np.asarray(found[_around(found, normal)])


def outline_of(box: Detection, place: Place) -> NDArray[np.float64]:
    """Answers the line in which the plane cuts a box, in pixels and within the image; not closed.

    Of a box between two planes the cut through its middle, seen along the normal.

    Raises
    ------
    EvidenceError
        If the box lies beside the image.
    """
    normal = place.grid.normal
    cut = cut_by_plane(box, normal, float(place.grid.distances_mm[place.plane_index]))
    if not len(cut):
        cut = cut_by_plane(box, normal, float(np.asarray(box.centre_mm) @ normal))
    if not len(cut):  # as thin as the plane itself: what is seen of it along the normal
        corners = corners_of(box)
        cut = _hull(corners, normal)
    inside = _clipped(place.pixels_of(cut), (place.grid.columns - 0.5, place.grid.rows - 0.5))
    if len(inside) < 3:
        raise EvidenceError("a box lies beside the images that it was found on")
    return inside


def pixel_of(landmark: Landmark, place: Place) -> NDArray[np.float64]:
    """Answers (column, row) of a point on the plane.

    Raises
    ------
    EvidenceError
        If it lies beside the image.
    """
    pixel = place.pixels_of(np.asarray([landmark.position_mm]))[0]
    if (pixel < -0.5).any() or pixel[0] > place.grid.columns - 0.5 or pixel[1] > place.grid.rows - 0.5:
        raise EvidenceError("a point lies beside the images that it was found on")
    return np.asarray(pixel)


def _uid(box: Detection) -> str:
    return box.image.sop_instance_uid if box.image is not None else ""


def _around(points: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.intp]:
    """Answers the order of the points of a convex polygon around its middle."""
    offset = points - points.mean(axis=0)
    first = offset[np.argmax(np.linalg.norm(offset, axis=1))]
    return np.argsort(np.arctan2(offset @ np.cross(normal, first), offset @ first), kind="stable")


def _hull(corners: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answers the corners of the largest face, in order: what is seen of a box without thickness."""
    faces = [corners[list(face)] for face in _FACES]
    return max(faces, key=lambda face: abs(float(np.cross(face[1] - face[0], face[2] - face[1]) @ normal)))


def _clipped(polygon: NDArray[np.float64], upper: tuple[float, float]) -> NDArray[np.float64]:
    """Answers the part of a convex polygon inside the image, whose first pixel begins at -0.5 (Sutherland and Hodgman)."""
    for axis, sign, limit in ((0, 1.0, 0.5), (1, 1.0, 0.5), (0, -1.0, upper[0]), (1, -1.0, upper[1])):
        heights = sign * polygon[:, axis] + limit  # at least 0 inside
        polygon = _half(polygon, heights)
        if not len(polygon):
            break
    return polygon


def _half(polygon: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    kept: list[NDArray[np.float64]] = []
    for place in range(len(polygon)):
        here, there = heights[place], heights[place - 1]
        if (here >= 0) != (there >= 0):
            kept.append(polygon[place - 1] + there / (there - here) * (polygon[place] - polygon[place - 1]))
        if here >= 0:
            kept.append(polygon[place])
    return np.array(kept).reshape(-1, 2)


def closed_line(ring: NDArray[np.float64], fewest: int) -> NDArray[np.float64]:
    """Answers a ring that ends where it began, with so many points at least."""
    while len(ring) + 1 < fewest:
        sides = np.linalg.norm(np.roll(ring, -1, axis=0) - ring, axis=1)
        longest = int(np.argmax(sides))
        middle = (ring[longest] + ring[(longest + 1) % len(ring)]) / 2
        ring = np.insert(ring, longest + 1, middle, axis=0)
    return np.concatenate([ring, ring[:1]])
