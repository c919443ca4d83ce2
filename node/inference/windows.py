"""Which windows of an image a network sees, and the parts of it that get ready between them. Positions and weights are MONAI's own."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.utils import BlendMode, ensure_tuple_rep, fall_back_tuple

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of indices along the three axes."""


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


def blocks_of(scores: torch.Tensor, skirt: int, edge: int = 64) -> Iterator[Block]:
    """Yields the scores of a whole image (channels, i, j, k), that another inferer has made, as blocks."""
    along = [[(low, min(low + edge, size)) for low in range(0, size, edge)] for size in scores.shape[1:]]
    image = tuple((0, size) for size in scores.shape[1:])
    for owned in itertools.product(*along):
        whole = tuple((max(0, low - skirt), high) for low, high in owned)
        yield Block(cut(scores, whole, image), owned, whole)


def cut(values: torch.Tensor, ranges: Sequence[tuple[int, int]], of: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Answers the part of (channels, i, j, k), which lies at `of`, that lies at `ranges`."""
    (i0, i1), (j0, j1), (k0, k1) = moved(ranges, tuple(low for low, _ in of))
    return values[:, i0:i1, j0:j1, k0:k1]


def moved(ranges: Sequence[tuple[int, int]], by: Sequence[int]) -> Ranges:
    """Answers ranges that begin `by` further down."""
    return tuple((low - offset, high - offset) for (low, high), offset in zip(ranges, by, strict=True))
