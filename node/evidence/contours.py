"""Outlines of masks as closed polygons, between the pixels: every pixel centre lies on the side that the mask says.

Coordinates are (column, row), 0 at the centre of the first pixel. The outlines are those of contourpy (BSD-3-Clause, the
engine of Matplotlib) at half the way between a pixel of the mask and one outside.

A hole is joined to its outline by a channel of no width (the "keyhole" technique of PS3.3 C.8.8.6.3), so that a ring is one
polygon. The other technique, CLOSEDPLANAR_XOR, is a Contour Geometric Type of 2019 that planning systems and viewers of
today's hospitals refuse or leave out, and two CLOSED_PLANAR contours one in the other are filled by some readers and
subtracted by others. The polygon with its channel is filled rightly by every rule (even-odd and non-zero alike), and the
channel runs through pixels of the mask, as the standard wants it of points on the path.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, cast

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

Polygon = NDArray[np.float64]
"""Shape (points, 2): column and row; the last point joins the first, which is not repeated."""

MAX_POINTS: Final = 1900
"""Of one polygon: in Explicit VR a Decimal String ends at 65534 bytes (PS3.5 7.1.2), and a point takes up to 33."""


def outlines(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Answers the closed polygons around a mask, holes joined by channels; filled, they are the mask again.

    Parts that would have more than MAX_POINTS points are cut into halves that touch.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    polygons = [_keyholed(rings) for rings in _rings(part)]
    if len(part) > 1 and any(len(polygon) > MAX_POINTS for polygon in polygons):
        middle = len(part) // 2
        upper, lower = outlines(part[:middle]), outlines(part[middle:])
        polygons = [*upper, *(polygon + np.array([0.0, middle]) for polygon in lower)]
    return [polygon + np.array([left, top]) for polygon in polygons]


def rings_of(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Answers every line around a mask by itself, outer and inner: what is drawn, not filled."""
    return [ring for rings in _rings(mask) for ring in rings]


def _rings(mask: NDArray[np.bool_]) -> Iterator[list[Polygon]]:
    """Answers of each connected part its outer line and those of its holes."""
    padded = np.pad(mask, 1).astype(np.float64)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    points_of_parts, offsets_of_parts = cast("tuple[list[Polygon], list[NDArray[np.uint32]]]", generator.filled(0.5, 2.0))
    for points, offsets in zip(points_of_parts, offsets_of_parts, strict=True):
        yield [_without_straight_points(points[first : last - 1] - 1.0) for first, last in pairwise(offsets.tolist())]


def _without_straight_points(ring: Polygon) -> Polygon:
    """Answers the ring without the points that lie on the line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return ring[turns]


def _keyholed(rings: Sequence[Polygon]) -> Polygon:
    """Answers one polygon of an outer ring and its holes, from the leftmost hole to the rightmost.

    The channel of a hole runs to the left from its leftmost point: all that it can meet is the outline, or a hole that is
    already joined, since every other hole begins further right.
    """
    polygon = rings[0]
    for hole in sorted(rings[1:], key=lambda ring: tuple(ring[_leftmost(ring)])):
        first = _leftmost(hole)
        start = hole[first]
        edge, meeting = _met_to_the_left(polygon, start)
        around = np.concatenate([hole[first:], hole[: first + 1]])
        polygon = np.concatenate([polygon[: edge + 1], [meeting], around, [meeting], polygon[edge + 1 :]])
    return polygon


def _leftmost(ring: Polygon) -> int:
    return int(np.lexsort((ring[:, 1], ring[:, 0]))[0])


def _met_to_the_left(polygon: Polygon, start: NDArray[np.float64]) -> tuple[int, NDArray[np.float64]]:
    """Answers the edge that a line to the left from `start` meets first, as the index of its first point, and where."""
    x, y = start
    x0, y0 = polygon[:, 0], polygon[:, 1]
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    crosses = (y0 <= y) != (y1 <= y)
    steps = np.where(crosses, y1 - y0, 1.0)
    meetings = np.where(crosses, x0 + (y - y0) / steps * (x1 - x0), -np.inf)
    meetings[meetings >= x] = -np.inf
    edge = int(np.argmax(meetings))
    return edge, np.array([meetings[edge], y])
