"""Figures of an evaluation: equal to those of SimpleITK, to counting by hand, and None where nothing can be said."""

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.codes import Code
from node.domain.findings import Detection
from node.domain.modelcard import DetectionDefinition
from node.domain.volume import Plane, SourceGrid
from node.evaluation.dataset import Lesion
from node.evaluation.measures import discriminate, free_response, overlap

CODE = Code("1", "99T", "x")
NODULE = DetectionDefinition(0, "Nodule", CODE, CODE)
AXES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def grid(slices: int, rows: int, columns: int, spacing_mm: tuple[float, float, float]) -> SourceGrid:
    planes = tuple(Plane("1", f"1.{index}", (0.0, 0.0, index * spacing_mm[0])) for index in range(slices))
    return SourceGrid(rows, columns, spacing_mm[1], spacing_mm[2], (1, 0, 0, 0, 1, 0), planes, "1.9")


def blob(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> NDArray[np.bool_]:
    places = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    return np.linalg.norm(places - np.array(centre), axis=-1) <= radius


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.7)])
def test_dice_and_volumes_are_those_of_simpleitk_and_surfaces_are_near_its(spacing_mm: tuple[float, float, float]) -> None:
    found, true = blob((14, 24, 26), (7, 12, 12), 5.2), blob((14, 24, 26), (7, 13, 14), 4.6)
    figures = overlap(found, true, grid(14, 24, 26, spacing_mm))
    images = []
    for mask in (found, true):
        image = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(spacing_mm[::-1])
        images.append(image)
    measures = SimpleITK.LabelOverlapMeasuresImageFilter()
    measures.Execute(*images)
    hausdorff = SimpleITK.HausdorffDistanceImageFilter()
    hausdorff.Execute(*images)
    assert figures.dice == pytest.approx(measures.GetDiceCoefficient(), abs=1e-9)
    assert figures.true_cm3 == pytest.approx(true.sum() * np.prod(spacing_mm) / 1000)
    assert figures.volume_error_percent == pytest.approx(100 * (found.sum() / true.sum() - 1))
    assert figures.hausdorff95_mm is not None
    assert figures.surface_distance_mm is not None
    assert 0 < figures.surface_distance_mm < figures.hausdorff95_mm <= hausdorff.GetHausdorffDistance() + 1e-6


def test_a_mask_that_is_moved_by_two_voxels_is_two_voxels_away() -> None:
    true = np.zeros((6, 20, 20), bool)
    true[1:5, 4:12, 4:12] = True
    figures = overlap(np.roll(true, 2, axis=1), true, grid(6, 20, 20, (2.0, 1.5, 1.0)))
    assert figures.hausdorff95_mm == pytest.approx(3.0)
    assert figures.volume_error_percent == pytest.approx(0)


def test_what_cannot_be_told_is_none() -> None:
    nothing, something = np.zeros((3, 8, 8), bool), blob((3, 8, 8), (1, 4, 4), 2)
    source = grid(3, 8, 8, (1, 1, 1))
    both = overlap(nothing, nothing, source)
    assert (both.dice, both.hausdorff95_mm, both.volume_error_percent) == (None, None, None)
    missed = overlap(nothing, something, source)
    assert (missed.dice, missed.hausdorff95_mm) == (0.0, None)
    assert missed.volume_error_percent == -100
    too_much = overlap(something, nothing, source)
    assert (too_much.dice, too_much.volume_error_percent) == (0.0, None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_the_area_under_the_curve_is_the_chance_that_a_true_case_scores_higher(cases: list[tuple[float, bool]]) -> None:
    given_, true = [score for score, _ in cases], [truth for _, truth in cases]
    figures = discriminate("yes", given_, true)
    pairs = [(a > b) + (a == b) / 2 for a, t in cases for b, u in cases if t and not u]
    assert figures.roc_auc == (pytest.approx(np.mean(pairs)) if pairs else None)
    assert figures.positives == sum(true)
    assert figures.brier == pytest.approx(np.mean([(score - truth) ** 2 for score, truth in cases]))
    assert sum(count for *_, count in figures.reliability) == len(cases)
    if figures.roc:
        assert figures.roc[0] == (0, 0)
        assert figures.roc[-1] == (1, 1)


def test_probabilities_that_mean_what_they_say_are_calibrated() -> None:
    figures = discriminate("yes", [0.25] * 4 + [0.75] * 4, [True, False, False, False, True, True, True, False])
    assert figures.calibration_error == pytest.approx(0)
    assert discriminate("yes", [0.95] * 4, [False] * 4).calibration_error == pytest.approx(0.95)


def box(x_mm: float, score: float) -> Detection:
    return Detection(NODULE, score, (x_mm, 0.0, 0.0), AXES)


def test_boxes_hit_lesions_by_their_centres() -> None:
    lesions = [Lesion((0, 0, 0), 10), Lesion((100, 0, 0), 10, "Nodule"), Lesion((200, 0, 0), 10)]
    figures = free_response([([box(4, 0.9), box(-4, 0.5), box(50, 0.8), box(104.9, 0.4)], lesions), ([box(0, 0.3)], [])])
    assert (figures.lesions, figures.found) == (3, 2)
    assert figures.false_positives_per_case == pytest.approx(1.0)
    # at 0.9: 1 of 3 without a false positive; from 0.4 on: 2 of 3 at half a false positive a case
    assert (0.0, pytest.approx(1 / 3)) in figures.curve
    assert (0.5, pytest.approx(2 / 3)) in figures.curve
    sensitivity_at = [1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3]  # 1/4, 1/2, 1, 2, 4, 8 false positives a case
    assert figures.score == pytest.approx(np.mean(sensitivity_at))


def test_without_lesions_only_false_positives_can_be_told() -> None:
    figures = free_response([([box(0, 0.3)], []), ([], [])])
    assert (figures.lesions, figures.score, figures.false_positives_per_case) == (0, None, 0.5)


def test_every_lesion_found_without_a_false_positive_is_the_best_there_is() -> None:
    assert free_response([([box(0, 0.7)], [Lesion((0, 0, 0), 4)])]).score == pytest.approx(1)
    assert (
        free_response(
            [([Detection(DetectionDefinition(1, "Mass", CODE, CODE), 0.7, (0, 0, 0), AXES)], [Lesion((0, 0, 0), 4, "Nodule")])]
        ).found
        == 0
    )
