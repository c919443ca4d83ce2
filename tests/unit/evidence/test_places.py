"""Boxes and points lie on the images where they lie in the patient: cuts are exact, and end at the edge of the image."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.codes import Code
from node.domain.findings import Detection, Landmark, Point
from node.domain.modelcard import DetectionDefinition, LandmarkDefinition
from node.domain.result import Result
from node.domain.states import Outcome
from node.domain.volume import Plane, SourceGrid
from node.errors import EvidenceError
from node.evidence.places import closed_line, corners_of, cut_by_plane, faces_of, ordered_detections, outline_of, pixel_of, place_of
from tests.conformance.cases import make_card

NODULE = DetectionDefinition(0, "Nodule", Code("1", "99X", "x"), Code("2", "99X", "y"))
POINT = LandmarkDefinition(0, "Point", Code("3", "99X", "z"))


def box(centre: Sequence[float], axes: NDArray[np.float64], score: float = 0.5, image: Plane | None = None) -> Detection:
    x, y, z = (float(value) for value in centre)
    one, two, three = ((float(axis[0]), float(axis[1]), float(axis[2])) for axis in axes)
    return Detection(NODULE, score, (x, y, z), (one, two, three), image)


def grid(planes: int = 5, rows: int = 30, columns: int = 40) -> SourceGrid:
    """Planes 4 mm apart, pixels of 2 mm down and 1 mm across."""
    stack = tuple(Plane("1.2", f"1.2.{number}", (-10.0, -20.0, 4.0 * number)) for number in range(planes))
    return SourceGrid(rows, columns, 2.0, 1.0, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), stack, "1.2.9")


def result(*grids: SourceGrid) -> Result:
    return Result(make_card(1), Outcome.FOUND, grids=grids)


boxes = st.builds(
    lambda seed, size: box(
        np.random.default_rng(seed).uniform(-5, 5, 3),
        np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0] * np.array(size)[:, None],
    ),
    st.integers(0, 2**32),
    st.tuples(*[st.floats(0.5, 30)] * 3),
)


@settings(max_examples=150, deadline=None)
@given(boxes, st.floats(-1.4, 1.4))
def test_a_cut_is_convex_lies_in_its_plane_and_on_the_faces_of_the_box(one: Detection, share: float) -> None:
    normal = np.array([0.6, 0.0, 0.8])
    heights = (corners_of(one) - one.centre_mm) @ normal
    distance = float(np.asarray(one.centre_mm) @ normal + share * heights.max())
    cut = cut_by_plane(one, normal, distance)
    if abs(share) > 1:
        assert not len(cut)
        return
    if abs(share) > 0.999:
        return
    assert 3 <= len(cut) <= 6
    assert np.allclose(cut @ normal, distance)
    in_axes = np.abs(np.linalg.solve(np.asarray(one.half_axes_mm).T, (cut - one.centre_mm).T)).T
    assert np.allclose(np.sort(in_axes, axis=1)[:, 1:], 1.0, atol=1e-6), "each corner of the cut lies on an edge"
    steps = np.roll(cut, -1, axis=0) - cut
    turns = np.cross(steps, np.roll(steps, -1, axis=0)) @ normal
    assert (turns > -1e-6).all(), "all to the same side: no side crosses another"


def test_faces_are_closed_and_hold_every_corner_three_times() -> None:
    one = box((1, 2, 3), np.diag([4.0, 5.0, 6.0]))
    faces = faces_of(one)
    assert all(np.array_equal(face[0], face[-1]) for face in faces)
    corners, counts = np.unique(np.concatenate([face[:4] for face in faces]), axis=0, return_counts=True)
    assert (len(corners), set(counts.tolist())) == (8, {3})
    assert all(np.ptp(face, axis=0).min() == 0 for face in faces), "straight faces have one coordinate in common"


def test_the_outline_is_in_pixels_and_ends_with_the_image() -> None:
    place = place_of(result(grid()), (0.0, 0.0, 9.0), None)
    assert place.plane_index == 2
    inside = outline_of(box((0, 0, 9), np.diag([3.0, 4.0, 5.0])), place)
    assert np.allclose([inside.min(axis=0), inside.max(axis=0)], [(7, 8), (13, 12)])
    over = outline_of(box((-10, 30, 9), np.diag([3.0, 20.0, 5.0])), place)
    assert np.allclose([over.min(axis=0), over.max(axis=0)], [(-0.5, 15), (3, 29.5)])
    with pytest.raises(EvidenceError, match="beside"):
        outline_of(box((-20, 0, 9), np.diag([3.0, 4.0, 5.0])), place)


@pytest.mark.parametrize("thickness", [1.0, 0.0])
def test_a_box_between_two_planes_is_seen_from_the_nearer_one(thickness: float) -> None:
    thin = box((0, 0, 10.1), np.diag([3.0, 4.0, thickness]))
    place = place_of(result(grid()), thin.centre_mm, None)
    assert place.plane_index == 3
    seen = outline_of(thin, place)
    assert np.allclose([seen.min(axis=0), seen.max(axis=0)], [(7, 8), (13, 12)])


def test_a_finding_of_an_image_is_shown_on_that_image() -> None:
    first, second = (
        SourceGrid(30, 40, 1.0, 1.0, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (Plane("1.2", uid, (0.0, 0.0, 0.0)),), "")
        for uid in ("1.2.3", "1.2.4")
    )
    both = result(first, second)
    point: Point = (3.0, 4.0, 0.0)
    place = place_of(both, point, second.planes[0])
    assert place.grid is second
    assert pixel_of(Landmark(POINT, 0.9, point), place).tolist() == [3.0, 4.0]
    with pytest.raises(EvidenceError, match="not analysed"):
        place_of(both, point, Plane("1.2", "1.2.5", (0.0, 0.0, 0.0)))
    with pytest.raises(EvidenceError, match="beside"):
        pixel_of(Landmark(POINT, 0.9, (-1.0, 4.0, 0.0)), place)


def test_lines_close_with_so_many_points() -> None:
    triangle = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 2.0]])
    line = closed_line(triangle, 6)
    assert len(line) == 6
    assert np.array_equal(line[0], line[-1])
    assert [point for point in triangle.tolist() if point in line.tolist()] == triangle.tolist()


def test_the_order_of_boxes_is_that_of_their_scores_however_they_come() -> None:
    some = [box((x, 0, 0), np.eye(3), score) for x, score in ((1, 0.2), (2, 0.9), (0, 0.2), (3, 0.5))]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        mixed = Result(make_card(1), Outcome.FOUND, detections=tuple(some[number] for number in order))
        assert [(one.score, one.centre_mm[0]) for one in ordered_detections(mixed)] == [(0.9, 2), (0.5, 3), (0.2, 0), (0.2, 1)]
