"""Geometry, over many stacks: the order of arrival never matters, and a known organ keeps its size and place."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.domain.geometry import ImagePlane, VolumePlan, order_planes, plan_volume
from node.domain.spacing import classify_spacing
from node.domain.volume import SourceGrid
from node.inference.stack import sample_stack
from tests.factories import SeriesPlan, ct_scene, slice_values
from tests.scene import Ellipsoid

ORGAN_VOLUME_TOLERANCE = 0.04
"""Share of the true volume: linear interpolation between slices a third of the organ's radius apart."""

ORGAN_VOLUME_TOLERANCE_MISSING = 0.08
"""The same where a slice near the tip of the organ may be the missing one."""

ORGAN_CENTROID_TOLERANCE = 0.15
"""Of the widest voxel edge."""

ROUND_TRIP_TOLERANCE = 1e-6
ROUND_TRIP_EXAMPLES = 60
VOLUME_EXAMPLES = 40


def orientations() -> st.SearchStrategy[tuple[float, ...]]:
    """Answers direction cosines of any orthogonal pair of directions."""

    def cosines(quaternion: Sequence[float]) -> tuple[float, ...]:
        w, x, y, z = np.asarray(quaternion) / np.linalg.norm(quaternion)
        row = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
        column = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
        return tuple(float(value) for value in (*row, *column))

    part = st.floats(-1, 1, allow_subnormal=False)
    return st.tuples(part, part, part, part).filter(lambda q: np.linalg.norm(q) > 0.1).map(cosines)


@st.composite
def stacks(draw: st.DrawFn) -> SeriesPlan:
    """Answers plans: any orientation, tilted or not, even or in two zones or with a slice missing."""
    kind = draw(st.sampled_from(["even", "zones", "missing"]))
    slices = draw(st.integers(24, 32))
    step = draw(st.floats(1.5, 3.0))
    gaps = None
    if kind == "zones":
        half = slices // 2
        gaps = [step] * half + [draw(st.floats(0.4, 1.0)) * step] + [draw(st.floats(1.2, 1.7)) * step] * (slices - half)
    return SeriesPlan(
        slices=slices,
        rows=draw(st.integers(40, 56)),
        columns=draw(st.integers(40, 56)),
        spacing_mm=(step, draw(st.floats(1.2, 2.2)), draw(st.floats(1.2, 2.2))),
        orientation=draw(orientations()),  # type: ignore[arg-type]
        gantry_tilt_deg=draw(st.sampled_from([0.0, 0.0, 6.5, -18.5, 24.0])),
        gaps_mm=gaps,
        missing=(draw(st.integers(1, slices - 2)),) if kind == "missing" else (),
    )


def image_planes(plan: SeriesPlan) -> list[ImagePlane]:
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


def planned(plan: SeriesPlan) -> tuple[SourceGrid, VolumePlan]:
    source, _ = order_planes(image_planes(plan))
    return source, plan_volume_leniently(source)


def plan_volume_leniently(source: SourceGrid) -> VolumePlan:
    """Plans with a higher share of missing slices: these stacks are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("node.domain.geometry.MAX_MISSING_SHARE", 0.1)
        return plan_volume(source)


@given(stacks(), st.randoms(use_true_random=False))
@settings(max_examples=ROUND_TRIP_EXAMPLES, deadline=None)
def test_the_order_of_arrival_does_not_matter(plan: SeriesPlan, dice: random.Random) -> None:
    images = image_planes(plan)
    shuffled = dice.sample(images, len(images))
    source, order = order_planes(shuffled)
    assert source == order_planes(images)[0]
    assert [shuffled[index] for index in order] == images


@given(stacks(), st.data())
@settings(max_examples=ROUND_TRIP_EXAMPLES, deadline=None)
def test_voxel_to_patient_to_voxel(plan: SeriesPlan, data: st.DataObject) -> None:
    _, volume_plan = planned(plan)
    shape = volume_plan.geometry.shape
    voxel = np.array([*(data.draw(st.integers(0, size - 1)) for size in shape), 1.0])
    point = volume_plan.geometry.patient_from_voxel @ voxel
    back = np.linalg.solve(volume_plan.geometry.patient_from_voxel, point)
    assert back == pytest.approx(voxel, abs=ROUND_TRIP_TOLERANCE)


@given(st.lists(st.floats(0.3, 12.0), min_size=1, max_size=60))
@settings(max_examples=300, deadline=None)
def test_every_stack_of_distances_has_a_class(steps: list[float]) -> None:
    distances = np.concatenate([[0.0], np.cumsum(steps)])
    forwards = classify_spacing(distances)
    assert type(forwards) is type(classify_spacing(distances + 1000.0))


@given(stacks())
@settings(max_examples=VOLUME_EXAMPLES, deadline=None)
def test_an_organ_keeps_its_volume_and_its_place(plan: SeriesPlan) -> None:
    scene = ct_scene(plan)
    source, volume_plan = planned(plan)
    present = [index for index in range(len(plan.positions_mm)) if index not in plan.missing]
    voxels = np.stack([slice_values(plan, scene, index) for index in present]).astype(np.float32)
    if not volume_plan.is_identity:
        voxels = sample_stack(voxels, source, volume_plan.geometry, scene.air_value)
    assert voxels.shape == volume_plan.geometry.shape
    assert not np.isnan(voxels).any()
    matrix = volume_plan.geometry.patient_from_voxel
    volume_mm3, centroid_mm = measured(voxels, matrix, scene.organ, scene.body_value, scene.organ_value)
    tolerance = ORGAN_VOLUME_TOLERANCE_MISSING if plan.missing else ORGAN_VOLUME_TOLERANCE
    assert volume_mm3 == pytest.approx(scene.organ.volume_mm3, rel=tolerance)
    widest = max([*np.diff(source.distances_mm), *plan.spacing_mm[1:]])
    assert math.dist(centroid_mm, scene.organ.centre_mm) < ORGAN_CENTROID_TOLERANCE * widest


def measured(
    voxels: NDArray[np.float32], patient_from_voxel: NDArray[np.float64], organ: Ellipsoid, low: float, high: float
) -> tuple[float, list[float]]:
    """Answers volume and centroid of what looks like organ near the organ; a voxel counts by how much its value says."""
    index = np.indices(voxels.shape).reshape(3, -1)
    points = (patient_from_voxel[:3, :3] @ index).T + patient_from_voxel[:3, 3]
    near = np.all(np.abs(points - np.asarray(organ.centre_mm)) < 1.3 * np.asarray(organ.semi_axes_mm), axis=1)
    share = np.clip((voxels.reshape(-1) - low) / (high - low), 0, 1) * near
    voxel_mm3 = abs(float(np.linalg.det(patient_from_voxel[:3, :3])))
    return float(share.sum()) * voxel_mm3, ((share @ points) / share.sum()).tolist()
