"""A brain mask in two stages: one network finds the box of the brain in a small image, the other outlines it inside the box."""

from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

BOX_FINDER_SHAPE: Final = (128, 128, 128)
MASK_SHAPE: Final = (256, 256, 256)
FOREGROUND_QUANTILES: Final = (0.005, 0.995)
IMAGE_MEAN: Final = 0.449
IMAGE_STANDARD_DEVIATION: Final = 0.226
"""Those of ImageNet's pictures, on which 2-D networks are trained: this network keeps the habit."""

BOX_PROFILE: Final = 0.02
"""A plane of the small image belongs to the box when more than this share of it is brain."""

BOX_MARGIN: Final = 0.1
"""The box is widened by this share of its size at either end."""

FULL_CONNECTIVITY: Final = np.ones((3, 3, 3))


class BoxThenMask(torch.nn.Module):
    """Takes one image (1, 1, i, j, k) in RAS+ order and answers the probability of brain, of the same shape."""

    def __init__(self, box_finder: torch.nn.Module, mask_network: torch.nn.Module) -> None:
        super().__init__()
        self.box_finder = box_finder
        self.mask_network = mask_network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = torch.nan_to_num(image)
        small = _resized(image, BOX_FINDER_SHAPE)
        low, high = np.quantile(small.cpu().numpy(), FOREGROUND_QUANTILES)
        result = torch.zeros_like(image)
        if high <= low:
            return result
        box = _box(self.box_finder(_normalised(small, low, high))[0, 1] > 0.5, tuple(image.shape[2:]))
        if box is None:
            return result
        inside = image[(slice(None), slice(None), *box)]
        mask = self.mask_network(_normalised(_resized(inside, MASK_SHAPE), low, high))[:, 1:2]
        result[(slice(None), slice(None), *box)] = _resized(mask, tuple(inside.shape[2:]))
        return result


def _resized(image: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return functional.interpolate(image, shape, mode="nearest-exact")


def _normalised(image: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Answers the image cut at the two values, with ImageNet's mean and standard deviation."""
    cut = ((image - low) / (high - low)).clamp(0, 1)
    return (cut - cut.mean()) / cut.std() * IMAGE_STANDARD_DEVIATION + IMAGE_MEAN


def _box(foreground: torch.Tensor, shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """Answers the widened box of the largest part of `foreground`, in voxels of an image of `shape`; None where there is none."""
    parts, count = ndimage.label(foreground.cpu().numpy(), FULL_CONNECTIVITY)
    if not count:
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest = parts == sizes.argmax()
    box = []
    for axis, size in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(largest.mean(axis=others) > BOX_PROFILE)
        if not len(planes):
            return None
        scale = size / largest.shape[axis]
        centre = np.round((planes[0] + planes[-1] + 1) / 2 * scale)
        extent = np.round((planes[-1] + 1 - planes[0]) * (1 + 2 * BOX_MARGIN) * scale)
        box.append(slice(max(0, int(centre - extent / 2)), min(size, int(centre + extent / 2))))
    return tuple(box)
