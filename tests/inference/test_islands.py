"""The last touches on labels: one island, no holes, nothing else changed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from node.inference.islands import fill_holes, keep_largest_component

LABELS = arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(0, 2))


def test_only_the_largest_island_is_kept() -> None:
    labels = np.zeros((4, 8, 8), dtype=np.uint8)
    labels[1:3, 1:5, 1:5] = 1
    labels[0, 7, 7] = 1
    labels[3, 0, 0] = 2
    kept = keep_largest_component(labels, 1)
    assert (kept == 1).sum() == 32
    assert kept[3, 0, 0] == 2
    assert labels[0, 7, 7] == 1, "the input is left alone"


@given(LABELS)
def test_what_is_kept_is_one_island_and_no_island_was_larger(labels: np.ndarray) -> None:
    kept = keep_largest_component(labels, 1)
    islands, count = ndimage.label(labels == 1)
    sizes = np.bincount(islands.ravel(), minlength=2)[1:]
    assert (kept == 1).sum() == sizes.max(initial=0)
    assert ndimage.label(kept == 1)[1] == min(count, 1)
    assert np.array_equal(kept == 2, labels == 2)


@given(LABELS)
def test_holes_are_filled_as_scipy_fills_them(labels: np.ndarray) -> None:
    expected = labels.copy()
    expected[ndimage.binary_fill_holes(labels == 1) & (labels == 0)] = 1
    assert np.array_equal(fill_holes(labels, 1), expected)


def test_a_hole_that_another_label_fills_stays_that_label() -> None:
    labels = np.ones((3, 3, 3), dtype=np.uint8)
    labels[1, 1, 1] = 2
    assert np.array_equal(fill_holes(labels, 1), labels)
