"""MONAI's scalings of intensity, in place: the same operations in the same order on the same float32, so the same values.

They run piece by piece on all cores, where MONAI makes a new image for every operation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from monai.transforms import (
    NormalizeIntensityd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    ThresholdIntensityd,
)
from monai.transforms.utils_pytorch_numpy_unification import percentile

from node.inference.parallel import map_on_all_cores

_PIECE: Final = 1 << 17
"""Voxels that stay in the cache between the operations on them."""

Change = Callable[[torch.Tensor], None]
"""Changes (channels, i, j, k), float32 and contiguous, in place."""

_FLOAT32: Final = (np.float32, torch.float32)


def rescaled(transform: Any) -> Change | None:
    """Answers what a transform of the image does to it, None where it is none of those done here."""
    kind = type(transform)
    if kind is ScaleIntensityRanged:
        scaler = transform.scaler
        if scaler.dtype not in _FLOAT32 or scaler.a_max == scaler.a_min:
            return None
        return partial(_scale_range, a=(scaler.a_min, scaler.a_max), b=(scaler.b_min, scaler.b_max), clip=scaler.clip)
    if kind is ScaleIntensityRangePercentilesd:
        scaler = transform.scaler
        is_plain = scaler.dtype in _FLOAT32 and not scaler.relative
        return partial(_by_channel if scaler.channel_wise else _together, change=partial(_scale_percentiles, scaler)) if is_plain else None
    if kind is ScaleIntensityd:
        scaler = transform.scaler
        is_plain = scaler.dtype in _FLOAT32 and scaler.minv is not None and scaler.maxv is not None
        change = partial(_scale, low=scaler.minv, high=scaler.maxv)
        return partial(_by_channel if scaler.channel_wise else _together, change=change) if is_plain else None
    if kind is NormalizeIntensityd:
        scaler = transform.normalizer
        is_plain = scaler.dtype in _FLOAT32 and scaler.subtrahend is None and scaler.divisor is None
        change = partial(_normalise, nonzero=scaler.nonzero)
        return partial(_by_channel if scaler.channel_wise else _together, change=change) if is_plain else None
    if kind is ThresholdIntensityd:
        return partial(_threshold, transform.filter)
    return None


def _together(image: torch.Tensor, change: Change) -> None:
    change(image)


def _by_channel(image: torch.Tensor, change: Change) -> None:
    for channel in image:
        change(channel)


def _scale_range(image: torch.Tensor, a: tuple[Any, Any], b: tuple[float | None, float | None], *, clip: bool) -> None:
    (a_min, a_max), (b_min, b_max) = a, b

    def one(piece: torch.Tensor) -> None:
        piece.sub_(a_min).div_(a_max - a_min)
        if b_min is not None and b_max is not None:
            piece.mul_(b_max - b_min).add_(b_min)
        if clip:
            piece.clamp_(b_min, b_max)

    _piecewise(image, one)


def _scale_percentiles(scaler: Any, image: torch.Tensor) -> None:
    if image.numel() > 1_000_000:  # where MONAI asks numpy: both at once, of one partition
        found: list[Any] = [torch.tensor(value) for value in np.percentile(image.numpy(), [scaler.lower, scaler.upper])]
    else:
        found = [percentile(image, scaler.lower), percentile(image, scaler.upper)]
    a_min, a_max = found
    if a_max == a_min:
        image.sub_(a_min)
        if scaler.b_min is not None:
            image.add_(scaler.b_min)
        return
    _scale_range(image, (a_min, a_max), (scaler.b_min, scaler.b_max), clip=scaler.clip)


def _scale(image: torch.Tensor, low: float, high: float) -> None:
    least, most = image.min(), image.max()

    def one(piece: torch.Tensor) -> None:
        piece.sub_(least).div_(most - least).mul_(high - low).add_(low)

    _piecewise(image, one if least != most else lambda piece: piece.mul_(low))


def _normalise(image: torch.Tensor, *, nonzero: bool) -> None:
    counted = image[image != 0] if nonzero else image
    if not counted.numel():
        return
    mean, deviation = torch.mean(counted).item(), torch.std(counted, unbiased=False).item()
    del counted

    def one(piece: torch.Tensor) -> None:
        zero = piece == 0 if nonzero else None
        piece.sub_(mean).div_(deviation or 1.0)
        if zero is not None:
            piece.masked_fill_(zero, 0.0)

    _piecewise(image, one)


def _threshold(scaler: Any, image: torch.Tensor) -> None:
    def one(piece: torch.Tensor) -> None:
        kept = piece > scaler.threshold if scaler.above else piece < scaler.threshold
        piece.masked_fill_(~kept, scaler.cval)

    _piecewise(image, one)


def _piecewise(image: torch.Tensor, change: Callable[[torch.Tensor], object]) -> None:
    map_on_all_cores(change, torch.split(image.view(-1), _PIECE))
