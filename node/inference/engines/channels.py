"""Arithmetic on activations with the channels last: in pieces that stay in the cache, on all cores side by side.

Activations are views (voxels, channels). All arithmetic is float32 inside, whatever the type of the activations.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn

from node.inference.parallel import map_on_all_cores

_SQRT_2_OVER_PI: Final = math.sqrt(2 / math.pi)

_PIECE_ELEMENTS: Final = 1 << 17
"""A piece of activations that stays in the cache between the passes over it."""

_ROW_VOXELS: Final = 64
"""Voxels side by side in one row of a piece: rows of a few channels alone would be too short for vector instructions."""

_SHARES: Final = 32
"""Parts of a volume of activations that the cores take one by one."""


class TanhGelu(nn.Module):
    """GELU in its tanh form, in place: x sigmoid(2 u) for u = sqrt(2 / pi) (x + 0.044715 x³).

    The same as x (1 + tanh u) / 2, at half the time: torch's sigmoid is fast, its tanh is not.
    """

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Changes `batch`."""
        gate = torch.mul(batch, batch).mul_(2 * _SQRT_2_OVER_PI * 0.044715).add_(2 * _SQRT_2_OVER_PI)
        return batch.mul_(gate.mul_(batch).sigmoid_())


@dataclass
class Moments:
    """Sums over voxels, from which mean and variance follow; voxels may come slab by slab.

    The sums run over differences to the mean of the first slab, so that a large mean does not drown a small variance.
    """

    count: int = 0
    pilot: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def add(self, voxels: torch.Tensor) -> None:
        """Takes in (voxels, channels)."""
        channels = voxels.shape[1]
        if not self.count:
            self.pilot = voxels[: _PIECE_ELEMENTS // channels].float().mean(dim=0)
            self.sums = torch.zeros(2, channels, dtype=torch.float64)
        pilots = self.pilot.repeat(_ROW_VOXELS)

        def sums_of(share: torch.Tensor) -> torch.Tensor:
            sums = torch.zeros(2, channels, dtype=torch.float64)
            for _, work in _pieces(share):
                work.sub_(pilots[: work.shape[1]])
                sums[0] += work.sum(dim=0).view(-1, channels).sum(dim=0, dtype=torch.float64)
                sums[1] += work.square_().sum(dim=0).view(-1, channels).sum(dim=0, dtype=torch.float64)
            return sums

        self.sums += torch.stack(map_on_all_cores(sums_of, _shares(voxels))).sum(dim=0)
        self.count += len(voxels)

    def mean_and_variance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Answers both for each channel, float64; the variance is that of the population."""
        mean, square = self.sums / self.count
        return mean + self.pilot, (square - mean.square()).clamp_(min=0)


def scale_and_shift(norm: nn.InstanceNorm3d, moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers what an instance norm multiplies and adds, for each channel, float32."""
    mean, variance = moments.mean_and_variance()
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale *= norm.weight
    shift = -mean * scale
    if norm.bias is not None:
        shift += norm.bias
    return scale.float(), shift.float()


def change(voxels: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor] | None, activation: nn.Module | None) -> None:
    """Scales and shifts each channel of (voxels, channels), then applies `activation`, in place; either may be None."""
    rows = None if factors is None else tuple(values.repeat(_ROW_VOXELS) for values in factors)

    def change_share(share: torch.Tensor) -> None:
        for piece, work in _pieces(share):
            if rows is not None:
                work.mul_(rows[0][: piece.shape[1]]).add_(rows[1][: piece.shape[1]])
            piece.copy_(work if activation is None else activation(work))

    map_on_all_cores(change_share, _shares(voxels))


def as_voxels(image: torch.Tensor) -> torch.Tensor:
    """Answers the view (voxels, channels) of one image (1, channels, i, j, k) whose channels come last in memory."""
    return image[0].permute(1, 2, 3, 0).view(-1, image.shape[1])


def _shares(voxels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Answers views that cover (voxels, channels), several for every core."""
    rows = -(-len(voxels) // (_ROW_VOXELS * _SHARES))
    return torch.split(voxels, max(1, rows) * _ROW_VOXELS)


def _pieces(voxels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields views that cover (voxels, channels), each with a float32 copy that lives until the next one.

    A view has the shape (rows, voxels side by side x channels) and about _PIECE_ELEMENTS elements at most.
    """
    count, channels = voxels.shape
    wide = count - count % _ROW_VOXELS
    rows_at_once = max(1, _PIECE_ELEMENTS // (_ROW_VOXELS * channels))
    scratch = torch.empty(max(_PIECE_ELEMENTS, _ROW_VOXELS * channels), dtype=torch.float32)
    for piece in (*torch.split(voxels[:wide].view(-1, _ROW_VOXELS * channels), rows_at_once), voxels[wide:]):
        if piece.numel():
            yield piece, scratch[: piece.numel()].view(piece.shape).copy_(piece)
