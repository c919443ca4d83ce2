"""The key image shows the right places, on the right side, with the right shape; planes are true whatever the source."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from node.codes import UCUM_HOUNSFIELD, UCUM_NO_UNITS
from node.domain.states import Outcome
from node.domain.volume import LabelMap, Volume, VolumeGeometry
from node.evidence.key_image import WIDTH, render_key_image
from node.evidence.legend import format_number
from node.evidence.planes import AXIAL, VIEWS, box_of, points_of_plane, sample_labels, sample_values, telling_point_mm
from tests.conformance.cases import GEOMETRIES, Case, found, make_card, make_case, with_outcome
from tests.conformance.findings import detected, overlapping, radiographs


def volume_of(case: Case, modality: str = "CT") -> Volume:
    """Answers a regular volume of the scene, as the series reader would make it."""
    scene, plan = case.series.scene, case.series.plan
    half = plan.extent_mm / 2
    shape, step = (40, 44, 48), 2 * half / 40
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0, 0, step], [0, step, 0], [step, 0, 0]])
    matrix[:3, 3] = scene.body.centre_mm - np.array([24, 22, 20]) * step
    indices = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    points = indices @ matrix[:3, :3].T + matrix[:3, 3]
    voxels = scene.values(points, edge_mm=step).astype(np.float32)
    return Volume(voxels, VolumeGeometry(shape, matrix), case.label_map.source, modality, UCUM_HOUNSFIELD)


def pixels_of(png: bytes) -> NDArray[np.int64]:
    with Image.open(BytesIO(png)) as image:
        assert image.format == "PNG"
        assert not image.info, "no text chunks: nothing about the patient can hide there"
        return np.asarray(image.convert("RGB")).astype(np.int64)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_labels_are_sampled_where_they_lie(tmp_path: Path, geometry: str) -> None:
    case = make_case(tmp_path, geometry)
    box = box_of(volume_of(case))
    point = telling_point_mm(case.label_map, box)
    assert np.abs(point - case.series.organ.centre_mm).max() < 6
    for view in VIEWS:
        points = points_of_plane(view, box, float(case.series.organ.centre_mm[view.through]), 1.0)
        sampled = sample_labels(case.label_map, points) > 0
        depth = case.series.organ.depth_mm(points)
        assert sampled[depth > 4].all()
        assert not sampled[depth < -4].any()


def test_values_are_those_of_the_volume_and_nothing_outside(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    volume = volume_of(case)
    at_voxel = volume.geometry.patient_from_voxel @ np.array([20, 10, 30, 1])
    assert sample_values(volume, at_voxel[None, :3])[0] == pytest.approx(volume.voxels[20, 10, 30])
    assert np.isnan(sample_values(volume, np.array([[1000.0, 0.0, 0.0]]))).all()


def test_an_organ_on_the_left_is_drawn_on_the_right_of_the_axial_plane(tmp_path: Path) -> None:
    """The scene's organ lies to the left, behind and below of the middle."""
    case = make_case(tmp_path)
    pixels = pixels_of(render_key_image(volume_of(case), case.result))
    assert pixels.shape[1] == WIDTH
    color = np.asarray(case.result.card.segments[0].rgb)
    rows, columns = np.nonzero(np.abs(pixels - color).max(axis=2) == 0)
    panels = rows < pixels.shape[0] - 130
    rows, columns = rows[panels], columns[panels]
    third = WIDTH // 3
    assert columns[columns < third].mean() > third / 2
    x, y, _ = box_of(volume_of(case)).size_mm
    axial_rows, axial_columns = rows[columns < third], columns[columns < third]
    seen = np.ptp(axial_columns) / np.ptp(axial_rows)
    truth = case.series.organ.semi_axes_mm[0] / case.series.organ.semi_axes_mm[1]
    assert seen == pytest.approx(truth, rel=0.12), (x, y)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_ending_has_a_picture(tmp_path: Path, modality: str, outcome: Outcome) -> None:
    case = make_case(tmp_path, slices=8, parts=5)
    volume = volume_of(case, modality)
    case = case if outcome is Outcome.FOUND else with_outcome(case, outcome)
    first = render_key_image(volume, case.result)
    assert first == render_key_image(volume, case.result)
    assert pixels_of(first).max() > 200


def test_an_empty_volume_is_drawn_too(tmp_path: Path) -> None:
    case = make_case(tmp_path, slices=8)
    volume = volume_of(case, "MR")
    volume.voxels[:] = 0
    pixels_of(render_key_image(volume, with_outcome(case, Outcome.NOTHING_FOUND).result))


def test_planes_hold_square_pixels() -> None:
    from node.evidence.planes import Box

    box = Box(np.array([0.0, 0.0, 0.0]), np.array([100.0, 50.0, 25.0]))
    points = points_of_plane(AXIAL, box, 12.0, 2.0)
    assert points.shape == (100, 200, 3)
    assert np.allclose(points[1, 0] - points[0, 0], (0, 0.5, 0))
    assert np.allclose(points[0, 1] - points[0, 0], (0.5, 0, 0))


@pytest.mark.parametrize(
    ("value", "text"), [(1499.2, "1499"), (100.0, "100"), (92.0, "92.0"), (7.789, "7.79"), (0.6361, "0.636"), (99.99, "100")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_boxes_and_points_are_drawn_where_they_lie_and_answers_as_bars(tmp_path: Path) -> None:
    case = detected(tmp_path / "box", 2, "axial")
    shown = volume_of(
        replace(case, result=found(make_card(1), LabelMap(np.zeros(case.result.grids[0].shape, np.uint8), case.result.grids[0])))
    )
    with_boxes = pixels_of(render_key_image(shown, case.result))
    without = pixels_of(render_key_image(shown, replace(case.result, detections=())))
    red = np.abs(with_boxes - np.array(case.result.card.detections[1].rgb)).max(axis=2) == 0
    in_first_panel = red[: red.shape[0] - 130, : WIDTH // 3]
    rows, columns = np.nonzero(in_first_panel)
    bottom, left = columns[rows == rows.max()], rows[columns == columns.min()]
    assert np.ptp(bottom) / np.ptp(left) == pytest.approx(8.0 / 6.0, rel=0.04), "as wide and as high as the box"
    assert not (np.abs(without - np.array(case.result.card.detections[1].rgb)).max(axis=2) == 0).any()


def test_single_images_stand_side_by_side_each_with_its_findings(tmp_path: Path) -> None:
    case = radiographs(tmp_path)
    volumes = [
        Volume(np.zeros(grid.shape, np.float32), VolumeGeometry(grid.shape, np.eye(4)), grid, "CR", UCUM_NO_UNITS)
        for grid in case.result.grids
    ]
    pixels = pixels_of(render_key_image(volumes, case.result))
    panels = pixels[: pixels.shape[0] - 150]
    cross = np.nonzero(np.abs(panels - np.array(case.result.landmarks[0].definition.rgb)).max(axis=2) == 0)
    box = np.nonzero(np.abs(panels - np.array(case.result.detections[0].definition.rgb)).max(axis=2) == 0)
    assert cross[1].max() < WIDTH // 2 < box[1].min(), "the point on the first image, the box on the second"


def test_structures_that_overlap_are_all_drawn(tmp_path: Path) -> None:
    case = overlapping(tmp_path)
    pixels = pixels_of(render_key_image(volume_of(case), case.result))[:-150]
    for segment in case.result.segments:
        assert (np.abs(pixels - np.array(segment.definition.rgb)).max(axis=2) == 0).sum() > 100
