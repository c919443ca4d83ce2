"""Scores and labels come back to the source grid: equal to a slow reference for any grid, and to MONAI's own inverse.

The identity where the grids coincide.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd, Spacingd, SpatialPadd
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from node.domain.volume import Plane, SourceGrid
from node.inference.labelling import Labelling, LabelsOnSource
from node.inference.preprocess import Prepared, as_meta_tensor, prepare
from node.inference.restore import WayBack, bring_probability, can_win, winners
from node.inference.tail import Decision, ScoreStep, Tail
from node.inference.windows import blocks_of
from tests.inference.grids import make_volume


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


def blobs(shape: tuple[int, ...], channels: int, seed: int) -> NDArray[np.float32]:
    """Smooth scores; background wins at the rim."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    values = [np.full(shape, 0.4, dtype=np.float32)]
    for _ in range(channels - 1):
        centre = generator.uniform(-0.4, 0.4, 3)[:, None, None, None]
        values.append(np.exp(-((grid - centre) ** 2).sum(0) / 0.15).astype(np.float32))
    return np.stack(values)


def prepared_on(shape: tuple[int, ...], patient_from_index: NDArray[np.float64]) -> Prepared:
    return Prepared(torch.empty((1, *shape)), patient_from_index)


def feed(labelling: Labelling, values: NDArray[np.float32], edge: int) -> NDArray[np.uint8]:
    for block in blocks_of(torch.from_numpy(values), labelling.skirt, edge):
        labelling(block)
    return labelling.decided().values


def bring(values: NDArray[np.float32], matrix: NDArray[np.float64], source: SourceGrid, edge: int = 9, tail: Tail | None = None) -> Any:
    prepared = prepared_on(values.shape[1:], matrix)
    return feed(LabelsOnSource(WayBack(prepared, source), prepared, tail or Tail()), values, edge)


def places_of(source: SourceGrid, plane: int, matrix: NDArray[np.float64], size: tuple[int, ...]) -> tuple[Any, Any]:
    """Index of every pixel of a plane, and whether the grid reaches it."""
    rows, columns = np.mgrid[0 : source.rows, 0 : source.columns]
    pixels = np.stack([rows.ravel(), columns.ravel(), np.ones(rows.size)])
    index = (np.linalg.inv(matrix) @ source.patient_from_pixel(plane) @ pixels)[:3]
    extent = np.array(size)[:, None]
    return index, ((index >= -0.5) & (index <= extent - 0.5)).all(axis=0)


def reference(values: NDArray[np.float32], matrix: NDArray[np.float64], source: SourceGrid) -> NDArray[np.uint8]:
    """Every class at every pixel, in float64."""
    labels = np.zeros(source.shape, dtype=np.uint8)
    for plane in range(len(source.planes)):
        index, inside = places_of(source, plane, matrix, values.shape[1:])
        sampled = np.stack([map_coordinates(v.astype(np.float64), index, order=1, mode="nearest") for v in values])
        labels[plane] = np.where(inside, sampled.argmax(axis=0), 0).reshape(labels[plane].shape)
    return labels


def grid_about(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(angles) * 1.1
    matrix[:3, 3] = -matrix[:3, :3] @ np.array([12.0, 11.0, 13.0])
    return matrix


GRIDS = {
    "angles": st.tuples(*[st.sampled_from([0.0, np.pi / 2, np.pi, 0.3])] * 3),
    "model_angles": st.tuples(*[st.sampled_from([0.0, np.pi / 2, np.pi])] * 3),
    "gaps_mm": st.lists(st.sampled_from([1.5, 2.0, 4.0]), min_size=3, max_size=8),
    "tilt": st.sampled_from([0.0, 0.3]),
    "seed": st.integers(0, 9),
}


@settings(max_examples=25, deadline=None)
@given(**GRIDS)
def test_equals_the_slow_reference_on_any_grid(
    angles: tuple[float, float, float], model_angles: tuple[float, float, float], gaps_mm: list[float], tilt: float, seed: int
) -> None:
    source, matrix, values = make_source(rotation(angles), gaps_mm, tilt, 1.7), grid_about(model_angles), blobs((25, 23, 27), 4, seed)
    difference = bring(values, matrix, source) != reference(values, matrix, source)
    assert difference.mean() < 0.002, "only near ties between classes may differ (float32 against float64)"


@settings(max_examples=15, deadline=None)
@given(**GRIDS)
def test_labels_come_from_the_nearest_voxel_on_any_grid(
    angles: tuple[float, float, float], model_angles: tuple[float, float, float], gaps_mm: list[float], tilt: float, seed: int
) -> None:
    source, matrix = make_source(rotation(angles), gaps_mm, tilt, 1.7), grid_about(model_angles)
    labels = np.random.default_rng(seed).integers(0, 200, (25, 23, 27)).astype(np.uint8)
    brought = WayBack(prepared_on(labels.shape, matrix), source).bring_labels(labels)
    for plane in range(len(source.planes)):
        index, inside = places_of(source, plane, matrix, labels.shape)
        i, j, k = (np.clip(np.rint(place), 0, size - 1).astype(int) for place, size in zip(index, labels.shape, strict=True))
        expected = np.where(inside, labels[i, j, k], 0).reshape(brought[plane].shape)
        near_a_half = (np.abs(index - np.floor(index) - 0.5) < 1e-6).any(axis=0).reshape(expected.shape)
        assert np.array_equal(brought[plane][~near_a_half], expected[~near_a_half])


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(5, 14)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0, 3.0])] * 3),
    turn=st.sampled_from(["axial", "coronal", "sagittal", "feet first"]),
    wanted=st.tuples(*[st.sampled_from([1.0, 1.5, 2.0, 3.0])] * 3),
    padding_mode=st.sampled_from(["border", "zeros"]),
    is_turned_first=st.booleans(),
    is_cropped=st.booleans(),
    channels=st.sampled_from([2, 3, 12]),
)
def test_equals_monais_inverse(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    turn: str,
    wanted: tuple[float, float, float],
    padding_mode: str,
    is_turned_first: bool,
    is_cropped: bool,
    channels: int,
) -> None:
    volume = make_volume(shape, spacing, turn, seed=1)
    turning = Orientationd("image", axcodes="LIA", labels=(("L", "R"), ("P", "A"), ("I", "S")))
    sampling = Spacingd("image", pixdim=wanted, padding_mode=padding_mode)
    crop = [SpatialPadd("image", spatial_size=(9, 9, 9)), CropForegroundd("image", source_key="image", margin=1, allow_smaller=True)]
    compose = Compose([*([turning, sampling] if is_turned_first else [sampling, turning]), *(crop if is_cropped else [])])
    ours = prepare([volume], compose, "image")
    theirs = compose({"image": as_meta_tensor([volume])})
    way = WayBack(ours, volume.source)

    def inverted(values: torch.Tensor, *, nearest: bool) -> NDArray[Any]:
        invert = Invertd("pred", transform=compose, orig_keys="image", nearest_interp=nearest)
        back: MetaTensor = invert({**theirs, "pred": MetaTensor(values, affine=theirs["image"].affine)})["pred"]
        return back.numpy().transpose(0, 3, 2, 1)

    generator = np.random.default_rng(sum(shape))
    labels = generator.integers(1, 200, ours.image.shape[1:]).astype(np.uint8)
    expected = inverted(torch.from_numpy(labels[None]).float(), nearest=True)[0]
    brought = way.bring_labels(labels)
    assert np.array_equal(brought, expected)
    scores = torch.from_numpy(generator.normal(size=(channels, *labels.shape)).astype(np.float32)).softmax(dim=0)
    labelled = feed(LabelsOnSource(way, ours, Tail()), scores.numpy(), 6)
    expected_scores = inverted(scores, nearest=False)
    best_two = np.sort(expected_scores, axis=0)[-2:]
    clear = best_two[1] - best_two[0] > 1e-5
    assert np.array_equal(labelled[clear], expected_scores.argmax(axis=0)[clear])


def coinciding(source: SourceGrid) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0, 0, 2.0], [0, 2.0, 0], [2.0, 0, 0]])
    matrix[:3, 3] = source.planes[0].image_position_patient
    return matrix


@pytest.mark.parametrize("channels", [2, 3, 7])
def test_is_the_identity_where_the_grids_coincide(channels: int) -> None:
    source = make_source(np.eye(3), [2.0] * 7, 0.0, 2.0)
    values = blobs(source.shape, channels, 1)
    assert np.array_equal(bring(values, coinciding(source), source), values.argmax(axis=0))


def test_a_probability_is_cut_at_its_threshold_and_kept() -> None:
    source = make_source(np.eye(3), [2.0] * 7, 0.0, 2.0)
    values = blobs(source.shape, 2, 2)[1:]
    prepared = prepared_on(values.shape[1:], coinciding(source))
    way = WayBack(prepared, source)
    labelling = LabelsOnSource(way, prepared, Tail(decision=Decision(threshold=0.5)))
    assert np.array_equal(feed(labelling, values, 5), values[0] >= 0.5)
    assert labelling.probability is not None
    assert np.array_equal(bring_probability(way, labelling.probability, lambda scores: scores), values[0])


def test_structures_that_overlap_keep_their_sets_in_one_order() -> None:
    source = make_source(np.eye(3), [2.0] * 7, 0.0, 2.0)
    values = blobs(source.shape, 4, 3)[1:]
    prepared = prepared_on(values.shape[1:], coinciding(source))
    tail = Tail(scores_last=(ScoreStep("sharper", lambda scores: scores * 2),), decision=Decision(threshold=0.5))
    for edge in (4, 64):
        labelling = LabelsOnSource(WayBack(prepared, source), prepared, tail)
        feed(labelling, values, edge)
        decided = labelling.decided()
        assert decided.members == tuple(sorted(decided.members))
        for channel in range(3):
            assert np.array_equal(decided.channel(channel), values[channel] * 2 >= 0.5)


def test_beyond_the_networks_grid_is_background() -> None:
    source = make_source(np.eye(3), [2.0] * 7, 0.0, 2.0)
    matrix = np.eye(4)
    matrix[:3, 3] = (500.0, 0.0, 0.0)
    values = np.stack([np.zeros((5, 5, 5)), np.ones((5, 5, 5))]).astype(np.float32)
    assert not bring(values, matrix, source).any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), channels=st.integers(1, 9), sharpness=st.sampled_from([0.3, 1.0, 5.0, 30.0]), is_softmax=st.booleans())
def test_whatever_wins_between_voxels_is_a_candidate(seed: int, channels: int, sharpness: float, is_softmax: bool) -> None:
    values = torch.randn(channels, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) * sharpness
    if is_softmax:
        values = values.softmax(dim=0)
    fine = torch.nn.functional.interpolate(values[None], (21, 21, 21), mode="trilinear", align_corners=True)[0]
    assert set(fine.argmax(dim=0).unique().tolist()) <= set(can_win(values))


def test_the_first_of_equals_wins() -> None:
    values = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])[:, None, None, None].expand(5, 2, 2, 2)
    assert winners(values).eq(1).all()
    assert 0 in can_win(torch.zeros(5, 2, 2, 2))
    assert np.array_equal(winners(torch.randn(30, 5, 6, 7)).shape, (5, 6, 7))
    many = torch.randn(30, 5, 6, 7)
    assert torch.equal(winners(many).long(), many.argmax(dim=0))
