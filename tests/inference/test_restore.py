"""Scores come back to the source grid: equal to a slow reference for any grid, identity where the grids coincide."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from node.domain.volume import Plane, Scores, SourceGrid
from node.inference.restore import restore_labels


def rotation(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    a, b, c = angles
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray(x @ y @ z)


def make_source(axes: NDArray[np.float64], gaps_mm: list[float], tilt: float, spacing_mm: float) -> SourceGrid:
    """12 x 10 pixels a plane; the planes step along the normal and, when tilted, along the columns too."""
    steps = np.concatenate([[0.0], np.cumsum(gaps_mm)])
    normal = np.cross(axes[:, 0], axes[:, 1])
    step = normal + tilt * axes[:, 1]
    centre = -axes[:, 0] * 4.5 * spacing_mm - axes[:, 1] * 5.5 * spacing_mm - step * steps.mean()
    planes = tuple(Plane("1.2", f"1.{n}", tuple(centre + step * s)) for n, s in enumerate(steps))  # type: ignore[arg-type]
    cosines = (*axes[:, 0], *axes[:, 1])
    return SourceGrid(12, 10, spacing_mm, spacing_mm, cosines, planes, "1.9")  # type: ignore[arg-type]


def blobs(shape: tuple[int, int, int], channels: int, seed: int) -> NDArray[np.float32]:
    """Smooth scores; background wins at the rim."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    values = [np.full(shape, 0.4, dtype=np.float32)]
    for _ in range(channels - 1):
        centre = generator.uniform(-0.4, 0.4, 3)[:, None, None, None]
        values.append(np.exp(-((grid - centre) ** 2).sum(0) / 0.15).astype(np.float32))
    return np.stack(values)


def reference(scores: Scores, source: SourceGrid) -> NDArray[np.uint8]:
    """Every class at every pixel, in float64."""
    inverse = np.linalg.inv(scores.patient_from_index)
    labels = np.zeros(source.shape, dtype=np.uint8)
    rows, columns = np.mgrid[0 : source.rows, 0 : source.columns]
    pixels = np.stack([rows.ravel(), columns.ravel(), np.ones(rows.size)])
    sizes = np.array(scores.values.shape[1:])[:, None]
    for plane in range(len(source.planes)):
        index = (inverse @ source.patient_from_pixel(plane) @ pixels)[:3]
        inside = ((index >= -0.5) & (index <= sizes - 0.5)).all(axis=0)
        sampled = np.stack([map_coordinates(v.astype(np.float64), index, order=1, mode="nearest") for v in scores.values])
        labels[plane] = np.where(inside, sampled.argmax(axis=0), 0).reshape(rows.shape)
    return labels


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    model_angles=st.tuples(*[st.sampled_from([0.0, np.pi / 2, np.pi, 0.3])] * 3),
    gaps_mm=st.lists(st.sampled_from([1.5, 2.0, 4.0]), min_size=3, max_size=8),
    tilt=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 9),
)
def test_equals_the_slow_reference_on_any_grid(
    angles: tuple[float, float, float],
    model_angles: tuple[float, float, float],
    gaps_mm: list[float],
    tilt: float,
    seed: int,
) -> None:
    source = make_source(rotation(angles), gaps_mm, tilt, 1.7)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(model_angles) * 1.1
    matrix[:3, 3] = -matrix[:3, :3] @ np.array([12.0, 11.0, 13.0])
    scores = Scores(blobs((25, 23, 27), 4, seed), matrix)
    difference = restore_labels(scores, source) != reference(scores, source)
    assert difference.mean() < 0.002, "only near ties between classes may differ (float32 against float64)"


def test_is_the_identity_where_the_grids_coincide() -> None:
    source = make_source(np.eye(3), [2.0] * 7, 0.0, 2.0)
    matrix = np.eye(4)
    matrix[:3, 0] = (0, 0, 2.0)
    matrix[:3, 1] = (0, 2.0, 0)
    matrix[:3, 2] = (2.0, 0, 0)
    matrix[:3, 3] = source.planes[0].image_position_patient
    values = blobs(source.shape, 3, 1)
    assert np.array_equal(restore_labels(Scores(values, matrix), source), values.argmax(axis=0))


def test_a_probability_is_cut_at_one_half() -> None:
    source = make_source(np.eye(3), [2.0] * 7, 0.0, 2.0)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0, 0, 2.0], [0, 2.0, 0], [2.0, 0, 0]])
    matrix[:3, 3] = source.planes[0].image_position_patient
    values = blobs(source.shape, 2, 2)[1:]
    labels = restore_labels(Scores(values, matrix, is_probability=True), source)
    assert np.array_equal(labels, values[0] > 0.5)


def test_beyond_the_networks_grid_is_background() -> None:
    source = make_source(np.eye(3), [2.0] * 7, 0.0, 2.0)
    matrix = np.eye(4)
    matrix[:3, 3] = (500.0, 0.0, 0.0)
    values = np.stack([np.zeros((5, 5, 5)), np.ones((5, 5, 5))]).astype(np.float32)
    assert not restore_labels(Scores(values, matrix), source).any()


def test_nothing_found_is_all_background() -> None:
    source = make_source(np.eye(3), [2.0] * 3, 0.0, 2.0)
    values = np.stack([np.ones((5, 5, 5)), np.zeros((5, 5, 5))]).astype(np.float32)
    assert not restore_labels(Scores(values, np.eye(4)), source).any()
