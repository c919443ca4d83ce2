"""Windows to compare engines on: bodies in noise, the same ones every time, so that a gate can be passed again."""

from typing import Final

import torch

from node.inference.engines.onnx_export import Window

SEED: Final = 20261122
_BODIES: Final = 6
_NOISE: Final = 0.03


def phantom_windows(window: Window, count: int) -> torch.Tensor:
    """Answers `count` windows: a gradient, ellipsoids of several intensities, noise.

    Every other one spans 0..1, as scaled images do; those between have mean 0 and deviation 1, as normalised images do.
    """
    generator = torch.Generator().manual_seed(SEED)
    windows = torch.stack([_window(window, generator) for _ in range(count)])
    for odd in windows[1::2]:
        odd.sub_(odd.mean()).div_(odd.std())
    return windows


def _window(window: Window, generator: torch.Generator) -> torch.Tensor:
    rank = len(window.patch)
    grid = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in window.patch), indexing="ij")
    contents = torch.rand((window.channels, _BODIES + 1), generator=generator)
    image = torch.stack([0.1 * (grid[0] + 1) * contents[channel, 0] for channel in range(window.channels)])
    for body in range(_BODIES):
        centre = torch.rand(rank, generator=generator) * 1.4 - 0.7
        radius = torch.rand(rank, generator=generator) * 0.5 + 0.15
        distance = torch.stack([((axis - at) / size) ** 2 for axis, at, size in zip(grid, centre, radius, strict=True)]).sum(dim=0)
        edge = torch.sigmoid(8 * (1 - distance))  # soft, as partial volume makes edges
        image = image * (1 - edge) + edge * contents[:, body + 1].reshape(-1, *([1] * rank))
    noise = torch.randn(image.shape, generator=generator)
    return (image + _NOISE * noise).clamp(0, 1)
