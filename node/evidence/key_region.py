"""The outline of a structure on the slice where it is largest: for viewers that draw coordinates and no segments.

Written for what OHIF 3 does with a POLYLINE: it is drawn open unless it ends where it began, and one of four or five points is
taken for a rectangle that a reader may edit.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.domain.volume import LabelMap, Plane
from node.evidence.contours import rings_of

MAX_POINTS: Final = 1000
"""Of an outline: a longer one loses every second point, and again, which nobody sees."""

FEWEST_POINTS: Final = 6


@dataclass(frozen=True, slots=True)
class KeyRegion:
    """An outline on a plane. `points` has shape (n, 2): column and row as PS3.3 C.18.6 counts, 0.5 at the centre of the first pixel."""

    plane: Plane
    points: NDArray[np.float64]


def key_region(label_map: LabelMap, label: int) -> KeyRegion:
    """Answers the outer line of the largest part of a label on the plane that holds most of it.

    Raises ValueError when no voxel bears the label.
    """
    areas = [int(np.count_nonzero(label_map.mask(label, place))) for place in range(len(label_map.labels))]
    place = int(np.argmax(areas))
    if not areas[place]:
        raise ValueError("a label without a voxel has no outline")
    ring = max(rings_of(label_map.mask(label, place)), key=_enclosed)
    while len(ring) > MAX_POINTS:
        ring = ring[::2]
    while len(ring) + 1 < FEWEST_POINTS:
        ring = np.concatenate([ring, (ring[-1:] + ring[:1]) / 2])
    return KeyRegion(label_map.source.planes[place], np.concatenate([ring, ring[:1]]) + 0.5)


def _enclosed(ring: NDArray[np.float64]) -> float:
    """Answers the area that a ring encloses, in pixels (the shoelace formula)."""
    column, row = ring[:, 0], ring[:, 1]
    return float(abs(column @ np.roll(row, -1) - row @ np.roll(column, -1)) / 2)
