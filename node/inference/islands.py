"""What bundles do to labels at the end: drop islands, fill holes. Both look only at the box of the label."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def keep_largest_component(labels: NDArray[np.uint8], label: int) -> NDArray[np.uint8]:
    """Answers the labels without the smaller islands of one label (neighbours share a face)."""
    box = _box_of(labels, label)
    if box is None:
        return labels
    where = labels[box] == label
    islands, count = ndimage.label(where)
    if count < 2:
        return labels
    sizes = np.bincount(islands.ravel())
    sizes[0] = 0
    kept = labels.copy()
    kept[box][where & (islands != sizes.argmax())] = 0
    return kept


def fill_holes(labels: NDArray[np.uint8], label: int) -> NDArray[np.uint8]:
    """Answers the labels with the background that one label encloses on all sides given to it."""
    box = _box_of(labels, label)
    if box is None:
        return labels
    outside, count = ndimage.label(np.pad(labels[box] != label, 1, constant_values=True))
    if count < 2:
        return labels
    enclosed = (outside[1:-1, 1:-1, 1:-1] > 1) & (labels[box] == 0)  # 1 is the padding and all that reaches it
    filled = labels.copy()
    filled[box][enclosed] = label
    return filled


def _box_of(labels: NDArray[np.uint8], label: int) -> tuple[slice, ...] | None:
    """Answers the box that holds every voxel of one label, None where there is none."""
    where = labels == label
    planes = [np.flatnonzero(where.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(planes[0]):
        return None
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in planes)
