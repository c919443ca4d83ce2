"""Arithmetic on activations with the channels last, in pieces that stay in the cache.

Activations are views (voxels, channels). All arithmetic is float32 inside, whatever the type of the activations.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

_SQRT_2_OVER_PI: Final = math.sqrt(2 / math.pi)

_TWO_U: Final = torch.tensor(2 * _SQRT_2_OVER_PI)

_PIECE_ELEMENTS: Final = 1 << 17
"""A piece of activations that stays in the cache between the passes over it."""

_ROW_VOXELS: Final = 64
"""Voxels side by side in one row of a piece: rows of a few channels alone would be too short for vector instructions."""


Activation = Callable[[torch.Tensor, torch.Tensor], object]
"""Changes its first argument in place, element by element; the second, as large, is room to work in."""


def tanh_gelu(work: torch.Tensor, room: torch.Tensor) -> None:
    """GELU in its tanh form: x sigmoid(2 u) for u = sqrt(2 / pi) (x + 0.044715 x³).

    The same as x (1 + tanh u) / 2, at half the time: torch's sigmoid is fast, its tanh is not.
    """
    torch.addcmul(_TWO_U, work, work, value=2 * _SQRT_2_OVER_PI * 0.044715, out=room)
    work.mul_(room.mul_(work).sigmoid_())


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Number of voxels, and for each channel their mean and the sum of squared differences to it, float64."""

    count: int
    mean: torch.Tensor
    squares: torch.Tensor

    @property
    def variance(self) -> torch.Tensor:
        """That of the population."""
        return self.squares / self.count

    def grouped(self, groups: int) -> "Moments":
        """Answers for each channel the moments of its group of channels, as if every group were as many voxels of one channel."""
        means = self.mean.view(groups, -1)
        mean = means.mean(dim=1, keepdim=True)
        squares = self.squares.view(groups, -1) + self.count * (means - mean).square()
        return Moments(self.count, mean.expand_as(means).reshape(-1), squares.mean(dim=1, keepdim=True).expand_as(means).reshape(-1))


def moments_of(voxels: torch.Tensor) -> Moments:
    """Answers the moments of (voxels, channels), some ten thousand voxels: sums are float32 here, float64 in `merge`.

    Summed are differences to the mean of the first voxels, so that a large mean does not drown a small variance.
    """
    channels = voxels.shape[1]
    pilot = voxels[: _PIECE_ELEMENTS // channels].float().mean(dim=0)
    pilots = pilot.repeat(_ROW_VOXELS)
    sums, squares = torch.zeros_like(pilots), torch.zeros_like(pilots)
    ones = torch.ones(_PIECE_ELEMENTS // _ROW_VOXELS + _ROW_VOXELS)
    for _, work, _ in _pieces(voxels):
        rows, width = work.shape
        work.sub_(pilots[:width])
        sums[:width].addmv_(work.t(), ones[:rows])
        squares[:width].addmv_(work.square_().t(), ones[:rows])
    difference = sums.view(-1, channels).sum(dim=0, dtype=torch.float64) / len(voxels)
    square = squares.view(-1, channels).sum(dim=0, dtype=torch.float64)
    return Moments(len(voxels), pilot + difference, (square - len(voxels) * difference.square()).clamp_(min=0))


def merge(parts: Sequence[Moments]) -> Moments:
    """Answers the moments of all voxels from those of their parts (Chan, Golub and LeVeque 1979)."""
    counts = torch.tensor([part.count for part in parts], dtype=torch.float64)[:, None]
    means = torch.stack([part.mean for part in parts])
    mean = (counts * means).sum(dim=0) / counts.sum()
    squares = torch.stack([part.squares for part in parts]).sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)
    return Moments(int(counts.sum()), mean, squares)


def scale_and_shift(norm: nn.InstanceNorm3d | nn.GroupNorm, moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers what a norm multiplies and adds, for each channel, float32."""
    scale = torch.rsqrt(moments.variance + norm.eps)
    if norm.weight is not None:
        scale *= norm.weight
    shift = -moments.mean * scale
    if norm.bias is not None:
        shift += norm.bias
    return scale.float(), shift.float()


def change(
    voxels: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor] | None, activation: Activation | None, into: torch.Tensor | None = None
) -> None:
    """Scales and shifts each channel of (voxels, channels), then applies `activation`, either may be None; in place, or `into` another."""
    scale, shift = (None, None) if factors is None else (values.repeat(_ROW_VOXELS) for values in factors)
    targets = iter(_views(voxels if into is None else into))
    for (_, work, room), piece in zip(_pieces(voxels), targets, strict=True):
        if scale is not None and shift is not None:
            torch.addcmul(shift[: work.shape[1]], work, scale[: work.shape[1]], out=work)
        if activation is not None:
            activation(work, room)
        piece.copy_(work)


def as_voxels(image: torch.Tensor) -> torch.Tensor:
    """Answers the view (voxels, channels) of one image (1, channels, i, j, k) whose channels come last in memory."""
    return image[0].permute(1, 2, 3, 0).view(-1, image.shape[1])


def _pieces(voxels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yields views that cover (voxels, channels), each with a float32 copy and as much room again, that live until the next one.

    A view has the shape (rows, voxels side by side x channels) and about _PIECE_ELEMENTS elements at most.
    """
    scratch = torch.empty(2, max(_PIECE_ELEMENTS, _ROW_VOXELS * voxels.shape[1]), dtype=torch.float32)
    for piece in _views(voxels):
        work, room = scratch[:, : piece.numel()].view(2, *piece.shape)
        yield piece, work.copy_(piece), room


def _views(voxels: torch.Tensor) -> list[torch.Tensor]:
    count, channels = voxels.shape
    wide = count - count % _ROW_VOXELS
    rows_at_once = max(1, _PIECE_ELEMENTS // (_ROW_VOXELS * channels))
    views = (*torch.split(voxels[:wide].view(-1, _ROW_VOXELS * channels), rows_at_once), voxels[wide:])
    return [view for view in views if view.numel()]
