"""Outlines of any mask, filled again by independent rules, are the mask."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from node.evidence.contours import MAX_POINTS, outlines, rings_of
from tests.conformance.other_objects import filled


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.65, 0.9])
def test_random_masks_come_back_whole(share: float) -> None:
    dice = np.random.default_rng(7)
    for _ in range(60):
        mask = dice.random(tuple(dice.integers(1, 15, 2))) < share
        polygons = outlines(mask)
        assert np.array_equal(filled(polygons, mask.shape), mask)
        assert all(len(polygon) >= 3 for polygon in polygons)


def test_a_ring_with_an_island_is_filled_rightly_by_pillow_too() -> None:
    distance = np.hypot(*np.mgrid[-30:31, -30:31])
    mask = ((distance < 26) & (distance > 15)) | (distance < 7)
    polygons = outlines(mask)
    assert len(polygons) == 2
    scale = 8
    picture = Image.new("1", (61 * scale, 61 * scale))
    for polygon in polygons:
        ImageDraw.Draw(picture).polygon([(float(x + 0.5) * scale, float(y + 0.5) * scale) for x, y in polygon], fill=1)
    assert np.array_equal(np.asarray(picture)[scale // 2 :: scale, scale // 2 :: scale], mask)


def test_several_holes_are_joined_without_crossing() -> None:
    mask = np.ones((40, 40), dtype=bool)
    mask[5:12, 5:12] = mask[5:12, 20:30] = mask[18:20, 3:37] = mask[25:36, 8] = mask[25:36, 10] = False
    (polygon,) = outlines(mask)
    assert np.array_equal(filled([polygon], mask.shape), mask)
    assert len(rings_of(mask)) == 6


def test_an_empty_mask_has_no_outline_and_one_pixel_a_diamond() -> None:
    assert outlines(np.zeros((5, 5), dtype=bool)) == []
    mask = np.zeros((5, 5), dtype=bool)
    mask[3, 1] = True
    (diamond,) = outlines(mask)
    assert sorted(map(tuple, diamond.tolist())) == [(0.5, 3.0), (1.0, 2.5), (1.0, 3.5), (1.5, 3.0)]


def test_long_outlines_are_cut_into_parts_that_touch() -> None:
    mask = np.zeros((1500, 9), dtype=bool)
    mask[::2] = mask[:, 4] = True  # a comb
    polygons = outlines(mask)
    assert max(len(polygon) for polygon in polygons) <= MAX_POINTS
    assert np.array_equal(filled(polygons, mask.shape), mask)
