"""The stack sampler on grids that it meets only at the edges."""

import dataclasses

import numpy as np
import pytest

from node.domain.geometry import plan_volume
from node.domain.volume import Plane, SourceGrid, VolumeGeometry
from node.inference.stack import sample_stack, shift_plane

OUTSIDE = -7.0


def source_grid(offsets: list[tuple[float, float, float]], rows: int = 4, columns: int = 5) -> SourceGrid:
    """Answers axial planes of 1 mm pixels at (x, y, z)."""
    planes = tuple(Plane("1.2", f"2.25.{index}", position) for index, position in enumerate(offsets))
    return SourceGrid(rows, columns, 1.0, 1.0, (1, 0, 0, 0, 1, 0), planes, "2.25.9")


def upright(shape: tuple[int, int, int], origin: tuple[float, float, float] = (0, 0, 0), step_mm: float = 1.0) -> VolumeGeometry:
    matrix = np.eye(4)[:, [2, 1, 0, 3]]
    matrix[2, 0] = step_mm
    matrix[:3, 3] = origin
    return VolumeGeometry(shape, matrix)


def ramp(count: int, rows: int = 4, columns: int = 5) -> np.ndarray:
    """Answers voxels whose value is 100 slice + 10 row + column."""
    s, r, c = np.indices((count, rows, columns))
    return (100 * s + 10 * r + c).astype(np.float32)


def test_the_source_grid_gives_the_source() -> None:
    source = source_grid([(0, 0, z) for z in range(3)])
    assert np.array_equal(sample_stack(ramp(3), source, upright((3, 4, 5)), OUTSIDE), ramp(3))


def test_between_slices_values_blend() -> None:
    source = source_grid([(0, 0, 0), (0, 0, 4), (0, 0, 6)])
    sampled = sample_stack(ramp(3), source, upright((7, 4, 5)), OUTSIDE)
    assert sampled[:, 1, 1] == pytest.approx([11, 36, 61, 86, 111, 161, 211])


def test_beyond_the_stack_lies_the_outside() -> None:
    source = source_grid([(0, 0, z) for z in range(2)])
    sampled = sample_stack(ramp(2), source, upright((4, 6, 7), origin=(-1, -1, -1)), OUTSIDE)
    assert np.array_equal(sampled[1:3, 1:5, 1:6], ramp(2))
    sampled[1:3, 1:5, 1:6] = OUTSIDE
    assert set(np.unique(sampled)) == {OUTSIDE}


def test_half_a_pixel_sideways_is_the_mean_of_two() -> None:
    source = source_grid([(0.5, 0, 0), (0.5, 0, 1)])
    sampled = sample_stack(ramp(2), source, upright((2, 4, 6)), OUTSIDE)
    assert sampled[0, 0] == pytest.approx([OUTSIDE, 0.5, 1.5, 2.5, 3.5, OUTSIDE])


def test_where_one_of_two_slices_reaches_it_alone_counts() -> None:
    """A border between image and air must not become half air."""
    source = source_grid([(0, 0, 0), (0, 2, 2)])
    sampled = sample_stack(ramp(2), source, upright((3, 6, 5)), OUTSIDE)
    assert sampled[1, :, 0] == pytest.approx([0, 10, (20 + 100) / 2, (30 + 110) / 2, 120, 130])
    assert sampled[0, :, 0] == pytest.approx([0, 10, 20, 30, OUTSIDE, OUTSIDE])
    assert sampled[2, :, 0] == pytest.approx([OUTSIDE, OUTSIDE, 100, 110, 120, 130])


@pytest.mark.parametrize("tilt_pixels", [0.25, 1.0, 1.7])
def test_a_plane_in_space_stays_a_plane(tilt_pixels: float) -> None:
    """A linear field is reproduced exactly by linear interpolation, wherever at least one whole cell reaches."""
    source = source_grid([(0, index * tilt_pixels, 2.0 * index) for index in range(6)], rows=20, columns=6)

    def field(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return 3 * x - 2 * y + 5 * z

    rows, columns = np.indices((20, 6))
    voxels = np.stack([field(columns + p[0], rows + p[1], np.full_like(rows, p[2], float)) for p in source.positions_mm])
    plan = plan_volume(source)
    sampled = sample_stack(voxels.astype(np.float32), source, plan.geometry, np.nan)
    s, r, c = np.indices(plan.geometry.shape)
    points = np.einsum("ij,jsrc->isrc", plan.geometry.patient_from_voxel, np.stack([s, r, c, np.ones_like(s)]))
    covered = ~np.isnan(sampled)
    assert covered.mean() > 0.4
    assert sampled[covered] == pytest.approx(field(*points[:3])[covered], abs=1e-3)


@pytest.mark.parametrize("shape", [(4, 5), (9, 3), (1, 1)])
@pytest.mark.parametrize("offset", [(0, 0), (2, -1), (-9, 9)])
def test_whole_shifts_move_without_blur(offset: tuple[int, int], shape: tuple[int, int]) -> None:
    plane = ramp(1)[0]
    moved = shift_plane(plane, *offset, shape)
    for row, column in np.ndindex(shape):
        r, c = row - offset[0], column - offset[1]
        expected = plane[r, c] if 0 <= r < 4 and 0 <= c < 5 else np.nan
        assert np.array_equal(moved[row, column], expected, equal_nan=True)


def test_descending_copies_do_not_alias_the_source() -> None:
    source = source_grid([(0, 0, z) for z in range(2)])
    voxels = ramp(2)
    sampled = sample_stack(voxels, source, upright((2, 4, 5)), OUTSIDE)
    sampled += 1
    assert np.array_equal(voxels, ramp(2))
    assert dataclasses.replace(source) == source
