"""Grids, volumes and label maps.

Everything is in the patient coordinate system of DICOM: LPS, millimetres (PS3.3 C.7.6.2.1.1). Arrays are ordered
(slices, rows, columns); a matrix `patient_from_voxel` maps the homogeneous index (slice, row, column, 1) to (x, y, z, 1).
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.codes import UCUM_NO_UNITS, Code

GRID_TOLERANCE_MM: Final = 1e-3
"""Two grids are the same when no voxel centre differs by more than this."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One source slice: an instance, or one frame of a multi-frame instance."""

    sop_class_uid: str
    sop_instance_uid: str
    image_position_patient: tuple[float, float, float]
    frame_number: int | None = None
    """Counted from 1, for a multi-frame instance only."""


@dataclass(frozen=True, slots=True)
class SourceGrid:
    """Where the pixels of the source slices lie, as the scanner wrote it: perhaps tilted, perhaps unevenly spaced.

    `planes` ascend along the slice normal (row direction x column direction of Image Orientation (Patient)).
    """

    rows: int
    columns: int
    row_spacing_mm: float
    """Distance between rows: the first value of Pixel Spacing."""
    column_spacing_mm: float
    image_orientation_patient: tuple[float, float, float, float, float, float]
    planes: tuple[Plane, ...]
    frame_of_reference_uid: str

    @property
    def row_cosine(self) -> NDArray[np.float64]:
        """Unit vector in which the column index grows."""
        return np.asarray(self.image_orientation_patient[:3], dtype=np.float64)

    @property
    def column_cosine(self) -> NDArray[np.float64]:
        """Unit vector in which the row index grows."""
        return np.asarray(self.image_orientation_patient[3:], dtype=np.float64)

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector along which `planes` ascend."""
        return np.asarray(np.cross(self.row_cosine, self.column_cosine), dtype=np.float64)

    @property
    def positions_mm(self) -> NDArray[np.float64]:
        """Image Position (Patient) of each plane, shape (planes, 3)."""
        return np.asarray([plane.image_position_patient for plane in self.planes], dtype=np.float64)

    @property
    def distances_mm(self) -> NDArray[np.float64]:
        """Place of each plane along the normal, ascending, shape (planes,)."""
        return np.asarray(self.positions_mm @ self.normal, dtype=np.float64)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return (len(self.planes), self.rows, self.columns)

    def patient_from_pixel(self, plane_index: int) -> NDArray[np.float64]:
        """Answers the 4x3 matrix that maps (row, column, 1) of a plane to (x, y, z, 1) in mm (PS3.3 Equation C.7.6.2.1-1)."""
        matrix = np.zeros((4, 3))
        matrix[:3, 0] = self.column_cosine * self.row_spacing_mm
        matrix[:3, 1] = self.row_cosine * self.column_spacing_mm
        matrix[:3, 2] = self.planes[plane_index].image_position_patient
        matrix[3, 2] = 1.0
        return matrix

    def slab_thicknesses_mm(self) -> NDArray[np.float64]:
        """Answers how much of the normal each plane stands for: half the way to each neighbour; ends mirror their one neighbour.

        A single plane stands for nothing: NaN.
        """
        if len(self.planes) == 1:
            return np.full(1, np.nan)
        distances = self.distances_mm
        gaps = np.diff(distances)
        before = np.concatenate([gaps[:1], gaps])
        after = np.concatenate([gaps, gaps[-1:]])
        return np.asarray((before + after) / 2, dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class VolumeGeometry:
    """A regular grid of voxels."""

    shape: tuple[int, int, int]
    patient_from_voxel: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distances of neighbouring voxels along (slices, rows, columns)."""
        steps = np.linalg.norm(self.patient_from_voxel[:3, :3], axis=0)
        return (float(steps[0]), float(steps[1]), float(steps[2]))

    def is_close_to(self, other: "VolumeGeometry") -> bool:
        """Answers whether no corner voxel differs by more than GRID_TOLERANCE_MM."""
        if self.shape != other.shape:
            return False
        slices, rows, columns = (size - 1 for size in self.shape)
        corners = np.array([(s, r, c, 1.0) for s in (0, slices) for r in (0, rows) for c in (0, columns)]).T
        difference = self.patient_from_voxel @ corners - other.patient_from_voxel @ corners
        return bool(np.abs(difference).max() <= GRID_TOLERANCE_MM)


SPACING_UNKNOWN: Final = "PixelSpacingUnknown"
"""Code of a note: nothing can be measured in millimetres."""


@dataclass(frozen=True, slots=True)
class QualityNote:
    """Something that a reader of the result must know about its making, e.g. that a slice was missing."""

    code: str
    """Stable name, e.g. `MissingSliceInterpolated`."""
    text: str
    degraded: bool = False
    """True when the result rests on incomplete input: the SR is then PARTIAL (PS3.3 C.17.2)."""


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """The images of a series as one regular, orthogonal volume, with the grid they came from.

    `voxels` has shape `geometry.shape`, float32, in `units` after the modality LUT.
    `geometry` equals `source` where the source is regular; else `notes` say how it was resampled.
    """

    voxels: NDArray[np.float32]
    geometry: VolumeGeometry
    source: SourceGrid
    modality: str
    units: Code = UCUM_NO_UNITS
    notes: tuple[QualityNote, ...] = field(default=())


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """One value per pixel of the source grid; 0 is background. `labels` has shape `source.shape`, uint8.

    Where structures exclude each other a value is the label value of the structure. Where they may overlap (`members` given), a
    value stands for a set of structures: `members[value]` are their label values, `members[0]` is empty.
    """

    labels: NDArray[np.uint8]
    source: SourceGrid
    members: tuple[tuple[int, ...], ...] = ()

    def values_of(self, label_value: int) -> NDArray[np.bool_]:
        """Answers which of the 256 values of `labels` lie in a structure."""
        table = np.zeros(256, dtype=np.bool_)
        if not self.members:
            table[label_value] = True
        for value, members in enumerate(self.members):
            table[value] = label_value in members
        return table

    def mask(self, label_value: int, plane_index: int | None = None) -> NDArray[np.bool_]:
        """Answers where a structure lies: shape `source.shape`, or (rows, columns) of one plane."""
        labels = self.labels if plane_index is None else self.labels[plane_index]
        return self.values_of(label_value)[labels] if self.members else np.asarray(labels == label_value)

    def pixels_of_planes(self) -> NDArray[np.int64]:
        """Answers how many pixels of each plane lie in the structure of each label value, shape (planes, 256)."""
        counts = np.stack([np.bincount(plane.reshape(-1), minlength=256) for plane in self.labels])
        if not self.members:
            return counts
        of_structures = np.zeros_like(counts)
        for value, members in enumerate(self.members):
            for label_value in members:
                of_structures[:, label_value] += counts[:, value]
        return of_structures
