"""Windows put together without ever holding the scores of the whole image.

The image is cut into the cells between the edges of the windows. A cell leaves as soon as the last window over it has been seen; what
lives at a time are the cells under the windows of one row and those under the seam to the next layer.
"""

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from node.inference.parallel import map_on_all_cores
from node.inference.windows import Block, Ranges, Windows, cut, moved

LONGEST_CELL: Final = 48

_SPARE_BYTES: Final = 256 << 20
"""Memory of finished cells that is kept for the next ones: fetched fresh from the kernel it would be filled with zeros first."""

Consumer = Callable[[Block], None]
"""Is called from several threads at once, with blocks that own different parts of the image."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What a window says about some voxels of a cell."""

    ranges: Ranges
    values: torch.Tensor
    weights: torch.Tensor | None

    def copy(self) -> "_Part":
        return replace(self, values=self.values.clone())


@dataclass(slots=True)
class _Cell:
    """Scores summed up so far, and how many windows are still to come."""

    windows_left: int
    values: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    skirts: list[_Part] = field(default_factory=list)
    """Of windows that reach nothing but the skirt."""

    @property
    def bytes(self) -> int:
        held = [part.values for part in self.skirts] + ([] if self.values is None else [self.values])
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


class Stitcher:
    """Sums up windows, cell by cell, and hands out what is finished."""

    def __init__(self, windows: Windows, consumer: Consumer, *, skirt: int, averaged: bool) -> None:
        """`averaged`: scores are divided by their weights. The winner of a voxel does not need it: its classes share the weight."""
        self.windows = windows
        self.progress: Callable[[float], None] = lambda _: None
        self._consumer = consumer
        self._averaged = averaged
        self._along = tuple(_cells_along(windows, axis, skirt) for axis in range(3))
        self._ranges = tuple(along.owned for along in self._along), tuple(along.whole for along in self._along)
        self._weights = None if windows.weights is None else windows.weights[None]
        self._cells: dict[tuple[int, ...], _Cell] = {}
        self._spares = _Spares()

    def add(self, windows: Sequence[Ranges], output: torch.Tensor) -> None:
        """Takes the scores of some windows, (windows, channels, i, j, k)."""
        for window, values in zip(windows, output, strict=True):
            self._add_one(window, values)

    def _add_one(self, window: Ranges, values: torch.Tensor) -> None:
        touched = list(itertools.product(*(along.touched_by(start) for along, (start, _) in zip(self._along, window, strict=True))))
        for index in touched:
            if index not in self._cells:
                counts = [along.windows_of[place] for along, place in zip(self._along, index, strict=True)]
                self._cells[index] = _Cell(counts[0] * counts[1] * counts[2])
        map_on_all_cores(lambda index: self._add_to_cell(index, window, values), touched)
        for index in touched:
            if self._cells[index].windows_left == 0:
                del self._cells[index]

    @property
    def live_bytes(self) -> int:
        """Answers how much the unfinished cells hold."""
        return sum(cell.bytes for cell in self._cells.values())

    def _add_to_cell(self, index: tuple[int, ...], window: Ranges, values: torch.Tensor) -> None:
        cell = self._cells[index]
        owned, whole = ([ranges[place] for ranges, place in zip(of, index, strict=True)] for of in self._ranges)
        cell.windows_left -= 1
        shared = tuple((max(low, start), min(high, stop)) for (low, high), (start, stop) in zip(whole, window, strict=True))
        part = _Part(shared, cut(values, shared, window), None if self._weights is None else cut(self._weights, shared, window))
        if cell.values is None and not cell.skirts and cell.windows_left == 0:
            self._finish(owned, whole, part.values)  # one window alone: its weight is the same for all classes, and divided by itself 1
            return
        if cell.values is None and any(high <= low for (low, _), (_, high) in zip(owned, shared, strict=True)):
            cell.skirts.append(part.copy())  # thin, and long before the rest: not yet worth the memory of the cell
            return
        if cell.values is None:
            cell.values = self._spares.take((len(values), *(high - low for low, high in whole)), values)
            cell.weights = torch.zeros((1, *cell.values.shape[1:]), device=values.device) if self._averaged else None
            if shared != tuple(whole):
                cell.values.zero_()
            _add(cell, part, whole, is_first=shared == tuple(whole))
            for skirt in cell.skirts:
                _add(cell, skirt, whole, is_first=False)
            cell.skirts.clear()
        else:
            _add(cell, part, whole, is_first=False)
        if cell.windows_left == 0:
            if cell.weights is not None:
                cell.values.div_(cell.weights)
            self._finish(owned, whole, cell.values)
            self._spares.put(cell.values)
            cell.values = cell.weights = None

    def _finish(self, owned: Sequence[tuple[int, int]], whole: Sequence[tuple[int, int]], values: torch.Tensor) -> None:
        before = self.windows.before
        self._consumer(Block(values, moved(owned, before), moved(whole, before)))


@dataclass(frozen=True, slots=True)
class _Along:
    """The cells along one axis."""

    owned: tuple[tuple[int, int], ...]
    whole: tuple[tuple[int, int], ...]
    windows_of: tuple[int, ...]
    """How many windows touch each."""
    roi: int

    def touched_by(self, start: int) -> list[int]:
        """Answers which cells a window touches."""
        return [index for index, (low, high) in enumerate(self.whole) if low < start + self.roi and high > start]


def _cells_along(windows: Windows, axis: int, skirt: int) -> _Along:
    """Answers the cells between the edges of the windows. They own the image; `skirt` voxels below are held besides."""
    first, roi, starts = windows.before[axis], windows.roi[axis], windows.starts[axis]
    last = first + windows.size[axis]
    edges = {edge for start in starts for edge in (start, start + roi) if first < edge < last}
    owned = tuple(part for between in itertools.pairwise(sorted({first, last} | edges)) for part in _parted(*between))
    whole = tuple((max(first, low - skirt), high) for low, high in owned)
    touching = tuple(sum(low < start + roi and high > start for start in starts) for low, high in whole)
    return _Along(owned, whole, touching, roi)


def _parted(low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yields a range in even parts: small enough that there is one for every core, and that little lies far apart in memory."""
    parts = -(-(high - low) // LONGEST_CELL)
    for part in range(parts):
        yield low + (high - low) * part // parts, low + (high - low) * (part + 1) // parts


class _Spares:
    """Memory of finished cells for the next ones: fetched fresh from the kernel it would be filled with zeros first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spares: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
        self._bytes = 0

    def take(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Answers a float32 tensor with anything in it."""
        with self._lock:
            if self._spares[shape]:
                spare = self._spares[shape].pop()
                self._bytes -= spare.numel() * spare.element_size()
                return spare
        return torch.empty(shape, dtype=torch.float32, device=like.device)

    def put(self, tensor: torch.Tensor) -> None:
        """Keeps a tensor, or lets it go where there are enough."""
        size = tensor.numel() * tensor.element_size()
        with self._lock:
            if self._bytes + size <= _SPARE_BYTES:
                self._bytes += size
                self._spares[tuple(tensor.shape)].append(tensor)


def _add(cell: _Cell, part: _Part, whole: Sequence[tuple[int, int]], *, is_first: bool) -> None:
    assert cell.values is not None  # noqa: S101 - the caller has made it
    target = cut(cell.values, part.ranges, whole)
    if part.weights is None:
        target.copy_(part.values) if is_first else target.add_(part.values)
    elif is_first:
        torch.mul(part.values, part.weights, out=target)
    else:
        target.addcmul_(part.values, part.weights)
    if cell.weights is not None:
        cut(cell.weights, part.ranges, whole).add_(1.0 if part.weights is None else part.weights)
