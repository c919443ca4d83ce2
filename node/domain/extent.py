"""How long a structure is: its longest diameter within a slice, and in space. Pure geometry on a mask.

A voxel is bounded half way to its neighbours, as in a mesh at half height: a single pixel of 2 mm is 2 mm long.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist

from node.domain.volume import SourceGrid

_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Extent:
    """The longest diameters of a structure, in mm."""

    in_plane_mm: float
    """Within one slice."""
    plane: int
    """The slice on which it lies."""
    ends_mm: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Its two ends, in the coordinates of the patient."""
    in_space_mm: float


def measure_extent(mask: NDArray[np.bool_], source: SourceGrid) -> Extent:
    """Answers the diameters of a mask of shape `source.shape` that holds a voxel.

    Raises ValueError when it holds none.
    """
    planes = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(planes):
        raise ValueError("an empty mask has no extent")
    half_slabs_mm = source.slab_thicknesses_mm() / 2 if len(source.planes) > 1 else np.zeros(1)
    best, best_plane, ends = -1.0, int(planes[0]), np.zeros((2, 3))
    in_space = []
    for plane in planes:
        pixels = _boundary(mask[plane])
        matrix = source.patient_from_pixel(int(plane))[:3]
        outline = _hull(_to_patient(_edge_midpoints(pixels), matrix))
        length, pair = _diameter(outline)
        if length > best:
            best, best_plane, ends = length, int(plane), pair
        centres = _hull(_to_patient(pixels.astype(np.float64), matrix))
        slab = half_slabs_mm[plane] * source.normal
        in_space += [outline, centres + slab, centres - slab]
    whole, _ = _diameter(_hull(np.concatenate(in_space)))
    first, second = (tuple(float(value) for value in end) for end in ends)
    return Extent(best, best_plane, ((first[0], first[1], first[2]), (second[0], second[1], second[2])), max(whole, best))


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Answers (row, column) of the pixels that have a neighbour outside, shape (n, 2)."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


def _edge_midpoints(pixels: NDArray[np.intp]) -> NDArray[np.float64]:
    steps = np.array([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
    return np.asarray((pixels[:, None, :] + steps).reshape(-1, 2), dtype=np.float64)


def _to_patient(pixels: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.column_stack([pixels, np.ones(len(pixels))]) @ matrix.T, dtype=np.float64)


def _hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answers the corners of the convex hull of points in space, also of points on a plane or a line."""
    centred = points - points.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred[:: max(1, len(centred) // 5000)], full_matrices=False)
    dimensions = int((sizes > 1e-6 * max(float(sizes[0]), 1e-12)).sum())
    if dimensions < 2:
        along = centred @ axes[0]
        return points[[int(along.argmin()), int(along.argmax())]]
    if len(points) <= dimensions + 1:  # a triangle or less, a tetrahedron or less: all of them are corners
        return points
    try:
        corners: NDArray[np.float64] = points[ConvexHull(centred @ axes[:dimensions].T).vertices]
    except QhullError:  # flatter than its tolerance: all points will do
        return points
    return corners


def _diameter(points: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Answers the greatest distance between two of the points, and these two."""
    best, pair = -1.0, points[[0, 0]]
    for start in range(0, len(points), _CHUNK):
        distances = cdist(points[start : start + _CHUNK], points)
        place = int(distances.argmax())
        first, second = divmod(place, len(points))
        if distances[first, second] > best:
            best, pair = float(distances[first, second]), points[[start + first, second]]
    return best, pair
