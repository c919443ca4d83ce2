"""Diameters agree with formulas and with SimpleITK, whatever the spacing, the tilt and the direction of the slices."""

import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own habit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.domain.extent import measure_extent
from node.domain.volume import Plane, SourceGrid


def grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], turn_deg: float = 0.0, tilt: float = 0.0) -> SourceGrid:
    turn = math.radians(turn_deg)
    row = np.array([math.cos(turn), math.sin(turn), 0.0])
    column = np.array([-math.sin(turn), math.cos(turn), 0.0])
    normal = np.cross(row, column)
    planes = tuple(Plane("1.2", f"1.2.{k}", tuple(normal * spacing_mm[0] * k + column * tilt * k)) for k in range(shape[0]))  # type: ignore[arg-type]
    return SourceGrid(shape[1], shape[2], spacing_mm[1], spacing_mm[2], (*row, *column), planes, "1.2.3")  # type: ignore[arg-type]


def ball(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], radius_mm: float) -> NDArray[np.bool_]:
    centre = [(size - 1) * step / 2 for size, step in zip(shape, spacing_mm, strict=True)]
    places = np.meshgrid(*[np.arange(size) * step for size, step in zip(shape, spacing_mm, strict=True)], indexing="ij")
    return sum((place - middle) ** 2 for place, middle in zip(places, centre, strict=True)) <= radius_mm**2  # type: ignore[no-any-return]


@pytest.mark.parametrize("turn_deg", [0.0, 30.0, 90.0])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (2.0, 1.0, 1.5)])
def test_a_ball_is_as_long_as_its_diameter(spacing_mm: tuple[float, float, float], turn_deg: float) -> None:
    shape = (31, 61, 61)
    extent = measure_extent(ball(shape, spacing_mm, 15.0), grid(shape, spacing_mm, turn_deg))
    assert extent.in_plane_mm == pytest.approx(30.0, abs=1.01 * max(spacing_mm[1:]))
    assert extent.in_space_mm == pytest.approx(30.0, abs=1.01 * max(spacing_mm))
    assert extent.plane == 15
    first, second = (np.array(end) for end in extent.ends_mm)
    assert np.linalg.norm(first - second) == pytest.approx(extent.in_plane_mm)


def test_a_single_pixel_and_a_line_have_the_length_of_their_pixels() -> None:
    mask = np.zeros((3, 8, 8), dtype=bool)
    mask[1, 4, 4] = True
    where = grid(mask.shape, (5.0, 2.0, 1.0))
    assert measure_extent(mask, where).in_plane_mm == pytest.approx(2.0)
    assert measure_extent(mask, where).in_space_mm == pytest.approx(5.0)
    mask[1, 4, 1:7] = True
    assert measure_extent(mask, where).in_plane_mm == pytest.approx(6.0)


def test_a_tilted_rod_is_measured_along_the_tilt() -> None:
    mask = np.zeros((11, 9, 9), dtype=bool)
    mask[:, 4, 4] = True
    extent = measure_extent(mask, grid(mask.shape, (3.0, 1.0, 1.0), tilt=4.0))
    assert extent.in_space_mm == pytest.approx(math.hypot(30.0 + 3.0, 40.0), rel=0.01)


def test_an_empty_mask_has_none() -> None:
    with pytest.raises(ValueError, match="empty"):
        measure_extent(np.zeros((2, 3, 3), dtype=bool), grid((2, 3, 3), (1.0, 1.0, 1.0)))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(2, 9), st.integers(2, 9)),
    st.tuples(st.floats(0.5, 5), st.floats(0.5, 2), st.floats(0.5, 2)),
    st.integers(0, 2**32),
    st.floats(0, 180),
)
@example((3, 2, 3), (1.0, 1.0, 0.5), 71577256, 1.0)  # three pixels of a slice, none of which lies within their hull
def test_it_agrees_with_simpleitk_within_a_voxel_and_does_not_depend_on_direction(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], seed: int, turn_deg: float
) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.3
    mask[0, 0, 0] = True
    extent = measure_extent(mask, grid(shape, spacing_mm))
    turned = measure_extent(mask, grid(shape, spacing_mm, turn_deg))
    assert turned.in_space_mm == pytest.approx(extent.in_space_mm, rel=1e-6)
    assert turned.in_plane_mm == pytest.approx(extent.in_plane_mm, rel=1e-6)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing_mm[::-1])
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.ComputeFeretDiameterOn()
    statistics.Execute(image)
    between_centres = statistics.GetFeretDiameter(1)
    assert between_centres - 1e-6 <= extent.in_space_mm <= between_centres + math.hypot(*spacing_mm) + 1e-6
