"""Source grids and volumes that lie in the patient as scanners put them: turned, flipped, tilted, unevenly spaced."""

import numpy as np
from numpy.typing import NDArray

from node.domain.volume import Plane, SourceGrid, Volume, VolumeGeometry

ORIENTATIONS: dict[str, tuple[float, ...]] = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "oblique": (0.8, 0.6, 0, -0.6, 0.8, 0),
    "tilted": (1, 0, 0, 0, float(np.cos(0.3)), -float(np.sin(0.3))),
}


def make_source(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], turn: str) -> SourceGrid:
    """Evenly spaced planes; `spacing_mm` is of (slices, rows, columns)."""
    cosines = np.asarray(ORIENTATIONS[turn], dtype=np.float64)
    normal = np.cross(cosines[:3], cosines[3:])
    origin = np.array([-31.5, 20.25, -100.0])
    planes = tuple(Plane("1.2", f"1.{n}", tuple(origin + normal * spacing_mm[0] * n)) for n in range(shape[0]))  # type: ignore[arg-type]
    return SourceGrid(shape[1], shape[2], spacing_mm[1], spacing_mm[2], tuple(cosines.tolist()), planes, "1.9")  # type: ignore[arg-type]


def geometry_of(source: SourceGrid) -> VolumeGeometry:
    """The regular grid that an evenly spaced source is."""
    matrix = np.eye(4)
    matrix[:3, 0] = source.positions_mm[1] - source.positions_mm[0]
    matrix[:3, 1] = source.column_cosine * source.row_spacing_mm
    matrix[:3, 2] = source.row_cosine * source.column_spacing_mm
    matrix[:3, 3] = source.positions_mm[0]
    return VolumeGeometry(source.shape, matrix)


def make_volume(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], turn: str, seed: int) -> Volume:
    """Values as of a CT. No sum of a few of them is zero, so that no interpolation decides whether 1e-17 counts as zero."""
    source = make_source(shape, spacing_mm, turn)
    generator = np.random.default_rng(seed)
    voxels: NDArray[np.float32] = generator.integers(-300, 300, shape).astype(np.float32)
    voxels += 0.371
    return Volume(voxels, geometry_of(source), source, "CT")
