"""From the network's grid back to the source grid: labels by the nearest voxel, scores linearly, block by block as they get ready.

What is answered are the pixels of the scanner's own planes, so that a tilted or unevenly spaced stack is no special case. Where the
axes of the planes run along those of the network's grid, which they do but for an oblique stack brought to a diagonal affine, a class
is interpolated along one axis after the other; and only a class that can win somewhere in a block is interpolated there at all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from node.domain.volume import SourceGrid
from node.inference.parallel import map_on_all_cores
from node.inference.preprocess import NearestAlong, Prepared
from node.inference.resample import Taps, parallel_axes, taps_of
from node.inference.windows import Block, Ranges, blocks_of

_LEAN: Final = 1e-4
"""How far, in voxels over the whole image, axes may lean to each other and still count as parallel."""

_SNAP: Final = 1e-6
"""A coordinate this near to a voxel is that voxel; beyond half a voxel outside the grid by less than this is inside."""

Axes = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """Where pixels along one axis of the source lie along one axis of the network's grid."""

    coordinate: NDArray[np.float64]
    size: int
    """Of the network's grid."""
    ends: tuple[int, int]
    """First and last index of the grid that the image was sampled on: before it was cropped or padded to the network's grid."""
    padding: str = "border"
    """What lies beyond the ends: the end voxels, or zeros. Zeros lie beyond the network's grid where it was cropped."""
    exact_nearest: NDArray[np.intp] | None = None
    """The nearest voxels where it is known how halves are rounded on the way back."""
    is_mixed: bool = True
    """Whether scores are interpolated along this axis; else each pixel takes those of `exact_nearest`."""

    @property
    def nearest(self) -> NDArray[np.intp]:
        """Answers the voxel nearest to each pixel, -1 where there is none."""
        nearest = np.rint(self.place).astype(np.intp) if self.exact_nearest is None else self.exact_nearest
        low, high = max(0, self.ends[0]), min(self.size - 1, self.ends[1])
        is_there = _inside(self.coordinate, *self.ends) & (nearest >= low) & (nearest <= high)
        return np.where(is_there, nearest, -1)

    @property
    def place(self) -> NDArray[np.float64]:
        """Answers the coordinate, moved to the end voxels where these lie beyond the ends."""
        return np.clip(self.coordinate, *self.ends) if self.padding == "border" else self.coordinate

    def answered_by(self, owned: tuple[int, int]) -> slice:
        """Answers the pixels whose upper neighbour along this axis is one of the voxels `owned`."""
        place = self.place
        reached = _inside(self.coordinate, *self.ends) & (place > -1) & (place < self.size)
        found = np.flatnonzero(reached & _answered(place, owned, self.size))
        return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)

    def taps(self, part: slice, whole: tuple[int, int]) -> Taps:
        """Answers how some pixels are mixed out of the voxels `whole` of a block."""
        if not self.is_mixed and self.exact_nearest is not None:
            taken = np.clip(self.exact_nearest[part], whole[0], whole[1] - 1) - whole[0]
            return Taps(taken, taken, np.ones(len(taken)), np.zeros(len(taken)))
        low, high = max(0, self.ends[0]), min(self.size - 1, self.ends[1])
        taps = taps_of(self.place[part] - low, high - low + 1, "zeros")
        first, second = (np.clip(index + low, whole[0], whole[1] - 1) - whole[0] for index in (taps.first, taps.second))
        return Taps(first, second, taps.first_weight, taps.second_weight)  # what was clipped here weighs nothing


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Planes whose rows and columns lie on the same lines of the network's grid."""

    first_plane: int
    lines: tuple[Line, Line, Line]
    """Of planes, rows and columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Pixels of the source that one block answers for."""

    where: tuple[slice, slice, slice]
    sample: Callable[[torch.Tensor], torch.Tensor]
    """Answers the pixels (planes, rows, columns), float32, of one channel (i, j, k) of the block."""
    is_mine: NDArray[np.bool_] | None = None
    """Which of them they are; None: all."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Answers how many planes, rows and columns."""
        return tuple(part.stop - part.start for part in self.where)

    def put(self, image: NDArray[np.generic], values: NDArray[np.generic]) -> None:
        """Writes the pixels into an image of the source."""
        if self.is_mine is None:
            image[self.where] = values
        else:
            image[self.where][self.is_mine] = values[self.is_mine]


class WayBack:
    """Where the pixels of the source lie on the network's grid."""

    def __init__(self, prepared: Prepared, source: SourceGrid) -> None:
        """Labels come back exactly as MONAI's inverse brings them, where the source is evenly spaced."""
        self.source = source
        self._size = tuple(prepared.image.shape[1:])
        self._sampled = _Sampled(prepared)
        self._nearest_along = prepared.nearest_along
        inverse = np.linalg.inv(prepared.patient_from_index)[:3]
        self._index_from_pixel = np.stack([inverse @ source.patient_from_pixel(plane) for plane in range(len(source.planes))])
        self._corner_from_index = prepared.patient_from_index
        self._axes = _axes_of(self._index_from_pixel[0], source)
        self._groups = tuple(self._grouped()) if self._axes else ()

    def patches(self, block: Block) -> Iterator[Patch]:
        """Yields the pixels that lie between the voxels of a block and those one below."""
        if self._axes is None:
            yield from self._oblique_patches(block)
            return
        order = (self._axes[0], self._axes[1], self._axes[2])
        for group in self._groups:
            found = [line.answered_by(block.owned[axis]) for line, axis in zip(group.lines, order, strict=True)]
            if all(part.start < part.stop for part in found):
                taps = tuple(line.taps(part, block.whole[axis]) for line, part, axis in zip(group.lines, found, order, strict=True))
                planes, rows, columns = found
                first = group.first_plane
                yield Patch((slice(first + planes.start, first + planes.stop), rows, columns), _Separable(order, taps))

    def bring_labels(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Answers labels of the network's grid at the pixels of the source: that of the nearest voxel, 0 beyond the grid."""
        result = np.zeros(self.source.shape, dtype=np.uint8)
        if self._axes is None:
            map_on_all_cores(lambda plane: self._bring_oblique(labels, plane, result[plane]), range(len(self.source.planes)))
            return result
        turned = labels.transpose(self._axes)

        def one(group: _Group) -> None:
            nearest = [line.nearest for line in group.lines]
            rows, columns = (_reached(index) for index in nearest[1:])
            for plane, index in enumerate(nearest[0]):
                if index >= 0:
                    taken = turned[index].take(nearest[1][rows], axis=0).take(nearest[2][columns], axis=1)
                    result[group.first_plane + plane, rows, columns] = taken

        map_on_all_cores(one, [part for group in self._groups for part in _split(group)])
        return result

    def _grouped(self) -> Iterator[_Group]:
        assert self._axes is not None  # noqa: S101 - the caller has asked
        matrices, (planes, rows, columns) = self._index_from_pixel, self._axes
        offsets = matrices[:, :, 2]
        drift = np.abs(offsets[:, [rows, columns]] - offsets[0, [rows, columns]]).max()
        extents = (self.source.rows, self.source.columns)
        together = range(0, len(matrices), len(matrices) if drift < _LEAN else 1)
        for first in together:
            along = [
                matrices[first, axis, step] * np.arange(extent) + offsets[first, axis]
                for axis, step, extent in zip((rows, columns), (0, 1), extents, strict=True)
            ]
            depth = offsets[first : first + (together.step), planes]
            lines = (self._line(_snapped(place), axis) for place, axis in zip((depth, *along), self._axes, strict=True))
            yield _Group(first, tuple(lines))  # type: ignore[arg-type]

    def _line(self, coordinate: NDArray[np.float64], axis: int) -> Line:
        line = self._sampled.line(coordinate, axis, self._size[axis])
        if self._nearest_along is None or self._nearest_along.axis != axis:
            return line
        return replace(line, exact_nearest=_nearest_of(coordinate, self._nearest_along, line.size), is_mixed=False)

    def _indices(self, plane: int, rows: slice, columns: slice) -> list[NDArray[np.float64]]:
        matrix = self._index_from_pixel[plane]
        row, column = np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)[None]
        return [matrix[axis, 0] * row + matrix[axis, 1] * column + matrix[axis, 2] for axis in range(3)]

    def _oblique_patches(self, block: Block) -> Iterator[Patch]:
        low = np.array([first - 1.5 for first, _ in block.owned])
        high = np.array([last + 0.5 for _, last in block.owned])
        for plane in range(len(self.source.planes)):
            window = self._window(plane, low, high)
            if window is None:
                continue
            index = self._indices(plane, *window)
            mine = np.ones(index[0].shape, dtype=np.bool_)
            for axis, place in enumerate(index):
                size = self._size[axis]
                mine &= _inside(place, 0, size - 1) & _answered(np.clip(place, 0, size - 1), block.owned[axis], size)
            if mine.any():
                yield Patch((slice(plane, plane + 1), *window), _Oblique(index, block.whole, self._size), mine[None])

    def _bring_oblique(self, labels: NDArray[np.uint8], plane: int, result: NDArray[np.uint8]) -> None:
        index = self._indices(plane, slice(0, self.source.rows), slice(0, self.source.columns))
        inside = np.ones(result.shape, dtype=np.bool_)
        for place, size in zip(index, self._size, strict=True):
            inside &= _inside(place, 0, size - 1)
        i, j, k = (np.rint(np.clip(place[inside], 0, size - 1)).astype(np.intp) for place, size in zip(index, self._size, strict=True))
        result[inside] = labels[i, j, k]

    def _window(self, plane: int, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[slice, slice] | None:
        """Answers the rows and columns of a plane that a box of indices may cover, None where it does not reach the plane."""
        corners = np.array([(i, j, k, 1.0) for i in (low[0], high[0]) for j in (low[1], high[1]) for k in (low[2], high[2])])
        source = self.source
        offsets = (corners @ self._corner_from_index.T)[:, :3] - np.asarray(source.planes[plane].image_position_patient)
        along = offsets @ source.normal
        if along.min() > 0 or along.max() < 0:
            return None
        rows = offsets @ source.column_cosine / source.row_spacing_mm
        columns = offsets @ source.row_cosine / source.column_spacing_mm
        r0, r1 = max(0, int(np.floor(rows.min()))), min(source.rows, int(np.ceil(rows.max())) + 1)
        c0, c1 = max(0, int(np.floor(columns.min()))), min(source.columns, int(np.ceil(columns.max())) + 1)
        return (slice(r0, r1), slice(c0, c1)) if r0 < r1 and c0 < c1 else None


def bring_probability(way: WayBack, scores: torch.Tensor, finish: Callable[[torch.Tensor], torch.Tensor]) -> NDArray[np.float32]:
    """Answers one channel (1, i, j, k) at the pixels of the source, after `finish`, 0 where the network's grid does not reach."""
    result = np.zeros(way.source.shape, dtype=np.float32)

    def one(block: Block) -> None:
        for patch in way.patches(block):
            patch.put(result, finish(patch.sample(block.values[0])).clamp(0, 1).numpy())

    map_on_all_cores(one, blocks_of(scores, skirt=1))
    return result


def winners(values: torch.Tensor) -> torch.Tensor:
    """Answers the channel with the highest value at each voxel of (channels, i, j, k), the first of equals, uint8.

    One class after the other: several times as fast as argmax over the channels, which are far apart in memory.
    """
    best = values[0].clone()
    winner = torch.zeros(best.shape, dtype=torch.uint8)
    for channel in range(1, len(values)):
        winner.masked_fill_(values[channel] > best, channel)
        torch.maximum(best, values[channel], out=best)
    return winner


def contest(values: torch.Tensor, patch: Patch, candidates: list[int]) -> torch.Tensor:
    """Answers which of the candidates has the highest interpolated value at each pixel, the first of equals, uint8."""
    winner = torch.full(patch.shape, candidates[0], dtype=torch.uint8)
    if len(candidates) == 1:
        return winner
    best = patch.sample(values[candidates[0]])
    for channel in candidates[1:]:
        challenger = patch.sample(values[channel])
        winner.masked_fill_(challenger > best, channel)
        best = torch.maximum(best, challenger)
    return winner


def can_win(values: torch.Tensor) -> list[int]:
    """Answers the channels that can have the highest value somewhere between the voxels of (channels, i, j, k).

    Between voxels of k different winners one of them has at least the k-th part of what the winners have on the average, counted from
    the lowest class of each voxel: a class that stays below that part of the winner everywhere wins nowhere. At most eight voxels are
    interpolated between. One winner alone wins everywhere.
    """
    if len(values) <= 2:
        return list(range(len(values)))
    low, high = values.amin(dim=0), values.amax(dim=0)
    span = high.sub_(low)
    are_equal = bool((span == 0).any())
    span.clamp_min_(1e-30)
    share = torch.stack([((channel - low) / span).max() for channel in values])
    won = int((share >= 1 - 1e-5).sum())
    candidates: list[int] = torch.nonzero(share >= (1 - 1e-5) / min(max(won, 1), 8))[:, 0].tolist()
    return [0, *candidates] if are_equal and 0 not in candidates else candidates  # the first of equals


class _Separable:
    """Interpolation along planes, rows and columns one after the other."""

    def __init__(self, order: Axes, taps: tuple[Taps, ...]) -> None:
        self._order = order
        self._taps = taps
        self._columns = _matrix(taps[2]) if taps[2].shift is None else None

    def __call__(self, channel: torch.Tensor) -> torch.Tensor:
        values = channel.permute(self._order)
        planes, rows, columns = self._taps
        values = _mixed(values, 2, columns) if self._columns is None else values[..., : len(self._columns)] @ self._columns
        return _mixed(_mixed(values, 1, rows), 0, planes)


def _matrix(taps: Taps) -> torch.Tensor:
    """Answers the interpolation as a matrix (inputs, outputs). Voxels side by side in memory are mixed faster so than picked singly."""
    matrix = torch.zeros(int(max(taps.first.max(), taps.second.max())) + 1, len(taps.first))
    outputs = torch.arange(len(taps.first))
    matrix[torch.from_numpy(taps.first), outputs] += torch.from_numpy(taps.first_weight).float()
    matrix[torch.from_numpy(taps.second), outputs] += torch.from_numpy(taps.second_weight).float()
    return matrix


def _mixed(values: torch.Tensor, axis: int, taps: Taps) -> torch.Tensor:
    if taps.shift is not None:
        return values.narrow(axis, taps.shift, len(taps.first))
    shape = [-1 if axis == other else 1 for other in range(3)]
    first_weight, second_weight = (torch.from_numpy(weight).float().view(shape) for weight in (taps.first_weight, taps.second_weight))
    mixed = values.index_select(axis, torch.from_numpy(taps.first)).mul_(first_weight)
    return mixed.addcmul_(values.index_select(axis, torch.from_numpy(taps.second)), second_weight)


class _Oblique:
    """Interpolation at places that lie anywhere between the voxels of a block."""

    def __init__(self, index: list[NDArray[np.float64]], whole: Ranges, size: tuple[int, ...]) -> None:
        places = [np.clip(place, 0, extent - 1) for place, extent in zip(index, size, strict=True)]
        scaled = [2 * (place - low) / max(high - low - 1, 1) - 1 for place, (low, high) in zip(places, whole, strict=True)]
        self._grid = torch.from_numpy(np.stack(scaled[::-1], axis=-1)).float()[None, None]

    def __call__(self, channel: torch.Tensor) -> torch.Tensor:
        sampled = torch.nn.functional.grid_sample(
            channel[None, None], self._grid, mode="bilinear", padding_mode="zeros", align_corners=True
        )
        return sampled[0, 0]


def _inside(coordinate: NDArray[np.float64], first: int, last: int) -> NDArray[np.bool_]:
    return (coordinate >= first - 0.5 - _SNAP) & (coordinate <= last + 0.5 + _SNAP)


def _answered(place: NDArray[np.float64], owned: tuple[int, int], size: int) -> NDArray[np.bool_]:
    low, high = owned
    return ((place <= high - 1) | (high == size)) & ((place > low - 1) | (low == 0))


def _reached(nearest: NDArray[np.intp]) -> slice:
    found = np.flatnonzero(nearest >= 0)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _axes_of(index_from_pixel: NDArray[np.float64], source: SourceGrid) -> Axes | None:
    """Answers along which axes of the network's grid planes, rows and columns of the source run, None where they lean."""
    row, column = np.abs(index_from_pixel[:, 0]) * source.rows, np.abs(index_from_pixel[:, 1]) * source.columns
    rows, columns = int(row.argmax()), int(column.argmax())
    if rows == columns or np.delete(row, rows).max() > _LEAN or np.delete(column, columns).max() > _LEAN:
        return None
    return 3 - rows - columns, rows, columns


def _nearest_of(coordinate: NDArray[np.float64], along: NearestAlong, size: int) -> NDArray[np.intp]:
    """Answers the nearest voxels, halves up. A pixel of the image itself lies where its index says, to the last digit."""
    place = along.scale * (np.rint((coordinate + 0.5) / along.scale - 0.5) + 0.5) - 0.5
    place = np.where(np.abs(place - coordinate) < _SNAP, place, coordinate)
    return np.clip(np.floor(place + 0.5), 0, size - 1).astype(np.intp)


def _snapped(coordinate: NDArray[np.float64]) -> NDArray[np.float64]:
    whole = np.rint(coordinate)
    return np.where(np.abs(coordinate - whole) < _SNAP, whole, coordinate)


class _Sampled:
    """The grid that the image was sampled on, where that is known, and MONAI's way back from it."""

    def __init__(self, prepared: Prepared) -> None:
        self._resampled, self._index_from_sampled, self._back = None, np.eye(4), None
        if prepared.resampled is None:
            return
        resampling = prepared.resampled.resampling
        matrix = np.linalg.solve(np.diag([-1.0, -1.0, 1.0, 1.0]) @ prepared.patient_from_index, resampling.to_affine)
        if np.abs(matrix - np.rint(matrix)).max() < _SNAP:  # since then turned, flipped, cropped or padded, but not sampled again
            self._resampled, self._index_from_sampled, self._back = prepared.resampled, np.rint(matrix), parallel_axes(resampling.back)

    def line(self, coordinate: NDArray[np.float64], axis: int, size: int) -> Line:
        """Answers where pixels lie along an axis of the network's grid. Which way halves round hangs on torch's own coordinates."""
        if self._resampled is None or self._back is None:
            return Line(coordinate, size, (0, size - 1))
        along = int(np.abs(self._index_from_sampled[axis, :3]).argmax())
        sign, shift = self._index_from_sampled[axis, [along, 3]]
        last = self._resampled.resampling.to_size[along] - 1
        ends = sorted((int(shift), int(shift + sign * last)))
        line = Line(coordinate, size, (ends[0], ends[1]), self._resampled.padding)
        place = self._back.coordinates[along]
        for order in (slice(None), slice(None, None, -1)):
            if len(place) == len(coordinate) and np.abs(sign * place[order] + shift - coordinate).max() < _SNAP:
                rounded = np.rint(np.clip(place[order], 0, last) if line.padding == "border" else place[order])
                nearest = sign * rounded + shift
                return replace(line, exact_nearest=nearest.astype(np.intp))
        return line


def _split(group: _Group, planes: int = 32) -> Iterator[_Group]:
    """Yields a group in parts, for many cores."""
    depth, rows, columns = group.lines
    for first in range(0, len(depth.coordinate), planes):
        some = slice(first, first + planes)
        exact = None if depth.exact_nearest is None else depth.exact_nearest[some]
        part = replace(depth, coordinate=depth.coordinate[some], exact_nearest=exact)
        yield _Group(group.first_plane + first, (part, rows, columns))
