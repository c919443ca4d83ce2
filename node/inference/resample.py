"""One linear interpolation between two grids whose axes are parallel: three passes along the axes, in float64, slab by slab.

MONAI's `Spacingd` reads eight neighbours of every voxel on one thread and holds a grid of three float64 coordinates a voxel. Where the
axes of both grids are parallel, which they are but for an oblique image brought to a diagonal affine, the coordinates along an axis
depend on the index along one axis alone. They are taken from torch's own functions, so that halves round as they do there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from monai.networks.utils import to_norm_affine
from numpy.typing import NDArray

from node.inference.parallel import map_on_all_cores

PARALLEL_TOLERANCE: Final = 1e-9
"""How far, in voxels an index, an axis may lean and still be parallel."""

_SLAB: Final = 16
"""Output planes that a core makes at a time: a line of the cache is sixteen float32."""

Coordinates = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """A grid and the grid it was sampled on; affines in one space, sizes in voxels."""

    from_affine: NDArray[np.float64]
    from_size: tuple[int, int, int]
    to_affine: NDArray[np.float64]
    to_size: tuple[int, int, int]

    @property
    def back(self) -> "Resampling":
        """Answers the way back."""
        return Resampling(self.to_affine, self.to_size, self.from_affine, self.from_size)


@dataclass(frozen=True, slots=True, eq=False)
class ParallelAxes:
    """Where the voxels of the second grid lie on the first."""

    coordinates: Coordinates
    """For each axis of the first grid: its index at every place along the axis of the second grid that runs along it."""
    axis_of: tuple[int, int, int]
    """Which axis of the second grid that is."""


def parallel_axes(resampling: Resampling) -> ParallelAxes | None:
    """Answers the coordinates as `grid_sample` would compute them (align_corners off), None where the grids lean to each other."""
    index_from_index = np.linalg.solve(resampling.from_affine, resampling.to_affine)
    scale = np.abs(index_from_index[:3, :3])
    axis_of = tuple(int(axis) for axis in scale.argmax(axis=1))
    if sorted(axis_of) != [0, 1, 2]:
        return None
    others = scale.copy()
    others[range(3), axis_of] = 0
    if (others * np.asarray(resampling.to_size)).max() > PARALLEL_TOLERANCE * max(resampling.to_size):
        return None
    theta = to_norm_affine(
        torch.from_numpy(index_from_index)[None], resampling.from_size, resampling.to_size, align_corners=False, zero_centered=False
    )[0]
    coordinates = tuple(_coordinate(theta, axis, axis_of[axis], resampling) for axis in range(3))
    return ParallelAxes(coordinates, axis_of)  # type: ignore[arg-type]


def _coordinate(theta: torch.Tensor, axis: int, along: int, resampling: Resampling) -> NDArray[np.float64]:
    """Answers the index on the first grid's `axis` at each index along the second grid's axis `along`."""
    reverse = [2, 1, 0, 3]  # torch names the last axis first
    matrix = theta[reverse][:, reverse][:3]
    size = [1, 1, 1]
    size[along] = resampling.to_size[along]
    normal = torch.nn.functional.affine_grid(matrix[None], [1, 1, *size], align_corners=False)[0, ..., 2 - axis].reshape(-1)
    return np.asarray((((normal + 1) * resampling.from_size[axis] - 1) / 2).numpy())


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """For each output along an axis: two inputs and what they count."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    first_weight: NDArray[np.float64]
    second_weight: NDArray[np.float64]

    def part(self, low: int, high: int) -> "Taps":
        """Answers some of the outputs."""
        cut = slice(low, high)
        return Taps(self.first[cut], self.second[cut], self.first_weight[cut], self.second_weight[cut])

    def from_first(self, first: int) -> "Taps":
        """Answers the same for an input that begins at index `first`."""
        return Taps(self.first - first, self.second - first, self.first_weight, self.second_weight)

    def reversed(self, size: int) -> "Taps":
        """Answers the same for an input that lies the other way round."""
        return Taps(size - 1 - self.first, size - 1 - self.second, self.first_weight, self.second_weight)

    @property
    def shift(self) -> int | None:
        """Answers at which input the outputs begin, where each is an input in turn; None where something is mixed or left out."""
        first = int(self.first[0])
        is_shift = np.array_equal(self.first, np.arange(first, first + len(self.first))) and bool((self.first_weight == 1).all())
        return first if is_shift and not self.second_weight.any() else None


def taps_of(coordinate: NDArray[np.float64], size: int, padding: str) -> Taps:
    """Answers how grid_sample interpolates at `coordinate`: `padding` is border or zeros."""
    place = np.clip(coordinate, 0, size - 1) if padding == "border" else coordinate
    below = np.floor(place)
    first, second = below.astype(np.intp), below.astype(np.intp) + 1
    first_weight, second_weight = (below + 1) - place, place - below
    first_weight = np.where((first >= 0) & (first < size), first_weight, 0.0)
    second_weight = np.where((second >= 0) & (second < size), second_weight, 0.0)
    return Taps(np.clip(first, 0, size - 1), np.clip(second, 0, size - 1), first_weight, second_weight)


def interpolate(image: torch.Tensor, taps: Sequence[Taps]) -> torch.Tensor:
    """Answers (channels, i, j, k) interpolated linearly along its three axes, float32 and contiguous; any strides may lie below.

    Sums are float64. Slabs are read in the order of memory; the axis that lies closest in memory comes last, after the slab was
    turned: the passes copy whole rows then, never single voxels.
    """
    shape = tuple(len(tap.first) for tap in taps)
    result = torch.empty((len(image), *shape), dtype=torch.float32)
    outer, middle, inner = sorted(range(3), key=lambda axis: -image.stride(axis + 1))
    turned = result.permute(0, inner + 1, middle + 1, outer + 1)
    ordered = image.permute(0, outer + 1, middle + 1, inner + 1)

    def one(job: tuple[int, int, int]) -> None:
        channel, low, high = job
        slab_taps = taps[outer].part(low, high)
        first = int(min(slab_taps.first.min(), slab_taps.second.min()))
        slab = ordered[channel, first : int(max(slab_taps.first.max(), slab_taps.second.max())) + 1]
        passes = [(0, slab_taps.from_first(first)), (1, taps[middle])]
        if shape[middle] * len(slab) < image.shape[middle + 1] * (high - low):
            passes.reverse()  # the pass that leaves less comes first
        for axis, along in passes:
            slab = _along(slab, axis, along)
        slab = _along(slab.permute(2, 1, 0).contiguous(), 0, taps[inner])
        turned[channel, :, :, low:high] = slab

    jobs = [(channel, low, min(low + _SLAB, shape[outer])) for channel in range(len(image)) for low in range(0, shape[outer], _SLAB)]
    map_on_all_cores(one, jobs)
    return result


def _along(values: torch.Tensor, axis: int, taps: Taps) -> torch.Tensor:
    if taps.shift is not None:
        return values.narrow(axis, taps.shift, len(taps.first)).double()
    shape = [-1 if axis == other else 1 for other in range(3)]
    weights = [torch.from_numpy(weight).view(shape) for weight in (taps.first_weight, taps.second_weight)]
    mixed = values.index_select(axis, torch.from_numpy(taps.first)).double().mul_(weights[0])
    return mixed.addcmul_(values.index_select(axis, torch.from_numpy(taps.second)).double(), weights[1])
