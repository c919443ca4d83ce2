"""What bundles do to labels at the end: drop islands, fill holes, remove small objects. The same voxels as MONAI's transforms.

A mask is worked on inside its own box. `connectivity` counts the orthogonal steps to a neighbour (1: faces, 3: corners too); None is
the most, as with MONAI.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


def largest_components(mask: Mask, connectivity: int | None = None, count: int = 1) -> Mask:
    """Answers the `count` largest connected parts of a mask."""
    box = _box_of(mask)
    if box is None:
        return mask
    parts, found = _parts(mask[box], connectivity)
    if found <= count:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    keeps = np.zeros(len(sizes), dtype=np.bool_)
    keeps[np.argsort(sizes)[::-1][:count]] = True
    kept = np.zeros_like(mask)
    kept[box] = keeps[parts]
    return kept


def without_small_objects(mask: Mask, min_voxels: float, connectivity: int = 1) -> Mask:
    """Answers a mask without its connected parts of fewer than `min_voxels`."""
    box = _box_of(mask)
    if box is None:
        return mask
    parts, _ = _parts(mask[box], connectivity)
    keeps = np.bincount(parts.ravel()) >= min_voxels
    keeps[0] = False
    kept = np.zeros_like(mask)
    kept[box] = keeps[parts]
    return kept


def with_holes_filled(mask: Mask, connectivity: int | None = None) -> Mask:
    """Answers a mask with all that it encloses: what no path of neighbours outside the mask joins to the border of the image."""
    box = _box_of(mask)
    if box is None:
        return mask
    parts, found = _parts(np.pad(~mask[box], 1, constant_values=True), connectivity)
    if found < 2:
        return mask
    filled = mask.copy()
    filled[box] = parts[(slice(1, -1),) * mask.ndim] != 1  # 1 is the padding and all that reaches it
    return filled


def _parts(mask: Mask, connectivity: int | None) -> tuple[NDArray[np.int32], int]:
    structure = ndimage.generate_binary_structure(mask.ndim, connectivity or mask.ndim)
    parts, count = ndimage.label(mask, structure)
    return parts, int(count)


def _box_of(mask: Mask) -> tuple[slice, ...] | None:
    """Answers the box that holds every voxel of a mask, None where there is none."""
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(found):
            return None
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)
