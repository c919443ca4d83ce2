"""Which pattern the distances between slices follow."""

import numpy as np
import pytest

from node.domain.spacing import Gap, Irregular, MissingSlicesPattern, Regular, Spacing, Uneven, classify_spacing

GE_HEAD = [4.002] * 13 + [1.081] + [6.999] * 13


def classify(steps: list[float]) -> Spacing:
    return classify_spacing(np.concatenate([[0.0], np.cumsum(steps)]))


@pytest.mark.parametrize(
    "steps",
    [
        [100.0],
        [5.0, 5.0],
        [1.0] * 200,
        pytest.param([2.5, 2.5001, 2.4999] * 10, id="noise"),
        pytest.param(list(np.diff(np.round(np.arange(100) * 0.625, 2))), id="positions rounded to two decimals"),
        pytest.param([5.0, 5.1, 4.9, 5.0, 5.05], id="table jitter of 2 %"),
    ],
)
def test_equal_steps_are_regular(steps: list[float]) -> None:
    spacing = classify(steps)
    assert isinstance(spacing, Regular)
    assert spacing.spacing_mm == pytest.approx(np.mean(steps))


@pytest.mark.parametrize(
    ("steps", "gaps"),
    [
        pytest.param([1.0] * 113 + [2.0] + [1.0] * 60, (Gap(113, 1),), id="mr-brain-adi T1"),
        pytest.param([2.5] * 20 + [5.0] + [2.5] * 33, (Gap(20, 1),), id="mr-brain-adi T2"),
        pytest.param([3.0] * 5 + [9.0] + [3.0] * 5, (Gap(5, 2),), id="two in a row"),
        pytest.param([1.0] * 9 + [2.0, 1.0, 2.0] + [1.0] * 9, (Gap(9, 1), Gap(11, 1)), id="two apart by one slice"),
        pytest.param([2.0] + [1.0] * 9, (Gap(0, 1),), id="the second slice"),
        pytest.param([1.0] * 9 + [2.0], (Gap(9, 1),), id="the last but one"),
        pytest.param([5.0, 5.0, 10.0], (Gap(2, 1),), id="too few slices for a zone"),
        pytest.param([1.0] * 30 + [2.04] + [1.01] * 30, (Gap(30, 1),), id="not quite a whole multiple"),
    ],
)
def test_whole_multiples_are_missing_slices(steps: list[float], gaps: tuple[Gap, ...]) -> None:
    spacing = classify(steps)
    assert isinstance(spacing, MissingSlicesPattern)
    assert spacing.gaps == gaps
    assert spacing.spacing_mm == pytest.approx(min(steps), rel=0.02)


@pytest.mark.parametrize(
    ("steps", "spacings_mm", "gaps"),
    [
        pytest.param(GE_HEAD, [4.002, 6.999], (), id="GE head CT"),
        pytest.param([2.5] * 12 + [5.0] * 12, [2.5, 5.0], (), id="one zone twice the other is no loss"),
        pytest.param([5.0] * 8 + [2.5] * 9 + [7.0] * 5, [5.0, 2.5, 7.0], (), id="three zones"),
        pytest.param([5.0] * 8 + [3.2] + [5.0] * 8, [5.0, 5.0], (), id="a seam between two scans of one spacing"),
        pytest.param([5.0] * 8 + [6.5] + [5.0] * 8, [5.0, 5.0], (), id="a seam a little wider"),
        pytest.param([4.0] * 6 + [8.0] + [4.0] * 6 + [7.0] * 9, [4.0, 4.0, 7.0], (Gap(6, 1),), id="zones and a loss"),
        pytest.param(list(np.diff(np.round(np.arange(60) * 0.625, 1))), [0.625], (), id="positions rounded to one decimal"),
        pytest.param([5.0] * 40 + [5.3] * 40, [5.0, 5.3], (), id="nearly the same"),
    ],
)
def test_zones_are_uneven(steps: list[float], spacings_mm: list[float], gaps: tuple[Gap, ...]) -> None:
    spacing = classify(steps)
    if isinstance(spacing, Regular):
        assert np.ptp(steps) <= 0.11  # rounding alone
        return
    assert isinstance(spacing, Uneven)
    assert spacing.gaps == gaps
    if len(spacing.zones) == len(spacings_mm):
        assert [zone.spacing_mm for zone in spacing.zones] == pytest.approx(spacings_mm, rel=0.05)
    else:
        assert len(spacing.zones) == 1  # within the step tolerance of each other


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([1.0, 7.0, 2.3, 9.1, 4.4], id="no pattern"),
        pytest.param([5.0] * 6 + [12.5] + [5.0] * 6, id="a hole that is no whole multiple"),
        pytest.param([0.3, 4.7] * 10, id="two stacks interleaved"),
        pytest.param([5.0] * 6 + [3.0, 1.7] + [5.0] * 6, id="two odd steps in a row"),
        pytest.param([5.0, 5.8], id="three slices"),
    ],
)
def test_no_pattern_is_irregular(steps: list[float]) -> None:
    spacing = classify(steps)
    assert isinstance(spacing, Irregular)
    assert (spacing.smallest_mm, spacing.largest_mm) == pytest.approx((min(steps), max(steps)))


def test_zones_name_their_slices() -> None:
    spacing = classify(GE_HEAD)
    assert isinstance(spacing, Uneven)
    assert [(zone.first, zone.last, zone.steps) for zone in spacing.zones] == [(0, 13, 13), (14, 27, 13)]
