"""True axial, coronal and sagittal planes through a volume and a label map, whatever the slices of the source were.

A plane is sampled on a square grid in patient coordinates (LPS, mm): so its aspect is right by construction, oblique, tilted
and uneven sources need no care, and the letters at its edges are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from node.domain.volume import LabelMap, SourceGrid, Volume

_SAMPLES_TO_FIND_A_PLANE: Final = 200_000
_BIN_MM: Final = 2.0


@dataclass(frozen=True, slots=True)
class PlaneView:
    """How a plane is shown: the patient axis that it stands on, and those along its columns and rows."""

    name: str
    through: int
    """0 x (to the left), 1 y (to the back), 2 z (to the head)."""
    across: int
    down: int
    down_sign: int
    letters: tuple[str, str, str, str]
    """What lies at the left, right, top and bottom edge."""


AXIAL: Final = PlaneView("Axial", through=2, across=0, down=1, down_sign=1, letters=("R", "L", "A", "P"))
CORONAL: Final = PlaneView("Coronal", through=1, across=0, down=2, down_sign=-1, letters=("R", "L", "H", "F"))
SAGITTAL: Final = PlaneView("Sagittal", through=0, across=1, down=2, down_sign=-1, letters=("A", "P", "H", "F"))
VIEWS: Final = (AXIAL, CORONAL, SAGITTAL)


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """A box along the patient axes."""

    lower_mm: NDArray[np.float64]
    upper_mm: NDArray[np.float64]

    @property
    def size_mm(self) -> NDArray[np.float64]:
        """Lengths along x, y and z."""
        return self.upper_mm - self.lower_mm

    @property
    def center_mm(self) -> NDArray[np.float64]:
        """The middle."""
        return (self.lower_mm + self.upper_mm) / 2


def box_of(volume: Volume) -> Box:
    """Answers the smallest box along the patient axes that holds the volume."""
    slices, rows, columns = (size - 1 for size in volume.geometry.shape)
    corners = np.array([(s, r, c, 1.0) for s in (0, slices) for r in (0, rows) for c in (0, columns)])
    points = (corners @ volume.geometry.patient_from_voxel.T)[:, :3]
    return Box(lower_mm=points.min(axis=0), upper_mm=points.max(axis=0))


def telling_point_mm(label_map: LabelMap | None, box: Box) -> NDArray[np.float64]:
    """Answers the point whose three planes show most: every structure counts alike, at its largest cut the most."""
    if label_map is None or not label_map.labels.any():
        return box.center_mm
    flat = np.flatnonzero(label_map.labels)
    flat = flat[:: max(1, len(flat) // _SAMPLES_TO_FIND_A_PLANE)]
    labels = label_map.labels.reshape(-1)[flat]
    indices = np.stack(np.unravel_index(flat, label_map.labels.shape), axis=-1)
    points = _points_of(label_map.source, indices)
    structures = sorted({label for members in label_map.members for label in members}) or np.unique(labels).tolist()
    masks = [label_map.values_of(label)[labels] for label in structures]
    return np.array([_telling_position_mm(points[:, axis], [mask for mask in masks if mask.any()]) for axis in range(3)])


def sample_values(volume: Volume, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answers the values at points of shape (..., 3), linear between voxels; NaN outside the volume."""
    voxel_from_patient = np.linalg.inv(volume.geometry.patient_from_voxel)
    indices = points @ voxel_from_patient[:3, :3].T + voxel_from_patient[:3, 3]
    values = ndimage.map_coordinates(
        volume.voxels, np.moveaxis(indices, -1, 0), output=np.float64, order=1, mode="nearest", prefilter=False
    )
    inside = np.all((indices >= -0.5) & (indices <= np.asarray(volume.geometry.shape) - 0.5), axis=-1)
    return np.where(inside, values, np.nan)


def sample_labels(label_map: LabelMap, points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Answers the value of the voxel that holds each point of shape (..., 3); 0 outside the source slices."""
    source = label_map.source
    distances = source.distances_mm
    along = points @ source.normal
    edges = (distances[1:] + distances[:-1]) / 2
    slices = np.searchsorted(edges, along)
    ends = source.slab_thicknesses_mm()[[0, -1]] / 2
    offset = points - source.positions_mm[slices]
    rows = np.rint(offset @ source.column_cosine / source.row_spacing_mm).astype(np.int64)
    columns = np.rint(offset @ source.row_cosine / source.column_spacing_mm).astype(np.int64)
    inside = (along >= distances[0] - ends[0]) & (along <= distances[-1] + ends[1])
    inside &= (rows >= 0) & (rows < source.rows) & (columns >= 0) & (columns < source.columns)
    labels = label_map.labels[slices, np.clip(rows, 0, source.rows - 1), np.clip(columns, 0, source.columns - 1)]
    return np.where(inside, labels, 0).astype(np.uint8)


def points_of_plane(view: PlaneView, box: Box, at_mm: float, pixels_per_mm: float) -> NDArray[np.float64]:
    """Answers the points of a plane, shape (rows, columns, 3)."""
    columns = max(1, round(box.size_mm[view.across] * pixels_per_mm))
    rows = max(1, round(box.size_mm[view.down] * pixels_per_mm))
    points = np.empty((rows, columns, 3))
    points[..., view.through] = at_mm
    points[..., view.across] = box.lower_mm[view.across] + (np.arange(columns) + 0.5) / pixels_per_mm
    down = (np.arange(rows) + 0.5) / pixels_per_mm
    start = box.lower_mm[view.down] if view.down_sign > 0 else box.upper_mm[view.down]
    points[..., view.down] = (start + view.down_sign * down)[:, None]
    return points


def _points_of(source: SourceGrid, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """Answers where voxels (slice, row, column) lie, tilted or not, shape (n, 3)."""
    rows = indices[:, 1:2] * source.row_spacing_mm * source.column_cosine
    columns = indices[:, 2:3] * source.column_spacing_mm * source.row_cosine
    return np.asarray(source.positions_mm[indices[:, 0]] + rows + columns)


def pixels_on_plane(view: PlaneView, box: Box, points_mm: NDArray[np.float64], pixels_per_mm: float) -> NDArray[np.float64]:
    """Answers where points of shape (n, 3) are seen on a plane, in (column, row) from the upper left corner of the picture."""
    across = points_mm[:, view.across] - box.lower_mm[view.across]
    from_top = (
        points_mm[:, view.down] - box.lower_mm[view.down] if view.down_sign > 0 else box.upper_mm[view.down] - points_mm[:, view.down]
    )
    return np.column_stack([across, from_top]) * pixels_per_mm


def _telling_position_mm(positions_mm: NDArray[np.float64], structures: Sequence[NDArray[np.bool_]]) -> float:
    first = positions_mm.min()
    bins = ((positions_mm - first) / _BIN_MM).astype(np.int64)
    score = np.zeros(bins.max() + 1)
    for inside in structures:
        cut = ndimage.uniform_filter1d(np.bincount(bins[inside], minlength=len(score)).astype(float), 3)
        score += cut / cut.max()
    best = np.flatnonzero(score >= score.max() * 0.999)
    return float(first + (best[len(best) // 2] + 0.5) * _BIN_MM)
