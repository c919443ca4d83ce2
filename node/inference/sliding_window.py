"""Windows of an image through a network and together again, without ever holding the scores of the whole image.

MONAI's sliding window keeps every class at every voxel until the last window is done. Here the image is cut into the cells between
the edges of the windows. A cell leaves as soon as the last window over it has been seen; what lives at a time are the cells under the
windows of one row and those under the seam to the next layer. Positions, padding and weights of the windows are MONAI's own.
"""

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, runtime_checkable

import torch
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.utils import BlendMode, ensure_tuple_rep, fall_back_tuple

from node.errors import DeviceOutOfMemory
from node.inference.heap import freed_memory_kept
from node.inference.parallel import map_on_all_cores

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of indices along the three axes."""

BATCH_BYTES: Final = 800 << 20
"""What the output of one batch of windows may take, float32."""

USUAL_BATCH: Final = 4
"""More windows at once gain little on a CPU."""

KEPT_BYTES: Final = 128 << 20
"""Up to this output of a batch freed memory is kept between batches. Larger blocks would leave holes that nothing fits into."""

_SPARE_BYTES: Final = 256 << 20
"""Memory of finished cells that is kept for the next ones: fetched fresh from the kernel it would be filled with zeros first."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Where the windows of an image lie. Indices are those of the padded image."""

    size: tuple[int, ...]
    """Of the image, without its padding."""
    before: tuple[int, ...]
    after: tuple[int, ...]
    """Padding, where the image is smaller than a window."""
    roi: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    """First index of the windows along each axis; the windows are all combinations."""
    weights: torch.Tensor | None
    """How much each voxel of a window counts; None where all count the same."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.starts[0]) * len(self.starts[1]) * len(self.starts[2])

    def in_order(self) -> Iterator[Ranges]:
        """Yields the windows so that few cells live at a time: the axis whose seams are smallest outermost."""
        order = sorted(range(3), key=self._seam_voxels)
        for combination in itertools.product(*(self.starts[axis] for axis in order)):
            start = dict(zip(order, combination, strict=True))
            yield tuple((start[axis], start[axis] + self.roi[axis]) for axis in range(3))

    def _seam_voxels(self, axis: int) -> tuple[bool, int]:
        """Answers how many voxels wait between one layer of windows across `axis` and the next; a single layer comes last."""
        steps = [second - first for first, second in itertools.pairwise(self.starts[axis])]
        overlap = self.roi[axis] - min(steps, default=0)
        others = [size for other, size in enumerate(self.size) if other != axis]
        return not steps, overlap * others[0] * others[1]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Finished scores of a part of the image."""

    values: torch.Tensor
    """(channels, i, j, k) of the ranges `whole`. Only for reading, and only until the consumer returns."""
    owned: Ranges
    """Which indices of the image this block answers for."""
    whole: Ranges
    """Which it holds: those it owns and, where wanted, one below along each axis."""


@runtime_checkable
class LaysWindows(Protocol):
    """A sliding window of MONAI that has places and weights of its own (`nnunet.py`)."""

    def lay_windows(self, size: Sequence[int]) -> Windows:
        """Answers the windows of an image of this size."""


def understands(inferer: Any) -> bool:
    """Answers whether an inferer is a sliding window that `stitch` does equally; any other runs as it is."""
    return isinstance(inferer, LaysWindows) or (
        type(inferer) in {SlidingWindowInferer, SlidingWindowInfererAdapt} and not inferer.with_coord
    )


def windows_of(inferer: SlidingWindowInferer, size: Sequence[int]) -> Windows:
    """Answers the windows that the inferer would cut out of an image of this size."""
    if isinstance(inferer, LaysWindows):
        return inferer.lay_windows(size)
    roi = fall_back_tuple(inferer.roi_size, size)
    missing = [max(window - extent, 0) for window, extent in zip(roi, size, strict=True)]
    padded = [extent + more for extent, more in zip(size, missing, strict=True)]
    overlaps = ensure_tuple_rep(inferer.overlap, 3)
    starts = tuple(_starts(*along) for along in zip(padded, roi, overlaps, strict=True))
    weights = None
    if inferer.mode != BlendMode.CONSTANT:
        weights = compute_importance_map(roi, mode=inferer.mode, sigma_scale=inferer.sigma_scale, dtype=torch.float32)
    return Windows(
        size=tuple(size),
        before=tuple(more // 2 for more in missing),
        after=tuple(more - more // 2 for more in missing),
        roi=tuple(roi),
        starts=starts,
        weights=weights,
    )


def _starts(extent: int, window: int, overlap: float) -> tuple[int, ...]:
    """Answers where windows begin along an axis: evenly, the last one moved back to end with the image."""
    step = window if window == extent else max(int(window * (1 - overlap)), 1)
    starts = [0]
    while starts[-1] + window < extent:
        starts.append(min(starts[-1] + step, extent - window))
    return tuple(starts)


@dataclass(slots=True)
class Batches:
    """How many windows the network sees at once, and what had to be done about it."""

    wanted: int
    """By bundle and engine. More are taken where memory allows: torch's convolution of a single volume is a slow one on the CPU."""
    size: int = 2
    notes: list[str] = field(default_factory=list)
    network_s: float = 0.0
    _is_settled: bool = False

    def fit(self, output: torch.Tensor) -> None:
        """Chooses the size from the first output."""
        if not self._is_settled:
            fitting = BATCH_BYTES // (output[0].numel() * output.element_size())
            self.size = max(2, min(max(self.wanted, USUAL_BATCH), fitting))
            self._is_settled = True

    def halve(self, error: DeviceOutOfMemory) -> None:
        """Takes half as many windows; raises what came where there is only one."""
        if self.size == 1:
            raise DeviceOutOfMemory(f"{error} ({'; '.join(self.notes) or 'one window at a time'})") from error
        self.size //= 2
        self._is_settled = True
        self.notes.append(f"out of memory: {self.size} {'window' if self.size == 1 else 'windows'} at a time")


class DifferentSize(Exception):
    """The network's output is not as large as its input."""


Network = Callable[[torch.Tensor], torch.Tensor]
Consumer = Callable[[Block], None]
"""Is called from several threads at once, with blocks that own different parts of the image."""


def stitch(image: torch.Tensor, inferer: SlidingWindowInferer, network: Network, stitcher: "Stitcher", batches: Batches) -> None:
    """Runs `network` on every window of (channels, i, j, k) and gives the outputs to `stitcher`.

    Raises
    ------
    DeviceOutOfMemory
        When not even one window at a time fits.
    DifferentSize
        Before anything was stitched.
    """
    windows = stitcher.windows
    if any(windows.before) or any(windows.after):
        padding = [side for axis in (2, 1, 0) for side in (windows.before[axis], windows.after[axis])]
        image = torch.nn.functional.pad(image[None], padding, mode=str(inferer.padding_mode), value=inferer.cval)[0]
    waiting = list(windows.in_order())
    batches.size = min(batches.size, len(waiting))
    with ExitStack() as stack:
        while waiting:
            taken = waiting[: batches.size]
            try:
                output = _infer(image, taken, network, batches)
            except DeviceOutOfMemory as error:
                batches.halve(error)
                continue
            if tuple(output.shape[2:]) != windows.roi:
                raise DifferentSize
            if len(waiting) == windows.count and output.numel() * output.element_size() <= KEPT_BYTES:
                stack.enter_context(freed_memory_kept())
            batches.fit(output)
            del waiting[: len(taken)]
            stitcher.add(taken, output)
            del output  # as large as all that waits between the windows: the next one must not come on top of it
            stitcher.progress(1 - len(waiting) / windows.count)


def _infer(image: torch.Tensor, taken: Sequence[Ranges], network: Network, batches: Batches) -> torch.Tensor:
    cut = torch.stack([image[:, i0:i1, j0:j1, k0:k1] for (i0, i1), (j0, j1), (k0, k1) in taken])
    began = time.perf_counter()
    output = torch.as_tensor(network(cut)).float()
    batches.network_s += time.perf_counter() - began
    return output


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
        part = _Part(shared, _cut(values, shared, window), None if self._weights is None else _cut(self._weights, shared, window))
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
        self._consumer(Block(values, _moved(owned, before), _moved(whole, before)))


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
    owned = tuple(itertools.pairwise(sorted({first, last} | edges)))
    whole = tuple((max(first, low - skirt), high) for low, high in owned)
    touching = tuple(sum(low < start + roi and high > start for start in starts) for low, high in whole)
    return _Along(owned, whole, touching, roi)


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


def blocks_of(scores: torch.Tensor, skirt: int, edge: int = 64) -> Iterator[Block]:
    """Yields the scores of a whole image (channels, i, j, k), that another inferer has made, as blocks."""
    along = [[(low, min(low + edge, size)) for low in range(0, size, edge)] for size in scores.shape[1:]]
    image = tuple((0, size) for size in scores.shape[1:])
    for owned in itertools.product(*along):
        whole = tuple((max(0, low - skirt), high) for low, high in owned)
        yield Block(_cut(scores, whole, image), owned, whole)


def _add(cell: _Cell, part: _Part, whole: Sequence[tuple[int, int]], *, is_first: bool) -> None:
    assert cell.values is not None  # noqa: S101 - the caller has made it
    target = _cut(cell.values, part.ranges, whole)
    if part.weights is None:
        target.copy_(part.values) if is_first else target.add_(part.values)
    elif is_first:
        torch.mul(part.values, part.weights, out=target)
    else:
        target.addcmul_(part.values, part.weights)
    if cell.weights is not None:
        _cut(cell.weights, part.ranges, whole).add_(1.0 if part.weights is None else part.weights)


def _cut(values: torch.Tensor, ranges: Sequence[tuple[int, int]], of: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Answers the part of (channels, i, j, k), which lies at `of`, that lies at `ranges`."""
    (i0, i1), (j0, j1), (k0, k1) = _moved(ranges, tuple(low for low, _ in of))
    return values[:, i0:i1, j0:j1, k0:k1]


def _moved(ranges: Sequence[tuple[int, int]], by: Sequence[int]) -> Ranges:
    return tuple((low - offset, high - offset) for (low, high), offset in zip(ranges, by, strict=True))
