"""From headers to the grid of a volume: order, refusals, and the plan for stacks that are not regular."""

import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest

from node.domain.geometry import (
    GANTRY_TILT_RESAMPLED,
    MISSING_SLICE_INTERPOLATED,
    SHIFTED_SLICES_RESAMPLED,
    UNEVEN_SPACING_RESAMPLED,
    ImagePlane,
    gantry_tilt_deg,
    order_planes,
    plan_volume,
)
from node.domain.volume import SourceGrid
from node.errors import (
    DuplicatePositions,
    IrregularSpacing,
    MissingGeometry,
    MissingSlices,
    MixedFrameOfReference,
    MixedGrid,
    MixedOrientation,
    NotAVolume,
    TooFewSlices,
)
from tests.factories import SeriesOptions, SeriesPlan

GRID_TOLERANCE_MM = 1e-4


def planes(**options: Any) -> list[ImagePlane]:
    """Answers what the headers of a synthetic series say, ascending."""
    plan = SeriesPlan(**SeriesOptions(**options))  # type: ignore[typeddict-item]
    return [
        ImagePlane(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            sop_instance_uid=f"2.25.{index + 1}",
            frame_number=None,
            rows=plan.rows,
            columns=plan.columns,
            image_position_patient=tuple(position),
            image_orientation_patient=plan.image_orientation_patient,
            pixel_spacing_mm=plan.spacing_mm[1:],
            frame_of_reference_uid="2.25.99",
            name=f"image {index + 1}",
        )
        for index, position in enumerate(plan.positions_mm.tolist())
        if index not in plan.missing
    ]


def grid(images: list[ImagePlane]) -> SourceGrid:
    return order_planes(images)[0]


def changed(images: list[ImagePlane], index: int, **changes: Any) -> list[ImagePlane]:
    return [dataclasses.replace(image, **changes) if at == index else image for at, image in enumerate(images)]


# ── order ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal", "oblique"])
def test_planes_ascend_along_the_normal_whatever_their_order(orientation: str) -> None:
    images = planes(orientation=orientation)
    shuffled = random.Random(1).sample(images, len(images))
    source, order = order_planes(shuffled)
    assert [shuffled[index] for index in order] == images
    assert source == grid(images)
    assert np.all(np.diff(source.distances_mm) > 0)
    assert source.shape == (24, 64, 64)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"image_position_patient": None}, MissingGeometry, r"Image Position \(Patient\) is absent or malformed in 1 of 24"),
        ({"image_orientation_patient": None}, MissingGeometry, r"Image Orientation \(Patient\)"),
        ({"image_orientation_patient": (1, 0, 0, 0, 0.9, 0)}, MissingGeometry, "Orientation"),
        ({"image_orientation_patient": (1, 0, 0, 0.1, 0.995, 0)}, MissingGeometry, "Orientation"),
        ({"image_orientation_patient": (0, 0, 0, 0, 0, 0)}, MissingGeometry, "Orientation"),
        ({"pixel_spacing_mm": None}, MissingGeometry, "Pixel Spacing"),
        ({"pixel_spacing_mm": (0.0, 2.0)}, MissingGeometry, "Pixel Spacing"),
        ({"frame_of_reference_uid": None}, MissingGeometry, "Frame of Reference UID"),
        ({"frame_of_reference_uid": "2.25.98"}, MixedFrameOfReference, "2 frames of reference"),
        ({"rows": 128}, MixedGrid, "1 of 128 x 64"),
        ({"pixel_spacing_mm": (2.0, 2.1)}, MixedGrid, "Pixel Spacing"),
        ({"image_orientation_patient": (1, 0, 0, 0, 0, -1)}, MixedOrientation, "up to 90.0 degrees"),
        ({"image_orientation_patient": (0, 1, 0, -1, 0, 0)}, MixedOrientation, "for instance image 6"),
    ],
)
def test_one_odd_image_is_named(changes: dict[str, Any], error: type[NotAVolume], words: str) -> None:
    with pytest.raises(error, match=words):
        order_planes(changed(planes(), 5, **changes))


def test_rounded_cosines_and_spacings_are_no_difference() -> None:
    images = changed(planes(), 5, image_orientation_patient=(0.9999, 0.0005, 0, -0.0005, 0.9999, 0), pixel_spacing_mm=(2.0001, 2.0))
    assert grid(images).shape == (24, 64, 64)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few(count: int) -> None:
    with pytest.raises(TooFewSlices, match="at least 2"):
        order_planes(planes()[:count])


def test_two_slices_are_a_volume() -> None:
    assert plan_volume(grid(planes()[:2])).is_identity


def test_duplicates_say_what_tells_them_apart() -> None:
    images = [dataclasses.replace(image, traits=(("echo time", "3"), ("acquisition time", "101112"))) for image in planes()]
    second = [dataclasses.replace(image, traits=(("echo time", "12"), ("acquisition time", "101113"))) for image in images]
    with pytest.raises(DuplicatePositions, match=r"48 images lie at only 24 places.*differ in echo time \(12, 3\): send"):
        order_planes([*images, *second])


def test_duplicates_never_tell_a_time() -> None:
    first = [dataclasses.replace(image, traits=(("acquisition time", "101112"),)) for image in planes()]
    second = [dataclasses.replace(image, traits=(("acquisition time", "101113"),)) for image in planes()]
    with pytest.raises(DuplicatePositions, match="differ in acquisition time: send") as caught:
        order_planes([*first, *second])
    assert "1011" not in str(caught.value)


def test_duplicates_without_a_difference() -> None:
    with pytest.raises(DuplicatePositions, match="Nothing in their headers"):
        order_planes([*planes(), planes()[3]])


# ── plans ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal", "oblique"])
@pytest.mark.parametrize("slices", [2, 3, 200])
def test_regular_stack_is_its_own_grid(orientation: str, slices: int) -> None:
    source = grid(planes(orientation=orientation, slices=slices))
    plan = plan_volume(source)
    assert plan.is_identity
    assert plan.notes == ()
    assert plan.geometry.shape == source.shape
    assert plan.geometry.spacing_mm == pytest.approx((3.0, 2.0, 2.0), abs=1e-5)
    for index in (0, slices - 1):
        pixel = np.array([7.0, 11.0, 1.0])
        voxel = np.array([index, *pixel])
        assert plan.geometry.patient_from_voxel @ voxel == pytest.approx(source.patient_from_pixel(index) @ pixel, abs=GRID_TOLERANCE_MM)


@pytest.mark.parametrize("tilt_deg", [-22.0, 5.0, 18.5])
def test_gantry_tilt_becomes_an_upright_grid_over_the_whole_stack(tilt_deg: float) -> None:
    source = grid(planes(gantry_tilt_deg=tilt_deg))
    plan = plan_volume(source)
    assert gantry_tilt_deg(source) == pytest.approx(abs(tilt_deg), abs=1e-3)
    assert [note.code for note in plan.notes] == [GANTRY_TILT_RESAMPLED]
    assert f"{abs(tilt_deg):.1f} degrees" in plan.notes[0].text
    assert not plan.notes[0].degraded
    matrix = plan.geometry.patient_from_voxel
    directions = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    assert directions.T @ directions == pytest.approx(np.eye(3), abs=1e-6)
    assert plan.geometry.spacing_mm[0] == pytest.approx(3.0 * math.cos(math.radians(tilt_deg)), abs=1e-4)
    assert covers(plan.geometry.patient_from_voxel, plan.geometry.shape, source)


def test_tiny_slant_stays_in_the_affine() -> None:
    plan = plan_volume(grid(planes(gantry_tilt_deg=0.05)))
    assert plan.is_identity


def test_stack_more_slanted_than_any_gantry_is_refused() -> None:
    with pytest.raises(IrregularSpacing, match="by 60 degrees"):
        plan_volume(grid(planes(gantry_tilt_deg=60.0)))


def test_one_missing_slice_is_interpolated_and_said() -> None:
    images = planes(slices=60, missing=(20,))
    plan = plan_volume(grid(images), [image.name for image in images])
    assert not plan.is_identity
    assert plan.geometry.shape == (60, 64, 64)
    assert plan.geometry.is_close_to(plan_volume(grid(planes(slices=60))).geometry)
    (note,) = plan.notes
    assert (note.code, note.degraded) == (MISSING_SLICE_INTERPOLATED, True)
    assert "60 expected" in note.text
    assert "59 found" in note.text
    assert "between image 20 and image 22" in note.text


@pytest.mark.parametrize(
    ("slices", "missing", "words"),
    [
        pytest.param(60, (20, 21), "2 slice.s. missing: 60 expected .*, 58 found; between slice 20 and slice 21", id="two in a row"),
        pytest.param(60, (9, 19, 29, 39), "4 slice.s. missing.*and 1 more gaps", id="more than the share"),
        pytest.param(5, (2,), "1 slice.s. missing: 5 expected", id="one of five"),
    ],
)
def test_more_missing_slices_are_refused(slices: int, missing: tuple[int, ...], words: str) -> None:
    with pytest.raises(MissingSlices, match=words):
        plan_volume(grid(planes(slices=slices, missing=missing)))


def test_two_spacings_become_equal_steps_over_the_whole_stack() -> None:
    source = grid(planes(gaps_mm=[4.0] * 13 + [1.1] + [7.0] * 13))
    plan = plan_volume(source)
    assert [note.code for note in plan.notes] == [UNEVEN_SPACING_RESAMPLED]
    assert "every 4.00 mm" in plan.notes[0].text
    assert "every 7.00 mm" in plan.notes[0].text
    assert plan.geometry.spacing_mm[0] == pytest.approx(144.1 / 37)
    assert covers(plan.geometry.patient_from_voxel, plan.geometry.shape, source)


def test_the_ge_head_tilted_and_uneven_gets_both_notes() -> None:
    plan = plan_volume(grid(planes(gaps_mm=[4.22] * 13 + [1.14] + [7.38] * 13, gantry_tilt_deg=18.5)))
    assert {note.code for note in plan.notes} == {UNEVEN_SPACING_RESAMPLED, GANTRY_TILT_RESAMPLED}


def test_fine_zone_does_not_explode_the_grid() -> None:
    source = grid(planes(gaps_mm=[0.5] * 4 + [10.0] * 20))
    assert plan_volume(source).geometry.shape[0] == 4 * 25


def test_sideways_shift_is_resampled() -> None:
    images = planes()
    shifted = [
        dataclasses.replace(image, image_position_patient=(position[0] + (10.0 if index > 11 else 0.0), *position[1:]))
        for index, image in enumerate(images)
        if (position := image.image_position_patient) is not None
    ]
    plan = plan_volume(grid(shifted))
    assert SHIFTED_SLICES_RESAMPLED in [note.code for note in plan.notes]
    assert covers(plan.geometry.patient_from_voxel, plan.geometry.shape, grid(shifted))


def test_no_pattern_is_refused() -> None:
    with pytest.raises(IrregularSpacing, match=r"no pattern: 1.00 mm to 9.10 mm over 6 slices"):
        plan_volume(grid(planes(gaps_mm=[1.0, 7.0, 2.3, 9.1, 4.4])))


def covers(patient_from_voxel: np.ndarray, shape: tuple[int, int, int], source: SourceGrid) -> bool:
    """Answers whether every source pixel lies on the grid, up to a quarter of a pixel."""
    corners = np.array([(row, column, 1.0) for row in (0, source.rows - 1) for column in (0, source.columns - 1)]).T
    points = np.hstack([source.patient_from_pixel(index) @ corners for index in range(len(source.planes))])
    voxels = (np.linalg.inv(patient_from_voxel) @ points)[:3]
    slack = np.array([1e-6, 0.26, 0.26])[:, None]
    return bool(np.all(voxels >= -slack) and np.all(voxels <= np.array(shape)[:, None] - 1 + slack))
