"""From the network's grid back to the source grid: scores sampled where the scanner's pixels lie, then the winner taken.

Sampling scores and not labels keeps outlines smooth; sampling at the planes themselves makes tilted and unevenly spaced stacks
no special case. Each class is sampled only inside the box where it wins, plane by plane, so the memory is that of one plane.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from node.domain.volume import Scores, SourceGrid
from node.inference.parallel import map_on_all_cores

MARGIN_INDICES: Final = 2
"""The box of a class is widened by this many indices of the network's grid: linear sampling reaches one, rounding another."""

PROBABILITY_THRESHOLD: Final = 0.5

Box = tuple[tuple[float, float], ...]
"""(lowest, highest) index along each of the three axes."""


def restore_labels(scores: Scores, source: SourceGrid) -> NDArray[np.uint8]:
    """Answers the label of every source pixel, uint8, shape `source.shape`; 0 where the network's grid does not reach.

    A class can win between two points of the network's grid where it wins at neither; such pixels outside the class's box
    are not looked at. Peak memory: the labels, and one running maximum for each plane at work (one a core).
    """
    values = torch.from_numpy(np.ascontiguousarray(scores.values))
    if scores.is_probability:
        background = torch.full_like(values, PROBABILITY_THRESHOLD)
        values = torch.cat([background, values])
    boxes = _winning_boxes(values)
    labels = np.zeros(source.shape, dtype=np.uint8)
    if not boxes:
        return labels
    index_from_patient = np.linalg.inv(scores.patient_from_index)
    corners_mm = {label: _corners_mm(box, scores.patient_from_index) for label, box in boxes.items()}
    union = [min(low) for low in zip(*([axis[0] for axis in box] for box in boxes.values()), strict=True)]
    union_high = [max(high) for high in zip(*([axis[1] for axis in box] for box in boxes.values()), strict=True)]
    everything_mm = _corners_mm(tuple(zip(union, union_high, strict=True)), scores.patient_from_index)

    def label_plane(plane_index: int) -> None:
        window = _window(everything_mm, source, plane_index)
        if window is None:
            return
        index_from_pixel = index_from_patient[:3] @ source.patient_from_pixel(plane_index)
        sampler = _PlaneSampler(values, index_from_pixel, window)
        best = sampler.sample(0, window)
        label_here = torch.zeros(best.shape, dtype=torch.uint8)
        for label in boxes:
            inner = _window(corners_mm[label], source, plane_index)
            if inner is not None:
                sampler.contest(label, inner, best, label_here)
        (r0, r1), (c0, c1) = window
        labels[plane_index, r0:r1, c0:c1] = label_here.numpy()

    map_on_all_cores(label_plane, range(len(source.planes)))
    return labels


def restore_probability(scores: Scores, source: SourceGrid) -> NDArray[np.float32]:
    """Answers the probability of the one class of `scores` at every source pixel, 0 where the network's grid does not reach."""
    values = torch.from_numpy(np.ascontiguousarray(scores.values))
    index_from_patient = np.linalg.inv(scores.patient_from_index)
    probabilities = np.zeros(source.shape, dtype=np.float32)
    whole = ((0, source.rows), (0, source.columns))

    def fill(plane_index: int) -> None:
        sampler = _PlaneSampler(values, index_from_patient[:3] @ source.patient_from_pixel(plane_index), whole)
        probabilities[plane_index] = (sampler.sample(0, whole).clamp(0, 1) * sampler.inside).numpy()

    map_on_all_cores(fill, range(len(source.planes)))
    return probabilities


Window = tuple[tuple[int, int], tuple[int, int]]
"""Half-open ranges of rows and columns."""


class _PlaneSampler:
    """Samples score channels at the pixels of one source plane."""

    def __init__(self, values: torch.Tensor, index_from_pixel: NDArray[np.float64], window: Window) -> None:
        self._values = values
        self._window = window
        (r0, r1), (c0, c1) = window
        rows = torch.arange(r0, r1, dtype=torch.float64)[:, None]
        columns = torch.arange(c0, c1, dtype=torch.float64)[None, :]
        matrix = torch.from_numpy(index_from_pixel)
        index = [matrix[axis, 0] * rows + matrix[axis, 1] * columns + matrix[axis, 2] for axis in range(3)]
        sizes = values.shape[1:]
        self._inside = torch.ones(index[0].shape, dtype=torch.bool)
        for place, size in zip(index, sizes, strict=True):
            self._inside &= (place >= -0.5) & (place <= size - 0.5)
        # grid_sample wants -1..1 and the last axis first (align_corners: -1 and 1 are the centres of the end voxels)
        scaled = [2 * place / max(size - 1, 1) - 1 for place, size in zip(index, sizes, strict=True)]
        self._grid = torch.stack(scaled[::-1], dim=-1).float()

    @property
    def inside(self) -> torch.Tensor:
        """Which pixels of the window the network's grid reaches."""
        return self._inside

    def sample(self, label: int, window: Window) -> torch.Tensor:
        """Answers the scores of one class at the pixels of `window`, shape (rows, columns)."""
        grid = self._cut(self._grid, window)
        sampled = torch.nn.functional.grid_sample(
            self._values[None, label : label + 1].float(), grid[None, None], mode="bilinear", padding_mode="border", align_corners=True
        )
        return sampled[0, 0, 0]

    def contest(self, label: int, window: Window, best: torch.Tensor, label_here: torch.Tensor) -> None:
        """Lets one class win where its score is above the best so far; `best` and `label_here` change in place."""
        challenger = self.sample(label, window)
        best_here = self._cut(best, window)
        wins = (challenger > best_here) & self._cut(self._inside, window)
        best_here[wins] = challenger[wins]
        self._cut(label_here, window)[wins] = label

    def _cut(self, array: torch.Tensor, window: Window) -> torch.Tensor:
        (row, _), (column, _) = self._window
        (r0, r1), (c0, c1) = window
        return array[r0 - row : r1 - row, c0 - column : c1 - column]


def _winning_boxes(values: torch.Tensor) -> dict[int, Box]:
    """Answers, for each class but background that wins anywhere, the widened box of indices where it does."""
    best = values[0].clone()
    winner = torch.zeros(best.shape, dtype=torch.uint8)
    for label in range(1, values.shape[0]):
        wins = values[label] > best
        winner[wins] = label
        torch.maximum(best, values[label], out=best)
    boxes: dict[int, Box] = {}
    for label in torch.unique(winner).tolist():
        if label == 0:
            continue
        where = winner == label
        axes = []
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            found = torch.nonzero(where.any(dim=others[1]).any(dim=others[0]))[:, 0]
            axes.append((float(found[0]) - MARGIN_INDICES, float(found[-1]) + MARGIN_INDICES))
        boxes[label] = tuple(axes)
    return boxes


def _corners_mm(box: Box, patient_from_index: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answers the eight corners of a box in the patient, shape (8, 3)."""
    corners = np.array([(i, j, k, 1.0) for i in box[0] for j in box[1] for k in box[2]])
    return np.asarray((corners @ patient_from_index.T)[:, :3], dtype=np.float64)


def _window(corners_mm: NDArray[np.float64], source: SourceGrid, plane_index: int) -> Window | None:
    """Answers the rows and columns of a plane that a box may cover, None where it does not reach the plane."""
    origin = np.asarray(source.planes[plane_index].image_position_patient)
    offsets = corners_mm - origin
    along = offsets @ source.normal
    if along.min() > 0 or along.max() < 0:
        return None
    rows = offsets @ source.column_cosine / source.row_spacing_mm
    columns = offsets @ source.row_cosine / source.column_spacing_mm
    r0, r1 = max(0, int(np.floor(rows.min()))), min(source.rows, int(np.ceil(rows.max())) + 1)
    c0, c1 = max(0, int(np.floor(columns.min()))), min(source.columns, int(np.ceil(columns.max())) + 1)
    return ((r0, r1), (c0, c1)) if r0 < r1 and c0 < c1 else None
